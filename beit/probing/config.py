"""How frozen features are judged. Imports nothing heavy: the command line reads this file first."""

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
    """Training images that vote on each image."""

    temperature: PositiveFloat = 0.07
    """Of the votes: the smaller, the more the nearest ones count."""


@dataclass(frozen=True, kw_only=True)
class LinearConfig:
    """A linear layer on standardised features, trained by AdamW with a cosine to 0: the paper's recipe but
    for augmentation.
    """

    epochs: PositiveInt = 50
    """Passes over the training features."""

    batch_size: PositiveInt = 256
    """Images of a step."""

    lr: PositiveFloat = 1e-3
    """First learning rate, for 256 images a step; scaled with the batch, so that the paper's 1,024 have its
    4e-3."""

    weight_decay: NotNegativeFloat = 1e-4
    """Pull of the weights towards 0."""
