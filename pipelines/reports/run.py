"""The report of a run: one HTML page that needs nothing else, `report/index.html` in the run folder."""

from __future__ import annotations

import json
import math
import shlex
import statistics
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from beit.config import MaskConfig, ModelConfig
from beit.plain import from_dict
from beit.pretraining.masking import draw_mask
from beit.pretraining.objective import TARGETS_FILE
from beit.pretraining.targets import MetricChart, Target, VisualTokens, find_target
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

NOT_METRICS = ("step", "images", "time")
WITHOUT_STEPS = ("probe",)
"""Jobs that train nothing, so have no metrics over steps, nor a quarantine."""


def write_report(
    run: str | Path,
    *,
    sections: Sequence[Section] = (),
    pictures: Sequence[Picture] = (),
    commands: Sequence[tuple[str, str]] = (),
    class_counts: Sequence[int] | None = None,
    counted: str | None = None,
) -> str:
    """Write the report of a run from the files in its folder; what is not there is left out.

    Args:
        run: Run folder, a path or a bucket URI.
        sections: What the job has to say, shown first.
        pictures: What the model makes of images, shown before the curves.
        commands: (what for, command) pairs to go on with, before those that every run has.
        class_counts: How often each visual token (or colour) occurred. None: how often it was asked for, from
            the newest checkpoint.
        counted: Where they were counted. None: where the target asks for them.

    Returns:
        Path or URI of the page.
    """
    run = storage.absolute(run)
    saved = _json(run, run_folder.CONFIG_FILE)
    rows = read_metrics(run)
    if class_counts is None:
        class_counts = _counts_of_checkpoint(run)
    asked = saved.get("config", {}).get("target", {})
    # Jobs without a target count visual tokens, if they count anything.
    target = find_target(asked["kind"]) if "kind" in asked else VisualTokens
    where = counted or ("in the patches" if asked.get("positions") == "all" else "behind hidden patches")
    trains = saved.get("job") not in WITHOUT_STEPS
    heading = " ".join(dict.fromkeys(part for part in (saved.get("job"), saved.get("preset")) if part))
    return write_page(
        run,
        heading=heading or "run",
        figures=_key_figures(rows, target) if trains and rows else (),
        sections=[
            *(_baseline(rows, target) if trains else ()),
            *sections,
            *(picture_section(picture) for picture in pictures),
            *_curves(rows, target),
            *_classes(class_counts, target, where),
            *_mask_check(rows, saved.get("config", {})),
            *(_quarantine(run) if trains else ()),
            _go_on(run, saved.get("job", ""), commands),
            *_details(saved, _json(run, run_folder.ENVIRONMENT_FILE)),
        ],
    )


# -- the parts of the page, in its order: those that may have nothing to say give a list that may be empty
# ---


def _key_figures(rows: list[Row], target: type[Target]) -> list[KeyFigure]:
    last = rows[-1]
    figures = [KeyFigure(*figure) for figure in target.key_figures(finite_metrics(last))]
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


def _baseline(rows: list[Row], target: type[Target]) -> list[Section]:
    """Explain the baseline of the key figures."""
    if not rows:
        return [Section("", [Text("No metrics were recorded: the run ended before its first report.")])]
    meaning = target.baseline(finite_metrics(rows[-1]))
    return [Section("", [Text(meaning)])] if meaning else []


def _curves(rows: list[Row], target: type[Target]) -> list[Section]:
    """Chart the known metrics in the order of interest, then every other one."""
    if not rows:
        return []
    known: list[tuple[str, list[tuple[str, str, bool]], dict[str, Any]]] = [
        *(_chart_of_target(chart) for chart in target.charts()),
        ("Learning rate", [("optim/lr", "learning rate", False)], {"from_zero": True}),
        ("Gradient norm", [("optim/grad_norm", "gradient norm", False)], {"from_zero": True}),
        ("Images a second", [("speed/images_per_second", "images a second", False)], {"from_zero": True}),
        (
            "Data wait (share of a step)",
            [("speed/data_wait", "data wait", False)],
            {"percent": True, "from_zero": True},
        ),
        (
            f"{target.noun.capitalize()} perplexity",
            [("train/perplexity", "perplexity", False)],
            {"from_zero": True},
        ),
        ("Tokens that no position took", [("train/dead", "unused tokens", False)], {"from_zero": True}),
        (
            "Reconstruction error (mean absolute, of 1)",
            [("train/error", "error with relaxed tokens", False)],
            {"from_zero": True},
        ),
        (
            "Bound and divergence from uniform tokens (nats)",
            [("train/bound", "bound", False), ("train/kl", "divergence", True)],
            {},
        ),
        ("Entropy of the mean token distribution (nats)", [("train/marginal", "entropy", False)], {}),
        ("Weight of the divergence", [("train/kl_weight", "weight", False)], {"from_zero": True}),
        (
            "Temperature of the relaxed tokens",
            [("train/temperature", "temperature", False)],
            {"from_zero": True},
        ),
    ]
    # Shown by sections of their own.
    drawn = {metric for _, curves, _ in known for metric, _, _ in curves} | {
        "train/hidden",
        "data/quarantined",
        "eval/perplexity",
    }
    others = sorted({name for row in rows for name in row} - drawn - set(NOT_METRICS))
    charts = [(title, curves, options) for title, curves, options in known] + [
        (name, [(name, name, False)], {}) for name in others
    ]
    steps = [row["step"] for row in rows]
    drawings = []
    for title, curves, options in charts:
        columns = [(_column(rows, metric), label, baseline) for metric, label, baseline in curves]
        lines = [
            Line(name=label, x=steps, y=values, baseline=baseline)
            for values, label, baseline in columns
            if any(math.isfinite(value) for value in values)
        ]
        if lines:
            drawings.append(chart_svg(Chart(title=title, lines=lines, **options)))
    return [Section("Curves", [Charts(drawings)])] if drawings else []


