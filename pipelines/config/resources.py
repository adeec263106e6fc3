"""Who does the work: workers, cores, GPUs, precision."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from beit.checks import NotNegativeInt, Options, PositiveFloat, PositiveInt, Share
from pipelines.config.workers import WorkerRange


@dataclass(frozen=True, kw_only=True)
class ResourceConfig:
    """Who does the work. Changing these changes the speed, not the samples nor the gradient."""

    workers: int | str | None = None
    """Training workers: one GPU each, or a share of the cores. A number, or a range such as 2..8: as many of
    these as there is room for, more when machines come and fewer when they are lost, with the same global
    batch. None: one for each GPU of the cluster, one where they train on CPUs."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the workers train. auto: GPUs if the cluster has any."""

    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of the training step. auto: bf16 on a GPU, fp32 on a CPU."""

    micro_batch_size: PositiveInt | None = None
    """Images that a worker puts through the model at once; gradients accumulate. None: 128, or its whole
    share of the global batch where that is less; 64 where features are only computed."""

    compile: bool = False
    """Compile the model with torch.compile (GPU)."""

    worker_cpus: PositiveFloat | None = None
    """Cores reserved for each worker. None: 1 beside a GPU, half of the machine divided among the workers
    without one."""

    view_cpus: PositiveFloat | None = None
    """Cores reserved for each reading task. None: 1, less on a machine of few cores."""

    tokenizers: PositiveInt | None = None
    """Most tokenizer actors; fewer run where fewer keep up. None: one for each worker, or as many as spare
    GPUs hold."""

    tokenizer_cpus: PositiveFloat | None = None
    """Cores reserved for each tokenizer actor. None: 1 beside a GPU, 2 without one, less on a machine of few
    cores."""

    tokenizer_gpus: Share | None = None
    """Share of a GPU for each tokenizer actor. None: a GPU of its own where the workers leave one, else a
    quarter of a worker's."""

    streams: PositiveInt | None = None
    """Streams of samples that the workers are divided over, each with reading tasks and tokenizers of its
    own. All blocks of a stream pass one process, which bounds how many GPUs it feeds: `beit plan` says how
    many streams are needed. None: one."""

    in_order: bool = False
    """Deliver samples in the planned order, not as they are ready: a run with one worker then repeats itself
    to the last digit."""

    cpus: PositiveInt | None = None
    """Cores that a locally started Ray may use. None: all."""

    max_failures: NotNegativeInt = 3
    """Restarts of the worker group from the last checkpoint, without a new one in between, before the run
    gives up. Machines that a cloud announces to take back do not count."""

    def check_together(self, option: Options) -> None:
        """Refuse what is no number of workers."""
        if self.workers is not None:
            WorkerRange.parse(self.workers, option=option.name("workers"))

    @property
    def worker_range(self) -> WorkerRange | None:
        """`workers` as two numbers; None where it is not given."""
        return None if self.workers is None else WorkerRange.parse(self.workers)
