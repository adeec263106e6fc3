"""Parse a command's arguments into its configuration."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import re
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from beit.config import ModelConfig
from beit.errors import UserError
from beit.plain import to_dict
from pipelines import storage
from pipelines.command_line.parse_errors import refuse
from pipelines.runs import run_folder
from pipelines.runs.models import find_model, model_config


def parse(
    arguments: list[str], kind: type[Any], *, command: str, positional: tuple[str, ...], default: Any = None
) -> Any:
    """Parse the arguments of a command that does not train. The leading ones without a dash are the
    `positional` fields.

    Raises:
        UserError: If one of these is missing.
    """
    named: list[str] = []
    words = [word for word in command.split() if word.isupper()]
    for field, word in zip(positional, words, strict=False):
        if arguments and not arguments[0].startswith("-"):
            named += [f"--{field}", arguments.pop(0)]
        elif not {"-h", "--help", f"--{field}"} & set(arguments):
            raise UserError(f"beit {command}: {word} is missing", f"write beit {command}")
    words_of_name = itertools.takewhile(str.islower, command.split())
    program = " ".join(("beit", *words_of_name))
    positionals = command.removeprefix(program.removeprefix("beit ")).strip()
    return _configuration(
        [*named, *arguments], kind, program=program, positional=positionals, default=default
    )


@dataclass(frozen=True)
class JobCommand:
    """What a job's command line asks for."""

    config: Any
    preset: str
    """Its name, or that of the earlier run's."""
    resume: str | None
    """Run folder to resume, or a checkpoint in it."""


def parse_job(
    arguments: list[str],
    kind: type[Any],
    *,
    job: str,
    program: str,
    default: str,
    presets: dict[str, Any],
    preset: Callable[[str], Any],
    explain: Callable[[Any, str], Iterable[str]] = lambda config, preset: (),
    positional: str = "[PRESET]",
    start: str | None = None,
    with_start: Callable[[Any, str], Any] | None = None,
) -> JobCommand | None:
    """Parse [PRESET | CONFIG.json] [--resume RUN] [--dry-run] [--option value …]; returns None after a dry
    run, which prints the configuration as JSON.

    Args:
        arguments: What was typed behind the command's name.
        kind: The job's configuration.
        job: Its name, as in the config.json of its runs.
        program: What its command line begins with, for its usage.
        default: Preset where none is named.
        presets: All of the job's, for `--help`.
        preset: Name -> its configuration, with `start` applied.
        explain: (configuration, preset) -> lines that a dry run adds on the standard error.
        positional: What the usage says of the arguments without a dash.
        start: The RUN that was given before PRESET.
        with_start: (configuration of an earlier run, its preset) -> the same with `start` applied.

    Raises:
        UserError: For an unknown preset, a run that is not there, or options that a resumed run cannot
            change.
    """
    name = arguments.pop(0) if arguments and not arguments[0].startswith("-") else None
    resume = _take(arguments, "--resume")
    if resume is not None:
        if given := start or name:
            raise UserError(
                f"{given} and --resume {resume}: a resumed run has its own configuration",
                f"leave out {given}",
            )
        resume = run_folder.find_run(resume, job=job)
        base, name = run_folder.saved_config(resume, kind, job=job)
        if hasattr(base, "stop_at"):
            base = dataclasses.replace(base, stop_at=None)  # To go on means to go past it.
    elif name is not None and name.endswith(".json"):
        base, name = run_folder.saved_config(name, kind, job=job)
        base = dataclasses.replace(base, output=dataclasses.replace(base.output, name=None))
        if start is not None and with_start is not None:
            base = with_start(base, name)
    else:
        name = name or default
        base = preset(name)
    dry_run = "--dry-run" in arguments
    arguments = [argument for argument in arguments if argument != "--dry-run"]
    width = 2 + max(14, *map(len, presets))
    lines = "\n".join(
        f"  {key:<{width}}{(function.__doc__ or '').splitlines()[0]}" for key, function in presets.items()
    )
    description = (
        f"Presets:\n{lines}\n  {'CONFIG.json':<{width}}the configuration of an earlier run\n\n"
        "--resume RUN    resume a run from its last checkpoint, or from a checkpoint in it;\n"
        "                latest: the newest run in runs/\n"
        "--dry-run       print the resolved configuration as JSON and stop; what it means goes to stderr\n"
        f"--debug         tracebacks, and Ray's own messages\n\nDefaults below: {name}."
    )
    config = _configuration(
        arguments,
        kind,
        program=program,
        positional=positional,
        default=base,
        description=description,
    )
    if resume is not None:
        run_folder.check_same(base, config)
    if dry_run:
        explained = list(explain(config, name))  # Refuses what it cannot explain, before anything is printed.
        print(json.dumps(to_dict(config), indent=2), flush=True)
        for line in explained:
            print(line, file=sys.stderr)
        return None
    return JobCommand(config, name, resume)


