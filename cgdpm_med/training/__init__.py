"""MONAI engines, handlers and the second stage of CG-DPM."""
