"""The report of a run: one HTML page that needs nothing else, `report/index.html` in the run folder."""

from __future__ import annotations

import json
import math
import statistics
from collections import Counter
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from beit.config import MaskConfig, ModelConfig
from beit.plain import from_dict
from beit.pretraining.masking import draw_mask
from beit.pretraining.objective import TARGETS_FILE
from pipelines import storage
from pipelines.csv_files import read_csv
from pipelines.reports.charts import Line, line_chart
from pipelines.reports.page import (
    MOST_LISTED,
    Picture,
    figure_cards,
    listed_images,
    picture_section,
    write_page,
)
from pipelines.runs import run_folder
from pipelines.runs.metrics import read_metrics
from pipelines.runs.progress import duration

Row = dict[str, Any]

NOT_METRICS = ("step", "images", "time")
WITHOUT_STEPS = ("probe",)
"""Jobs that train nothing, so have no metrics over steps, nor a quarantine."""

NOUNS = {"tokens": "token", "pixels": "pixel", "colour": "colour"}
"""What a target is one of, in words."""


def write_report(
    run: str | Path,
    *,
    pictures: Sequence[Picture] = (),
    sections: Sequence[str] = (),
    class_counts: Sequence[int] | None = None,
    counted: str | None = None,
    commands: Sequence[tuple[str, str]] = (),
) -> str:
    """Write the report of a run from the files in its folder; what is not there is left out.

    Args:
        run: Run folder, a path or a bucket URI.
        pictures: What the model makes of images, shown before the curves.
        sections: HTML of the run's own, shown first.
        class_counts: How often each visual token (or colour) occurred. None: how often it was asked for, from
            the newest checkpoint.
        counted: Where they were counted. None: where the target asks for them.
        commands: (what for, command) pairs to go on with, before those that every run has.

    Returns:
        Path or URI of the page.
    """
    run = storage.absolute(run)
    saved = _json(run, run_folder.CONFIG_FILE)
    rows = read_metrics(run)
    if class_counts is None:
        class_counts = _counts_of_checkpoint(run)
    target = saved.get("config", {}).get("target", {})
    noun = NOUNS[target.get("kind", "tokens")]
    parts = [
        "" if saved.get("job") in WITHOUT_STEPS else _key_figures(rows, noun),
        *sections,
        *(picture_section(picture) for picture in pictures),
        _curves(rows, noun),
        _classes(
            class_counts,
            noun,
            counted or ("in the patches" if target.get("positions") == "all" else "behind hidden patches"),
        ),
        _mask_check(rows, saved.get("config", {})),
        "" if saved.get("job") in WITHOUT_STEPS else _quarantine(run),
        _go_on(run, saved.get("job", ""), commands),
        _details(saved, _json(run, run_folder.ENVIRONMENT_FILE)),
    ]
    heading = " ".join(dict.fromkeys(part for part in (saved.get("job"), saved.get("preset")) if part))
    return write_page(run, heading=heading or "run", sections=parts)


# -- sections: each is HTML, or "" if the run has nothing to say about it
# -----------------------------------------------------


