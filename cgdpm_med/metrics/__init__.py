"""Numbers that say how good masks, ensembles, probabilities and pictures are."""
