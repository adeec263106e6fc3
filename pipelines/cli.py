"""The command `beit`: a subcommand a job. Imports what is heavy only when it is needed."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import re
import signal
import sys
from collections.abc import Callable, Sequence

from beit.errors import JobFailedError, TerminatedError, UserError
from pipelines.command_line.options import parse, parse_job, parse_supervised

HELP = """\
beit: pretrain BEiT from image shards, on a laptop or on a Ray cluster

  beit pretrain [PRESET]           train on --data.train, or on built-in scenes
  beit sweep [PRESET]              pretrain many times, with mask ratio and learning rate varied, by Ray Tune
  beit ablate [PRESET]             the paper's table 4: its rows pretrained and fine-tuned, beside its figures
  beit finetune [RUN] [PRESET]     train a classifier, from a pretrained run or from scratch
  beit segment [RUN] [PRESET]      train a segmenter, likewise
  beit tokenizer train [PRESET]    train a tokenizer (discrete VAE)
  beit tokenizer convert FILE OUT  a published tokenizer, such as DALL-E's, without running its pickle
  beit tokenizer encode [PRESET]   tokens of K epochs' views, computed once for any number of runs
  beit tokenizer show IMAGE…       images, their visual tokens and reconstructions as a PNG
  beit data scenes OUT             render the built-in scenes
  beit data pack SRC OUT           class folders, tars, ILSVRC archives -> shuffled Parquet shards
  beit data check PATH             counts, sizes, broken files, a contact sheet
  beit import FILE OUT             published weights (unilm, timm, Hugging Face) -> a checkpoint; no pickle runs
  beit export RUN OUT              a model for Hugging Face, timm or the released code
  beit features RUN DATA OUT       features of every image, as Parquet
  beit probe RUN                   what frozen features know about labels, layer by layer
  beit attention RUN IMAGE…        what chosen patches attend to, a map a head, as a PNG
  beit report RUN                  write a run's report again
  beit compare [NAME=]RUN…         curves of several runs in one picture, seeds averaged
  beit plan [PRESET]               time, nodes, costs and storage of a pretraining, here and on a cluster
  beit doctor                      what stands in the way of a run, here or on the cluster

  beit COMMAND --help              a command's options
  --debug                          tracebacks, and Ray's own messages
