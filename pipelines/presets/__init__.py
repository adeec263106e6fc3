"""Presets: complete configurations of runs, by name."""
