"""Write the report page of a sweep, `report/index.html` in its folder: one HTML file that needs no other
file.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from beit.plain import to_dict
from pipelines import storage
from pipelines.config.pretrain import PretrainConfig
from pipelines.reports.page import (
    Block,
    Charts,
    Commands,
    Details,
    KeyFigure,
    Section,
    Table,
    Text,
    Verbatim,
    code,
    strong,
    write_page,
)
from pipelines.runs.progress import duration
from tune.charts import heat_map, learning_curves, parallel_coordinates
from tune.config import SweepConfig
from tune.goal import Goal
from tune.parent import link_of, read_how
from tune.result import BEST_FILE, TRIALS_FILE, winner_command
from tune.space import described
from tune.state import STATES, Trial, values_of, winner
from tune.stopping import rungs

JOB = "sweep"
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
        seconds: Duration of this start.
        lines: Sentences on how it was done: concurrency, tokens.
        mlflow: Where to look at it in MLflow.
        command: Command that trains the winner. None: no trial was finished.

    Returns:
        Path or URI of the page.
    """
    best = winner(list(trials), goal)
    return write_report_page(
        sweep,
        heading=f"sweep {preset}, {config.space}",
        figures=_figures(trials, goal, best, seconds),
        sections=[
            Section("", [Text(f"The objective is {goal.meaning}")]),
            _next_section(sweep, mlflow, command),
            *_planes(trials, goal, config),
            *_curves(trials, goal),
            *_parallel(trials, goal),
            _table(trials, goal, best),
        ],
        lines=lines,
        config=config,
    )


def write_report(
    folder: str, config: SweepConfig, trials: list[Trial], goal: Goal, *, preset: str
) -> tuple[str, str | None]:
    """Write the page of a sweep from its folder; returns its path, and the command that trains the winner."""
    how = read_how(folder, job=JOB)
    best, command = winner(trials, goal), None
    if best is not None:
        command = winner_command(
            folder, config.pretraining(best.params), list(best.params), preset=preset, images=how.images
        )
    page = write_sweep_report(
        folder,
        config,
        trials,
        goal,
        preset=preset,
        seconds=how.seconds,
        lines=how.lines,
        mlflow=link_of(folder, config),
        command=command,
    )
    return page, command


def write_report_page(
    folder: str,
    *,
    heading: str,
    figures: Sequence[KeyFigure],
    sections: Sequence[Section],
    lines: Sequence[str],
    config: PretrainConfig,
) -> str:
    """Write a page of several runs: its sections, how it was done, and the configuration; returns its path
    or URI.
    """
    how: list[Block] = [Text(line) for line in lines]
    configuration = Details("Configuration", [Verbatim(json.dumps(to_dict(config), indent=2))])
    return write_page(
        folder,
        heading=heading,
        figures=figures,
        sections=[*sections, Section("How it was done", how), Section("", [configuration])],
    )


def _figures(trials: Sequence[Trial], goal: Goal, best: Trial | None, seconds: float) -> list[KeyFigure]:
    counts = {status: sum(trial.status == status for trial in trials) for status in STATES}
    said = ", ".join(f"{count} {STATES[status]}" for status, count in counts.items() if count)
    figures = [KeyFigure("trials", str(len(trials)), said), KeyFigure("time", duration(seconds))]
    if best is not None and best.last is not None:
        ends = [trial.last for trial in trials if trial.status == "finished" and trial.last is not None]
        spread = (
            f"from {min(ends):.4g} to {max(ends):.4g} over {len(ends)} finished trials"
            if len(ends) > 1
            else ""
        )
        figures = [
            KeyFigure(goal.name, f"{best.last:.4g}", f"trial {best.number}; {spread}"),
            *(KeyFigure(name, _cell(value), "best") for name, value in best.params.items()),
            *figures,
        ]
    return figures


def next_section(
    commands: Sequence[tuple[str, str]], mlflow: str | None, files: Sequence[str], what: str
) -> Section:
    """What to do next.

    Args:
        commands: (what for, command).
        mlflow: Where to look at it in MLflow.
        files: Paths or URIs of the other results.
        what: A sentence's beginning that says what these are.
    """
    place = [] if mlflow is None else [("In MLflow", mlflow)]
    # A local store of MLflow's is no address that a browser opens.
    is_link = mlflow is not None and mlflow.startswith("http")
    shown = Commands(commands, links=place) if is_link else Commands([*commands, *place])
    named = Markup(" and ").join(code(file) for file in files)
    return Section("Next", [shown, Text(f"{what}: " + named + ".")])