def parse_supervised(
    arguments: list[str],
    kind: type[Any],
    *,
    job: str,
    program: str,
    default: str,
    presets: dict[str, Any],
    config_for: Callable[[str | None, str], Any],
    with_start: Callable[[Any, str, str], Any],
    recipe_for: Callable[[ModelConfig, str], str],
    explain: Callable[[Any, str], Iterable[str]],
) -> JobCommand | None:
    """Parse [RUN] and then what `parse_job` does. RUN is the model to begin with; it chooses and adapts the
    recipe.

    Args:
        arguments: What was typed behind the command's name.
        kind: The job's configuration.
        job: Its name, as in the config.json of its runs.
        program: What its command line begins with, for its usage.
        default: Preset where neither RUN nor PRESET is given.
        presets: Its recipes by name.
        config_for: (RUN or None, preset) -> the recipe, for that model.
        with_start: (configuration of an earlier run, RUN, its preset) -> the same for that model.
        recipe_for: (a model's sizes, its kind) -> the preset that suits it.
        explain: (configuration, preset) -> lines that a dry run adds on the standard error.
    """
    start = None
    first = arguments[0] if arguments and not arguments[0].startswith("-") else None
    if first is not None and first not in presets and not first.endswith(".json"):
        if not storage.exists(storage.absolute(first)):
            config_for(None, first)  # Says what there is.
        start = arguments.pop(0)
        default = recipe_for(config_for(start, default).model, model_config(find_model(start)).kind)

    def from_start(config: Any, name: str) -> Any:
        return with_start(config, start or "", name)

    return parse_job(
        arguments,
        kind,
        job=job,
        program=program,
        default=default,
        presets=presets,
        preset=functools.partial(config_for, start),
        explain=explain,
        positional="[RUN] [PRESET]",
        start=start,
        with_start=from_start,
    )


def _configuration(
    arguments: list[str],
    kind: type[Any],
    *,
    program: str,
    positional: str,
    default: Any,
    description: str | None = None,
) -> Any:
    """Parse options into a `kind`; those left out are as in `default`. `--help` prints them and exits."""
    import tyro
    from tyro import _docstrings
    from tyro._errors import on_parse_error

    if _docstrings.get_field_docstring is not _help_text:
        _help_text.of_tyro = _docstrings.get_field_docstring  # type: ignore[attr-defined]
        _docstrings.get_field_docstring = _help_text  # type: ignore[assignment]
    usage = f"{program} {positional}".strip()

    with on_parse_error(lambda event: refuse(event, arguments, kind, program=program)):
        if default is None:
            return tyro.cli(kind, args=arguments, prog=usage, description=description)
        return tyro.cli(kind, args=arguments, prog=usage, description=description, default=default)


def _help_text(*field: Any) -> str | None:
    """Return tyro's text on a field with its lines joined: they were wrapped for the source."""
    found: str | None = _help_text.of_tyro(*field)  # type: ignore[attr-defined]
    return None if found is None else re.sub(r"(?<!\n)\n(?!\n)", " ", found)


def _take(arguments: list[str], option: str) -> str | None:
    """Remove `option VALUE` or `option=VALUE` from the arguments and return the value."""
    for index, argument in enumerate(arguments):
        if argument == option:
            if index + 1 == len(arguments) or arguments[index + 1].startswith("--"):
                raise UserError(f"{option} needs a value", f"write {option} VALUE")
            arguments.pop(index)
            return arguments.pop(index)
        if argument.startswith(f"{option}="):
            return arguments.pop(index).partition("=")[2]
    return None
