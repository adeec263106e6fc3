"""The Vision Transformer of BEiT: backbone, positions at other resolutions, checkpoints, and transfer of
weights.
"""
