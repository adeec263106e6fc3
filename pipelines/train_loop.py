"""What every training worker runs: rounds of the stream, steps, checkpoints. Knows no method: that is the `Objective`'s."""

from __future__ import annotations

import contextlib
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from beit.objective import Objective

Batch = dict[str, NDArray[Any]]

OPTIMIZER_FILE = "optimizer.pt"
LEDGER_FILE = "ledger.npz"
PROGRESS_FILE = "progress.json"


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """What the workers need to know. Handles are Ray actors."""

    make_objective: Callable[[], Objective]
    dispatcher: Any
    recorder: Any
    seed: int
    global_batch_size: int
    micro_batch_size: int | None
    total_steps: int
    stop_at: int
    """Step to end at; `total_steps` unless the run is to be continued later."""
    clip_norm: float | None
    device: str
    threads: int
    bf16: bool
    compile: bool
    checkpoint_steps: int
    log_seconds: float
    max_bad: float
    resume_from: str | None
    """Checkpoint folder or URI of an earlier attempt, for the case that this attempt has none yet."""


@dataclass
class Progress:
    """How far the weights are. Saved with them."""

    step: int = 0
    seconds: float = 0.0
    """Time spent training, without starts and pauses."""


def train_worker(config: dict[str, Any]) -> None:
    """Ray Train's entry: run the loop of one worker to its end."""
    Worker(config["loop"]).run()


def ahead(batches: Iterator[Any], prepare: Callable[[Any], Any]) -> Iterator[Any]:
    """Yield `prepare(batch)` for each batch, prepared on a thread while the one before is trained on."""

    def fetch() -> Any:
        batch = next(batches, None)
        return None if batch is None else prepare(batch)

    with ThreadPoolExecutor(max_workers=1) as thread:
        following = thread.submit(fetch)
        while (item := following.result()) is not None:
            following = thread.submit(fetch)
            yield item


