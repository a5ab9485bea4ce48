"""From images to predictions: predictors, MONAI inferers, the segmenter, and its quality by agreement."""
