"""Outputs that are written in parts, so that a job that was stopped goes on where it was."""
