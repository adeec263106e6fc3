"""Run a trial: `pretrain(override(preset, params))` in a folder of the sweep, the same code path as a single
run.

It runs in an actor of Ray Tune on the driver's machine, where files and SQLite are. The actor reserves no
core, because it only waits for the workers.
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
from pipelines.runs import checkpoints, run_folder
from pipelines.stream.graph import px_per_token
from pipelines.training.pretraining import check_config, check_grid, checked_length
from tune.failures import cause
from tune.goal import GOALS, evaluated
from tune.space import described
from tune.state import Trial, is_asked_to_stop, points_of, write_trial

POINT, OBJECTIVE, STATUS = "point", "objective", "status"
"""Keys of what a trial reports to Ray Tune; the last report says how it ended."""

CHECKPOINTS = 4
"""Least number of checkpoints that a trial writes."""


def trial_config(
    base: PretrainConfig, params: Mapping[str, Any], *, objective: str, images: int, sweep: str, name: str
) -> PretrainConfig:
    """Return the whole configuration of a trial.

    Args:
        base: The configuration that the trials share.
        params: The parameters of this trial.
        objective: The sweep's objective.
        images: Number of images in an epoch.
        sweep: The sweep's folder.
        name: Name of the trial's folder in it.
    """
    config = _varied(base, params, objective=objective, images=images)
    return replace(config, output=replace(config.output, root=sweep, name=name))


def _varied(
    base: PretrainConfig, params: Mapping[str, Any], *, objective: str, images: int
) -> PretrainConfig:
    """Return a trial's configuration without its folder. A trial that does not predict tokens does not read
    them.
    """
    config = evaluated(override(base, params), objective, images)
    tokens = config.data.tokens if find_target(config.target.kind).needs_tokenizer else None
    return replace(config, data=replace(config.data, tokens=tokens))


def check_trial(
    base: PretrainConfig, params: Mapping[str, Any], rows: int, *, objective: str
) -> PretrainConfig:
    """Refuse parameters with which a trial could not start, before any trial starts.

    Raises:
        UserError: The error that the trial would raise; the message names its parameters.
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
    """Run a trial, and write into its folder why it failed; Ray Tune calls this. Ray Tune itself would report
    the failure later, if at all.

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
    """Pretrain, or resume the trial if an earlier start of the sweep left it unfinished."""
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
        # This is not done at every call, because the folder may be on a bucket.
        if any(goal.value(row) is not None for row in rows) if goal.of_metrics else rows:
            report()
        return not is_asked_to_stop(folder)

    if resume and checkpoints.latest_checkpoint(folder):
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
        config: The trial's configuration, from `trial_config`.
        trial: Its number and parameters.
        preset: The sweep's preset.
        objective: The sweep's objective.
        rows: Number of images in an epoch.
        debug: Show Ray's own messages.
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
    """Ask for at least `CHECKPOINTS` checkpoints, so that even a short trial does not start over after an
    interruption.
    """
    return replace(output, checkpoint_steps=min(output.checkpoint_steps, max(1, total_steps // CHECKPOINTS)))
