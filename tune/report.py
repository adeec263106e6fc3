"""The report page of a sweep: one HTML file that needs nothing else, `report/index.html` in the sweep's
folder.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from typing import Any

from beit.plain import to_dict
from pipelines import storage
from pipelines.config.pretrain import PretrainConfig
from pipelines.reports.page import figure_cards, write_page
from pipelines.runs.progress import duration
from tune.charts import heat_map, learning_curves, parallel_coordinates
from tune.config import SweepConfig
from tune.goal import Goal
from tune.result import BEST_FILE, TRIALS_FILE
from tune.space import described
from tune.state import STATES, Trial, values_of, winner
from tune.stopping import rungs

PLANE = ("mask.ratio", "optim.peak_lr")
NAMED_CURVES = 10


def write_sweep_report(
    sweep: str,
    config: SweepConfig,
    trials: Sequence[Trial],
    goal: Goal,
    *,
    preset: str,
    seconds: float,
    lines: Sequence[str],
    mlflow: str | None,
    command: str | None,
) -> str:
    """Write the page of a sweep from its trials.

    Args:
        sweep: The sweep's folder.
        config: The sweep.
        trials: Its trials, by number.
        goal: Its objective.
        preset: Its preset.
        seconds: What it took, in this start.
        lines: Sentences on how it was done: concurrency, tokens.
        mlflow: Where to look at it in MLflow.
        command: Trains the winner; None where no trial came to its end.

    Returns:
        Path or URI of the page.
    """
    best = winner(list(trials), goal)
    parts = [
        _figures(trials, goal, best, seconds),
        f"<p>The objective is {escape(goal.meaning)}</p>",
        _go_on(sweep, mlflow, command),
        _planes(trials, goal, config),
        _curves(trials, goal),
        _parallel(trials, goal),
        _table(trials, goal, best),
    ]
    return write_report_page(
        sweep, parts, heading=f"sweep {preset}, {config.space}", lines=lines, config=config
    )


def write_report_page(
    folder: str, parts: Sequence[str], *, heading: str, lines: Sequence[str], config: PretrainConfig
) -> str:
    """Write a page of several runs: its parts, how it was done, and the configuration; returns its path or
    URI.
    """
    how = "<h2>How it was done</h2>" + "".join(f"<p>{escape(line)}</p>" for line in lines)
    details = f"<details><summary>Configuration</summary><pre>{escape(json.dumps(to_dict(config), indent=2))}</pre></details>"  # noqa: E501
    return write_page(folder, heading=heading, sections=[*parts, how, details], style=TABLE_STYLE)


def _figures(trials: Sequence[Trial], goal: Goal, best: Trial | None, seconds: float) -> str:
    counts = {status: sum(trial.status == status for trial in trials) for status in STATES}
    said = ", ".join(f"{count} {STATES[status]}" for status, count in counts.items() if count)
    figures = [("trials", str(len(trials)), said), ("time", duration(seconds), "")]
    if best is not None and best.last is not None:
        ends = [trial.last for trial in trials if trial.status == "finished" and trial.last is not None]
        spread = (
            f"from {min(ends):.4g} to {max(ends):.4g} over {len(ends)} finished trials"
            if len(ends) > 1
            else ""
        )
        figures.insert(0, (goal.name, f"{best.last:.4g}", f"trial {best.number}; {spread}"))
        figures[1:1] = [
            (name, f"{value:.4g}" if isinstance(value, float) else str(value), "best")
            for name, value in best.params.items()
        ]
    return figure_cards(figures)


def go_on(blocks: Sequence[tuple[str, str]], mlflow: str | None, files: Sequence[str], what: str) -> str:
    """What to do next.

    Args:
        blocks: (what it does, command).
        mlflow: Where to look at it in MLflow.
        files: Paths or URIs of what else there is.
        what: A sentence's beginning that says what these are.
    """
    said = "".join(
        f"<dt>{escape(does)}</dt><dd><pre>{escape(command)}</pre></dd>" for does, command in blocks
    )
    if mlflow is not None:
        link = escape(mlflow, quote=True)
        shown = f'<a href="{link}">{link}</a>' if mlflow.startswith("http") else f"<pre>{link}</pre>"
        said += f"<dt>In MLflow</dt><dd>{shown}</dd>"
    named = " and ".join(f"<code>{escape(file)}</code>" for file in files)
    return f"<h2>Go on</h2><dl class='commands'>{said}</dl><p>{escape(what)}: {named}.</p>"


def _go_on(sweep: str, mlflow: str | None, command: str | None) -> str:
    blocks = [] if command is None else [("Train the winner", command)]
    blocks.append(("Go on after an interruption", f"beit sweep --resume {sweep}"))
    files = [storage.join(sweep, *name.split("/")) for name in (TRIALS_FILE, BEST_FILE)]
    return go_on(blocks, mlflow, files, "The table and the winner's configuration")


def _planes(trials: Sequence[Trial], goal: Goal, config: SweepConfig) -> str:
    """The heat maps, where two parameters are numbers: at the end, and where all trials still ran."""
    numbers = _numeric(trials)
    if len(numbers) < 2 or not any(trial.points for trial in trials):
        return ""
    first, second = PLANE if all(name in numbers for name in PLANE) else list(numbers)[:2]
    x, y = (first, numbers[first]), (second, numbers[second])
    lower = goal.mode == "min"
    ends = [trial.last if trial.status == "finished" else None for trial in trials]
    notes = [_note(trial, end) for trial, end in zip(trials, ends, strict=True)]
    parts = []
    if any(end is not None for end in ends):
        parts.append(
            heat_map(
                f"{goal.name} at the end, in the nearest finished trial",
                x,
                y,
                ends,
                notes,
                lower_is_better=lower,
            )
        )
    reached = [trial for trial in trials if trial.points]
    common = min(len(trial.points) for trial in reached)
    early = [trial.points[common - 1][2] if trial.points else None for trial in trials]
    if len(reached) > 1 and any(len(trial.points) > common for trial in reached):
        labels = ["failed" if value is None else f"{value:.3f}" for value in early]
        parts.append(
            heat_map(
                f"{goal.name} at point {common} of {config.evaluation.points}, which all reached",
                x,
                y,
                early,
                labels,
                lower_is_better=lower,
            )
        )
    figures = "".join(f"<figure>{part}</figure>" for part in parts)
    where = " and ".join(f"point {rung}" for rung in rungs(config))
    how = f" Trials were compared at {where}, and the worse ones stopped." if where else ""
    legend = (
        "Every place has the colour of the nearest trial; yellow is good. Values of trials that were "
        "stopped early stand beside a cross: "
        f"they are from an earlier point, and no match for the others at the end.{how}"
    )
    return f"<h2>{escape(first)} x {escape(second)}</h2><div class='charts'>{figures}</div><p>{legend}</p>"


def _note(trial: Trial, end: float | None) -> str:
    if end is not None:
        return f"{end:.3f}"
    return f"{trial.last:.3f} at {len(trial.points)}" if trial.last is not None else trial.status


def _curves(trials: Sequence[Trial], goal: Goal) -> str:
    shown = sorted(
        (trial for trial in trials if trial.last is not None), key=lambda trial: _rank(trial, goal)
    )
    if not shown:
        return ""
    curves = [
        (
            f"{trial.number}: {described(trial.params)}" if place < NAMED_CURVES else "",
            [(step, value) for _, step, value in trial.points],
            trial.status == "finished",
        )
        for place, trial in enumerate(shown)
    ]
    return (
        "<h2>Learning curves</h2><div "
        f"class='one'><figure>{learning_curves(goal.name, curves)}</figure></div>"
        "<p>Best first; dashed where a trial was stopped early.</p>"
    )


def _rank(trial: Trial, goal: Goal) -> tuple[bool, float]:
    assert trial.last is not None
    return trial.status != "finished", trial.last if goal.mode == "min" else -trial.last


def _parallel(trials: Sequence[Trial], goal: Goal) -> str:
    shown = [trial for trial in trials if trial.last is not None]
    columns = list(values_of(shown).items())
    if len(shown) < 2 or not columns:
        return ""
    values, complete = [trial.last for trial in shown], [trial.status == "finished" for trial in shown]
    chart = parallel_coordinates(
        "A line a trial", columns, goal.name, values, complete, lower_is_better=goal.mode == "min"
    )
    return (
        f"<h2>Parallel coordinates</h2><div class='one'><figure>{chart}</figure></div>"
        "<p>Each trial at its last point; dashed where that was early: it might have come higher.</p>"
    )


def _table(trials: Sequence[Trial], goal: Goal, best: Trial | None) -> str:
    parameters = values_of(list(trials))
    head = "".join(
        f"<th>{escape(name)}</th>" for name in ["trial", *parameters, "state", "points", "steps", goal.name]
    )
    rows = []
    for index, trial in enumerate(trials):
        state = STATES[trial.status] + (f": {trial.error}" if trial.error else "")
        cells = [
            str(trial.number),
            *(_cell(column[index]) for column in parameters.values()),
            state,
            str(len(trial.points)),
        ]
        cells += (
            [str(trial.points[-1][1]), f"{trial.last:.4f}"]
            if trial.points and trial.last is not None
            else ["", ""]
        )
        kind = " class='best'" if best is not None and trial.number == best.number else ""
        rows.append(f"<tr{kind}>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>")
    return (
        "<h2>Trials</h2><div "
        f"class='wide'><table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _numeric(trials: Sequence[Trial]) -> dict[str, list[float]]:
    """Parameters that are numbers, and not all the same."""
    found = {}
    for name, column in values_of(list(trials)).items():
        if (
            all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in column)
            and len(set(column)) > 1
        ):
            found[name] = [float(value) for value in column]
    return found


TABLE_STYLE = """
th { text-align: left; font-weight: 600; padding: .15rem 1.2rem .15rem 0; border-bottom: 1px solid #e4e4e4; }
td { font-variant-numeric: tabular-nums; }
.best td { font-weight: 600; }
.one { max-width: 56rem; }
"""
