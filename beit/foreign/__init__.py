"""Weights of other projects: what their files are, what they call things, and how ours are written
for them.
"""