class Worker:
    """One of the workers that together train one objective."""

    def __init__(self, config: LoopConfig) -> None:
        import ray.train
        import ray.train.torch

        self.config = config
        context = ray.train.get_context()
        self.rank, self.workers = context.get_world_rank(), context.get_world_size()
        self.batch_size = config.global_batch_size // self.workers
        torch.set_num_threads(config.threads)
        self.device = ray.train.torch.get_device() if config.device == "cuda" else torch.device("cpu")
        # Small numbers are exchanged between hosts every step; through the devices they would cost a synchronisation.
        self.host_group = dist.new_group(backend="gloo") if self.workers > 1 and dist.get_backend() != "gloo" else None
        self.objective = config.make_objective().to(self.device)
        self.optimizer = self.objective.optimizer()
        if config.compile:
            self.objective.compile()
        self.model: torch.nn.Module = self.objective
        if self.workers > 1:
            self.model = torch.nn.parallel.DistributedDataParallel(
                self.objective, device_ids=[self.device] if self.device.type == "cuda" else None, broadcast_buffers=False
            )
        self.progress = Progress()
        self.generation = 0
        self.settling: list[Any] = []
        self.keys: list[Batch] = []
        self.bad_steps = torch.zeros((), device=self.device)
        self.stopped = False
        self.logged_at = time.perf_counter()
        self._reset_meters()

    def run(self) -> None:
        """Rounds until the last step, or until less than a global batch is left."""
        self._resume()
        saved = self.progress.step
        while self.progress.step < self.config.stop_at:
            self._settle(wait=True)
            if not self._start_round():
                break
            before = self.progress.step
            for host, device in self._batches():
                if not self._step(host, device):
                    break
                if self.progress.step % self.config.checkpoint_steps == 0 and self.progress.step < self.config.stop_at:
                    self._save(final=False)
                    saved = self.progress.step
                if self.progress.step >= self.config.stop_at:
                    break
            if self.stopped:
                break
            if self.progress.step == before:
                raise RuntimeError(f"a round of the stream gave no full batch at step {before}")
        if self.seconds_since_log:
            self._log()
        if saved < self.progress.step or not saved:
            self._save(final=True)

    def _start_round(self) -> bool:
        """Have the next round planned. False: less than a global batch is left."""
        import ray

        rows = 0
        if self.rank == 0:
            rows = ray.get(self.config.dispatcher.start_round.remote(self.generation, self.config.global_batch_size))
        return self._add_up([float(rows)])[0] > 0

    # -- steps ---------------------------------------------------------------------------------------------

    def _batches(self) -> Iterator[tuple[Batch, dict[str, Tensor]]]:
        import ray.train

        batches = ray.train.get_dataset_shard("train").iter_batches(
            batch_size=self.batch_size,
            batch_format="numpy",
            drop_last=True,
            prefetch_batches=2,
            # With less than two batches the workers could get different numbers of batches (ray issue 66085).
            local_shuffle_buffer_size=2 * self.batch_size,
            local_shuffle_seed=self.config.seed,
        )
        waited_from = time.perf_counter()
        for item in ahead(iter(batches), self._to_device):
            self.wait_seconds += time.perf_counter() - waited_from
            yield item
            waited_from = time.perf_counter()
        # The others may still have a batch: tell them that this worker has none.
        yield {}, {}

    def _to_device(self, batch: Batch) -> tuple[Batch, dict[str, Tensor]]:
        host = {name: np.require(column, requirements=["W"]) for name, column in batch.items()}
        tensors = {name: torch.from_numpy(host[name]) for name in self.objective.columns}
        if self.device.type == "cuda":
            tensors = {name: tensor.pin_memory().to(self.device, non_blocking=True) for name, tensor in tensors.items()}
        return host, tensors

    def _step(self, host: Batch, batch: dict[str, Tensor]) -> bool:
        """One optimizer step on the global batch. False: a worker has no batch, so nobody steps."""
        started = time.perf_counter()
        due = self.rank == 0 and started - self.logged_at >= self.config.log_seconds
        have, weight, log, stop = self._add_up(
            [float(bool(host)), self.objective.weight(host) if host else 0.0, float(due), float(self.stopped)]
        )
        if stop or have < self.workers:
            self.stopped = bool(stop)
            return False
        step = self.progress.step
        rate = self.objective.learning_rate(step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group.get("lr_scale", 1.0)
        self.objective.start_step(step)
        self.optimizer.zero_grad(set_to_none=True)
        micro = self.config.micro_batch_size or self.batch_size
        starts = range(0, self.batch_size, micro)
        for start in starts:
            part = {name: tensor[start : start + micro] for name, tensor in batch.items()}
            last = start + micro >= self.batch_size
            with contextlib.nullcontext() if last or self.workers == 1 else self.model.no_sync():  # type: ignore[operator]
                with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.config.bf16):
                    sums = self.model(part)
                # DDP takes the mean over the workers, the loss is one over all terms of the global batch.
                (sums["loss"] * (self.workers / max(weight, 1.0))).backward()
            for name, value in sums.items():
                self.sums[name] = self.sums.get(name, torch.zeros((), device=self.device)) + value.detach()
        self._update()
        self.objective.finish_step(step)
        self.progress.step += 1
        self.steps_since_log += 1
        self.weight_since_log += weight
        self.rate = rate
        self.keys.append({name: host[name] for name in ("epoch", "unit", "row", "status")})
        self.seconds_since_log = time.perf_counter() - self.logged_at
        if log or self.progress.step == 1:
            self._log()
        return True

    def _update(self) -> None:
        """Step the optimizer unless the gradient is not finite; every worker sees the same gradient, so all agree."""
        parameters = [p for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        if self.config.clip_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(parameters, self.config.clip_norm, norm)
        bad = (~torch.isfinite(norm)).float()
        # The fused optimizer leaves the weights alone where `found_inf` is 1, so no step waits for the device to answer;
        # the count is read when something is logged or saved.
        self.optimizer.found_inf = bad  # type: ignore[attr-defined]
        self.optimizer.step()
        self.bad_steps += bad
        self.norm = norm

    # -- what is reported ----------------------------------------------------------------------------------

    def _reset_meters(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.steps_since_log, self.weight_since_log, self.wait_seconds = 0, 0.0, 0.0
        self.norm, self.rate = torch.zeros(()), 0.0
        self.seconds_since_log = 0.0
        self.logged_at = time.perf_counter()

    def _log(self) -> None:
        """Add up over the workers what has gathered, and send a row to the recorder."""
        import ray

        self._check_finite()
        self._settle(wait=True)
        names = sorted(self.sums)
        flat = [self.sums[name].double().flatten().cpu() for name in names]
        total = self._add_up(torch.cat([*flat, torch.tensor([self.wait_seconds], dtype=torch.float64)]).tolist())
        seconds, steps, weight, wait = time.perf_counter() - self.logged_at, self.steps_since_log, self.weight_since_log, total[-1]
        rate, norm = self.rate, float(self.norm)
        shapes = {name: tuple(self.sums[name].shape) for name in names}
        self._reset_meters()
        self.progress.seconds += seconds
        if self.rank != 0:
            return
        offsets = np.cumsum([0, *(len(part) for part in flat)])
        values = {
            name: np.array(total[start:stop]).reshape(shapes[name])
            for name, start, stop in zip(names, offsets[:-1], offsets[1:], strict=True)
        }
        counts = ray.get(self.config.dispatcher.counts.remote())
        row = {
            "step": self.progress.step,
            "images": self.progress.step * self.config.global_batch_size,
            "time": time.time(),
            **{f"train/{name}": value for name, value in self.objective.metrics(values, weight).items()},
            "optim/lr": rate,
            "optim/grad_norm": norm,
            "speed/images_per_second": steps * self.config.global_batch_size / seconds,
            "speed/data_wait": wait / self.workers / seconds,
            "data/quarantined": counts["quarantined"],
        }
        seconds_left = self.progress.seconds / self.progress.step * (self.config.stop_at - self.progress.step)
        self.config.recorder.log.remote(row, seconds_left)
        if counts["quarantined"] > self.config.max_bad * max(1000, counts["settled"]):
            # An exception would make Ray Train try again; the same images would be as bad as before.
            self.config.recorder.give_up.remote(
                f"{counts['quarantined']:,} of {counts['settled']:,} images cannot be decoded, "
                f"more than data.max_bad={self.config.max_bad:g} allows",
                "look at quarantine.csv in the run folder; raise --data.max-bad if that is how the data is",
            )
            self.stopped = True

    def _check_finite(self) -> None:
        if bad := int(self.bad_steps.item()):
            first = self.progress.step - self.steps_since_log + 1
            raise FloatingPointError(
                f"{bad} of the steps {first} to {self.progress.step} had a gradient that is not finite; the weights are those before them"
            )

    # -- ledger and checkpoints ----------------------------------------------------------------------------

    def _settle(self, *, wait: bool) -> None:
        """Send the keys of what the optimizer has stepped on to the dispatcher; wait until all workers' keys are entered."""
        import ray

        if self.keys:
            columns = [np.concatenate([keys[name] for keys in self.keys]) for name in ("epoch", "unit", "row", "status")]
            self.settling.append(self.config.dispatcher.settle.remote(self.generation, *columns))
            self.keys = []
        if wait:
            ray.get(self.settling)
            self.settling = []
            self._add_up([0.0])

    def _save(self, *, final: bool) -> None:
        """A checkpoint: weights, optimizer, ledger, progress. Every worker calls it at the same step."""
        import ray
        import ray.train

        self._check_finite()
        self._settle(wait=True)
        checkpoint = None
        if self.rank == 0:
            folder = Path(tempfile.mkdtemp(prefix="beit-checkpoint-"))
            self.objective.save(folder)
            torch.save(self.optimizer.state_dict(), folder / OPTIMIZER_FILE)
            (folder / LEDGER_FILE).write_bytes(ray.get(self.config.dispatcher.snapshot.remote(self.generation)))
            # Written last and listing all the others: a checkpoint without it, or with other sizes, is not complete.
            files = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
            progress = {"step": self.progress.step, "seconds": self.progress.seconds, "files": files}
            (folder / PROGRESS_FILE).write_text(json.dumps(progress))
            checkpoint = ray.train.Checkpoint.from_directory(str(folder))
        ray.train.report(
            {"step": self.progress.step},
            checkpoint,
            checkpoint_dir_name=f"step-{self.progress.step:08d}",
            # Training goes on while a checkpoint is uploaded, but not the end of the run.
            checkpoint_upload_mode=ray.train.CheckpointUploadMode.SYNC if final else ray.train.CheckpointUploadMode.ASYNC,
            delete_local_checkpoint_after_upload=True,
        )

    def _resume(self) -> None:
        """Load this attempt's last checkpoint, else the one that the run goes on from; its ledger decides what is planned."""
        import ray
        import ray.train

        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None and self.config.resume_from is not None:
            checkpoint = ray.train.Checkpoint(self.config.resume_from)
        ledger = None
        if checkpoint is not None:
            with checkpoint.as_directory() as name:
                folder = Path(name)
                self.objective.load(folder)
                self.optimizer.load_state_dict(torch.load(folder / OPTIMIZER_FILE, map_location=self.device, weights_only=True))
                progress = json.loads((folder / PROGRESS_FILE).read_text())
                self.progress = Progress(progress["step"], progress["seconds"])
                ledger = (folder / LEDGER_FILE).read_bytes()
        if self.rank == 0:
            self.generation = ray.get(self.config.dispatcher.resume.remote(ledger))
            ray.get(self.config.recorder.rewind.remote(self.progress.step))
        self.generation = int(self._add_up([float(self.generation)])[0])
        self.logged_at = time.perf_counter()

    def _add_up(self, values: list[float]) -> list[float]:
        """Sums over the workers, on the hosts. Also a barrier."""
        if self.workers == 1:
            return values
        tensor = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(tensor, group=self.host_group)
        return tensor.tolist()
