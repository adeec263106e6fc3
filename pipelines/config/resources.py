"""Configuration of a job's workers, cores, GPUs and precision."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from beit.checks import NotNegativeInt, Options, PositiveFloat, PositiveInt, Share
from pipelines.config.workers import WorkerRange


@dataclass(frozen=True, kw_only=True)
class ResourceConfig:
    """Workers, cores, GPUs and precision. They change the speed, but neither the samples nor the gradient."""

    workers: int | str | None = None
    """Number of training workers; each has one GPU, or a share of the cores. A range such as 2..8: as many of
    these as there is room for, more when machines join and fewer when machines are lost, with the same global
    batch. None: one for each GPU of the cluster, or one if training runs on CPUs."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device that the workers train on. auto: GPUs if the cluster has any, otherwise CPUs."""

    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Floating-point precision of the training step. auto: bf16 on a GPU, fp32 on a CPU."""

    micro_batch_size: PositiveInt | None = None
    """Most images that a worker passes through the model at once; gradients accumulate over a worker's share
    of the global batch. None: 128 in training, 64 if only features are computed."""

    compile: bool = False
    """Compile the model with torch.compile (GPU only)."""

    worker_cpus: PositiveFloat | None = None
    """Cores reserved for each worker. None: 1 with a GPU; without one, the workers share half of the
    machine's cores."""

    view_cpus: PositiveFloat | None = None
    """Cores reserved for each task that reads images and makes views. None: 1, or less on a machine with few
    cores."""

    tokenizers: PositiveInt | None = None
    """Most tokenizer actors; fewer run if fewer keep up. None: one for each worker, or as many as fit on
    spare GPUs."""

    tokenizer_cpus: PositiveFloat | None = None
    """Cores reserved for each tokenizer actor. None: 1 with a GPU, 2 without one, or less on a machine with
    few cores."""

    tokenizer_gpus: Share | None = None
    """Share of a GPU for each tokenizer actor. None: a whole GPU if the workers leave one free, otherwise a
    quarter of a worker's GPU."""

    streams: PositiveInt | None = None
    """Number of streams of samples; the workers are divided among them, and each stream has its own reading
    tasks and tokenizers. All blocks of a stream pass through one process, which limits the GPUs that a stream
    can feed: `beit plan` says how many streams are needed. None: one."""

    in_order: bool = False
    """Deliver samples in the planned order, not as soon as they are ready. A run with one worker then repeats
    exactly, to the last digit."""

    cpus: PositiveInt | None = None
    """Cores that Ray may use when it is started on this machine. None: all."""

    max_failures: NotNegativeInt = 3
    """Most restarts from the same checkpoint before the run gives up. Machines that a cloud takes back with
    notice do not count."""

    def check_together(self, option: Options) -> None:
        """Refuse a `workers` that is neither a number nor a range."""
        if self.workers is not None:
            WorkerRange.parse(self.workers, option=option.name("workers"))

    @property
    def worker_range(self) -> WorkerRange | None:
        """`workers` as a range; None if it is not given."""
        return None if self.workers is None else WorkerRange.parse(self.workers)
