"""Data sets, splits, dictionary transforms and augmentation: from files to what a network is trained on."""
