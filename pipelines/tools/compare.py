"""`beit compare [NAME=]RUN …`: draw the curves of several runs in one picture, and list their last values in
a table, averaged over seeds.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from beit.checks import CommandConfig
from beit.errors import UserError
from pipelines import storage
from pipelines.command_line.options import parse
from pipelines.csv_files import write_csv
from pipelines.evaluation.every_image import FOLDER
from pipelines.reports.charts import Chart, Line, charts_png
from pipelines.runs import evaluations, run_folder
from pipelines.runs.metrics import last_metrics, read_metrics
from pipelines.schemes import StoragePath

SHARES = {"top1": "Validation top-1", "top5": "Validation top-5", "mean_iou": "Validation mean IoU"} | {
    "train/accuracy": "Accuracy in training",
    "train/explained": "Variance explained in training",
}
OTHERS = {
    "loss": "Validation loss (nats)",
    "train/loss": "Loss in training",
    "train/perplexity": "Perplexity of the tokens",
}
TITLES = SHARES | OTHERS

# Options for a run's resources and output, which do not change its results.
NOT_COMPARED = ("output.", "resources.", "stop_at")

# Name of a group of runs that share all options.
ALL = "all"


@dataclass(frozen=True, kw_only=True)
class CompareConfig(CommandConfig):
    """Compare runs of one job: curves of the metrics that all runs have in one picture, and the last values
    in a table.

    Runs with the same NAME become one curve: their mean, with a band from the smallest to the largest value.
    Without names, runs that differ only in their seed are grouped; a group is named by the options that
    differ from the other groups.
    """

    runs: tuple[str, ...]
    """Run folders, each given as RUN or NAME=RUN."""

    over: str | None = None
    """Option of these runs, such as data.fraction, to use as the horizontal axis; each of its values becomes
    a point. None: the step is the horizontal axis."""

    metrics: tuple[str, ...] = ()
    """Metrics to draw and to list, such as top1 train/loss. Not given: all metrics that every run has."""

    out: StoragePath = "comparison.png"
    """Path of the picture. The values go into a .csv of the same name."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Run:
    """The options and metrics of a run to compare."""

    uri: str
    name: str | None
    job: str
    options: dict[str, Any]
    """Options by dotted name, without those in `NOT_COMPARED`."""
    curves: dict[str, dict[int, float]]
    """Metric -> (step -> value)."""
    rows: list[dict[str, Any]]
    """Rows of the training's metrics."""


@dataclass(frozen=True, eq=False)
class Group:
    """Runs that are averaged into one curve."""

    name: str
    runs: list[Run]

    def curve(self, metric: str) -> tuple[list[int], NDArray[np.float64]]:
        """Return the steps within the range that all runs share, and values [runs, steps], interpolated
        between each run's own points.

        Training reports at intervals of time, so runs rarely have points at the same steps.
        """
        curves = [run.curves.get(metric, {}) for run in self.runs]
        if not all(curves):
            return [], np.empty((len(curves), 0))
        first, last = max(min(curve) for curve in curves), min(max(curve) for curve in curves)
        steps = sorted({step for curve in curves for step in curve if first <= step <= last})
        return steps, np.array(
            [np.interp(steps, sorted(curve), [curve[step] for step in sorted(curve)]) for curve in curves]
        )

    def over(self, option: str) -> list[tuple[float, Group]]:
        """Split the group by the values of an option, in ascending order.

        Raises:
            UserError: If the option is not a number in every run.
        """
        parts: dict[float, Group] = {}
        for run in self.runs:
            value = run.options.get(option)
            if option not in run.options:
                close = difflib.get_close_matches(option, run.options, n=1)
                remedy = (
                    f"perhaps you meant {close[0]}"
                    if close
                    else "give an option as in config.json, such as data.fraction"
                )
                raise UserError(f"--over {option} is no option of {run.uri}", remedy)
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise UserError(
                    f"--over {option} is {json.dumps(value)} in {run.uri}",
                    "give an option that is a number in all of these runs",
                )
            name = f"{option} {value:g}" if self.name == ALL else f"{self.name}, {option} {value:g}"
            parts.setdefault(value, Group(name, [])).runs.append(run)
        return sorted(parts.items(), key=lambda part: part[0])


def compare(config: CompareConfig) -> list[str]:
    """Write the picture and the table; returns the lines to print.

    Raises:
        UserError: If a path is no run, the runs belong to different jobs, or they have no metric in common.
    """
    if not config.out.endswith(".png"):
        raise UserError(f"--out {config.out} does not end with .png", "write --out comparison.png")
    if storage.exists(storage.absolute(config.out)):
        raise UserError(f"--out {config.out} is there already", "delete it, or give another name")
    found = [read_run(argument) for argument in config.runs]
    if len({run.job for run in found}) > 1:
        raise UserError(
            f"these runs belong to different jobs: {', '.join(f'{run.uri} ({run.job})' for run in found)}",
            "give runs of the same job",
        )
    lines = group(found, config.over)
    points = [one.over(config.over) for one in lines] if config.over else []
    groups = [point for line in points for _, point in line] or lines
    metrics = _metrics(config, groups)
    if config.over:
        charts = [_chart_over(config.over, lines, points, metric) for metric in metrics]
    else:
        # A single value is no curve; it is only in the table.
        curves = [
            metric for metric in metrics if any(len(one.curve(metric)[0]) > 1 for one in groups)
        ] or metrics
        charts = [_chart(groups, metric) for metric in curves]
    storage.write_bytes(storage.absolute(config.out), charts_png(charts))
    figures = config.out.removesuffix(".png") + ".csv"
    write_csv(
        storage.absolute(figures),
        ["name", "run", "seed", "metric", "step", "value"],
        _rows(groups, metrics),
    )
    return [*_table(groups, metrics), f"picture: {config.out}", f"figures: {figures}"]


