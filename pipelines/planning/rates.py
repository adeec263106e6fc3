"""Measure the cost of an image on this machine, separately for every stage of a pretraining, as the run will
execute it.
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from beit.cores import compute_with
from beit.pretraining.targets import find_target
from pipelines.cluster.hardware import machine_line
from pipelines.config.pretrain import PretrainConfig
from pipelines.planning import forecast
from pipelines.planning.forecast import DENSE_TFLOPS, Costs, GpuRates
from pipelines.sources import Source
from pipelines.stream.graph import Tokenize, open_tokenizer, read_slot
from pipelines.stream.rounds import Part
from pipelines.stream.samples import SampleConfig, make_samples
from pipelines.training.pretraining import make_objective, make_target
from pipelines.training.step import Stepper
from pipelines.training.training import MICRO_BATCH

# Most images of a measured batch: larger batches cost the same per image.
MOST_IMAGES = 64

# Views are made a few at a time, so that the measurement ends nearly on time.
VIEWS_AT_ONCE = 16


@dataclass(frozen=True, kw_only=True)
class Rates:
    """The measured costs."""

    costs: Costs
    parameters: int
    gpu: GpuRates | None
    """Rates of this machine's GPU. None: there is none, or the run does not use it."""
    machine: str
    """Processor and versions."""
    cores: int
    load: float
    """The machine's load at the end."""


def measure(
    config: PretrainConfig, source: Source, samples: SampleConfig, *, tokenized: bool, seconds: float
) -> Rates:
    """Time the stages one after the other, each as the run will execute it, on one thread, by the CPU time of
    this process.

    Batches are as large as the time allows, down to one image. A GPU is timed by the clock, first with the
    training step, then with the tokenizer.
    """
    threads = torch.get_num_threads()
    compute_with(1, device="cpu")
    try:
        batch, view = _time_views(source, samples, seconds=seconds / 3)
        token, token_flop = 0.0, 0.0
        if tokenized:
            tokenize = Tokenize(config.tokenizer, device="cpu", threads=1)
            token_flop = _flops(lambda: tokenize(_part(batch, 1)))  # It also warms up.
            spent, images = _time(
                lambda images: tokenize(_part(batch, images)), most=MOST_IMAGES, seconds=seconds / 3
            )
            token = spent / images
        step, step_flop, parameters = _time_step(config, batch, device="cpu", seconds=seconds / 3)
        gpu = None
        if torch.cuda.is_available() and config.resources.device != "cpu":
            train = 1 / _time_step(config, batch, device="cuda", seconds=seconds / 3)[0]
            tokens = 1 / _time_tokens_on_gpu(config, batch, seconds=seconds / 3) if tokenized else None
            gpu = GpuRates(kind=gpu_kind(), train=train, tokens=tokens)
    finally:
        torch.set_num_threads(threads)
    costs = Costs(
        view=view,
        token=token,
        step=step,
        token_flop=token_flop,
        step_flop=step_flop,
        moved=forecast.moved_bytes(
            patch_px=config.model.image_size,
            token_px=samples.token_px,
            patches=config.model.patches,
            tokenized=tokenized,
        ),
    )
    return Rates(
        costs=costs,
        parameters=parameters,
        gpu=gpu,
        machine=machine_line("torch", "ray"),
        cores=os.cpu_count() or 1,
        load=os.getloadavg()[0],
    )


def gpu_kind() -> str:
    """The model of this machine's first GPU: a key of `DENSE_TFLOPS` if it is known, otherwise the name that
    torch gives.
    """
    name = torch.cuda.get_device_name(0)
    return next((kind for kind in sorted(DENSE_TFLOPS, key=len, reverse=True) if kind in name), name)


