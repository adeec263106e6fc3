"""Targets by the name that `target.kind` gives."""

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
    """Add a target, for `target.kind` to name by its `kind`. Given again, the latest counts.

    Workers need not know the name: they are sent the target itself. Its class is pickled by value where it is
    defined in the program that is run. Of a module that only this machine can import, say so:
    `ray.cloudpickle.register_pickle_by_value(module)`.
    """
    TARGETS.add(target.kind, target)
    return target


def find_target(kind: str) -> type[Target]:
    """The target of that name.

    Raises:
        UserError: For an unknown name, with the nearest one.
    """
    return TARGETS.find(kind)
