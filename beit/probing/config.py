"""Configuration of the k-NN and linear probes. Imports nothing heavy, like `beit/config.py`."""

from __future__ import annotations

from dataclasses import dataclass

from beit.checks import NotNegativeFloat, PositiveFloat, PositiveInt


@dataclass(frozen=True, kw_only=True)
class KnnConfig:
    """Nearest neighbours by cosine similarity, each voting for its class with weight exp(similarity /
    temperature).

    Weighting and values as in DINO (arXiv 2104.14294) and, before it, in instance discrimination (arXiv
    1805.01978).
    """

    neighbours: PositiveInt = 20
    """Number of training images that vote on the class of each image."""

    temperature: PositiveFloat = 0.07
    """Temperature of the votes: the smaller, the more the most similar images dominate."""


@dataclass(frozen=True, kw_only=True)
class LinearConfig:
    """A linear layer on standardised features, trained by AdamW with a cosine decay to 0: the paper's recipe
    without augmentation.
    """

    epochs: PositiveInt = 50
    """Passes over the training features."""

    batch_size: PositiveInt = 256
    """Images per optimizer step."""

    lr: PositiveFloat = 1e-3
    """Initial learning rate for 256 images per step. It is scaled in proportion to `batch_size`: the paper's
    1,024 images get its 4e-3."""

    weight_decay: NotNegativeFloat = 1e-4
    """AdamW's weight decay."""