def _key_figures(rows: list[Row], noun: str) -> str:
    if not rows:
        return "<p>No metrics were recorded: the run ended before its first report.</p>"
    last = rows[-1]
    loss, unigram = _finite(last.get("train/loss")), _finite(last.get("train/unigram"))
    accuracy, majority = _finite(last.get("train/accuracy")), _finite(last.get("train/majority"))
    variance, explained = _finite(last.get("train/variance")), _finite(last.get("train/explained"))
    figures: list[tuple[str, str, str]] = []
    if loss is not None:
        note = (
            f"{unigram - loss:+.3f} nats better than the unigram baseline, {unigram:.3f}"
            if unigram is not None
            else "nats"
        )
        if unigram is not None and loss >= unigram:
            note = f"not yet below the unigram baseline, {unigram:.3f}"
        if variance is not None:
            note = f"mean squared error; always the mean colour: {variance:.3f}"
        figures.append(("loss", f"{loss:.3f}", note))
    if accuracy is not None:
        note = f"always the commonest {noun}: {majority:.1%}" if majority is not None else "in training"
        figures.append(("accuracy", f"{accuracy:.1%}", note))
    if explained is not None:
        figures.append(("explained", f"{explained:.1%}", "of the pixels' variance about their mean colour"))
    images = _finite(last.get("images"))
    if images is not None:
        figures.append(("images seen", f"{images:,.0f}", f"{last['step']:,} steps"))
    # The first row holds the start: compilation, first files, caches.
    rates = [
        rate for row in rows[1:] or rows if (rate := _finite(row.get("speed/images_per_second"))) is not None
    ]
    if rates:
        figures.append(("images a second", f"{statistics.median(rates):,.0f}", "median over the run"))
    waits = [wait for row in rows[1:] or rows if (wait := _finite(row.get("speed/data_wait"))) is not None]
    if waits:
        wait = statistics.median(waits)
        figures.append(
            (
                "data wait",
                f"{wait:.0%}",
                "of a step; more CPUs for the stream would help"
                if wait > 0.05
                else "of a step: training is the limit",
            )
        )
    if len(rows) > 1:
        figures.append(
            ("time", duration(rows[-1]["time"] - rows[0]["time"]), "from the first report to the last")
        )
    meaning = ""
    if unigram is not None:
        meaning = (
            f"<p>The unigram baseline is the loss of a model that knows only how often each {noun} occurs. "
            "The distance below it is "
            "what was learned."
            + " Accuracies of a few percent are normal with thousands of tokens." * (noun == "token")
            + "</p>"
        )
    return figure_cards(figures) + meaning


