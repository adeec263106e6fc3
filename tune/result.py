"""Write the results of a sweep: the table of its trials, and the best configuration, which `beit pretrain`
accepts.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence

from beit.plain import override, to_dict
from pipelines import storage
from pipelines.config.pretrain import PretrainConfig
from pipelines.csv_files import write_csv
from pipelines.presets.pretrain import PRESETS, pretrain_preset
from pipelines.runs import run_folder
from tune.goal import Goal
from tune.state import Trial, values_of

TRIALS_FILE = "trials.csv"
BEST_FILE = "best/config.json"

LENGTH = ("steps", "epochs", "data.scenes", "optim.warmup_steps")
"""Fields that set the length of a run. All other fields belong to what was compared; a peak learning rate,
for example, is only good for its batch size."""


def write_trials(sweep: str, trials: Sequence[Trial], goal: Goal) -> None:
    """Write `trials.csv`, a row for each trial in the order of their numbers."""
    parameters = values_of(list(trials))
    columns = ["trial", "status", *parameters, "points", "steps", goal.name, "best", "folder", "error"]
    rows = []
    for index, trial in enumerate(trials):
        values = [value for _, _, value in trial.points]
        row = [trial.number, trial.status, *(column[index] for column in parameters.values()), len(values)]
        row += (
            [trial.points[-1][1], f"{values[-1]:.6g}", f"{goal.best(values):.6g}"] if values else ["", "", ""]
        )
        rows.append([*row, storage.join(sweep, trial.name), trial.error])
    write_csv(storage.join(sweep, TRIALS_FILE), columns, rows)


def write_best(sweep: str, config: PretrainConfig, *, preset: str) -> None:
    """Write the winner's configuration as that of a single run. It is as long as a trial, and tokenises while
    it trains unless the user gave the sweep a token cache.
    """
    saved = {"job": "pretrain", "preset": preset, "inputs": {}, "config": to_dict(config)}
    storage.write_text(storage.join(sweep, *BEST_FILE.split("/")), json.dumps(saved, indent=2))


def winner_command(
    sweep: str, config: PretrainConfig, varied: Sequence[str], *, preset: str, images: int
) -> str:
    """Return the command that trains the winner at the length of its preset, or of the trial if that is
    longer.

    Args:
        sweep: The sweep's folder.
        config: The winner's configuration.
        varied: Fields that the space varies.
        preset: The sweep's preset.
        images: Number of images in an epoch of the sweep.
    """
    full = pretrain_preset(preset) if preset in PRESETS else config
    before, after = run_folder.flatten(to_dict(config)), run_folder.flatten(to_dict(full))
    different = [
        name
        for name in LENGTH
        if before[name] != after[name]
        and name not in varied
        and not (name == "data.scenes" and config.data.train)
    ]
    batch = config.optim.global_batch_size
    full_images = images if config.data.train else after["data.scenes"]
    longer = override(config, {name: after[name] for name in different})
    if longer.total_steps(full_images, batch) <= config.total_steps(images, batch):
        different = []
    options = [f"--{name.replace('_', '-')} {after[name]}" for name in different]
    return " ".join(["beit", "pretrain", shlex.quote(storage.join(sweep, *BEST_FILE.split("/"))), *options])