def _next_section(sweep: str, mlflow: str | None, command: str | None) -> Section:
    commands = [] if command is None else [("Train the winner", command)]
    commands.append(("Resume after an interruption", f"beit sweep --resume {shlex.quote(sweep)}"))
    files = [storage.join(sweep, *name.split("/")) for name in (TRIALS_FILE, BEST_FILE)]
    return next_section(commands, mlflow, files, "The table and the winner's configuration")


def _planes(trials: Sequence[Trial], goal: Goal, config: SweepConfig) -> list[Section]:
    """Draw the heat maps if two parameters are numbers: at the end, and at the last point that all trials
    reached.
    """
    numbers = _numeric(trials)
    if len(numbers) < 2 or not any(trial.points for trial in trials):
        return []
    first, second = PLANE if all(name in numbers for name in PLANE) else list(numbers)[:2]
    x, y = (first, numbers[first]), (second, numbers[second])
    lower = goal.mode == "min"
    ends = [trial.last if trial.status == "finished" else None for trial in trials]
    notes = [_note(trial, end) for trial, end in zip(trials, ends, strict=True)]
    charts = []
    if any(end is not None for end in ends):
        charts.append(
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
        charts.append(
            heat_map(
                f"{goal.name} at point {common} of {config.evaluation.points}, which all reached",
                x,
                y,
                early,
                labels,
                lower_is_better=lower,
            )
        )
    where = " and ".join(f"point {rung}" for rung in rungs(config))
    how = f" Trials were compared at {where}, and the worse ones stopped." if where else ""
    legend = (
        "Every pixel has the colour of the nearest trial; yellow is good. A cross marks a trial that was "
        "stopped early: its value is from an earlier point, and cannot be compared with values at the end."
        f"{how}"
    )
    return [Section(f"{first} x {second}", [Charts(charts), Text(legend)])]


def _note(trial: Trial, end: float | None) -> str:
    if end is not None:
        return f"{end:.3f}"
    return f"{trial.last:.3f} at {len(trial.points)}" if trial.last is not None else trial.status


def _curves(trials: Sequence[Trial], goal: Goal) -> list[Section]:
    shown = sorted(
        (trial for trial in trials if trial.last is not None), key=lambda trial: _rank(trial, goal)
    )
    if not shown:
        return []
    curves = [
        (
            f"{trial.number}: {described(trial.params)}" if place < NAMED_CURVES else "",
            [(step, value) for _, step, value in trial.points],
            trial.status == "finished",
        )
        for place, trial in enumerate(shown)
    ]
    note = Text("The best trials come first. A dashed line is a trial that was stopped early.")
    return [Section("Learning curves", [Charts([learning_curves(goal.name, curves)], one_a_row=True), note])]


def _rank(trial: Trial, goal: Goal) -> tuple[bool, float]:
    assert trial.last is not None
    return trial.status != "finished", trial.last if goal.mode == "min" else -trial.last


def _parallel(trials: Sequence[Trial], goal: Goal) -> list[Section]:
    shown = [trial for trial in trials if trial.last is not None]
    columns = list(values_of(shown).items())
    if len(shown) < 2 or not columns:
        return []
    values, complete = [trial.last for trial in shown], [trial.status == "finished" for trial in shown]
    chart = parallel_coordinates(
        "A line for each trial", columns, goal.name, values, complete, lower_is_better=goal.mode == "min"
    )
    note = Text(
        "Each trial at its last point. A dashed line is a trial that was stopped early: it might have "
        "become better."
    )
    return [Section("Parallel coordinates", [Charts([chart], one_a_row=True), note])]


def _table(trials: Sequence[Trial], goal: Goal, best: Trial | None) -> Section:
    """Make a row for each trial; the winner's is emphasised."""
    parameters = values_of(list(trials))
    rows = []
    for index, trial in enumerate(trials):
        state = STATES[trial.status] + (f": {trial.error}" if trial.error else "")
        reached = (
            [str(trial.points[-1][1]), f"{trial.last:.4f}"]
            if trial.points and trial.last is not None
            else ["", ""]
        )
        cells = [
            str(trial.number),
            *(_cell(column[index]) for column in parameters.values()),
            state,
            str(len(trial.points)),
            *reached,
        ]
        is_best = best is not None and trial.number == best.number
        rows.append([strong(cell) for cell in cells] if is_best else cells)
    titles = ["trial", *parameters, "state", "points", "steps", goal.name]
    return Section("Trials", [Table(titles, rows)])


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _numeric(trials: Sequence[Trial]) -> dict[str, list[float]]:
    """Return the parameters that are numbers and differ between trials."""
    found = {}
    for name, column in values_of(list(trials)).items():
        if (
            all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in column)
            and len(set(column)) > 1
        ):
            found[name] = [float(value) for value in column]
    return found
