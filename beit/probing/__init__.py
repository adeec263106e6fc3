"""Evaluate a frozen backbone: features, probes, attention."""
