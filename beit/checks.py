"""What configs demand of their fields. A refused value is named as the user types it, and the default is the
remedy.

`prefix` is what stands before the fields' names: "model." for a nested config, "--" for the options of a
command itself. None passes every check: it is how a field is left out. Of a tuple, every member is checked.
NaN and infinity never pass.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

from beit.errors import UserError


def positive(config: Any, prefix: str, *names: str) -> None:
    """Refuse fields that are not above 0."""
    for name in names:
        whole = "int" in str(_field(config, name).type)
        _check(
            config,
            prefix,
            name,
            lambda value: value > 0,
            "is not positive",
            "1 or more" if whole else "a number above 0",
        )


def not_negative(config: Any, prefix: str, *names: str) -> None:
    """Refuse fields below 0."""
    for name in names:
        _check(config, prefix, name, lambda value: value >= 0, "is negative", "0 or more")


def share(config: Any, prefix: str, *names: str) -> None:
    """Refuse fields that are not between 0 and 1, these two included."""
    for name in names:
        value = getattr(config, name)
        if isinstance(value, int | float) and 5 <= value <= 100:
            raise UserError(
                f"{option(prefix, name, value)} is not between 0 and 1",
                f"set {option(prefix, name, f'{value / 100:g}')} if {value:g} % is meant",
            )
        _check(config, prefix, name, lambda value: 0 <= value <= 1, "is not between 0 and 1", "0 to 1")


def below_one(config: Any, prefix: str, *names: str) -> None:
    """Refuse fields that are not between 0 and 1, or are 1."""
    for name in names:
        _check(config, prefix, name, lambda value: 0 <= value < 1, "is not in [0, 1)", "0 or more, below 1")


def byte(config: Any, prefix: str, *names: str) -> None:
    """Refuse fields that no 8 bits hold."""
    for name in names:
        _check(config, prefix, name, lambda value: 0 <= value <= 255, "is not between 0 and 255", "0 to 255")


def file_name(config: Any, prefix: str, *names: str) -> None:
    """Refuse fields that would name nothing, or something in another folder."""
    for name in names:
        value = getattr(config, name)
        if value is not None and (value.strip() in ("", ".", "..") or set("/\\\0") & set(value)):
            raise UserError(
                f"{option(prefix, name, repr(value))} is not a plain name",
                "give a name that is not empty and has no / in it",
            )


def option(prefix: str, name: str, value: Any) -> str:
    """A field and its value as they are typed: `optim.eps=0` in a nested config, `--shard-mib 0` on a
    command.
    """
    return f"--{name.replace('_', '-')} {value}" if prefix == "--" else f"{prefix}{name}={value}"


def _check(
    config: Any, prefix: str, name: str, holds: Callable[[Any], bool], fault: str, allowed: str
) -> None:
    value = getattr(config, name)
    for member in value if isinstance(value, tuple) else (value,):
        if member is None or (holds(member) and member != math.inf):
            continue
        finite = not isinstance(member, float) or math.isfinite(member)
        default = _field(config, name).default
        raise UserError(
            f"{option(prefix, name, value)} {fault if finite else 'is not a finite number'}",
            f"set {allowed}, or leave it out"
            if default is None
            else f"set {option(prefix, name, f'{default:g}' if isinstance(default, float) else default)}",
        )


def _field(config: Any, name: str) -> dataclasses.Field[Any]:
    return next(field for field in dataclasses.fields(config) if field.name == name)
