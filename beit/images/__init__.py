"""Decode images, make views of them, and draw sheets of images."""
