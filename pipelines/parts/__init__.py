"""Outputs that are written in parts, so that an interrupted job can be resumed."""
