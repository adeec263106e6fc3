"""The report of a run: one HTML page that needs nothing else, `report/index.html` in the run folder."""

from __future__ import annotations

import json
import math
import shlex
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from beit.objectives.metric_chart import LOSS, MetricChart
from pipelines import storage
from pipelines.csv_files import read_csv
from pipelines.reports.charts import Chart, Line, chart_svg
from pipelines.reports.page import (
    MOST_LISTED,
    Block,
    Charts,
    Commands,
    Details,
    KeyFigure,
    Picture,
    Section,
    Table,
    Text,
    Verbatim,
    code,
    picture_section,
    unusable_images,
    write_page,
)
from pipelines.runs import run_folder
from pipelines.runs.metrics import finite_metrics, read_metrics
from pipelines.runs.progress import duration

Row = dict[str, Any]

NOT_METRICS = ("step", "images", "time", "data/quarantined")
"""Entries of a row that get no chart; the images in quarantine are listed."""

CHARTS_OF_ALL = (
    MetricChart(title="Learning rate", curves=(("optim/lr", "learning rate"),), from_zero=True),
    MetricChart(title="Gradient norm", curves=(("optim/grad_norm", "gradient norm"),), from_zero=True),
    MetricChart(
        title="Images a second", curves=(("speed/images_per_second", "images a second"),), from_zero=True
    ),
    MetricChart(
        title="Data wait (share of a step)",
        curves=(("speed/data_wait", "data wait"),),
        percent=True,
        from_zero=True,
    ),
)


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a job shows of a run, beside what is the same for all jobs."""

    key_figures: Sequence[KeyFigure] | None = None
    """Figures at the top of the page. None: the loss."""

    reading: str = ""
    """A paragraph below them on how to read them."""

    sections: Sequence[Section] = ()
    """Sections of its own, shown first."""

    pictures: Sequence[Picture] = ()
    """What the model makes of images, shown before the curves."""

    charts: Sequence[MetricChart] = (LOSS,)
    """Curves of its metrics, shown before those of all jobs. A metric that is in no chart gets one of its
    own."""

    uncharted: Sequence[str] = ()
    """Metrics that get no chart."""

    checks: Sequence[Section] = ()
    """Sections below the curves."""

    commands: Sequence[tuple[str, str]] = ()
    """(what for, command) pairs: what to do next."""


def write_report(run: str | Path, report: Report, *, program: str | None, trains: bool = True) -> str:
    """Write the report of a run from the files in its folder; what is not there is left out.

    Args:
        run: Run folder, a path or a bucket URI.
        report: What the job shows.
        program: What the job's command line begins with, such as "beit pretrain". None: it is run from
            Python, and no command is offered to resume it.
        trains: Whether the job has metrics over steps, and a quarantine.

    Returns:
        Path or URI of the page.
    """
    run = storage.absolute(run)
    saved = _json(run, run_folder.CONFIG_FILE)
    rows = read_metrics(run)
    heading = " ".join(dict.fromkeys(part for part in (saved.get("job"), saved.get("preset")) if part))
    return write_page(
        run,
        heading=heading or "run",
        figures=_key_figures(rows, report) if trains and rows else (),
        sections=[
            *(_reading(rows, report) if trains else ()),
            *report.sections,
            *(picture_section(picture) for picture in report.pictures),
            *_curves(rows, report),
            *report.checks,
            *(_quarantine(run) if trains else ()),
            *_next_commands(run, report.commands, program),
            *_details(saved, _json(run, run_folder.ENVIRONMENT_FILE)),
        ],
    )


# -- the parts of the page, in its order --------------------------------------------------------------------


def _key_figures(rows: list[Row], report: Report) -> list[KeyFigure]:
    last = rows[-1]
    loss = finite_metrics(last).get("train/loss")
    figures = [] if loss is None else [KeyFigure("loss", f"{loss:.3f}")]
    if report.key_figures is not None:
        figures = list(report.key_figures)
    images = _finite(last.get("images"))
    if images is not None:
        figures.append(KeyFigure("images seen", f"{images:,.0f}", f"{last['step']:,} steps"))
    # The first row holds the start: compilation, first files, caches.
    settled = rows[1:] or rows
    rates = [rate for row in settled if (rate := _finite(row.get("speed/images_per_second"))) is not None]
    if rates:
        figures.append(
            KeyFigure("images a second", f"{statistics.median(rates):,.0f}", "median over the run")
        )
    waits = [wait for row in settled if (wait := _finite(row.get("speed/data_wait"))) is not None]
    if waits:
        wait = statistics.median(waits)
        note = (
            "of a step; more CPUs for the stream would help"
            if wait > 0.05
            else "of a step: training is the limit"
        )
        figures.append(KeyFigure("data wait", f"{wait:.0%}", note))
    if len(rows) > 1:
        taken = duration(rows[-1]["time"] - rows[0]["time"])
        figures.append(KeyFigure("time", taken, "from the first report to the last"))
    return figures


def _reading(rows: list[Row], report: Report) -> list[Section]:
    """Explain the key figures."""
    if not rows:
        return [Section("", [Text("No metrics were recorded: the run ended before its first report.")])]
    return [Section("", [Text(report.reading)])] if report.reading else []


def _curves(rows: list[Row], report: Report) -> list[Section]:
    """Chart the known metrics in the order of interest, then every other one."""
    known = [*report.charts, *CHARTS_OF_ALL]
    drawn = {metric for chart in known for metric, _ in (*chart.curves, *chart.baselines)}
    others = sorted({name for row in rows for name in row} - drawn - {*report.uncharted, *NOT_METRICS})
    charts = [*known, *(MetricChart(title=name, curves=((name, name),)) for name in others)]
    drawings = [chart_svg(chart) for chart in (_chart(rows, chart) for chart in charts) if chart.lines]
    return [Section("Curves", [Charts(drawings)])] if drawings else []


def _chart(rows: list[Row], chart: MetricChart) -> Chart:
    """Take a chart's curves from the rows; those without a finite value are left out."""
    steps = [row["step"] for row in rows]
    curves = [(*curve, False) for curve in chart.curves] + [(*curve, True) for curve in chart.baselines]
    columns = [(label, baseline, _column(rows, metric)) for metric, label, baseline in curves]
    lines = [
        Line(name=label, x=steps, y=values, baseline=baseline)
        for label, baseline, values in columns
        if any(math.isfinite(value) for value in values)
    ]
    return Chart(title=chart.title, lines=lines, percent=chart.percent, from_zero=chart.from_zero)


