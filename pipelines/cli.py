"""The command `beit`: a table of its commands. A command's module is imported only when it is called."""

from __future__ import annotations

import difflib
import importlib
import importlib.metadata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from beit.errors import UserError
from pipelines.command_line.run import Command, run_program


@dataclass(frozen=True)
class Entry:
    """A command of the table."""

    takes: str
    """What stands behind its name."""

    help: str
    """What it does, in a line."""

    function: str
    """module:function of its `Command`. A string, so that no job is imported before it is asked for."""

    report: str | None = None
    """module:function that writes the report of one of its runs again. None: its runs have none."""


COMMANDS = {
    "pretrain": Entry(
        "[PRESET]",
        "train on --data.train, or on built-in scenes",
        "pipelines.pretrain:command",
        "pipelines.pretrain:rebuild_report",
    ),
    "sweep": Entry(
        "[PRESET]",
        "pretrain many times, with mask ratio and learning rate varied, by Ray Tune",
        "tune.sweep:command",
        "tune.sweep:rebuild_report",
    ),
    "ablate": Entry(
        "[PRESET]",
        "the paper's table 4: its rows pretrained and fine-tuned, beside its figures",
        "tune.ablation.ablate:command",
        "tune.ablation.ablate:rebuild_report",
    ),
    "finetune": Entry(
        "[RUN] [PRESET]",
        "train a classifier, from a pretrained run or from scratch",
        "pipelines.finetune:command",
        "pipelines.finetune:rebuild_report",
    ),
    "segment": Entry(
        "[RUN] [PRESET]",
        "train a segmenter, likewise",
        "pipelines.segment:command",
        "pipelines.segment:rebuild_report",
    ),
    "tokenizer train": Entry(
        "[PRESET]",
        "train a tokenizer (discrete VAE)",
        "pipelines.train_tokenizer:command",
        "pipelines.train_tokenizer:rebuild_report",
    ),
    "tokenizer convert": Entry(
        "FILE OUT",
        "a published tokenizer, such as DALL-E's, without running its pickle",
        "pipelines.tools.convert:command",
    ),
    "tokenizer encode": Entry(
        "[PRESET]",
        "tokens of K epochs' views, computed once for any number of runs",
        "pipelines.encode_tokens:command",
    ),
    "tokenizer show": Entry(
        "IMAGE…",
        "images, their visual tokens and reconstructions as a PNG",
        "pipelines.tools.show_tokens:command",
    ),
    "data scenes": Entry("OUT", "render the built-in scenes", "pipelines.tools.write_scenes:command"),
    "data pack": Entry(
        "SRC OUT",
        "class folders, tars, ILSVRC archives -> shuffled Parquet shards",
        "pipelines.tools.pack:command",
    ),
    "data check": Entry(
        "PATH", "counts, sizes, broken files, a contact sheet", "pipelines.tools.check:command"
    ),
    "import": Entry(
        "FILE OUT",
        "published weights (unilm, timm, Hugging Face) -> a checkpoint; no pickle runs",
        "pipelines.tools.weights:import_command",
    ),
    "export": Entry(
        "RUN OUT",
        "a model for Hugging Face, timm or the released code",
        "pipelines.tools.weights:export_command",
    ),
    "features": Entry("RUN DATA OUT", "features of every image, as Parquet", "pipelines.features:command"),
    "probe": Entry(
        "RUN",
        "what frozen features know about labels, layer by layer",
        "pipelines.probe:command",
        "pipelines.probe:rebuild_report",
    ),
    "attention": Entry(
        "RUN IMAGE…",
        "what chosen patches attend to, a map a head, as a PNG",
        "pipelines.tools.show_attention:command",
    ),
    "report": Entry("RUN", "write a run's report again", "pipelines.cli:report"),
    "compare": Entry(
        "[NAME=]RUN…",
        "curves of several runs in one picture, seeds averaged",
        "pipelines.tools.compare:command",
    ),
    "plan": Entry(
        "[PRESET]",
        "time, nodes, costs and storage of a pretraining, here and on a cluster",
        "pipelines.planning.plan:command",
    ),
    "doctor": Entry(
        "",
        "what stands in the way of a run, here or on the cluster",
        "pipelines.tools.doctor.command:command",
    ),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry of the console script."""
    run_program(beit, arguments)


def beit(arguments: list[str], debug: bool) -> None:
    """Find the command that the first words name, and call it with the others."""
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_help())
    elif arguments[0] == "--version":
        print(importlib.metadata.version("beit-pretraining"))
    elif arguments[0] in _groups() and arguments[1:] in (["-h"], ["--help"]):
        print("\n".join(_lines(arguments[0] + " ")))
    else:
        name = _find(arguments)
        command: Command = _imported(COMMANDS[name].function)
        command(arguments[len(name.split()) :], debug)


def report(arguments: list[str], debug: bool) -> None:
    """`beit report RUN`."""
    if {"-h", "--help"} & set(arguments):
        print("usage: beit report RUN\n\nWrite the report of a run folder again, and print where it is.")
    elif len(arguments) != 1 or arguments[0].startswith("-"):
        raise UserError("beit report takes one run folder", "write beit report runs/NAME")
    else:
        job = _imported("pipelines.runs.run_folder:saved_run")(arguments[0]).job
        rebuild = COMMANDS[job].report if job in COMMANDS else None
        if rebuild is None:
            raise UserError(
                f"{arguments[0]} is a run of {job}, which is no command of beit that writes reports",
                "call pipelines.training.frame.rebuild_report with its task, in the program that defines it",
            )
        print(_imported(rebuild)(arguments[0]))


def _imported(function: str) -> Any:
    """module:function -> the function."""
    module, name = function.split(":")
    return getattr(importlib.import_module(module), name)


def _groups() -> set[str]:
    """First words that are no command by themselves: data, tokenizer."""
    return {name.split()[0] for name in COMMANDS} - set(COMMANDS)


def _lines(beginning: str = "") -> list[str]:
    """A line for each command whose name begins so."""
    return [
        f"  {f'beit {name} {entry.takes}':<33}{entry.help}"
        for name, entry in COMMANDS.items()
        if name.startswith(beginning)
    ]


def _help() -> str:
    return "\n".join(
        [
            "beit: pretrain BEiT from image shards, on a laptop or on a Ray cluster",
            "",
            *_lines(),
            "",
            f"  {'beit COMMAND --help':<33}a command's options",
            f"  {'--debug':<33}tracebacks, and Ray's own messages",
        ]
    )


def _find(arguments: list[str]) -> str:
    for length in (2, 1):
        name = " ".join(arguments[:length])
        if name in COMMANDS:
            return name
    typed = " ".join(argument for argument in arguments[:2] if not argument.startswith("-"))
    close = difflib.get_close_matches(typed, COMMANDS, n=1) or [
        name for name in COMMANDS if name.startswith(f"{arguments[0]} ")
    ]
    raise UserError(
        f"there is no command beit {typed}",
        f"perhaps you meant beit {close[0]}" if close else "beit --help lists them",
    )


if __name__ == "__main__":
    main()
