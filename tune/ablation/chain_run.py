"""Run a chain by calling `pretrain`, `finetune` and `segment`, as for single runs, in folders of the
ablation.

It runs in an actor of Ray Tune on the driver's machine, where files and SQLite are. The actor reserves no
core, because it only waits for the workers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from beit.pretraining.targets import find_target
from pipelines import storage
from pipelines.config.data import DataConfig
from pipelines.config.jobs import OutputConfig
from pipelines.config.pretrain import PretrainConfig
from pipelines.config.supervised import FinetuneConfig, SegmentConfig, SupervisedConfig
from pipelines.finetune import ClassificationTask, finetune
from pipelines.pretrain import pretrain
from pipelines.runs import run_folder
from pipelines.segment import SegmentationTask, segment
from tune.ablation.chain import PRETRAIN, Chain, JobName, JobState, left_to_do, write_state
from tune.ablation.config import AblationConfig, ProtocolConfig
from tune.failures import cause
from tune.trial import frequent_checkpoints

Config = TypeVar("Config", bound=SupervisedConfig)

CHAIN, LINE = "chain", "line"
"""Keys of what Ray Tune passes to a chain, and of what the chain reports: a line for the user."""

SHOWN = ("step ", "validation ", "warning: ")
"""Beginnings of the lines that are shown of a job. All its lines are in its train.log or its report."""


@dataclass(frozen=True, kw_only=True)
class Setup:
    """The settings that all chains of an ablation share."""

    config: AblationConfig
    """The configuration, with absolute paths and with the data of all jobs."""
    folder: str
    preset: str
    images: int
    """Number of images in an epoch of the pretraining."""
    steps: Mapping[JobName, int]
    """Steps of the fine-tunings."""
    tokens: Mapping[int, str]
    """Token caches by seed. The rows of a seed without one tokenise as they train."""
    debug: bool


def pretrain_config(setup: Setup, chain: Chain) -> PretrainConfig:
    """Return the configuration of a chain's pretraining."""
    config = setup.config.pretraining(chain.row, chain.seed)
    tokens = setup.tokens.get(chain.seed) if find_target(config.target.kind).needs_tokenizer else None
    steps = config.total_steps(setup.images, config.optim.global_batch_size)
    return replace(
        config, data=replace(config.data, tokens=tokens), output=_output(setup, chain, PRETRAIN, steps)
    )


def classify_config(setup: Setup, chain: Chain) -> FinetuneConfig:
    """Return the configuration of a chain's fine-tuning for classification."""
    protocol = setup.config.classify
    return _of_chain(
        with_protocol(
            ClassificationTask().config_for(_start(setup, chain), protocol.recipe),
            protocol,
            setup.config.data,
        ),
        setup,
        chain,
        "classify",
    )


def segment_config(setup: Setup, chain: Chain) -> SegmentConfig:
    """Return the configuration of a chain's fine-tuning for segmentation."""
    protocol = setup.config.segment
    return _of_chain(
        with_protocol(
            SegmentationTask().config_for(_start(setup, chain), protocol.recipe), protocol, setup.config.data
        ),
        setup,
        chain,
        "segment",
    )


def with_protocol(config: Config, protocol: ProtocolConfig, pretraining: DataConfig) -> Config:
    """Apply a protocol's settings and data to a recipe, and the columns of the pretraining's data."""
    names = [
        name
        for name in ("train", "val", "fraction", "annotations", "val_annotations")
        if hasattr(protocol, name)
    ]
    data = replace(
        config.data,
        image=pretraining.image,
        label=pretraining.label,
        annotation=pretraining.annotation,
        list=pretraining.list if protocol.train == pretraining.train else None,
        **{name: getattr(protocol, name) for name in names},
    )
    rate = config.optim.peak_lr if protocol.peak_lr is None else protocol.peak_lr
    return replace(
        config, steps=protocol.steps or config.steps, optim=replace(config.optim, peak_lr=rate), data=data
    )


def _of_chain(config: Config, setup: Setup, chain: Chain, job: JobName) -> Config:
    return replace(
        config,
        seed=chain.seed,
        resources=setup.config.resources,
        output=_output(setup, chain, job, setup.steps[job]),
    )


def _start(setup: Setup, chain: Chain) -> str:
    return storage.join(setup.folder, chain.job_name(PRETRAIN))


def _output(setup: Setup, chain: Chain, job: JobName, steps: int) -> OutputConfig:
    return frequent_checkpoints(
        replace(setup.config.output, root=setup.folder, name=chain.job_name(job)), steps
    )


def run_chain(given: Mapping[str, Any], *, setup: Setup) -> None:
    """Run the unfinished jobs of a chain; Ray Tune calls this. A task that fails does not stop the other.

    Args:
        given: {CHAIN: the chain's fields}.
        setup: The settings that all chains share.
    """
    import ray.tune

    chain = Chain(**{**given[CHAIN], "tasks": tuple(given[CHAIN]["tasks"])})
    failures: list[Exception] = []
    for job in left_to_do(setup.folder, chain):
        write_state(setup.folder, chain, job, JobState(status="running"))

        def say(line: str, job: JobName = job) -> None:
            if line.startswith(SHOWN):
                ray.tune.report({LINE: f"{chain.row} seed {chain.seed} {job}: {line}"})

        try:
            run_job(setup, chain, job, say)
        except Exception as error:
            write_state(setup.folder, chain, job, JobState(status="failed", error=cause(error)))
            failures.append(error)
            if job == PRETRAIN:
                break
        else:
            write_state(setup.folder, chain, job, JobState(status="finished"))
    if failures:
        raise failures[0]
    ray.tune.report({LINE: ""})


def run_job(setup: Setup, chain: Chain, job: JobName, say: Callable[[str], None]) -> None:
    """Run one job of a chain, or resume it if an earlier start of the ablation left it unfinished."""
    folder = storage.join(setup.folder, chain.job_name(job))
    options: dict[str, Any] = {
        "resume": folder if storage.exists(storage.join(folder, run_folder.CONFIG_FILE)) else None,
        "debug": setup.debug,
        "say": say,
    }
    if job == "pretrain":
        pretrain(pretrain_config(setup, chain), preset=setup.preset, **options)
    elif job == "classify":
        finetune(classify_config(setup, chain), preset=setup.config.classify.recipe, **options)
    else:
        segment(segment_config(setup, chain), preset=setup.config.segment.recipe, **options)
