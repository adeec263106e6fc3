"""The loop of a training worker: rounds of the stream, steps, reports, checkpoints.

It knows no method: that is the `Objective`'s.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from beit.config import OptimConfig
from beit.cores import compute_with
from beit.errors import UserError
from beit.objectives.base import Objective
from beit.objectives.optimizer_state import load_optimizer, save_optimizer
from pipelines import seeds, storage
from pipelines.runs import checkpoints
from pipelines.stream.division import own_shard
from pipelines.stream.ledger import Ledger
from pipelines.stream.shuffle import shuffle
from pipelines.training.step import Stepper, Taken, share_of

Batch = dict[str, NDArray[Any]]

SETTLED = ("epoch", "unit", "row", "status")

LEDGER_FILE = "ledger.npz"


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """The settings of the loop. Dispatcher and recorder are handles of Ray actors."""

    make_objective: Callable[[], Objective]
    dispatcher: Any
    recorder: Any
    seed: int
    optim: OptimConfig
    """Gives the batch size, the norm to clip at, and how many steps may be skipped."""
    micro_batch_size: int | None
    stop_at: int
    """Step at which the workers end, with a checkpoint."""
    last_step: int
    """Last step of the whole run, behind any pauses: the time left is counted to it."""
    after_pause: bool
    """Whether this segment follows a pause of the same run, not an interruption."""
    streams: int
    """Number of streams that the workers are divided over."""
    device: str
    threads: int
    precision: str
    compile: bool
    checkpoint_steps: int
    checkpoint_seconds: float
    log_seconds: float
    max_bad: float
    run: str
    """Run folder: workers begin with its newest checkpoint, whichever attempt wrote it."""
    fixed: Any = None
    """Reference to samples that are never trained on, to measure the objective on. None: no evaluation."""
    evaluate_at: frozenset[int] = frozenset()
    """Steps after which that is done."""


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
        import ray.train.torch

        self.config = config
        compute_with(config.threads, device=config.device)
        self.device = ray.train.torch.get_device() if config.device == "cuda" else torch.device("cpu")
        self.objective = config.make_objective().to(self.device)
        self.stepper = Stepper(
            self.objective,
            device=self.device,
            micro_batch_size=config.micro_batch_size,
            clip_norm=config.optim.clip_norm,
            bf16=config.precision == "bf16" or (config.precision == "auto" and self._computes_bf16()),
            compile=config.compile,
        )
        self.rank, self.workers = self.stepper.rank, self.stepper.workers
        self.batch_size = share_of(config.optim.global_batch_size, self.rank, self.workers)
        self.step = 0
        self.seconds = 0.0
        """Seconds of training over the whole run, without starts."""
        self.generation, self.restarts = 0, 0
        self.keys: list[Batch] = []
        self.stop, self.training = False, False
        self.checkpoint_is_due, self.saved_at = False, time.perf_counter()
        self.question: Any = None
        self.asked_at = time.monotonic()
        self.logged_step, self.logged_at, self.wait_seconds = 0, time.perf_counter(), 0.0
        self.evaluation: dict[str, float] = {}

    def _computes_bf16(self) -> bool:
        """Whether the device has bfloat16 arithmetic; older GPUs only imitate it."""
        return self.device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)

    def run(self) -> None:
        """Train round by round until the last step, or until less than a global batch is left."""
        saved = self._resume()
        while self.step < self.config.stop_at and not self.stop and self._start_round():
            before = self.step
            for host, batch in self._batches():
                if not self._step(host, batch):
                    break
                if self.step == self.config.stop_at:
                    break
                if self.step % self.config.checkpoint_steps == 0 or self.checkpoint_is_due:
                    self._log()  # What the objective gathers for its reports is part of the checkpoint.
                    self._save(final=False)
                    saved = self.step
            if self.step == before and not self.stop:
                raise RuntimeError(f"a round of the stream gave no full batch at step {before}")
        self._log()
        if self.step > saved:
            self._save(final=True)

    # -- steps ---------------------------------------------------------------------------------------------

    def _start_round(self) -> bool:
        """Settle all keys and let the dispatcher plan the next round.

        Returns:
            False if less than a global batch is left.
        """
        import ray

        self._settle()
        rows = 0
        if self.rank == 0:
            # An equal split must give every worker the largest share.
            minimum = self.workers * share_of(self.config.optim.global_batch_size, 0, self.workers)
            rows = ray.get(self.config.dispatcher.start_round.remote(self.generation, minimum, self.workers))
        return self.stepper.add_up([float(rows)])[0] > 0

    def _batches(self) -> Iterator[tuple[Batch, dict[str, Tensor]]]:
        """Yield the worker's batches of a round, on the host and on the device.

        The last one is empty: other workers may have more batches, and all exchange sums at every step.
        """
        batches = own_shard(self.rank, streams=self.config.streams, workers=self.workers).iter_batches(
            batch_size=self.batch_size,
            batch_format="numpy",
            drop_last=True,
            prefetch_batches=2,
        )
        # Not Ray's shuffle buffer: its order depends on the sizes of blocks, and so on whether tokens come
        # from a cache.
        mixed = shuffle(
            iter(batches), seeds.generator(self.config.seed, seeds.BUFFER, self.step, self.rank, 0)
        )
        waiting_since = time.perf_counter()
        for item in ahead(mixed, self._to_device):
            if self.training:
                self.wait_seconds += time.perf_counter() - waiting_since
            else:
                # The start of the stream's processes counts neither in the speed nor in the time left.
                self.training, self.logged_at = True, time.perf_counter()
            yield item
            waiting_since = time.perf_counter()
        yield {}, {}

    def _to_device(self, batch: Batch) -> tuple[Batch, dict[str, Tensor]]:
        tensors = {name: torch.from_numpy(batch[name]) for name in self.objective.columns}
        if self.device.type == "cuda":
            tensors = {
                name: tensor.pin_memory().to(self.device, non_blocking=True)
                for name, tensor in tensors.items()
            }
        return batch, tensors

    def _step(self, host: Batch, batch: dict[str, Tensor]) -> bool:
        """Take one optimizer step on the global batch.

        Returns:
            False if no worker steps: one has no batch left, or rank 0 stops the run.
        """
        self.stop = self.stop or self._is_to_stop()
        due = self.rank == 0 and time.perf_counter() - self.logged_at >= self.config.log_seconds
        weight = self.objective.weight(host) if host else 0.0
        overdue = self.rank == 0 and time.perf_counter() - self.saved_at >= self.config.checkpoint_seconds
        have, weight, log, stop, save = self.stepper.add_up(
            [float(bool(host)), weight, float(due), float(self.stop), float(overdue)]
        )
        self.stop, self.checkpoint_is_due = bool(stop), bool(save)
        if self.stop or have < self.workers:
            return False
        self.stepper.step(self.step, batch, weight)
        self.step += 1
        self.keys.append({name: host[name] for name in SETTLED})
        evaluate = self.step in self.config.evaluate_at
        if evaluate and self.rank == 0:  # The other workers wait for it at the next exchange of sums.
            self.evaluation = self._evaluate()
        if log or evaluate or self.step == 1:
            self._log()
        return True

    def _evaluate(self) -> dict[str, float]:
        """Measure the objective on the fixed samples. The time it takes does not count in the speed."""
        import ray

        started = time.perf_counter()
        samples: Batch = ray.get(self.config.fixed)
        size = self.config.micro_batch_size or len(samples["row"])
        weight, sums = 0.0, dict[str, NDArray[Any]]()
        self.objective.eval()
        with torch.inference_mode():
            for start in range(0, len(samples["row"]), size):
                part = {name: column[start : start + size].copy() for name, column in samples.items()}
                weight += self.objective.weight(part)
                _, batch = self._to_device(part)
                for name, value in self.stepper.measure(batch).items():
                    sums[name] = sums[name] + value if name in sums else value
        self.objective.train()
        self.logged_at += time.perf_counter() - started
        return self.objective.unseen_metrics(sums, weight)

    def _is_to_stop(self) -> bool:
        """Whether the driver asks for a last checkpoint and the end.

        Rank 0 asks the recorder once a second, and never waits for the answer.
        """
        import ray

        if self.rank != 0:
            return False
        if self.question is None:
            if time.monotonic() - self.asked_at < 1:
                return False
            self.question, self.asked_at = self.config.recorder.stopping.remote(), time.monotonic()
        if not ray.wait([self.question], timeout=0)[0]:
            return False
        answer, self.question = ray.get(self.question), None
        return bool(answer)

    def _log(self) -> None:
        """Send the recorder a row of metrics over all workers and all steps since the last row, if
        there are any.
        """
        import ray

        if self.step == self.logged_step:
            return
        self._settle()
        taken = self.stepper.take_sums()
        if taken.skipped_in_row > self.config.optim.max_skipped:
            self.stop = True  # All workers see the same gradient.
        wait = self.stepper.add_up([self.wait_seconds])[0] / self.workers
        seconds, steps = time.perf_counter() - self.logged_at, self.step - self.logged_step
        self.logged_step, self.logged_at, self.wait_seconds = self.step, time.perf_counter(), 0.0
        self.seconds += seconds
        if self.rank != 0:
            return
        counts = ray.get(self.config.dispatcher.counts.remote())
        row = {
            "step": self.step,
            "images": self.step * self.config.optim.global_batch_size,
            "time": time.time(),
            **{f"train/{name}": value for name, value in self._train_metrics(taken).items()},
            "optim/lr": self.stepper.rate,
            "optim/grad_norm": taken.norm,
            **({"optim/skipped_steps": taken.skipped} if taken.skipped else {}),
            "speed/images_per_second": steps * self.config.optim.global_batch_size / seconds,
            "speed/data_wait": wait / seconds,
            "data/quarantined": counts["quarantined"],
            **{f"eval/{name}": value for name, value in self.evaluation.items()},
        }
        self.evaluation = {}
        if taken.skipped:
            self._tell_skipped(taken, steps)
        self.config.recorder.log.remote(row, self.seconds / self.step * (self.config.last_step - self.step))
        if counts["quarantined"] > self.config.max_bad * max(1000, counts["settled"]):
            self._give_up(
                f"{counts['quarantined']:,} of the {counts['settled']:,} samples so far, an image counted in "
                f"every epoch, cannot be used: more than data.max_bad={self.config.max_bad:g} allows",
                (
                    "look at quarantine.csv in the run folder; if that is how the data is, resume it by "
                    "--resume with a larger --data.max-bad"
                ),
            )

    def _train_metrics(self, taken: Taken) -> dict[str, float]:
        """The objective's metrics; none where every step was skipped."""
        return self.objective.metrics(taken.sums, taken.weight) if taken.weight or not taken.skipped else {}

    def _tell_skipped(self, taken: Taken, steps: int) -> None:
        """Say how many steps were skipped, and end the run where there are too many in a row."""
        were = f"{taken.skipped:,} of the last {steps:,} steps had a gradient that is not finite, and"
        self.config.recorder.say.remote(f"warning: {were} left the weights as they were")
        if not self.stop:
            return
        self._give_up(
            f"the gradients of {taken.skipped_in_row:,} steps in a row were not finite, up to step "
            f"{self.step:,}: more than optim.max_skipped={self.config.optim.max_skipped} allows (learning "
            f"rate {self.stepper.rate:.2e}, gradient norm {taken.norm:g}); the weights are those before them",
            f"resume with a smaller rate: --resume {self.config.run} --optim.peak-lr "
            f"{self.config.optim.peak_lr / 4:.1e}, from an earlier checkpoint if the loss was rising already",
        )

    # -- ledger and checkpoints ----------------------------------------------------------------------------

    def _settle(self) -> None:
        """Enter the keys that the optimizer has stepped on into the ledger.

        Returns when the keys of all workers are there.
        """
        import ray

        if self.keys:
            columns = [np.concatenate([keys[name] for keys in self.keys]) for name in SETTLED]
            ray.get(self.config.dispatcher.settle.remote(self.generation, *columns))
            self.keys = []
        self.stepper.add_up([0.0])

    def _newest_checkpoint(self) -> str | None:
        """Choose the checkpoint to begin with, on all workers the same.

        The driver has looked at every file before it started the workers; where they begin again, rank 0
        does.
        """
        import ray

        failed = False
        if self.rank == 0 and ray.get(self.config.recorder.workers.remote())[0]:
            try:
                checkpoints.set_damaged_aside(
                    self.config.run, lambda line: ray.get(self.config.recorder.say.remote(line))
                )
            except UserError as error:
                failed = True
                self._give_up(error.cause, error.remedy)
        self.stop = self.stepper.add_up([float(failed)])[0] > 0
        return None if self.stop else checkpoints.latest_checkpoint(self.config.run)

    def _load(self, checkpoint: str) -> bytes:
        """Load weights, optimizer and progress; returns the ledger."""
        with storage.local_copy(checkpoint) as folder:
            self.objective.load(folder)
            load_optimizer(self.stepper.optimizer, folder, self.device)
            progress = checkpoints.read_progress(str(folder))
            ledger = (folder / LEDGER_FILE).read_bytes()
            Ledger.from_bytes(ledger)
        self.step, self.seconds = progress.step, progress.seconds
        return ledger

    def _give_up(self, cause: str, remedy: str) -> None:
        """End the run, where an exception would make Ray Train try again and nothing would be better."""
        self.config.recorder.give_up.remote(cause, remedy)
        self.stop = True

    def _save(self, *, final: bool) -> None:
        """Write a checkpoint: weights, optimizer, ledger, progress. Every worker calls it at the
        same step.
        """
        import ray
        import ray.train

        self.saved_at = time.perf_counter()
        self._settle()
        checkpoint = None
        if self.rank == 0:
            folder = Path(tempfile.mkdtemp(prefix="beit-checkpoint-"))
            self.objective.save(folder)
            save_optimizer(self.stepper.optimizer, folder)
            (folder / LEDGER_FILE).write_bytes(
                ray.get(self.config.dispatcher.snapshot.remote(self.generation))
            )
            checkpoints.seal(folder, step=self.step, seconds=self.seconds)
            checkpoint = ray.train.Checkpoint.from_directory(str(folder))
        ray.train.report(
            {"step": self.step},
            checkpoint,
            # Never over the unfinished upload of a worker group that was lost: old and new files of one size
            # would pass for complete.
            checkpoint_dir_name=f"step-{self.step:08d}"
            + (f"-restart{self.restarts}" if self.restarts else ""),
            # Training goes on while a checkpoint is uploaded, but the run does not end before its last one is
            # there.
            checkpoint_upload_mode=ray.train.CheckpointUploadMode.SYNC
            if final
            else ray.train.CheckpointUploadMode.ASYNC,
            delete_local_checkpoint_after_upload=True,
        )

    def _resume(self) -> int:
        """Load the run's newest checkpoint that is what was written; returns its step.

        The ledger of what was really loaded decides what is planned; without a checkpoint it is empty.
        """
        import ray

        checkpoint, ledger = self._newest_checkpoint(), None
        if checkpoint is not None:
            try:
                ledger = self._load(checkpoint)
            except OSError:
                raise  # The storage may answer the next time.
            except Exception as error:  # Whatever a file raises that its digest does not vouch for.
                self._give_up(
                    f"{checkpoint} cannot be loaded: {str(error).partition(chr(10))[0]}",
                    f"delete it, and resume from the checkpoint before it by --resume {self.config.run}",
                )
        if self.stop:
            return self.step
        if self.rank == 0:
            self.generation = ray.get(self.config.dispatcher.resume.remote(ledger))
            self.restarts = ray.get(self.config.recorder.begin.remote(self.step))
            if self.restarts or checkpoint is not None:
                again = f"started again, {self.workers} worker{'s' * (self.workers > 1)}"
                what = again if self.restarts else "after the pause" if self.config.after_pause else "resumed"
                ray.get(self.config.recorder.say.remote(f"{what}: continuing from step {self.step:,}"))
        self.generation, self.restarts = (
            int(number) for number in self.stepper.add_up([float(self.generation), float(self.restarts)])
        )
        self.logged_step, self.logged_at = self.step, time.perf_counter()
        return self.step
