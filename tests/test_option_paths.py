"""Every option of every command: an invalid value is refused with the option's whole path."""

import ast
import dataclasses
import importlib
import math
import typing
from typing import Any

import pytest

from beit.checks import CommandConfig, Constraint
from beit.errors import UserError
from beit.plain import override
from pipelines.cli import COMMANDS
from tune.config import SweepConfig, sweep_preset

for entry in COMMANDS.values():
    importlib.import_module(entry.function.partition(":")[0])

ANY_SIGN = {"layers"}
"""Numbers that may be negative: -1 is the last layer."""

VALUES = (-7, 0, 1, 1.5, 256, "", "a/b")
"""Each constraint forbids one of these."""


def all_below(kind: type) -> list[type]:
    """Every subclass, and theirs, that is ours and not a test's."""
    return [
        found
        for child in kind.__subclasses__()
        for found in (child, *all_below(child))
        if found.__module__.partition(".")[0] in ("beit", "pipelines", "tune")
    ]


def options(kind: type, path: tuple[str, ...] = ()) -> typing.Iterator[tuple[tuple[str, ...], Any]]:
    """(path, type) of every field of a config and of those in it."""
    hints = typing.get_type_hints(kind, include_extras=True)
    for field in dataclasses.fields(kind):
        hint = hints[field.name]
        if dataclasses.is_dataclass(hint):
            yield from options(hint, (*path, field.name))
        else:
            yield (*path, field.name), hint


def parts(hint: Any) -> list[Any]:
    """A type and all that it is made of, constraints too."""
    inner = typing.get_args(hint)
    if typing.get_origin(hint) is typing.Literal:
        return [hint]
    return [hint, *(part for other in inner for part in parts(other))]


def example(kind: type) -> Any:
    """A config with its defaults, and x where there is none."""
    return (
        sweep_preset("base")
        if kind is SweepConfig
        else kind(
            **{
                field.name: "x"
                for field in dataclasses.fields(kind)
                if field.default is field.default_factory is dataclasses.MISSING
            }
        )
    )


def with_value(config: Any, path: tuple[str, ...], value: Any) -> Any:
    """A copy with another value, made in Python."""
    name, *rest = path
    return dataclasses.replace(
        config, **{name: with_value(getattr(config, name), tuple(rest), value) if rest else value}
    )


def in_place(hint: Any, value: Any) -> Any:
    """The value as a field of this type has it: in a tuple, where that is one."""
    for part in parts(hint):
        if typing.get_origin(part) is tuple:
            members = typing.get_args(part)
            return (value,) * (1 if members[-1] is Ellipsis else len(members))
    return value


def named(path: tuple[str, ...], value: Any) -> str:
    """An option with its value, as messages have it."""
    shown = repr(value) if isinstance(value, str) else value
    return f"{'.'.join(path)}={shown}" if len(path) > 1 else f"--{path[0].replace('_', '-')} {shown}"


KINDS = sorted(all_below(CommandConfig), key=lambda kind: kind.__name__)
ALL = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)


def test_the_configuration_of_every_command_is_here():
    names = {kind.__name__ for kind in KINDS}
    assert {
        "PretrainConfig",
        "SweepConfig",
        "AblationConfig",
        "PlanConfig",
        "ProbeConfig",
        "PackConfig",
    } <= names
    assert len(names) >= len(COMMANDS) - 1, "all but beit report, which takes a run alone"


@ALL
def test_no_number_may_be_negative_or_infinite_without_a_reason(kind):
    config = example(kind)
    for path, hint in options(kind):
        if path[-1] in ANY_SIGN or not {int, float} & {
            part for part in parts(hint) if isinstance(part, type)
        }:
            continue
        for wrong in (-7, *((math.nan, math.inf, -math.inf) if float in parts(hint) else ())):
            value = in_place(hint, wrong)
            with pytest.raises(UserError) as refused:
                with_value(config, path, value)
            assert named(path, value) in refused.value.cause


@ALL
def test_what_a_constraint_forbids_is_refused_by_its_path_with_a_value_that_would_do(kind):
    config = example(kind)
    for path, hint in options(kind):
        constraints = [part for part in parts(hint) if isinstance(part, Constraint)]
        texts = str in parts(hint)
        for wrong in (value for value in VALUES if isinstance(value, str) == texts):
            if all(constraint.holds(wrong) for constraint in constraints):
                continue
            value = in_place(hint, wrong)
            with pytest.raises(UserError) as refused:
                with_value(config, path, value)
            assert refused.value.cause.startswith(f"{named(path, value)} is ")
            if int not in parts(hint) or not isinstance(wrong, float):
                with pytest.raises(UserError) as from_file:
                    override(config, {".".join(path): value})
                assert from_file.value.cause.partition(" is ")[2] == refused.value.cause.partition(" is ")[2]
            name = named(path, 0)[:-1]
            if (proposed := refused.value.remedy.removeprefix(f"set {name}")) != refused.value.remedy:
                proposed = proposed if texts else ast.literal_eval(proposed)
                for member in proposed if isinstance(proposed, tuple) else (proposed,):
                    assert all(constraint.holds(member) for constraint in constraints)
            else:
                assert refused.value.remedy.endswith(", or leave it out")