def _quarantine(run: str) -> list[Section]:
    file = storage.join(run, "quarantine.csv")
    entries = read_csv(file)
    if not entries:
        return [Section("Quarantine", [Text("Every image could be used.")])]
    reasons = Counter(entry["reason"] for entry in entries).most_common()
    which: list[Block] = [unusable_images([(entry["image"], entry["reason"]) for entry in entries])]
    if len(entries) > MOST_LISTED:
        which.append(Text("The rest is in " + code(file) + "."))
    blocks = [
        Text(
            f"{len(entries):,} image{'s' if len(entries) > 1 else ''} could not be used and took no part in "
            "the loss."
        ),
        Table((), [[reason, f"{count:,}"] for reason, count in reasons]),
        Details("Which ones", which),
    ]
    return [Section("Quarantine", blocks)]


def _next_commands(run: str, commands: Sequence[tuple[str, str]], program: str | None) -> list[Section]:
    folder = shlex.quote(run)
    every = [] if program is None else [("Resume after an interruption", f"{program} --resume {folder}")]
    if program is not None and program.startswith("beit "):  # `beit report` knows the jobs of beit alone.
        every.append(("Write this report again", f"beit report {folder}"))
    return [Section("Next", [Commands([*commands, *every])])] if commands or every else []


def _details(saved: dict[str, Any], environment: dict[str, Any]) -> list[Section]:
    shown = [
        ("Configuration", saved.get("config", saved)),
        ("Options changed when it was resumed", saved.get("history")),
        ("Environment", environment),
    ]
    blocks = [
        Details(title, [Verbatim(json.dumps(content, indent=2))]) for title, content in shown if content
    ]
    return [Section("", blocks)] if blocks else []


# -- reading ------------------------------------------------------------------------------------------------


def _json(run: str, name: str) -> dict[str, Any]:
    file = storage.join(run, name)
    content: dict[str, Any] = json.loads(storage.read_text(file)) if storage.exists(file) else {}
    return content


def _column(rows: list[Row], metric: str) -> list[float]:
    return [value if (value := _finite(row.get(metric))) is not None else math.nan for row in rows]


def _finite(value: object) -> float | None:
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None
