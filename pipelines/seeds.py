"""Seeds of all random choices that concern a sample."""

import numpy as np

# Purposes. None is zero: numpy pads a short seed with zeros, so that [7, 3] and [7, 3, 0] would be one
# stream.
ORDER = 1
VIEW = 2
MASK = 3
MIX = 4
SCENE = 5
REPORT = 6
BUFFER = 7
AUGMENT = 8
FRACTION = 9


def generator(seed: int, purpose: int, epoch: int, unit: int, row: int) -> np.random.Generator:
    """Return the generator of one sample for one purpose. The seed always has five numbers, so that no two
    generators draw the same stream.

    Drawing a mask never changes the view of the same sample, and each is the same on any node and in any
    order.
    """
    return np.random.default_rng([seed, purpose, epoch, unit, row])
