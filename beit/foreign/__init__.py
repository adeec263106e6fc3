"""Weights of other projects: read them, translate their names, and write ours in their formats."""
