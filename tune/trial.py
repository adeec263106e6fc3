"""A trial: `pretrain(override(preset, params))` in a folder of the sweep, the same code path as a single run.

It runs in an actor of Ray Tune on the driver's machine, which takes no core: it waits for the workers, and
files and SQLite are there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from beit.errors import UserError
from beit.plain import from_dict, override, to_dict
from beit.pretraining.targets import find_target
from pipelines import storage
from pipelines.config.jobs import OutputConfig
from pipelines.config.pretrain import PretrainConfig
from pipelines.pretrain import pretrain
from pipelines.runs import run_folder
from pipelines.stream.graph import px_per_token
from pipelines.training.pretraining import check_config, check_grid, checked_length
from tune.failures import cause
from tune.goal import GOALS, evaluated
from tune.space import described
from tune.state import Trial, is_asked_to_stop, points_of, write_trial

POINT, OBJECTIVE, STATUS = "point", "objective", "status"
"""What a trial reports to Ray Tune; the last report says how it ended."""

CHECKPOINTS = 4
"""A trial saves at least so many."""


def trial_config(
    base: PretrainConfig, params: Mapping[str, Any], *, objective: str, images: int, sweep: str, name: str
) -> PretrainConfig:
    """Return the whole configuration of a trial.

    Args:
        base: What the trials have in common.
        params: What this one has for itself.
        objective: Of the sweep.
        images: Of an epoch.
        sweep: The sweep's folder.
        name: The trial's, below it.
    """
    config = _varied(base, params, objective=objective, images=images)
    return replace(config, output=replace(config.output, root=sweep, name=name))


def _varied(
    base: PretrainConfig, params: Mapping[str, Any], *, objective: str, images: int
) -> PretrainConfig:
    """Return a trial's configuration without its folder; one that predicts no tokens reads none."""
    config = evaluated(override(base, params), objective, images)
    tokens = config.data.tokens if find_target(config.target.kind).needs_tokenizer else None
    return replace(config, data=replace(config.data, tokens=tokens))


def check_trial(
    base: PretrainConfig, params: Mapping[str, Any], rows: int, *, objective: str
) -> PretrainConfig:
    """Refuse parameters with which a trial could not begin, before any trial begins.

    Raises:
        UserError: As the trial would, naming its parameters.
    """
    try:
        config = _varied(base, params, objective=objective, images=rows)
        check_config(config)
        if find_target(config.target.kind).needs_tokenizer:
            check_grid(config, px_per_token(config.tokenizer))
        checked_length(config, rows)
    except UserError as error:
        raise UserError(
            f"a trial with {described(params)}: {error.cause}", f"narrow the space; {error.remedy}"
        ) from error
    return config


def run_trial(entry: dict[str, Any]) -> None:
    """Run a trial, and write into its folder why it failed: Ray Tune's entry. Ray Tune would tell its
    driver later, if at all.

    Args:
        entry: From `entry_of`.
    """
    try:
        _run(entry)
    except Exception as error:
        failed = Trial(number=entry["number"], params=entry["params"], status="failed", error=cause(error))
        write_trial(entry["config"]["output"]["root"], failed)
        raise


def _run(entry: dict[str, Any]) -> None:
    """Pretrain, or resume what an earlier start of the sweep left."""
    import ray.tune

    config, goal = from_dict(PretrainConfig, entry["config"]), GOALS[entry["objective"]]
    assert config.output.name is not None
    folder = storage.join(config.output.root, config.output.name)
    resume = folder if storage.exists(storage.join(folder, run_folder.CONFIG_FILE)) else None
    reported = 0

    def report() -> list[tuple[int, int, float]]:
        nonlocal reported
        points = points_of(goal.rows(folder), goal)
        for point, step, value in points[reported:]:
            ray.tune.report({POINT: point, OBJECTIVE: value, "step": step})
            reported = point
        return points

    def follow(rows: list[dict[str, Any]]) -> bool:
        # Not at every call: the folder may be a bucket.
        if any(goal.value(row) is not None for row in rows) if goal.of_metrics else rows:
            report()
        return not is_asked_to_stop(folder)

    if resume and run_folder.latest_checkpoint(folder):
        report()
    result = pretrain(config, preset=entry["preset"], resume=resume, debug=entry["debug"], follow=follow)
    points = report()
    ray.tune.report(
        {
            POINT: len(points),
            OBJECTIVE: points[-1][2] if points else None,
            "step": result.step,
            STATUS: "finished" if result.step >= entry["total_steps"] else "stopped",
        }
    )


def entry_of(
    config: PretrainConfig, trial: Trial, *, preset: str, objective: str, rows: int, debug: bool
) -> dict[str, Any]:
    """Make the argument of `run_trial`.

    Args:
        config: The trial's, from `trial_config`.
        trial: Its number and parameters.
        preset: Of the sweep.
        objective: Of the sweep.
        rows: Images of an epoch.
        debug: Let Ray's own messages through.
    """
    total_steps = config.total_steps(rows, config.optim.global_batch_size)
    config = replace(config, output=frequent_checkpoints(config.output, total_steps))
    return {
        "number": trial.number,
        "params": trial.params,
        "config": to_dict(config),
        "total_steps": total_steps,
        "preset": preset,
        "objective": objective,
        "debug": debug,
    }


def frequent_checkpoints(output: OutputConfig, total_steps: int) -> OutputConfig:
    """Ask for at least `CHECKPOINTS` checkpoints: however short a trial is, an interruption shall not send
    it back to its start.
    """
    return replace(output, checkpoint_steps=min(output.checkpoint_steps, max(1, total_steps // CHECKPOINTS)))
