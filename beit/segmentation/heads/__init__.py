"""Segmentation heads. Their modules have the names of published mmseg checkpoints."""
