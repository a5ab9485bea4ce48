"""Scores against references, comparisons of methods, calibration."""