def _time_views(source: Source, samples: SampleConfig, *, seconds: float) -> tuple[dict[str, Any], float]:
    """Return a batch of samples, and the core-seconds per sample for reading, decoding, views and masks, as
    in a reading task.
    """
    rows = source.manifest.rows
    order = np.random.default_rng(0).permutation(len(rows)).tolist()
    kept: dict[str, Any] = {}
    spent, made, number = 0.0, 0, 0
    deadline = time.perf_counter() + seconds
    while made == 0 or time.perf_counter() < deadline:
        unit = order[number % len(order)]
        part = Part(number // len(order), unit, np.arange(min(int(rows[unit]), 200)))
        number += 1
        start = time.process_time()
        for encoded in read_slot(
            [(source.manifest.unit(unit), part)], seed=samples.seed, rows_per_batch=VIEWS_AT_ONCE
        ):
            batch = make_samples(encoded, config=samples)
            if kept:  # The first batch warms everything up.
                spent += time.process_time() - start
                made += len(batch["row"])
            kept = batch if len(batch["row"]) >= len(kept.get("row", ())) else kept
            if made and time.perf_counter() >= deadline:
                break
            start = time.process_time()
    return kept, spent / made


def _part(batch: dict[str, Any], images: int) -> dict[str, Any]:
    """Take this many images of a batch; if it has fewer, some are repeated."""
    index = np.resize(np.arange(len(batch["row"])), images)
    return {name: column[index] for name, column in batch.items()}


def _time(
    work: Callable[[int], Any], *, most: int, seconds: float, clock: Callable[[], float] = time.process_time
) -> tuple[float, int]:
    """Time some work. The number of images, at least one, is chosen such that a round takes a third of
    `seconds`.

    Args:
        work: Called with the number of images. It must have been called before, so that it is warm.
        most: Most images of a round.
        seconds: Wall-clock time for the measurement; CPU time is less if other work uses the cores.
        clock: Clock that a round is timed by.

    Returns:
        The median seconds of a round, and its number of images.
    """
    begun = time.perf_counter()
    start = clock()
    work(1)
    rounds = [clock() - start]
    images = max(1, min(most, int(seconds / 3 / max(1e-6, time.perf_counter() - begun))))
    if images > 1:
        work(images)
        rounds = []
    while not rounds or time.perf_counter() < begun + seconds:
        start = clock()
        work(images)
        rounds.append(clock() - start)
    return float(np.median(rounds)), images


def _time_tokens_on_gpu(config: PretrainConfig, batch: dict[str, Any], *, seconds: float) -> float:
    """Return the seconds per image, including the copy to the GPU and the copy of the tokens back."""
    tokenize = Tokenize(config.tokenizer, device="cuda", threads=1)
    tokenize(_part(batch, MICRO_BATCH))  # It warms up.
    spent, images = _time(
        lambda images: tokenize(_part(batch, images)),
        most=MICRO_BATCH,
        seconds=seconds,
        clock=time.perf_counter,
    )
    return spent / images


def _time_step(
    config: PretrainConfig, batch: dict[str, Any], *, device: str, seconds: float
) -> tuple[float, float, int]:
    """Return the training step's seconds per image (of a core or of a GPU), its operations per image, and the
    number of the model's parameters.

    The optimizer's time does not depend on the number of images in a step. It is divided by the images of a
    worker's share, not by those of the measured batch.
    """
    vocab_size, rng = 8192, np.random.default_rng(0)
    if find_target(config.target.kind).needs_tokenizer:
        vocab_size = open_tokenizer(config.tokenizer).vocab_size
    place = torch.device(device)
    target = make_target(config, vocab_size=vocab_size)
    objective = make_objective(replace(config, start=None), target, 1_000_000, "").to(place).train()
    stepper = Stepper(
        objective,
        device=place,
        clip_norm=config.optim.clip_norm,
        bf16=device == "cuda",
        compile=config.resources.compile and device == "cuda",
    )
    rows = len(batch["row"])
    columns = {**batch, "tokens": rng.integers(0, vocab_size, (rows, config.model.patches)).astype(np.int16)}
    # Images that a worker passes through the model at once.
    workers = config.resources.worker_range
    share = max(1, config.optim.global_batch_size // (1 if workers is None else workers.fewest))

    def clock() -> float:
        if device == "cuda":
            torch.cuda.synchronize()
            return time.perf_counter()
        return time.process_time()

    @functools.cache
    def part(images: int) -> tuple[dict[str, Any], float]:
        found = {
            name: torch.from_numpy(column).to(place)
            for name, column in _part(columns, images).items()
            if name in objective.columns
        }
        return found, float(found["mask"].sum())

    def step(images: int) -> None:
        stepper.step(0, *part(images))

    flop = _flops(lambda: step(1))  # It also warms up.
    most = min(config.resources.micro_batch_size or MICRO_BATCH, share)
    whole, images = _time(step, most=most, seconds=seconds, clock=clock)
    updates: list[float] = []
    for _ in range(3):
        start = clock()
        stepper.optimizer.step()
        updates.append(clock() - start)
    update = min(whole, float(np.median(updates)))
    parameters = sum(parameter.numel() for parameter in objective.parameters())
    return (whole - update) / images + update / share, flop, parameters


def _flops(work: Callable[[], Any]) -> float:
    """Count the floating-point operations of matrix products and convolutions. A multiplication with an
    addition counts as two.
    """
    with FlopCounterMode(display=False) as counter:
        work()
    return float(counter.get_total_flops())
