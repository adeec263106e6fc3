"""What every job that trains does around its training: check, place, start, watch, finish."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from beit.errors import JobFailedError, TerminatedError, UserError
from pipelines.cluster import session
from pipelines.cluster.failures import cause_of, going_on, job_failed
from pipelines.cluster.placement import Placement, place
from pipelines.config.jobs import JobConfig
from pipelines.config.workers import check_batch
from pipelines.reports.page import REPORT_FILE
from pipelines.runs import evaluations, run_folder, tracking
from pipelines.runs.metrics import last_metrics, read_metrics
from pipelines.runs.tracking import MlflowRun
from pipelines.stream.dispatcher import Dispatcher, Plan
from pipelines.stream.division import DividedWorkers, stream_name
from pipelines.stream.graph import block_rows, build_stream
from pipelines.stream.rounds import slots_of_round
from pipelines.training.loop import LoopConfig, train_worker
from pipelines.training.recorder import Recorder
from pipelines.training.training import BLOCKS_PER_ROUND, MICRO_BATCH, AtPause, Result, Training
from pipelines.training.watch import Follow, Watch

Config = TypeVar("Config", bound=JobConfig)


def run_job(
    training: Training,
    *,
    resume: str | None,
    debug: bool,
    say: Callable[[str], None],
    follow: Follow | None = None,
    pauses: Sequence[int] = (),
    at_pause: AtPause | None = None,
) -> tuple[run_folder.RunFolder, Result]:
    """Open the run folder, join or start Ray, and train.

    Args:
        training: What to run.
        resume: Run folder to go on with.
        debug: Let Ray's own messages through.
        say: Takes the lines for the user.
        follow: Takes the rows of metrics as they come, and may end the run.
        pauses: Steps at which the training ends with a checkpoint and goes on from it, so that the whole
            cluster is free in between.
        at_pause: Called there and at the end; again for a run that is resumed there. Its figures go to
            MLflow, those of the end into the result.
    """
    config = training.config
    with session.start(cpus=config.resources.cpus, debug=debug):
        nodes = session.nodes()
        placement = place(config.resources, nodes, tokenize=training.tokenizer is not None)
        check_batch(training.global_batch_size, placement.worker_range)
        training.check_workers(placement.worker_range)
        if resume:
            folder = run_folder.reopen(resume, inputs=training.inputs)
        else:
            folder = run_folder.create(
                config, job=training.job, preset=training.preset, inputs=training.inputs
            )
        say(f"run folder: {folder.uri}")
        for line in (*session.local_paths(nodes, _paths(training, folder)), *placement.lines()):
            say(line)
        place_in_mlflow = mlflow_place(training, folder.uri)
        if place_in_mlflow is None and config.output.mlflow:
            say(tracking.NO_PLACE)
        elif place_in_mlflow is not None and not place_in_mlflow.is_own_file:
            tracking.check(folder.uri, place_in_mlflow)
        stop_at = min(training.total_steps, config.stop_at or training.total_steps)
        goes_on = resume is not None

        def judged(checkpoint: str) -> Mapping[str, float]:
            assert at_pause is not None
            remedy = (
                f"go on by --resume {folder.uri}: the training until step "
                f"{run_folder.step_of(checkpoint):,} is kept"
            )
            with going_on("while the model was judged", remedy, folder=folder.uri, say=say):
                return at_pause(folder, placement, checkpoint)

        paused = False
        for step in [*(step for step in pauses if step < stop_at), stop_at]:
            checkpoint = run_folder.latest_checkpoint(folder.uri) if goes_on else None
            if checkpoint is not None and step < stop_at and run_folder.step_of(checkpoint) > step:
                continue
            if (
                goes_on
                and at_pause is not None
                and checkpoint is not None
                and run_folder.step_of(checkpoint) == step < stop_at
            ):
                evaluations.tell_mlflow(folder.uri, place_in_mlflow, step, judged(checkpoint), say)
                continue
            part = replace(
                training, config=replace(config, stop_at=step), ends_at=stop_at, after_pause=paused
            )
            folder, result = train_while_it_advances(
                part, folder, placement, say=say, follow=follow, resume=goes_on
            )
            if at_pause is not None:
                figures = judged(result.checkpoint)
                evaluations.tell_mlflow(folder.uri, place_in_mlflow, result.step, figures, say)
                result = replace(result, metrics={**result.metrics, **figures})
            if result.step < step:
                break  # Whoever follows has ended it: no later part goes on.
            folder, goes_on, paused = run_folder.RunFolder(folder.uri, folder.attempt + 1), True, True
        return folder, result


def check_room(config: JobConfig) -> None:
    """Refuse what one machine has no room for, before anything is rendered or read; a cluster is asked once
    it is joined.

    Raises:
        UserError: With the arithmetic.
    """
    if here := session.this_machine(config.resources.cpus):
        place(config.resources, here, tokenize=False)


def train_while_it_advances(
    training: Training,
    folder: run_folder.RunFolder,
    placement: Placement,
    *,
    say: Callable[[str], None],
    follow: Follow | None = None,
    resume: bool,
) -> tuple[run_folder.RunFolder, Result]:
    """Train to the last step; returns the last attempt's folder too.

    Ray counts the worker groups that were lost over the whole of a training, and a long run on machines that
    may be taken away loses many. What tells a fault from bad luck is whether there were new checkpoints in
    between.

    Raises:
        UserError: For data of which too much is broken.
        JobFailedError: When the workers died more often than `resources.max_failures` allows, without a new
            checkpoint.
    """
    while True:
        before = run_folder.latest_checkpoint(folder.uri)
        try:
            return folder, run_training(training, folder, placement, say=say, follow=follow, resume=resume)
        except JobFailedError as error:
            if run_folder.latest_checkpoint(folder.uri) == before:
                raise
            say(f"warning: {error.cause}; it has advanced in between, and goes on from its last checkpoint")
            folder, resume = run_folder.RunFolder(folder.uri, folder.attempt + 1), True


def run_training(
    training: Training,
    folder: run_folder.RunFolder,
    placement: Placement,
    *,
    say: Callable[[str], None],
    follow: Follow | None = None,
    resume: bool,
) -> Result:
    """Train on a connected Ray until the last step, and return where everything is.

    Raises:
        UserError: For data of which too much is broken.
        JobFailedError: When the workers died more often than `resources.max_failures` allows.
    """
    import ray
    import ray.train
    from ray.train.torch import TorchTrainer

    config = training.config
    checkpoint = run_folder.latest_checkpoint(folder.uri) if resume else None
    rows = training.source.manifest.rows
    total_rows = (
        training.total_steps * training.global_batch_size
        if config.steps or config.whole_steps
        else int(config.epochs * int(rows.sum()) + 1e-9)
    )
    worker_batch = max(1, training.global_batch_size // placement.most_workers)
    epochs = -(-total_rows // int(rows.sum()))
    streams = placement.streams
    cores = int(sum(node.cpus for node in session.nodes()))
    each = slots_of_round(-(-epochs * len(rows) // streams), cores=-(-cores // streams))
    plan = Plan(
        seed=config.seed,
        epochs=epochs,
        total_rows=total_rows,
        max_rows=streams * BLOCKS_PER_ROUND * block_rows(worker_batch),
        slots=streams * each,
        streams=streams,
    )
    # Ray starts the dispatcher again wherever it dies; it then waits for the workers to bring their
    # checkpoint's ledger.
    dispatcher = session.start_beside_driver(
        Dispatcher, training.source.manifest, plan, max_restarts=-1, max_task_retries=-1
    )
    recorder = session.start_beside_driver(
        Recorder, folder.uri, training.total_steps, training.shown, mlflow_place(training, folder.uri)
    )
    stop_at = min(training.total_steps, config.stop_at or training.total_steps)
    loop = LoopConfig(
        make_objective=training.make_objective,
        dispatcher=dispatcher,
        recorder=recorder,
        seed=config.seed,
        global_batch_size=training.global_batch_size,
        micro_batch_size=config.resources.micro_batch_size or MICRO_BATCH,
        stop_at=stop_at,
        ends_at=training.ends_at or stop_at,
        after_pause=training.after_pause,
        streams=streams,
        clip_norm=training.clip_norm,
        device=placement.device,
        threads=placement.worker_threads,
        precision=config.resources.precision,
        compile=config.resources.compile,
        checkpoint_steps=config.output.checkpoint_steps,
        log_seconds=config.output.log_seconds,
        max_bad=config.data.max_bad,
        resume_from=checkpoint,
        fixed=None if training.fixed is None else ray.put(training.fixed),
        evaluate_at=frozenset(training.evaluate_at),
    )
    data: dict[str, Any] = {
        stream_name(index): build_stream(
            dispatcher,
            slots=range(index * each, (index + 1) * each),
            config=training.samples,
            tokenizer=training.tokenizer,
            placement=placement.of_stream,
            batch_rows=worker_batch,
            in_order=config.resources.in_order,
        )
        for index in range(streams)
    }
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={"loop": loop},
        datasets=data,
        dataset_config=DividedWorkers(streams),
        scaling_config=_scaling(placement),
        run_config=ray.train.RunConfig(
            name=folder.attempt_name,
            storage_path=folder.uri,
            failure_config=ray.train.FailureConfig(max_failures=config.resources.max_failures),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=config.output.keep_checkpoints),
        ),
    )
    status = "FAILED"
    interrupt = signal.getsignal(signal.SIGINT)
    watch = Watch(recorder, dispatcher, training, folder, say, follow)
    try:
        with watch, _on_sigterm(watch.stop):
            trainer.fit()
        if watch.stopping:
            raise TerminatedError
        if failure := ray.get(recorder.failure.remote()):
            raise UserError(*failure)
        # Whoever follows may have ended it, but it may have reached its end all the same.
        reached = run_folder.latest_checkpoint(folder.uri) if watch.ending else None
        status = "FINISHED" if reached is None or run_folder.step_of(reached) == loop.stop_at else "KILLED"
    except ray.train.TrainingFailedError as error:
        raise _failed(error, folder, config.resources.max_failures) from error
    except (KeyboardInterrupt, SystemExit) as stop:
        # Ray Train puts a handler of its own in place of Ctrl-C's, which leaves by SystemExit.
        status = "KILLED"
        say(f"stopped; go on by --resume {folder.uri}")
        raise (
            TerminatedError if watch.stopping or isinstance(stop, TerminatedError) else KeyboardInterrupt
        ) from None
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, interrupt)
        ray.get(recorder.finish.remote(status))
    ray.kill(dispatcher)
    ray.kill(recorder)
    path = run_folder.latest_checkpoint(folder.uri)
    if path is None:
        raise RuntimeError(f"the training ended without a complete checkpoint in {folder.uri}")
    run_folder.forget_checkpoints(folder.uri, keep=config.output.keep_checkpoints)
    return Result(folder.uri, run_folder.step_of(path), last_metrics(read_metrics(folder.uri)), path)


def _paths(training: Training, folder: run_folder.RunFolder) -> dict[str, str]:
    """What every machine looks for, by the option that names it."""
    cache, tokenizer = training.samples.cache, training.tokenizer
    others = {
        "data.tokens": cache.path if cache else None,
        "tokenizer.path": tokenizer.path if tokenizer else None,
    }
    return {
        "data.train": training.source.uri,
        **{name: path for name, path in others.items() if path},
        "output.root": folder.uri,
    }


def _failed(error: Exception, folder: run_folder.RunFolder, restarts: int) -> JobFailedError:
    """What the workers died of."""
    first = next(iter(getattr(error, "worker_failures", {}).values()), error)
    return job_failed(
        error,
        folder.uri,
        doing=f"after {restarts} restarts",
        cause=cause_of(first),
        remedy=f"go on by --resume {folder.uri}",
    )


@contextlib.contextmanager
def _on_sigterm(stop: Callable[[], None]) -> Iterator[None]:
    """Call `stop` at SIGTERM (`ray job stop`, Slurm, Kubernetes) instead of dying; only the main thread can
    have it so.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: stop())
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _scaling(placement: Placement) -> Any:
    import ray.train

    resources = {"CPU": placement.worker_cpus, **placement.tag("train")}
    if placement.worker_gpus:
        resources["GPU"] = placement.worker_gpus
    # Ray Train's annotation is that of its older version, which knew no range.
    workers: Any = (
        (placement.workers, placement.most_workers) if placement.worker_range.elastic else placement.workers
    )
    return ray.train.ScalingConfig(
        num_workers=workers, use_gpu=placement.worker_gpus > 0, resources_per_worker=resources
    )


def mlflow_place(training: Training, run: str) -> MlflowRun | None:
    """Where the run goes in MLflow; None if it does not."""
    return tracking.place_of_job(run, training.config, job=training.job, preset=training.preset)


def write_report_of(
    training: Training, folder: run_folder.RunFolder, write: Callable[[], str], *, say: Callable[[str], None]
) -> str:
    """Write the report and attach it, with the configuration, to the MLflow run; returns the
    report's path.
    """
    report = write()
    place_in_mlflow = mlflow_place(training, folder.uri)
    if place_in_mlflow is not None and not tracking.attach(
        folder.uri, place_in_mlflow, [REPORT_FILE, run_folder.CONFIG_FILE]
    ):
        say("warning: MLflow cannot be reached; the report is in the run folder only")
    return report
