"""Run Ray Tune without its messages. Each trial is controlled from the driver's node, and reserves no CPU
there.
"""

from __future__ import annotations

import functools
import logging
import os
import time
from collections.abc import Callable, Mapping
from typing import Any

import ray.tune
from ray.tune.execution.placement_groups import PlacementGroupFactory

from beit.pretraining.masking import MASKS, MaskKind
from beit.pretraining.targets import TARGETS, Target
from pipelines import storage
from pipelines.runs import tracking
from pipelines.sources.kinds import FILE_KINDS, SCHEMES, FileKind, OpenScheme

# Ray Tune's own files of each trial, and its lines on the terminal, would repeat ours. A trial stays in the
# folder of its process, so that relative paths keep their meaning.
QUIET_TUNE = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
}


def run_tuner(
    trainable: Callable[[dict[str, Any]], None],
    config: ray.tune.TuneConfig,
    *,
    folder: str,
    callback: ray.tune.Callback,
    param_space: dict[str, Any] | None = None,
    debug: bool,
) -> None:
    """Run trials until all have ended or the user interrupts.

    Args:
        trainable: Runs one trial.
        config: Ray Tune's configuration: the number of trials, and how many run at a time.
        folder: Ray Tune's own files go into `tune` below it; nothing is read from them again.
        callback: Called when trials start, report and end.
        param_space: Arguments of the trials, if `config` has no search.
        debug: Show Ray Tune's own messages.
    """
    for name, value in QUIET_TUNE.items():
        os.environ.setdefault(name, value)
    if not debug:
        for name in ("ray.tune", "ray.air"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
    # Trials run on the driver's machine, where files and SQLite are. They reserve no core there, which is
    # left to their workers.
    here = f"node:{ray.util.get_node_ip_address()}"  # type: ignore[no-untyped-call]
    # These settings may hold a password, so they are passed through Ray's memory: Ray Tune writes all other
    # arguments of a trial into its files.
    led = ray.tune.with_parameters(
        functools.partial(_lead, trainable),
        settings=tracking.settings(),
        targets=TARGETS.own,
        masks=MASKS.own,
        file_kinds=FILE_KINDS.own,
        schemes=SCHEMES.own,
    )
    ray.tune.Tuner(
        ray.tune.with_resources(led, PlacementGroupFactory([{here: 0.001}])),
        param_space=param_space,
        tune_config=config,
        run_config=ray.tune.RunConfig(
            name=f"attempt-{time.strftime('%Y%m%d-%H%M%S')}",
            storage_path=storage.join(folder, "tune"),
            callbacks=[callback],
            verbose=0,
        ),
    ).fit()


def _lead(
    trainable: Callable[[dict[str, Any]], None],
    given: dict[str, Any],
    *,
    settings: Mapping[str, str],
    targets: Mapping[str, type[Target]],
    masks: Mapping[str, MaskKind],
    file_kinds: Mapping[str, FileKind],
    schemes: Mapping[str, OpenScheme | None],
) -> None:
    """Run a trial with the driver's MLflow settings, and with the targets, masks and sources that are
    registered there.
    """
    tracking.adopt(settings)
    TARGETS.adopt(targets)
    MASKS.adopt(masks)
    FILE_KINDS.adopt(file_kinds)
    SCHEMES.adopt(schemes)
    trainable(given)
