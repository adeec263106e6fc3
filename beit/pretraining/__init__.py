"""Masked image modelling: masks, targets, the model and its objective."""
