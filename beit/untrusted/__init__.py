"""Pickled files from elsewhere, read without running anything in them."""
