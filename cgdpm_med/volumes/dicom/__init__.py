"""DICOM: what one file says of its place and time, which images belong together, and their order."""
