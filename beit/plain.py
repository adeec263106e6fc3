"""Configs as plain JSON types and back: `to_dict`, `from_dict`, and `override` by dotted names."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, TypeVar

from beit.checks import check
from beit.errors import UserError

Config = TypeVar("Config")


def to_dict(config: Any) -> dict[str, Any]:
    """A config as plain JSON types; `from_dict` reads it back."""
    return dataclasses.asdict(config)


def from_dict(kind: type[Config], values: Mapping[str, Any], *, at: str = "") -> Config:
    """Build a config strictly from plain JSON types, and check it.

    Args:
        kind: Its dataclass.
        values: Its fields; those left out have their defaults.
        at: Path of the config inside a larger one, such as "model."

    Raises:
        UserError: For an unknown field, or a value that a field does not take; the field is named by its
            path.
    """
    config = _built(kind, values, at)
    check(config, at)
    return config


def _built(kind: type[Config], values: Mapping[str, Any], at: str) -> Config:
    hints = typing.get_type_hints(kind)
    unknown = sorted(set(values) - set(hints))
    if unknown:
        raise UserError(
            f"{at}{unknown[0]} is not a field of {kind.__name__}", f"its fields: {', '.join(hints)}"
        )
    built = {}
    for name, value in values.items():
        field_type = hints[name]
        if dataclasses.is_dataclass(field_type) and isinstance(field_type, type):
            if not isinstance(value, Mapping):
                raise UserError(
                    f"{at}{name}={value!r} is not a table of fields",
                    f"its fields: {', '.join(typing.get_type_hints(field_type))}",
                )
            built[name] = _built(field_type, value, f"{at}{name}.")
        else:
            built[name] = _plain(field_type, value, f"{at}{name}")
    return kind(**built)


def _plain(field_type: Any, value: Any, name: str) -> Any:
    """Check a JSON value against a field's type; lists become tuples, whole numbers become floats where one
    is asked for.
    """
    origin, arguments = typing.get_origin(field_type), typing.get_args(field_type)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        for option in (argument for argument in arguments if argument is not type(None)):
            try:
                return _plain(option, value, name)
            except UserError:
                continue
    elif origin is Literal:
        if value in arguments:
            return value
    elif origin is tuple:
        if isinstance(value, (list, tuple)):
            members = arguments[:1] * len(value) if arguments[-1] is Ellipsis else arguments
            if len(members) == len(value):
                return tuple(_plain(member, item, name) for member, item in zip(members, value, strict=True))
    elif field_type is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    elif isinstance(field_type, type) and type(value) is field_type:
        return value
    expected = (
        getattr(field_type, "__name__", None) if origin is None else str(field_type).replace("typing.", "")
    )
    raise UserError(f"{name}={value!r} has the wrong type", f"expected {expected}")


def override(config: Config, values: Mapping[str, Any]) -> Config:
    """A copy of a config with fields replaced by their dotted names, such as {"optim.peak_lr": 1e-3}.

    Raises:
        UserError: If a name is no field; the message names it.
    """
    tree = to_dict(config)
    for dotted, value in values.items():
        *path, last = dotted.split(".")
        branch = tree
        for part in path:
            if not isinstance(branch.get(part), dict):
                raise _no_field(config, dotted, part, branch)
            branch = branch[part]
        if last not in branch:
            raise _no_field(config, dotted, last, branch)
        branch[last] = value
    return from_dict(type(config), tree)


def _no_field(config: Any, dotted: str, part: str, there: Mapping[str, Any]) -> UserError:
    """The error for a dotted name of which one part is no field of its config, or has no fields below it."""
    close = [] if part in there else difflib.get_close_matches(part, there, n=1)
    meant = f"perhaps you meant {close[0]}; " if close else ""
    return UserError(
        f"{dotted} is not a field of {type(config).__name__}",
        f"{meant}fields at that place: {', '.join(there)}",
    )
