"""What tyro refuses, in our two lines: the option as typed and why; the nearest option, or a value that would
do.
"""

from __future__ import annotations

import dataclasses
import difflib
import itertools
import re
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from beit.errors import UserError

if TYPE_CHECKING:
    from tyro._arguments import ArgumentDefinition
    from tyro._errors import ParseErrorEvent

OF_EVERY_JOB = ("--resume", "--dry-run", "--debug")
"""Options that no configuration has."""

WORDS = {"INT": "a whole number", "FLOAT": "a number", "STR": "text"}
"""How tyro calls the type of a value, and how we do."""


def refuse(event: ParseErrorEvent, arguments: list[str], kind: type[Any], *, program: str) -> None:
    """Turn what tyro found wrong with `arguments`, which were to become a `kind`, into a `UserError`.

    An event of another sort than those below is left to tyro, which prints it in its own way and exits with 2
    as well.

    `program` is what the command line begins with, for messages.

    Raises:
        UserError: For options that do not exist, values that are missing or cannot be read, and options that
            are missing.
    """
    from tyro._errors import BadValue, InstantiationFailure, InvalidChoice, MissingArgs, UnrecognizedArgs

    if isinstance(event, UnrecognizedArgs):
        raise _no_option(event.tokens[0], program, kind)
    if isinstance(event, MissingArgs):
        if event.unrecognized_tokens:
            raise _no_option(event.unrecognized_tokens[0], program, kind)
        name = _name(event.missing_arguments[0].arg)
        raise UserError(
            f"{program}: {name} is missing", f"give {name} {_example(event.missing_arguments[0].arg)}"
        )
    if isinstance(event, InvalidChoice):
        close = difflib.get_close_matches(event.value, event.choices, n=1)
        offered = f"perhaps you meant {close[0]}" if close else f"choose {_either(event.choices)}"
        raise UserError(
            f"{_name(event.argument)} {event.value} is none of {', '.join(event.choices)}", offered
        )
    if isinstance(event, BadValue) and event.reason == "too_few_values":
        wanted = event.argument.lowered.nargs
        values = f"{wanted} values" if isinstance(wanted, int) and wanted > 1 else "a value"
        raise UserError(
            f"{_name(event.argument)} needs {values}",
            f"write {_name(event.argument)} {_example(event.argument)}",
        )
    if isinstance(event, InstantiationFailure) and event.argument is not None:
        name = _name(event.argument)
        typed = " ".join([name, *_values(arguments, name)])
        raise UserError(
            f"{typed} is not {_kind_of(event.argument)}", f"write {name} {_example(event.argument)}"
        )


def option_names(kind: type[Any]) -> list[str]:
    """Every option of a tree of dataclasses, as it is typed: `--optim.peak-lr`."""
    return [f"--{name.replace('_', '-')}" for name in _fields(kind)]


def _fields(kind: type[Any]) -> Iterator[str]:
    types = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        if dataclasses.is_dataclass(types[field.name]):
            yield from (f"{field.name}.{name}" for name in _fields(types[field.name]))
        else:
            yield field.name
            if types[field.name] is bool:
                yield f"no-{field.name}"


def _no_option(typed: str, command: str, kind: type[Any]) -> UserError:
    if not typed.startswith("-"):
        remedy = f"options begin with --; {command} --help lists them"
        if "start" in _fields(kind) and Path(typed, "config.json").exists():
            remedy = f"name the run before the preset: {command} {typed} [PRESET]"
        elif Path(typed).exists():
            remedy = (
                "options begin with --; a pattern such as 'FOLDER/train-*' goes in quotes, or the "
                "shell replaces it by its files"
            )
        return UserError(f"{command}: {typed} belongs to no option", remedy)
    name = typed.partition("=")[0]
    close = nearest(name, [*option_names(kind), *OF_EVERY_JOB])
    return UserError(
        f"{command} has no option {name}",
        f"perhaps you meant {_either(close)}" if close else f"{command} --help lists the options",
    )


def nearest(typed: str, names: list[str]) -> list[str]:
    """At most three options that may have been meant: by their last part, else by what contains it, else by
    spelling.
    """

    def last(name: str) -> str:
        return name.replace("_", "-").rpartition(".")[2].removeprefix("--")

    same = [name for name in names if last(name) == last(typed)]
    longer = [name for name in names if len(last(typed)) > 1 and last(typed) in last(name)]
    return (same or longer or difflib.get_close_matches(typed.replace("_", "-"), names, n=1))[:3]


def _name(argument: ArgumentDefinition) -> str:
    return argument.lowered.name_or_flags[0]


def _kind_of(argument: ArgumentDefinition) -> str:
    """`{None}|INT` -> "a whole number or None"; `FLOAT FLOAT FLOAT` -> "3 values, each a number"."""
    metavars = str(argument.lowered.metavar).split()
    choices = [
        WORDS.get(choice, choice) for choice in re.split(r"[|,]", re.sub(r"[{}\[\]]", "", metavars[0]))
    ]
    ordered = [choice for choice in choices if choice != "None"] + [
        choice for choice in choices if choice == "None"
    ]
    times = argument.lowered.nargs
    return (f"{times} values, each " if isinstance(times, int) and times > 1 else "") + _either(ordered)


def _example(argument: ArgumentDefinition) -> str:
    """The default as it would be typed; where there is none, capitals for each value."""
    default = argument.field.default
    if isinstance(default, tuple) and default:
        return " ".join(map(str, default))
    if isinstance(default, str | int | float):
        return str(default)
    wanted = argument.lowered.nargs
    return " ".join(
        ["N" if "INT" in str(argument.lowered.metavar) else "VALUE"]
        * (wanted if isinstance(wanted, int) else 1)
    )


def _values(arguments: list[str], name: str) -> list[str]:
    """What was typed behind the option: `--steps 1.5` or `--steps=1.5`."""
    for index, argument in enumerate(arguments):
        typed, equals, value = argument.partition("=")
        if typed.replace("_", "-") == name:
            return (
                [value]
                if equals
                else list(
                    itertools.takewhile(lambda other: not other.startswith("--"), arguments[index + 1 :])
                )
            )
    return []


def _either(choices: list[str] | tuple[str, ...]) -> str:
    return " or ".join(filter(None, (", ".join(choices[:-1]), choices[-1])))
