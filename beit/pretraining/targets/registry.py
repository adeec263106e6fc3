"""Register targets, and find them by the name in `target.kind`."""

from __future__ import annotations

from typing import TypeVar

from beit.pretraining.targets.base import Target
from beit.pretraining.targets.colour import MeanColour
from beit.pretraining.targets.pixels import Pixels
from beit.pretraining.targets.tokens import VisualTokens
from beit.registry import Registry

TARGETS: Registry[type[Target]] = Registry(
    "target.kind",
    {target.kind: target for target in (VisualTokens, Pixels, MeanColour)},
    register="beit.pretraining.targets.register_target",
)

OfTarget = TypeVar("OfTarget", bound=type[Target])


def register_target(target: OfTarget) -> OfTarget:
    """Register a target, which `target.kind` can then name by its `kind`. If a kind is registered again, the
    latest counts.

    Workers need not know the name: they receive the target itself. Its class is pickled by value if it is
    defined in the program that is run. If it is defined in a module that only this machine can import, call
    `ray.cloudpickle.register_pickle_by_value(module)`.
    """
    TARGETS.add(target.kind, target)
    return target


def find_target(kind: str) -> type[Target]:
    """Return the target with this name.

    Raises:
        UserError: If the name is unknown; the message suggests the nearest one.
    """
    return TARGETS.find(kind)
