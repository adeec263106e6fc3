"""What every job that trains does around its training: check, place, start, watch, finish."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from beit.config import TokenizerConfig, to_dict
from beit.errors import JobFailedError, UserError
from beit.objective import Objective
from pipelines import cluster, runs, storage
from pipelines.config import JobConfig
from pipelines.dispatcher import Dispatcher, Plan
from pipelines.placement import Placement, place
from pipelines.recorder import Recorder, read_metrics
from pipelines.report import REPORT_FILE
from pipelines.scenes import write_scenes
from pipelines.schedule import slots_of_round
from pipelines.sources import Source, open_source
from pipelines.stream import SampleConfig, build_stream
from pipelines.tracking import MlflowRun, attach, place_of
from pipelines.train_loop import LoopConfig, train_worker

# Ray keeps about 1 kB a block and operator until an execution ends, so a round has at most so many rows, of 2 operators and
# blocks of a worker's batch (design: 100,000 blocks a round).
BLOCKS_PER_ROUND = 50_000


ERROR_FILE = "error.log"


@dataclass(frozen=True, kw_only=True)
class Training:
    """A job, ready to be run: everything is checked, nothing is started."""

    job: str
    config: JobConfig
    preset: str
    source: Source
    samples: SampleConfig
    tokenizer: TokenizerConfig | None
    make_objective: Callable[[], Objective]
    global_batch_size: int
    total_steps: int
    clip_norm: float | None
    shown: list[tuple[str, str]]
    """What the progress line shows: (format, names of metrics)."""


@dataclass(frozen=True)
class Result:
    """What a job leaves behind."""

    run: str
    """Run folder."""
    step: int
    metrics: dict[str, Any]
    """The last row of metrics."""
    checkpoint: str
    """The last checkpoint."""


def run_job(training: Training, *, resume: str | None, debug: bool, say: Callable[[str], None]) -> tuple[runs.RunFolder, Result]:
    """Open the run folder, join or start Ray, and train.

    Args:
        training: What to run.
        resume: Run folder to go on with.
        debug: Let Ray's own messages through.
        say: Takes the lines for the user.
    """
    folder = runs.reopen(resume) if resume else runs.create(training.config, job=training.job, preset=training.preset)
    say(f"run folder: {folder.uri}")
    with cluster.start(cpus=training.config.resources.cpus, debug=debug):
        return folder, run_training(training, folder, say=say, resume=resume is not None)


def open_data(config: JobConfig, *, image_size: int, say: Callable[[str], None]) -> Source:
    """The images of a run: `data.train`, or the built-in scenes, which are rendered beside the runs unless they are there."""
    if config.data.train is not None:
        source = open_source(config.data.train, split="train")
        for warning in source.warnings:
            say(f"warning: {warning}")
        return source
    images = config.data.scenes
    folder = storage.join(config.output.root, "scenes", f"{images}-images-{image_size}px")
    if not storage.exists(storage.join(folder, "complete")):
        say(f"data: rendering {images:,} scenes of {image_size} px into {folder}")
        write_scenes(folder, images=images, seed=0, image_size=image_size)
        storage.write_text(storage.join(folder, "complete"), "")
    return open_source(folder)


def run_training(training: Training, folder: runs.RunFolder, *, say: Callable[[str], None], resume: bool) -> Result:
    """Train on a connected Ray until the last step, and return where everything is.

    Raises:
        UserError: For what cannot be scheduled, data that is mostly broken, or a checkpoint of other data.
    """
    import ray
    import ray.train
    from ray.train.torch import TorchTrainer

    config = training.config
    placement = place(config.resources, cluster.nodes(), tokenize=training.tokenizer is not None)
    check_batch(training.global_batch_size, config.resources.workers)
    checkpoint = runs.latest_checkpoint(folder.uri) if resume else None
    rows = training.source.manifest.rows
    total_rows = training.total_steps * training.global_batch_size if config.steps else int(config.epochs * int(rows.sum()) + 1e-9)
    worker_batch = training.global_batch_size // config.resources.workers
    epochs = -(-total_rows // int(rows.sum()))
    slots = slots_of_round(epochs * len(rows))
    plan = Plan(seed=config.seed, epochs=epochs, total_rows=total_rows, max_rows=BLOCKS_PER_ROUND * worker_batch, slots=slots)
    # Ray starts the dispatcher again wherever it dies; it then waits for the workers to bring their checkpoint's ledger.
    dispatcher = cluster.start_beside_driver(Dispatcher, training.source.manifest, plan, max_restarts=-1, max_task_retries=-1)
    recorder = cluster.start_beside_driver(Recorder, folder.uri, training.total_steps, training.shown, mlflow_place(training, folder.uri))
    loop = LoopConfig(
        make_objective=training.make_objective,
        dispatcher=dispatcher,
        recorder=recorder,
        seed=config.seed,
        global_batch_size=training.global_batch_size,
        micro_batch_size=config.resources.micro_batch_size,
        stop_at=min(training.total_steps, config.stop_at or training.total_steps),
        clip_norm=training.clip_norm,
        device=placement.device,
        threads=placement.worker_threads,
        bf16=config.resources.precision == "bf16" or (config.resources.precision == "auto" and placement.device == "cuda"),
        compile=config.resources.compile,
        checkpoint_steps=config.output.checkpoint_steps,
        log_seconds=config.output.log_seconds,
        max_bad=config.data.max_bad,
        resume_from=checkpoint,
    )
    stream = build_stream(
        dispatcher, slots=slots, config=training.samples, tokenizer=training.tokenizer, placement=placement, batch_rows=worker_batch
    )
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={"loop": loop},
        datasets={"train": stream},
        scaling_config=_scaling(placement),
        run_config=ray.train.RunConfig(
            name=folder.attempt_name,
            storage_path=folder.uri,
            failure_config=ray.train.FailureConfig(max_failures=config.resources.max_failures),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=config.output.keep_checkpoints),
        ),
    )
    for line in placement.lines():
        say(line)
    status = "FAILED"
    try:
        with _Watch(recorder, dispatcher, folder, say):
            trainer.fit()
        if failure := ray.get(recorder.failure.remote()):
            raise UserError(*failure)
        status = "FINISHED"
    except ray.train.TrainingFailedError as error:
        raise _failed(error, folder, config.resources.max_failures) from error
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        ray.get(recorder.finish.remote(status))
    ray.kill(dispatcher)
    ray.kill(recorder)
    path = runs.latest_checkpoint(folder.uri)
    if path is None:
        raise RuntimeError(f"the training ended without a complete checkpoint in {folder.uri}")
    return Result(folder.uri, int(path.rpartition("-")[2]), read_metrics(folder.uri)[-1], path)


def _failed(error: Exception, folder: runs.RunFolder, restarts: int) -> JobFailedError:
    """The last line of what the workers died of; the whole text goes into the run folder."""
    storage.write_text(folder.path(ERROR_FILE), f"{error}\n")
    failures = getattr(error, "worker_failures", {})
    lines = [line for line in str(next(iter(failures.values()), error)).splitlines() if line.strip()]
    return JobFailedError(
        f"{lines[-1].strip() if lines else type(error).__name__} (after {restarts} restarts; everything in {folder.path(ERROR_FILE)})",
        f"mend the cause, then go on by --resume {folder.uri}",
    )


def check_batch(global_batch_size: int, workers: int) -> None:
    """Every worker takes the same share of the global batch.

    Raises:
        UserError: With the division and the nearest numbers that go.
    """
    if global_batch_size % workers:
        down = global_batch_size // workers * workers
        raise UserError(
            f"optim.global_batch_size={global_batch_size} / resources.workers={workers} = {global_batch_size / workers:.2f} images each",
            f"set the global batch to {down or workers} or {down + workers}, or another number of workers",
        )


def _scaling(placement: Placement) -> Any:
    import ray.train

    resources = {"CPU": placement.worker_cpus}
    if placement.worker_gpus:
        resources["GPU"] = placement.worker_gpus
    return ray.train.ScalingConfig(num_workers=placement.workers, use_gpu=placement.worker_gpus > 0, resources_per_worker=resources)


def mlflow_place(training: Training, run: str) -> MlflowRun | None:
    """Where the run goes in MLflow; None if it does not."""
    output = training.config.output
    params = runs.flatten({"job": training.job, "preset": training.preset, **to_dict(training.config)})
    return place_of(run, experiment=output.experiment, params=params) if output.mlflow else None


def write_report_of(training: Training, folder: runs.RunFolder, write: Callable[[], str]) -> str:
    """Write the report and attach it, with the configuration, to the MLflow run; returns the report's path."""
    report = write()
    if (place := mlflow_place(training, folder.uri)) is not None:
        attach(folder.uri, place, [REPORT_FILE, runs.CONFIG_FILE])
    return report


class _Watch:
    """Prints the recorder's lines on the driver and keeps quarantine.csv while a training runs."""

    def __init__(self, recorder: Any, dispatcher: Any, folder: runs.RunFolder, say: Callable[[str], None]) -> None:
        self._recorder, self._dispatcher, self._folder, self._say = recorder, dispatcher, folder, say
        self._ended = threading.Event()
        self._listed = 0
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        import ray

        while True:
            ended = self._ended.wait(0.5)
            try:
                for line in ray.get(self._recorder.lines.remote()):
                    self._say(line)
                self._list_quarantine(ray.get(self._dispatcher.quarantined.remote(self._listed)))
            except ray.exceptions.RayActorError:
                pass  # Starting again, or the program is going down; the next round will tell.
            if ended:
                return

    def _list_quarantine(self, entries: list[tuple[str, int]] | None) -> None:
        from beit.decode import Status

        if entries is None:
            return
        import csv
        import io

        text = io.StringIO()
        writer = csv.writer(text)
        writer.writerow(["image", "reason"])
        writer.writerows((where, Status(status).reason) for where, status in entries)
        storage.write_text(self._folder.path("quarantine.csv"), text.getvalue())
        self._listed = len(entries)