def _chart_of_target(chart: MetricChart) -> tuple[str, list[tuple[str, str, bool]], dict[str, Any]]:
    """A target's chart in the form of those of every run."""
    curves = [(metric, label, False) for metric, label in chart.curves]
    baselines = [(metric, label, True) for metric, label in chart.baselines]
    return chart.title, curves + baselines, {"percent": chart.percent, "from_zero": chart.from_zero}


def _classes(counts: Sequence[int] | None, target: type[Target], where: str) -> list[Section]:
    if counts is None or not sum(counts):
        return []
    noun = target.noun
    share = np.sort(np.asarray(counts, dtype=float))[::-1] / sum(counts)
    used = share[share > 0]
    perplexity = math.exp(-(used * np.log(used)).sum())
    rank = np.unique(np.geomspace(1, len(used), 300).round().astype(int))
    chart = Chart(
        title=f"Share of each {noun}, commonest first",
        lines=[Line(name="share", x=rank, y=used[rank - 1])],
        x_label="rank",
        log=True,
    )
    title, note = target.histogram or (f"{noun.capitalize()}s", "")
    text = (
        f"{len(used):,} of {len(counts):,} {noun}s occurred {where}. The commonest stands for {used[0]:.1%}, "
        f"and they are used as evenly as {perplexity:,.0f} equally frequent {noun}s would be (perplexity)."
    )
    if note:
        text += f" {note}"
    return [Section(title, [Text(text), Charts([chart_svg(chart)])])]


def _mask_check(rows: list[Row], config: dict[str, Any]) -> list[Section]:
    """Compare the share of hidden patches that the masks' rule gives with the one seen."""
    if "mask" not in config or "model" not in config:
        return []

    mask = from_dict(MaskConfig, config["mask"], at="mask.")
    model = from_dict(ModelConfig, config["model"], at="model.")
    if mask.ratio == 0:
        return [Section("Masks", [Text("No patch was hidden (mask.ratio=0).")])]
    rng = np.random.default_rng(0)
    expected = float(np.mean([draw_mask(rng, mask, model.grid).mean() for _ in range(500)]))
    seen = [share for row in rows if (share := _finite(row.get("train/hidden"))) is not None]
    text = (
        f"{mask.kind} masks with a budget of {mask.budget(model.grid)} of {model.patches} patches hide "
        f"{expected:.1%} on average"
    )
    if seen:
        mean = statistics.mean(seen)
        agrees = abs(mean - expected) < 0.01
        text += f"; the training saw {mean:.1%}" + (
            "." if agrees else ", which does not agree: undecodable images, which hide nothing, or a fault."
        )
    else:
        text += "."
    return [Section("Masks", [Text(text[0].upper() + text[1:])])]


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


def _go_on(run: str, job: str, commands: Sequence[tuple[str, str]]) -> Section:
    folder = shlex.quote(run)
    every = [("Go on after an interruption", f"beit {job} --resume {folder}")] if job else []
    every.append(("Write this report again", f"beit report {folder}"))
    return Section("Go on", [Commands([*commands, *every])])


def _details(saved: dict[str, Any], environment: dict[str, Any]) -> list[Section]:
    shown = [("Configuration", saved.get("config", saved)), ("Environment", environment)]
    blocks = [
        Details(title, [Verbatim(json.dumps(content, indent=2))]) for title, content in shown if content
    ]
    return [Section("", blocks)] if blocks else []


# -- reading
# ---


def _json(run: str, name: str) -> dict[str, Any]:
    file = storage.join(run, name)
    content: dict[str, Any] = json.loads(storage.read_text(file)) if storage.exists(file) else {}
    return content


def _counts_of_checkpoint(run: str) -> list[int] | None:
    """Read the histogram of classes from the newest checkpoint, if its target has classes."""
    checkpoint = run_folder.latest_checkpoint(run)
    content = _json(checkpoint, TARGETS_FILE) if checkpoint else {}
    return content.get("counts")


def _column(rows: list[Row], metric: str) -> list[float]:
    return [value if (value := _finite(row.get(metric))) is not None else math.nan for row in rows]


def _finite(value: object) -> float | None:
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None