def _curves(rows: list[Row], noun: str) -> str:
    """Known metrics in the order of interest, then one chart for every other one."""
    if not rows:
        return ""
    known: list[tuple[str, list[tuple[str, str, bool]], dict[str, Any]]] = [
        (
            "Mean squared error" if noun == "pixel" else "Loss (nats)",
            [
                ("train/loss", "loss", False),
                ("train/unigram", "unigram baseline", True),
                ("train/variance", "always the mean colour", True),
            ],
            {"from_zero": noun == "pixel"},
        ),
        (
            "Accuracy",
            [("train/accuracy", "accuracy", False), ("train/majority", f"always the commonest {noun}", True)],
            {"percent": True, "from_zero": True},
        ),
        (
            "Loss on fixed samples and masks",
            [
                ("eval/loss", "loss", False),
                ("eval/unigram", "their unigram baseline", True),
                ("eval/variance", "their mean colour", True),
            ],
            {"from_zero": noun == "pixel"},
        ),
        (
            "Accuracy on fixed samples and masks",
            [("eval/accuracy", "accuracy", False), ("eval/majority", f"always their commonest {noun}", True)],
            {"percent": True, "from_zero": True},
        ),
        (
            "Explained variance",
            [("train/explained", "explained", False), ("eval/explained", "of fixed samples", False)],
            {"percent": True},
        ),
        ("Learning rate", [("optim/lr", "learning rate", False)], {"from_zero": True}),
        ("Gradient norm", [("optim/grad_norm", "gradient norm", False)], {"from_zero": True}),
        ("Images a second", [("speed/images_per_second", "images a second", False)], {"from_zero": True}),
        (
            "Data wait (share of a step)",
            [("speed/data_wait", "data wait", False)],
            {"percent": True, "from_zero": True},
        ),
        (f"{noun.capitalize()} perplexity", [("train/perplexity", "perplexity", False)], {"from_zero": True}),
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
    parts = []
    for title, curves, options in charts:
        columns = [(_column(rows, metric), label, baseline) for metric, label, baseline in curves]
        lines = [
            Line(name=label, x=steps, y=values, baseline=baseline)
            for values, label, baseline in columns
            if any(math.isfinite(value) for value in values)
        ]
        if lines:
            parts.append(f"<figure>{line_chart(title, lines, **options)}</figure>")
    return f'<h2>Curves</h2><div class="charts">{"".join(parts)}</div>' if parts else ""


def _classes(counts: Sequence[int] | None, noun: str, where: str) -> str:
    if counts is None or not sum(counts):
        return ""
    share = np.sort(np.asarray(counts, dtype=float))[::-1] / sum(counts)
    used = share[share > 0]
    perplexity = math.exp(-(used * np.log(used)).sum())
    rank = np.unique(np.geomspace(1, len(used), 300).round().astype(int))
    chart = line_chart(
        f"Share of each {noun}, commonest first",
        [Line(name="share", x=rank, y=used[rank - 1])],
        x_label="rank",
        log=True,
    )
    title = "Visual tokens" if noun == "token" else f"{noun.capitalize()}s"
    verdict = (
        "Far below the vocabulary, the task is easy: the tokenizer says little." if noun == "token" else ""
    )
    return (
        f"<h2>{title}</h2><p>{len(used):,} of {len(counts):,} {noun}s occurred {escape(where)}. The "
        f"commonest stands for {used[0]:.1%}, "
        f"and they are used as evenly as {perplexity:,.0f} equally frequent {noun}s would be (perplexity). "
        f"{verdict}</p>"
        f'<div class="charts"><figure>{chart}</figure></div>'
    )


def _mask_check(rows: list[Row], config: dict[str, Any]) -> str:
    """The share of hidden patches that the masks' rule gives, against the one seen."""
    if "mask" not in config or "model" not in config:
        return ""

    mask, model = from_dict(MaskConfig, config["mask"]), from_dict(ModelConfig, config["model"])
    if mask.ratio == 0:
        return "<h2>Masks</h2><p>No patch was hidden (mask.ratio=0).</p>"
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
    return f"<h2>Masks</h2><p>{escape(text[0].upper() + text[1:])}</p>"


def _quarantine(run: str) -> str:
    file = storage.join(run, "quarantine.csv")
    entries = read_csv(file)
    if not entries:
        return "<h2>Quarantine</h2><p>Every image could be used.</p>"
    reasons = Counter(entry["reason"] for entry in entries).most_common()
    counted = "".join(f"<tr><td>{escape(reason)}</td><td>{count:,}</td></tr>" for reason, count in reasons)
    first = listed_images([(entry["image"], entry["reason"]) for entry in entries])
    more = f"<p>The rest is in <code>{escape(file)}</code>.</p>" if len(entries) > MOST_LISTED else ""
    return (
        f"<h2>Quarantine</h2><p>{len(entries):,} image{'s' if len(entries) > 1 else ''} could not be used "
        "and took no part in the loss.</p>"
        f"<table>{counted}</table><details><summary>Which ones</summary>{first}{more}</details>"
    )


def _go_on(run: str, job: str, commands: Sequence[tuple[str, str]]) -> str:
    every = [("Go on after an interruption", f"beit {job} --resume {run}")] if job else []
    every.append(("Write this report again", f"beit report {run}"))
    blocks = "".join(
        f"<dt>{escape(what)}</dt><dd><pre>{escape(command)}</pre></dd>"
        for what, command in (*commands, *every)
    )
    return f"<h2>Go on</h2><dl class='commands'>{blocks}</dl>"


def _details(saved: dict[str, Any], environment: dict[str, Any]) -> str:
    blocks = [("Configuration", saved.get("config", saved)), ("Environment", environment)]
    return "".join(
        f"<details><summary>{title}</summary><pre>{escape(json.dumps(content, indent=2))}</pre></details>"
        for title, content in blocks
        if content
    )


# -- reading
# ---


def _json(run: str, name: str) -> dict[str, Any]:
    file = storage.join(run, name)
    content: dict[str, Any] = json.loads(storage.read_text(file)) if storage.exists(file) else {}
    return content


def _counts_of_checkpoint(run: str) -> list[int] | None:
    """The histogram of classes that the masked-image-modelling objective keeps in its checkpoints, if its
    target has classes.
    """
    checkpoint = run_folder.latest_checkpoint(run)
    content = _json(checkpoint, TARGETS_FILE) if checkpoint else {}
    return content.get("counts")


def _column(rows: list[Row], metric: str) -> list[float]:
    return [value if (value := _finite(row.get(metric))) is not None else math.nan for row in rows]


def _finite(value: object) -> float | None:
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None
