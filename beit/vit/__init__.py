"""The Vision Transformer of BEiT: backbone, positions at other resolutions, checkpoints, weights
taken over.
"""