"""  # noqa: E501


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry of the console script; exits with 0, 1 after a failure, 2 after a mistake of the user's, 143
    after SIGTERM.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(
            line_buffering=True
        )  # A log file is to show each line when it is printed, as a terminal does.
    try:
        _main(list(sys.argv[1:] if arguments is None else arguments))
    except BrokenPipeError:
        # Who read the output has stopped (`| head`). What is still unwritten goes nowhere, or the interpreter
        # would complain at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)


def _main(arguments: list[str]) -> None:
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(HELP, end="")
        return
    if arguments[0] == "--version":
        from importlib.metadata import version

        print(version("beit-pretraining"))
        return
    if (
        {"-h", "--help"} & set(arguments)
        and arguments[0] in {name.split()[0] for name in COMMANDS} - set(COMMANDS)
        and len(arguments) == 2
    ):
        print("\n".join(line for line in HELP.splitlines() if line.startswith(f"  beit {arguments[0]} ")))
        return
    try:
        command, rest = _find(arguments)
        command(rest, debug)
    except UserError as error:
        if debug:
            raise
        print(_from_here(f"error: {error.cause}\n       {error.remedy}"), file=sys.stderr)
        sys.exit(2)
    except JobFailedError as error:
        if debug:
            raise
        print(_from_here(f"failed: {error.cause}\n        {error.remedy}"), file=sys.stderr)
        sys.exit(1)
    except TerminatedError:
        sys.exit(128 + signal.SIGTERM)
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)


def _from_here(text: str) -> str:
    """Paths below the current folder as they are typed there: jobs make them absolute before they look at
    them.
    """
    return (
        re.sub(rf"(?<![\w./:-]){re.escape(os.getcwd().rstrip('/'))}/", "", text)
        if os.getcwd() != "/"
        else text
    )


def _find(arguments: list[str]) -> tuple[Callable[[list[str], bool], None], list[str]]:
    for length in (2, 1):
        name = " ".join(arguments[:length])
        if name in COMMANDS:
            return COMMANDS[name], arguments[length:]
    import difflib

    typed = " ".join(argument for argument in arguments[:2] if not argument.startswith("-"))
    close = difflib.get_close_matches(typed, COMMANDS, n=1) or [
        name for name in COMMANDS if name.startswith(f"{arguments[0]} ")
    ]
    raise UserError(
        f"there is no command beit {typed}",
        f"perhaps you meant beit {close[0]}" if close else "beit --help lists them",
    )


def _pretrain(arguments: list[str], debug: bool) -> None:
    from pipelines.config.pretrain import PretrainConfig
    from pipelines.presets import pretrain as presets

    command = parse_job(
        arguments,
        PretrainConfig,
        job="pretrain",
        default="quickstart",
        presets=presets.PRESETS,
        preset=presets.pretrain_preset,
        explained_by="pipelines.pretrain",
    )
    if command is None:
        return
    from pipelines.pretrain import pretrain

    pretrain(command.config, preset=command.preset, resume=command.resume, debug=debug)


def _sweep(arguments: list[str], debug: bool) -> None:
    # Here and in `_ablate` this file reaches up to `tune`: there is one console script.
    from tune import config as presets

    command = parse_job(
        arguments,
        presets.SweepConfig,
        job="sweep",
        default="quickstart",
        presets=presets.SWEEPS,
        preset=presets.sweep_preset,
        explained_by="tune.explain",
    )
    if command is None:
        return
    from tune.sweep import sweep

    sweep(command.config, preset=command.preset, resume=command.resume, debug=debug)


def _ablate(arguments: list[str], debug: bool) -> None:
    from tune.ablation import config as presets

    command = parse_job(
        arguments,
        presets.AblationConfig,
        job="ablate",
        default="quickstart",
        presets=presets.ABLATIONS,
        preset=presets.ablation_preset,
        explained_by="tune.ablation.ablate",
    )
    if command is None:
        return
    from tune.ablation.ablate import ablate

    ablate(command.config, preset=command.preset, resume=command.resume, debug=debug)


def _finetune(arguments: list[str], debug: bool) -> None:
    from pipelines import finetune as job
    from pipelines.config.supervised import FinetuneConfig
    from pipelines.presets import finetune as presets

    command = parse_supervised(arguments, FinetuneConfig, job, presets)
    if command is not None:
        job.finetune(command.config, preset=command.preset, resume=command.resume, debug=debug)


def _segment(arguments: list[str], debug: bool) -> None:
    from pipelines import segment as job
    from pipelines.config.supervised import SegmentConfig
    from pipelines.presets import segment as presets

    command = parse_supervised(arguments, SegmentConfig, job, presets)
    if command is not None:
        job.segment(command.config, preset=command.preset, resume=command.resume, debug=debug)


def _train_tokenizer(arguments: list[str], debug: bool) -> None:
    from pipelines import train_tokenizer as job
    from pipelines.config.tokenizer import TrainTokenizerConfig
    from pipelines.presets import tokenizer as presets

    command = parse_job(
        arguments,
        TrainTokenizerConfig,
        job=job.JOB,
        default="scenes64",
        presets=presets.PRESETS,
        preset=presets.tokenizer_preset,
    )
    if command is not None:
        job.train_tokenizer(command.config, preset=command.preset, resume=command.resume, debug=debug)


def _convert_tokenizer(arguments: list[str], debug: bool) -> None:
    from pipelines.tools.convert import ConvertConfig, convert_tokenizer

    for line in convert_tokenizer(
        parse(arguments, ConvertConfig, command="tokenizer convert FILE OUT", positional=("file", "out"))
    ):
        print(line)


def _encode_tokens(arguments: list[str], debug: bool) -> None:
    from pipelines.encode_tokens import config_of, encode_tokens

    name = arguments.pop(0) if arguments and not arguments[0].startswith("-") else "quickstart"
    default = config_of(name)
    config = parse(
        arguments, type(default), command="tokenizer encode [PRESET]", positional=(), default=default
    )
    result = encode_tokens(config, debug=debug)
    print(f"{result.views:,} views in {result.parts:,} parts ({result.written:,} written now): {result.out}")
    print(
        f"next, with the same options: beit pretrain {name} --data.train {config.data.train} "
        "--data.tokens "
        f"{result.out}"
    )


def _show_tokens(arguments: list[str], debug: bool) -> None:
    from pipelines.tools.show_tokens import ShowConfig, show

    if arguments and not arguments[0].startswith("-"):
        arguments = ["--images", *arguments]
    for line in show(
        parse(arguments, ShowConfig, command="tokenizer show IMAGE… | --data PATH", positional=())
    ):
        print(line)


def _scenes(arguments: list[str], debug: bool) -> None:
    from pipelines.scenes.shards import ScenesConfig, write_scenes

    config = parse(arguments, ScenesConfig, command="data scenes OUT", positional=("out",))
    shards = write_scenes(
        config.out,
        images=config.images,
        seed=config.seed,
        image_size=config.image_size,
        first=config.first,
        split=config.split,
    )
    print(f"{config.images:,} scenes of {config.image_size} px in {len(shards)} shard(s): {config.out}")


def _pack(arguments: list[str], debug: bool) -> None:
    from pipelines.cluster import session
    from pipelines.tools.pack import PackConfig, pack

    config = parse(arguments, PackConfig, command="data pack SRC OUT", positional=("source", "out"))
    with session.start(debug=debug):
        result = pack(config, progress=lambda done, shards: print(f"{done:,}/{shards:,} shards", flush=True))
    print(
        f"{result.images:,} images in {result.shards:,} shards ({result.written:,} written now): {result.out}"
    )


def _check(arguments: list[str], debug: bool) -> None:
    from pipelines.cluster import session
    from pipelines.tools.check import CheckConfig, check

    config = parse(arguments, CheckConfig, command="data check PATH", positional=("source",))
    with session.start(debug=debug) if config.all else contextlib.nullcontext():
        result = check(config)
    for line in result.lines():
        print(line)


def _import(arguments: list[str], debug: bool) -> None:
    from pipelines.tools.weights import ImportConfig, import_weights

    for line in import_weights(
        parse(arguments, ImportConfig, command="import FILE OUT", positional=("file", "out"))
    ):
        print(line)


def _export(arguments: list[str], debug: bool) -> None:
    from pipelines.tools.weights import ExportConfig, export_weights

    for line in export_weights(
        parse(arguments, ExportConfig, command="export RUN OUT", positional=("run", "out"))
    ):
        print(line)


def _probe(arguments: list[str], debug: bool) -> None:
    import functools
    from dataclasses import replace

    from pipelines import probe as job

    start = (
        arguments.pop(0)
        if arguments and not arguments[0].startswith("-") and not arguments[0].endswith(".json")
        else None
    )
    command = parse_job(
        arguments,
        job.ProbeConfig,
        job=job.JOB,
        default=job.JOB,
        presets={job.JOB: job.default},
        preset=functools.partial(job.config_for, start),
        usage="probe RUN",
        start=start,
        with_start=lambda config, name: replace(config, start=start),
    )
    if command is not None:
        job.probe(command.config, preset=command.preset, resume=command.resume, debug=debug)


def _features(arguments: list[str], debug: bool) -> None:
    from pipelines.features import FeaturesConfig, features

    config = parse(
        arguments, FeaturesConfig, command="features RUN DATA OUT", positional=("run", "data", "out")
    )
    result = features(config, debug=debug)
    bad = (
        f"; {result.undecodable:,} could not be decoded: {result.out}/undecodable.csv"
        if result.undecodable
        else ""
    )
    print(f"{result.images:,} images in {result.files:,} files ({result.written:,} written now){bad}")
    print(f"features: {result.out}")


def _attention(arguments: list[str], debug: bool) -> None:
    from pipelines.tools.show_attention import AttentionConfig, show

    if len(arguments) > 1 and not any(argument.startswith("-") for argument in arguments[:2]):
        arguments = [arguments[0], "--images", *arguments[1:]]
    for line in show(parse(arguments, AttentionConfig, command="attention RUN IMAGE…", positional=("run",))):
        print(line)


def _report(arguments: list[str], debug: bool) -> None:
    from pipelines.runs import run_folder

    if {"-h", "--help"} & set(arguments):
        print("usage: beit report RUN\n\nWrite the report of a run folder again, and print where it is.")
        return
    if len(arguments) != 1 or arguments[0].startswith("-"):
        raise UserError("beit report takes one run folder", "write beit report runs/NAME")
    module = REPORTS.get(run_folder.saved_run(arguments[0]).job)
    if module is None:
        from pipelines.reports.run import write_report as rebuild_report
    else:
        rebuild_report = importlib.import_module(module).rebuild_report
    print(rebuild_report(arguments[0]))


def _compare(arguments: list[str], debug: bool) -> None:
    from pipelines.tools.compare import CompareConfig, compare

    if arguments and not arguments[0].startswith("-"):
        arguments = ["--runs", *arguments]
    elif not {"-h", "--help", "--runs"} & set(arguments):
        raise UserError("beit compare: RUN is missing", "write beit compare RUN RUN")
    for line in compare(parse(arguments, CompareConfig, command="compare [NAME=]RUN…", positional=())):
        print(line)


def _plan(arguments: list[str], debug: bool) -> None:
    from pipelines.planning import plan as job
    from pipelines.presets.pretrain import PRESETS, pretrain_preset

    name = arguments.pop(0) if arguments and not arguments[0].startswith("-") else "quickstart"
    if name.endswith(".json"):
        from pipelines.config.pretrain import PretrainConfig
        from pipelines.runs import run_folder

        base, name = run_folder.saved_config(name, PretrainConfig, job="pretrain")
    else:
        base = pretrain_preset(name)
    config = parse(
        arguments,
        job.PlanConfig,
        command=f"plan [{' | '.join(PRESETS)}]",
        positional=(),
        default=job.config_of(base),
    )
    for line in job.plan(config, preset=name):
        print(line, flush=True)


def _doctor(arguments: list[str], debug: bool) -> None:
    from pipelines.tools.doctor import DoctorConfig, examine, exit_code

    findings = []
    for finding in examine(parse(arguments, DoctorConfig, command="doctor", positional=())):
        findings.append(finding)
        print("\n".join(finding.lines()), flush=True)
    if code := exit_code(findings):
        sys.exit(code)


REPORTS = {
    "pretrain": "pipelines.pretrain",
    "finetune": "pipelines.finetune",
    "segment": "pipelines.segment",
    "probe": "pipelines.probe",
    "tokenizer train": "pipelines.train_tokenizer",
    "sweep": "tune.sweep",
    "ablate": "tune.ablation.ablate",
}
"""The module with the `rebuild_report` of each job whose report shows more than metrics."""

COMMANDS: dict[str, Callable[[list[str], bool], None]] = {
    "pretrain": _pretrain,
    "sweep": _sweep,
    "ablate": _ablate,
    "finetune": _finetune,
    "segment": _segment,
    "tokenizer train": _train_tokenizer,
    "tokenizer convert": _convert_tokenizer,
    "tokenizer encode": _encode_tokens,
    "tokenizer show": _show_tokens,
    "data scenes": _scenes,
    "data pack": _pack,
    "data check": _check,
    "import": _import,
    "export": _export,
    "features": _features,
    "probe": _probe,
    "attention": _attention,
    "report": _report,
    "compare": _compare,
    "plan": _plan,
    "doctor": _doctor,
}


if __name__ == "__main__":
    main()