def _metrics(config: CompareConfig, groups: Sequence[Group]) -> list[str]:
    """Choose the metrics to compare, in the order given.

    Raises:
        UserError: If a metric is not measured in all runs.
    """
    shared = [metric for metric in TITLES if all(one.curve(metric)[0] for one in groups)]
    if not shared:
        raise UserError(
            "there is no metric that every one of these runs has",
            "give runs that have begun to train, with the same validation",
        )
    for metric in config.metrics:
        if metric not in shared:
            raise UserError(
                f"--metrics {metric} is nothing that every one of these runs has",
                f"they have {', '.join(shared)}",
            )
    return list(config.metrics) or shared


def read_run(argument: str) -> Run:
    """Read RUN or NAME=RUN.

    Raises:
        UserError: If there is no such run.
    """
    name, _, path = argument.partition("=")
    if not path or {"/", ":"} & set(name):  # the = of a URI, such as s3://bucket/run?region=…
        name, path = "", argument
    saved, uri = run_folder.saved_run(path), storage.absolute(path)
    curves: dict[str, dict[int, float]] = {metric: {} for metric in TITLES}
    rows = read_metrics(uri)
    for row in [*rows, *evaluations.alike(evaluations.read(uri, FOLDER))]:
        for metric in TITLES:
            if row.get(metric) is not None and np.isfinite(row[metric]):
                curves[metric][row["step"]] = row[metric]
    options = {
        option: value
        for option, value in run_folder.flatten(saved.config).items()
        if not option.startswith(NOT_COMPARED)
    }
    return Run(uri=uri, name=name or None, job=saved.job, options=options, curves=curves, rows=rows)


def group(found: Sequence[Run], over: str | None = None) -> list[Group]:
    """Group runs by name. Runs without names are grouped if all their options are equal except the seed and
    `over`.
    """
    unnamed = [run.options for run in found if run.name is None]
    names = sorted({name for options in unnamed for name in options} - {"seed", over})
    different = [name for name in names if len({json.dumps(options.get(name)) for options in unnamed}) > 1]
    groups: dict[str, Group] = {}
    for run in found:
        name = (
            run.name
            or ", ".join(f"{option} {_short(run.options.get(option))}" for option in different)
            or ALL
        )
        groups.setdefault(name, Group(name, [])).runs.append(run)
    return list(groups.values())


def _short(value: Any) -> str:
    """Shorten a path to its last two names: the run, and the part of it."""
    return "/".join(value.split("/")[-2:]) if isinstance(value, str) else f"{value}"


def _chart(groups: Sequence[Group], metric: str) -> Chart:
    lines = []
    for one in groups:
        steps, values = one.curve(metric)
        band = (values.min(0), values.max(0)) if len(values) > 1 else None
        lines.append(Line(name=one.name, x=steps, y=values.mean(0), band=band))
    return Chart(title=TITLES[metric], lines=lines, percent=metric in SHARES)


def _chart_over(
    option: str, groups: Sequence[Group], points: Sequence[Sequence[tuple[float, Group]]], metric: str
) -> Chart:
    lines = []
    for one, parts in zip(groups, points, strict=True):
        values = [_last(part, metric)[1] for _, part in parts]
        band = (
            ([each.min() for each in values], [each.max() for each in values])
            if any(len(each) > 1 for each in values)
            else None
        )
        lines.append(
            Line(
                name=one.name, x=[value for value, _ in parts], y=[each.mean() for each in values], band=band
            )
        )
    return Chart(title=TITLES[metric], lines=lines, x_label=option, points=True, percent=metric in SHARES)


def _last(one: Group, metric: str) -> tuple[int, NDArray[np.float64]]:
    """Return the last step and each run's value there. Training metrics are averaged as in the run's own
    result.
    """
    steps, values = one.curve(metric)
    if not metric.startswith("train/"):
        return steps[-1], values[:, -1]
    return steps[-1], np.array(
        [last_metrics([row for row in run.rows if row["step"] <= steps[-1]])[metric] for run in one.runs]
    )


def _table(groups: Sequence[Group], metrics: Sequence[str]) -> list[str]:
    """Format a line for each group: the mean, and the standard deviation if it has several runs."""
    lines = []
    for one in groups:
        cells = []
        for metric in metrics:
            values = _last(one, metric)[1]
            form = ".2%" if metric in SHARES else ".3f"
            spread = f" ± {values.std(ddof=1):{form}}" if len(values) > 1 else ""
            cells.append(f"{TITLES[metric].lower()} {values.mean():{form}}{spread}")
        lines.append(
            f"{one.name} ({len(one.runs)} run{'s' if len(one.runs) > 1 else ''}): {', '.join(cells)}"
        )
    return lines


def _rows(groups: Sequence[Group], metrics: Sequence[str]) -> list[list[Any]]:
    """Build a row for each run and metric."""
    rows = []
    for one in groups:
        for metric in metrics:
            step, values = _last(one, metric)
            rows += [
                [one.name, run.uri, run.options.get("seed"), metric, step, float(value)]
                for run, value in zip(one.runs, values, strict=True)
            ]
    return rows


def command(arguments: list[str], debug: bool) -> None:
    """`beit compare [NAME=]RUN…`."""
    if arguments and not arguments[0].startswith("-"):
        arguments = ["--runs", *arguments]
    elif not {"-h", "--help", "--runs"} & set(arguments):
        raise UserError("beit compare: RUN is missing", "write beit compare RUN RUN")
    for line in compare(parse(arguments, CompareConfig, command="compare [NAME=]RUN…", positional=())):
        print(line)
