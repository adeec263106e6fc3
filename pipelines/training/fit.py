"""Train on a connected Ray: plan the rounds, build the streams, start the actors, and let Ray Train run the
workers.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from beit.errors import JobFailedError, TerminatedError, UserError
from pipelines.cluster import session
from pipelines.cluster.failures import cause_of, job_failed
from pipelines.cluster.nodes import cluster_nodes
from pipelines.cluster.placement import Placement
from pipelines.runs import checkpoints, tracking
from pipelines.runs.metrics import last_metrics, read_metrics
from pipelines.runs.run_folder import RunFolder
from pipelines.runs.tracking import MlflowRun
from pipelines.stream.dispatcher import Dispatcher, Plan
from pipelines.stream.division import DividedWorkers, stream_name
from pipelines.stream.graph import block_rows, build_stream
from pipelines.stream.rounds import slots_of_round
from pipelines.training.loop import LoopConfig, train_worker
from pipelines.training.recorder import Recorder
from pipelines.training.training import MICRO_BATCH, Result, Training
from pipelines.training.watch import Follow, Watch

# Ray keeps about 1 kB a block and operator until an execution ends. So a round has at most this many blocks,
# of 2 operators each.
BLOCKS_PER_ROUND = 50_000


OF_THE_STREAM = "UserCodeException"
"""In the text of an error that a function of the stream raised, such as for a shard that is gone."""


class WorkersLostError(JobFailedError):
    """Processes or machines died too often. The next ones need not."""


@dataclass(frozen=True, kw_only=True)
class Segment:
    """One segment of a run: pauses for the judge cut a run into several."""

    stop_at: int
    """Step at which the segment ends, with a checkpoint."""

    last_step: int
    """Last step of the whole run: the time left is counted to it."""

    after_pause: bool
    """Whether the segment follows a pause of the same run, not an interruption."""


def fit_while_it_advances(
    training: Training[Any],
    segment: Segment,
    folder: RunFolder,
    placement: Placement,
    *,
    say: Callable[[str], None],
    follow: Follow | None = None,
) -> tuple[RunFolder, Result]:
    """Train to the end of a segment; returns the last attempt's folder too.

    Ray counts the worker groups that were lost over the whole of a training, and a long run on machines that
    may be taken away loses many. New checkpoints in between tell bad luck from a fault. A shard that cannot
    be read any more ends the run all the same: the other shards would let it advance for ever.

    Raises:
        UserError: For data of which too much is broken.
        JobFailedError: When the workers died more often than `resources.max_failures` allows, without a new
            checkpoint.
    """
    while True:
        before = checkpoints.latest_checkpoint(folder.uri)
        try:
            result = fit(training, segment, folder, placement, say=say, follow=follow)
        except WorkersLostError as error:
            if checkpoints.latest_checkpoint(folder.uri) == before:
                raise
            say(f"warning: {error.cause}; it has advanced in between, and continues from its last checkpoint")
            folder = RunFolder(folder.uri, folder.attempt + 1)
        else:
            return folder, result


def fit(
    training: Training[Any],
    segment: Segment,
    folder: RunFolder,
    placement: Placement,
    *,
    say: Callable[[str], None],
    follow: Follow | None = None,
) -> Result:
    """Train one attempt of a segment, from the newest checkpoint of the run if there is one.

    Raises:
        UserError: For data of which too much is broken.
        JobFailedError: When the workers died more often than `resources.max_failures` allows.
    """
    import ray
    import ray.train
    from ray.train.torch import TorchTrainer

    config, manifest = training.config, training.source.manifest
    plan = _plan(training, placement)
    # Ray starts both again wherever they die. The dispatcher then waits for the workers to bring their
    # checkpoint's ledger.
    dispatcher = session.start_beside_driver(Dispatcher, manifest, plan, max_restarts=-1, max_task_retries=-1)
    recorder = session.start_beside_driver(
        Recorder,
        folder.uri,
        training.total_steps,
        training.shown,
        mlflow_place(training, folder.uri),
        max_restarts=-1,
        max_task_retries=-1,
    )
    loop = LoopConfig(
        make_objective=training.make_objective,
        dispatcher=dispatcher,
        recorder=recorder,
        seed=config.seed,
        optim=training.optim,
        micro_batch_size=config.resources.micro_batch_size or MICRO_BATCH,
        stop_at=segment.stop_at,
        last_step=segment.last_step,
        after_pause=segment.after_pause,
        streams=plan.streams,
        device=placement.device,
        threads=placement.worker_threads,
        precision=config.resources.precision,
        compile=config.resources.compile,
        checkpoint_steps=config.output.checkpoint_steps,
        checkpoint_seconds=60 * config.output.checkpoint_minutes,
        log_seconds=config.output.log_seconds,
        max_bad=config.data.max_bad,
        run=folder.uri,
        fixed=None if training.fixed is None else ray.put(training.fixed),
        evaluate_at=frozenset(training.evaluate_at),
    )
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={"loop": loop},
        datasets=_streams(training, plan, placement, dispatcher),
        dataset_config=DividedWorkers(plan.streams),
        scaling_config=_scaling(placement),
        run_config=ray.train.RunConfig(
            name=folder.attempt_name,
            storage_path=folder.uri,
            failure_config=ray.train.FailureConfig(max_failures=config.resources.max_failures),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=config.output.keep_checkpoints),
        ),
    )
    status = "FAILED"
    watch = Watch(recorder, dispatcher, training.source, training.samples, folder, say, follow)
    try:
        with watch:
            _let_train(trainer, watch)
        if watch.stopped_by is not None:
            raise _interruption(watch)
        if failure := ray.get(recorder.failure.remote()):
            raise UserError(*failure)
        # `follow` may have ended the run, which may have reached its last step all the same.
        reached = checkpoints.latest_checkpoint(folder.uri) if watch.ending else None
        ended_early = reached is not None and checkpoints.step_of(reached) != segment.stop_at
        status = "KILLED" if ended_early else "FINISHED"
    except ray.train.TrainingFailedError as error:
        doing = f"after {config.resources.max_failures} restarts"
        raise _failed(error, folder, doing) from error
    except ray.exceptions.RayActorError as error:  # Ray Train's controller.
        raise _failed(error, folder, "while it was trained") from error
    except (KeyboardInterrupt, SystemExit) as stop:
        status = "KILLED"
        saved = checkpoints.latest_checkpoint(folder.uri)
        kept = f"step {checkpoints.step_of(saved):,} is saved" if saved else "no checkpoint was written yet"
        say(f"stopped; {kept}: resume it by --resume {folder.uri}")
        raise (stop if isinstance(stop, TerminatedError) else _interruption(watch)) from None
    finally:
        # Where Ray itself has died, that is the error to tell, and none of the recorder's.
        with contextlib.suppress(ray.exceptions.RayError):
            ray.get(recorder.finish.remote(status))
    ray.kill(dispatcher)
    ray.kill(recorder)
    path = checkpoints.latest_checkpoint(folder.uri)
    if path is None:
        raise RuntimeError(f"the training ended without a complete checkpoint in {folder.uri}")
    checkpoints.forget_checkpoints(folder.uri, keep=config.output.keep_checkpoints)
    return Result(folder.uri, checkpoints.step_of(path), last_metrics(read_metrics(folder.uri)), path)


def mlflow_place(training: Training[Any], run: str) -> MlflowRun | None:
    """Where the run goes in MLflow; None if it does not."""
    return tracking.place_of_job(run, training.config, job=training.job, preset=training.preset)


def _plan(training: Training[Any], placement: Placement) -> Plan:
    """The rows of the whole run, and the slots of a round."""
    config, rows = training.config, training.source.manifest.rows
    images = int(rows.sum())
    if config.steps or config.whole_steps:
        total_rows = training.total_steps * training.global_batch_size
    else:
        total_rows = int(config.epochs * images + 1e-9)
    epochs = -(-total_rows // images)
    streams = placement.streams
    cores = int(sum(node.cpus for node in cluster_nodes()))
    slots = slots_of_round(-(-epochs * len(rows) // streams), cores=-(-cores // streams))
    return Plan(
        seed=config.seed,
        epochs=epochs,
        total_rows=total_rows,
        max_rows=streams * BLOCKS_PER_ROUND * block_rows(_worker_batch(training, placement)),
        slots=streams * slots,
        streams=streams,
    )


def _streams(training: Training[Any], plan: Plan, placement: Placement, dispatcher: Any) -> dict[str, Any]:
    """A Ray dataset for each stream, over its share of the slots."""
    each = plan.slots // plan.streams
    return {
        stream_name(index): build_stream(
            dispatcher,
            slots=range(index * each, (index + 1) * each),
            config=training.samples,
            tokenizer=training.tokenizer,
            placement=placement.of_stream,
            batch_rows=_worker_batch(training, placement),
            in_order=training.config.resources.in_order,
        )
        for index in range(plan.streams)
    }


def _worker_batch(training: Training[Any], placement: Placement) -> int:
    return max(1, training.global_batch_size // placement.most_workers)


def _failed(error: Exception, folder: RunFolder, doing: str) -> JobFailedError:
    """The error that ends an attempt."""
    first = next(iter(getattr(error, "worker_failures", {}).values()), error)
    remedy = f"resume it by --resume {folder.uri}"
    failed = job_failed(error, folder.uri, doing=doing, cause=cause_of(first), remedy=remedy)
    kind = JobFailedError if OF_THE_STREAM in str(first) else WorkersLostError
    return kind(failed.cause, failed.remedy)


def _let_train(trainer: Any, watch: Watch) -> None:
    """Run `trainer.fit()`. SIGTERM (`ray job stop`, Slurm, Kubernetes) and Ctrl-C end it with a last
    checkpoint.

    A second signal ends it at once. Ray Train runs on a thread of its own: on the main thread it would take
    Ctrl-C for itself, and abort.
    """
    if threading.current_thread() is not threading.main_thread():
        trainer.fit()
        return
    trained: Future[None] = Future()

    def train() -> None:
        try:
            trainer.fit()
        except BaseException as error:
            trained.set_exception(error)
        else:
            trained.set_result(None)

    def handle(number: int, frame: object) -> None:
        if watch.stopped_by is not None:
            raise KeyboardInterrupt
        watch.stop(number)

    # A shell lets its background jobs ignore Ctrl-C.
    heard = [signal.SIGTERM, *([] if signal.getsignal(signal.SIGINT) == signal.SIG_IGN else [signal.SIGINT])]
    before = {number: signal.signal(number, handle) for number in heard}
    try:
        threading.Thread(target=train, daemon=True).start()
        trained.result()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _interruption(watch: Watch) -> KeyboardInterrupt:
    """The exception that ends the command as the signal asks for."""
    return TerminatedError() if watch.stopped_by == signal.SIGTERM else KeyboardInterrupt()


def _scaling(placement: Placement) -> Any:
    import ray.train

    resources = {"CPU": placement.worker_cpus, **placement.tag("train")}
    if placement.worker_gpus:
        resources["GPU"] = placement.worker_gpus
    # Ray Train's annotation is that of its older version, which knew no range.
    workers: Any = placement.workers
    if placement.worker_range.elastic:
        workers = (placement.workers, placement.most_workers)
    return ray.train.ScalingConfig(
        num_workers=workers, use_gpu=placement.worker_gpus > 0, resources_per_worker=resources
    )
