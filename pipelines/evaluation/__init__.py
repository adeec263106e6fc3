"""Evaluate a model on every image of a set, exactly once."""
