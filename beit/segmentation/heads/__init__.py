"""Heads that turn the backbone's maps into a class for every pixel. Names of modules are those of the
published mmseg checkpoints.
"""
