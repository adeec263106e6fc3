"""Constraints on the fields of configs, and `check`, which checks a config against them.

The type of a field states what it accepts:

    dim: PositiveInt = 768
    std: tuple[PositiveFloat, PositiveFloat, PositiveFloat] = (0.229, 0.224, 0.225)
    classes: PositiveInt | None = None

Constraints between several fields are checked by a method of their config, `check_together`. `check` walks a
config and all configs inside it. It names a refused field by its whole path, such as
`evaluation.mask.ratio=1.5`, so the same config class may be used at several places.

None passes every constraint, because it stands for a field that is not given. Every member of a tuple is
checked. NaN and infinity never pass, even if a field has no constraint.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import operator
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Protocol, runtime_checkable

from beit.errors import UserError


@dataclass(frozen=True)
class Constraint:
    """A condition on a value, which is part of the type of a field: `Annotated[int, Constraint(…)]`."""

    holds: Callable[[Any], bool]
    """Whether a value meets the condition."""

    fault: str
    """Message for a value that does not meet it: "is not positive"."""

    allowed: str
    """Which values are accepted: "1 or more"."""

    percent: bool = False
    """Whether a number of 5 or more is probably meant as a percentage."""

    remedy: Callable[[Any], str] | None = None
    """Value -> the remedy, where the value shows what was probably meant. None: the remedy is to set what
    is allowed, or the default."""


def between(low: float, high: float, *, percent: bool = False) -> Constraint:
    """From `low` to `high`, both included."""
    return Constraint(
        lambda value: low <= value <= high,
        f"is not between {low:g} and {high:g}",
        f"{low:g} to {high:g}",
        percent,
    )


def above(low: float) -> Constraint:
    """More than `low`."""
    return Constraint(lambda value: value > low, f"is not above {low:g}", f"a number above {low:g}")


def _is_file_name(value: str) -> bool:
    return value.strip() not in ("", ".", "..") and not set("/\\\0") & set(value)


def _is_range(value: str) -> bool:
    low, dots, high = value.partition("..")
    try:
        return value in ("auto", "full") or (bool(dots) and -math.inf < float(low) < float(high) < math.inf)
    except ValueError:
        return False


def _are_channels(value: str) -> bool:
    numbers = value.split(",")
    return len(numbers) in (1, 3) and all(number.isdecimal() for number in numbers)


FINITE = Constraint(math.isfinite, "is not a finite number", "a number")

PositiveInt = Annotated[int, Constraint(lambda value: value > 0, "is not positive", "1 or more")]
PositiveFloat = Annotated[float, Constraint(lambda value: value > 0, "is not positive", "a number above 0")]

NOT_NEGATIVE = Constraint(lambda value: value >= 0, "is negative", "0 or more")
NotNegativeInt = Annotated[int, NOT_NEGATIVE]
NotNegativeFloat = Annotated[float, NOT_NEGATIVE]

Share = Annotated[float, between(0, 1, percent=True)]
"""From 0 to 1, both included."""

PositiveShare = Annotated[PositiveFloat, between(0, 1, percent=True)]
"""Above 0, at most 1."""

BelowOne = Annotated[
    float, Constraint(lambda value: 0 <= value < 1, "is not in [0, 1)", "0 or more, below 1", percent=True)
]
"""At least 0, and less than 1."""

Byte = Annotated[int, between(0, 255)]
"""From 0 to 255."""

ValueRange = Annotated[
    str,
    Constraint(_is_range, "is no range of values", "auto, full, or two numbers that grow, such as 0..4095"),
]
"""auto, full, or LO..HI."""

Channels = Annotated[
    str,
    Constraint(
        _are_channels, "is not the number of one channel, or of three", "one number or three, such as 0,1,2"
    ),
]
"""Numbers of one channel or of three, counted from 0, with commas between."""

FileName = Annotated[
    str,
    Constraint(_is_file_name, "is not a plain name: it is empty, or has a / in it", "a name without / in it"),
]
"""A name that does not lead into another folder."""


@dataclass(frozen=True)
class Options:
    """How the fields of a config are named to the user, with the path to that config."""

    config: Any
    """The config whose fields are named."""

    at: str = ""
    """Path of the config: "" for the configuration of a whole command, "evaluation.mask." for one inside
    it."""

    def name(self, field: str) -> str:
        """The name of a field: `--shard-mib` for a field of the command itself, `optim.eps` for one of a
        config inside it.
        """
        path = f"{self.at}{field}"
        return path if "." in path else f"--{path.replace('_', '-')}"

    def __call__(self, field: str, value: Any = dataclasses.MISSING) -> str:
        """A field with its value, or with the given value: `--shard-mib 0`, `optim.eps=0`. The field may be
        one of a config inside ("test.stride").
        """
        shown = operator.attrgetter(field)(self.config) if value is dataclasses.MISSING else value
        name = self.name(field)
        return f"{name} {shown}" if name.startswith("--") else f"{name}={shown}"


@runtime_checkable
class ChecksTogether(Protocol):
    """A config with constraints between its fields."""

    def check_together(self, option: Options) -> None:
        """Refuse fields that do not fit together. Each field has passed its own constraint, and the configs
        inside have passed too.

        Args:
            option: Names the fields for the message.

        Raises:
            UserError: If fields do not fit together.
        """


class CommandConfig:
    """Base class for the configuration of a whole command. It is checked when it is created, with all configs
    inside it.

    So every configuration is checked, wherever it comes from: options, a file, a sweep, Python. The configs
    inside do not check themselves, because they do not know their path.
    """

    def __post_init__(self) -> None:
        check(self)

    def check_together(self, option: Options) -> None:
        """Refuse fields that do not fit together. See `ChecksTogether`."""


def check(config: Any, at: str = "") -> None:
    """Refuse a config with a field that does not meet its constraint, or with such a field in a config inside
    it.

    Args:
        config: A dataclass.
        at: Path of the config inside a larger one, such as "model."

    Raises:
        UserError: If there is such a field. The message names the first one by its path, with its value and
            the accepted values.
    """
    option = Options(config, at)
    hints = _hints(config.__class__)
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            check(value, f"{at}{field.name}.")
        elif (constraint := _unmet(hints[field.name], value)) is not None:
            raise _refusal(option, field, value, constraint)
    if isinstance(config, ChecksTogether):
        config.check_together(option)


@functools.cache
def _hints(kind: type[Any]) -> dict[str, Any]:
    return typing.get_type_hints(kind, include_extras=True)


def _unmet(hint: Any, value: Any) -> Constraint | None:
    """The first constraint in a type that a value does not meet; None if it meets all."""
    if value is None:
        return None
    finite = not isinstance(value, float) or math.isfinite(value)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        kind, *metadata = arguments
        for constraint in metadata:
            if isinstance(constraint, Constraint) and not (finite and constraint.holds(value)):
                return constraint if finite else dataclasses.replace(constraint, fault=FINITE.fault)
        return _unmet(kind, value)
    if origin is tuple:
        members = arguments[:1] * len(value) if arguments[-1] is Ellipsis else arguments
        return next(filter(None, map(_unmet, members, value)), None)
    if origin in (typing.Union, types.UnionType):
        return next(filter(None, (_unmet(member, value) for member in arguments)), None)
    return None if finite else FINITE


def _refusal(option: Options, field: dataclasses.Field[Any], value: Any, constraint: Constraint) -> UserError:
    name, default = field.name, field.default
    cause = f"{option(name, repr(value) if isinstance(value, str) else value)} {constraint.fault}"
    if constraint.percent and isinstance(value, int | float) and value >= 5 and constraint.holds(value / 100):
        return UserError(cause, f"set {option(name, f'{value / 100:g}')} if {value:g} % is meant")
    if constraint.remedy is not None:
        return UserError(cause, constraint.remedy(value))
    if default is None:
        return UserError(cause, f"set {constraint.allowed}, or leave it out")
    if default is dataclasses.MISSING:
        return UserError(cause, f"set {constraint.allowed}")
    return UserError(cause, f"set {option(name, f'{default:g}' if isinstance(default, float) else default)}")
