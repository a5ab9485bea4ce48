"""Data sets of any segmentation task: how they lie in folders, what is in them, how to train on them."""
