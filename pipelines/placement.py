"""Which stage gets which resources, computed before anything starts: Ray itself waits for ever without a word."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from beit.errors import UserError
from pipelines.config import ResourceConfig


@dataclass(frozen=True, kw_only=True)
class Node:
    """What one machine offers."""

    cpus: float
    gpus: float


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Resources of every stage. Reading tasks, tokenizers and workers ask for different amounts, so Ray never fuses them."""

    workers: int
    worker_cpus: float
    worker_gpus: float
    worker_threads: int
    view_cpus: float
    tokenizers: tuple[int, int]
    """Fewest and most tokenizer actors; (0, 0): the stream has none."""
    tokenizer_cpus: float
    tokenizer_gpus: float
    tokenizer_threads: int
    tokenizer_device: str

    @property
    def device(self) -> str:
        """Where the workers train."""
        return "cuda" if self.worker_gpus else "cpu"

    def lines(self) -> list[str]:
        """The plan in words, a stage a line."""
        worker = f"{self.worker_gpus:g} GPU + {self.worker_cpus:g} CPU" if self.worker_gpus else f"{self.worker_cpus:g} CPU"
        lines = [f"workers: {self.workers} x {worker}"]
        if self.tokenizers[1]:
            actor = f"{self.tokenizer_gpus:g} GPU + {self.tokenizer_cpus:g} CPU" if self.tokenizer_gpus else f"{self.tokenizer_cpus:g} CPU"
            low, high = self.tokenizers
            lines.append(f"tokenizers: {low if low == high else f'{low} to {high}'} x {actor}")
        return [*lines, f"views: {self.view_cpus:g} CPU a task, on what is left"]


def place(config: ResourceConfig, nodes: Sequence[Node], *, tokenize: bool) -> Placement:
    """Divide a cluster among workers, tokenizers and reading tasks.

    Args:
        config: What the user asked for.
        nodes: The machines that are there.
        tokenize: Whether the stream has a tokenizer stage.

    Raises:
        UserError: When what was asked for does not fit, with the arithmetic.
    """
    cpus, gpus = sum(node.cpus for node in nodes), sum(node.gpus for node in nodes)
    if config.device == "cuda" and gpus == 0:
        raise UserError("resources.device=cuda, but Ray sees no GPU", "leave it out, or set resources.device=cpu")
    on_gpu = config.device != "cpu" and gpus > 0
    small = cpus < 8  # Few cores: stages take shares of a core, so that all of them run at once.

    actors = config.tokenizers if config.tokenizers is not None else config.workers
    worker_gpus = tokenizer_gpus = 0.0
    if on_gpu:
        spare = gpus - config.workers
        tokenizer_gpus = config.tokenizer_gpus if config.tokenizer_gpus is not None else (1.0 if spare >= 1 else 0.25)
        if not tokenize:
            tokenizer_gpus = 0.0
        if config.tokenizers is None and tokenizer_gpus == 1.0:
            actors = int(spare)
        worker_gpus = 1.0 if spare >= actors * tokenizer_gpus else 1.0 - tokenizer_gpus
    if config.worker_cpus is not None:
        worker_cpus = config.worker_cpus
    else:
        worker_cpus = 1.0 if on_gpu and not small else round(cpus / 2 / config.workers, 2)
    # Never the same for both stages: Ray would fuse them, and views would run in as few processes as there are tokenizers.
    tokenizer_cpus = config.tokenizer_cpus if config.tokenizer_cpus is not None else (round(cpus / 7, 2) if small else 2.0 - on_gpu)
    view_cpus = config.view_cpus if config.view_cpus is not None else (round(cpus / 8, 2) if small else 1.0)
    if tokenize and tokenizer_cpus == view_cpus and not tokenizer_gpus:
        raise UserError(
            f"resources.tokenizer_cpus={tokenizer_cpus:g} equals resources.view_cpus: Ray would run both stages in one process",
            f"set --resources.tokenizer-cpus {tokenizer_cpus * 1.1:.2g}",
        )
    placement = Placement(
        workers=config.workers,
        worker_cpus=worker_cpus,
        worker_gpus=worker_gpus,
        # Threads beyond the reserved cores would wait for each other while the stream's processes have their turn.
        worker_threads=max(1, int(worker_cpus)),
        view_cpus=view_cpus,
        tokenizers=(1, max(1, actors)) if tokenize else (0, 0),
        tokenizer_cpus=tokenizer_cpus,
        tokenizer_gpus=tokenizer_gpus,
        tokenizer_threads=max(1, round(tokenizer_cpus)),
        tokenizer_device="cuda" if tokenizer_gpus else "cpu",
    )
    _check(placement, nodes)
    return placement


def _check(placement: Placement, nodes: Sequence[Node]) -> None:
    """Refuse what can never be scheduled: the workers, one tokenizer and one reading task must fit at the same time."""
    p = placement
    tokenizers = p.tokenizers[0]
    needed = p.workers * p.worker_cpus + tokenizers * p.tokenizer_cpus + p.view_cpus
    cpus, gpus = sum(node.cpus for node in nodes), sum(node.gpus for node in nodes)
    if needed > cpus + 1e-6:
        raise UserError(
            f"{p.workers} workers x {p.worker_cpus:g} CPU + {tokenizers} tokenizer x {p.tokenizer_cpus:g} "
            f"+ 1 reading task x {p.view_cpus:g} = {needed:g} CPU, but Ray has {cpus:g}",
            "lower --resources.workers or --resources.worker-cpus, or start more machines",
        )
    needed_gpus = p.workers * p.worker_gpus + tokenizers * p.tokenizer_gpus
    if needed_gpus > gpus + 1e-6:
        raise UserError(
            f"{p.workers} workers x {p.worker_gpus:g} GPU + {tokenizers} tokenizer x {p.tokenizer_gpus:g} = {needed_gpus:g} GPU, "
            f"but Ray has {gpus:g}",
            f"set --resources.workers {int(gpus)}",
        )
    fitting = sum(
        int(min(node.cpus / max(p.worker_cpus, 1e-9), node.gpus / p.worker_gpus if p.worker_gpus else 1e9) + 1e-6) for node in nodes
    )
    if fitting < p.workers:
        shape = f"{p.worker_cpus:g} CPU" + (f" + {p.worker_gpus:g} GPU" if p.worker_gpus else "")
        raise UserError(
            f"workers of {shape} each: the machines have room for {fitting}, not for resources.workers={p.workers}",
            f"set --resources.workers {fitting}" if fitting else "lower --resources.worker-cpus",
        )
