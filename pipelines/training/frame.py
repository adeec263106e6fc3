"""The one frame of all jobs that train.

Check the name and the room, prepare, summarise, train with pauses in which the model is judged, keep the
model, write the report, say what to do next. What differs between jobs is a `Task`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from pipelines import storage
from pipelines.cluster import session
from pipelines.cluster.failures import explained, resumable
from pipelines.cluster.nodes import cluster_nodes, local_path_warnings, this_machine
from pipelines.cluster.placement import Placement, place
from pipelines.cluster.vitals import watched
from pipelines.command_line.run import run_program
from pipelines.config.jobs import JobConfig
from pipelines.config.workers import check_batch
from pipelines.evaluation.judge import Judge
from pipelines.reports.page import REPORT_FILE
from pipelines.reports.run import write_report
from pipelines.runs import checkpoints, evaluations, lease, run_folder, tracking
from pipelines.runs.metrics import last_metrics, read_metrics
from pipelines.runs.models import MODEL_FILES, model_digest
from pipelines.runs.run_folder import RunFolder
from pipelines.runs.tracking import MlflowRun
from pipelines.training.fit import Segment, fit_while_it_advances, mlflow_place
from pipelines.training.task import Finished, Prepared, Task
from pipelines.training.training import Config, Result, Training
from pipelines.training.watch import Follow


def run(
    task: Task[Config, Prepared],
    config: Config,
    *,
    preset: str = "custom",
    resume: str | None = None,
    debug: bool = False,
    say: Callable[[str], None] = print,
    follow: Follow | None = None,
) -> Result:
    """Run a job from its configuration to its report.

    Args:
        task: Which job.
        config: The whole run.
        preset: Name that the run folder starts with when `output.name` is not given.
        resume: Run folder to resume, or a checkpoint in it; `config` must be its own but for what
            `free_on_resume` and `recorded_on_resume` name.
        debug: Let Ray's own messages through.
        say: Takes the lines for the user.
        follow: Takes the rows of metrics as they come. It may end the run before its last step; model and
            report are then written all the same.

    Raises:
        UserError: For every mistake in the configuration or the data that can be seen before training.
        JobFailedError: When training fails.
    """
    import ray.data  # noqa: F401 (sets up its loggers, which session.start then silences)

    if resume is None:
        run_folder.check_free(config)
    check_room(config)
    training = task.prepare(config, preset=preset, say=say)
    for line in task.summary(training):
        say(line)
    judge = task.make_judge(training, say)
    folder, result = train(training, resume=resume, debug=debug, say=say, follow=follow, judge=judge)
    finished = Finished(config=training.config, preset=preset, run=folder.uri, training=training)
    for line in (*task.conclusion(finished, result), *task.keep(finished, result)):
        say(line)
    report = task.report(finished)
    page = write_report(folder.uri, report, program=task.program_for(training.config))
    say(f"report: {page}")
    place_in_mlflow = mlflow_place(training, folder.uri)
    if place_in_mlflow is not None:
        files = [REPORT_FILE, run_folder.CONFIG_FILE]
        if not tracking.attach(folder.uri, place_in_mlflow, files):
            say("warning: MLflow cannot be reached; the report is in the run folder only")
    for what, command in report.commands:
        say(f"next, {what[0].lower()}{what[1:]}: {command}")
    return result


def run_task(task: Task[Any, Any]) -> None:
    """Run a task as a program: parse its command line, tell errors in two lines, exit with their codes."""
    run_program(lambda arguments, debug: run_command(task, arguments, debug))


def run_command(task: Task[Any, Any], arguments: list[str], debug: bool) -> None:
    """Parse the command line of a task, and run it."""
    parsed = task.parse(arguments)
    if parsed is not None:
        run(task, parsed.config, preset=parsed.preset, resume=parsed.resume, debug=debug)


def rebuild_report(task: Task[Config, Prepared], path: str) -> str:
    """Write the report of a run again, from its folder and its data; returns the page's path.

    Raises:
        UserError: If there is no run of this job, or it has no model yet.
    """
    config, preset = run_folder.saved_config(path, task.config_type, job=task.name)
    run = storage.absolute(path)
    finished: Finished[Config, Prepared] = Finished(config=config, preset=preset, run=run, training=None)
    return write_report(run, task.report(finished), program=task.program_for(config))


def check_room(config: JobConfig) -> None:
    """Refuse what one machine has no room for, before anything is rendered or read. A cluster is asked once
    it is joined.

    Raises:
        UserError: With the arithmetic.
    """
    if here := this_machine(config.resources.cpus):
        place(config.resources, here, tokenize=False)


def train(
    training: Training[Any],
    *,
    resume: str | None,
    debug: bool,
    say: Callable[[str], None],
    follow: Follow | None = None,
    judge: Judge | None = None,
) -> tuple[RunFolder, Result]:
    """Open the run folder, start or join Ray, and train with pauses in which the model is judged.

    The judge's figures go to MLflow; those of the end are part of the result. A run that was interrupted
    while it was judged is judged again when it is resumed.

    Args:
        training: What to run.
        resume: Run folder to resume, or a checkpoint in it.
        debug: Let Ray's own messages through.
        say: Takes the lines for the user.
        follow: Takes the rows of metrics as they come, and may end the run.
        judge: Judges the model at its pauses and at the end.
    """
    config = training.config
    with contextlib.ExitStack() as held:
        held.enter_context(session.start(cpus=config.resources.cpus, debug=debug))
        nodes = cluster_nodes()
        placement = place(config.resources, nodes, tokenize=training.tokenizer is not None)
        check_batch(training.global_batch_size, placement.worker_range)
        training.check_workers(placement.worker_range)
        if resume:
            uri, chosen = checkpoints.split_checkpoint(resume)
            folder = run_folder.reopen(uri, inputs=training.inputs)
            held.enter_context(lease.hold(folder.uri, say))
            if chosen is not None:
                checkpoints.go_back_to(chosen, say)
            checkpoints.set_damaged_aside(folder.uri, say)
            newest = checkpoints.latest_checkpoint(folder.uri)
            step = 0 if newest is None else checkpoints.step_of(newest)
            for line in run_folder.record_changes(folder.uri, config, step=step):
                say(line)
        else:
            folder = run_folder.create(
                config, job=training.job, preset=training.preset, inputs=training.inputs
            )
            held.enter_context(lease.hold(folder.uri, say))
        held.enter_context(
            explained("while it was trained", f"resume it by --resume {folder.uri}", folder=folder.uri)
        )
        held.enter_context(watched(f"resume it by --resume {folder.uri}"))
        say(f"run folder: {folder.uri}")
        for line in (*local_path_warnings(nodes, _paths(training, folder)), *placement.lines()):
            say(line)
        place_in_mlflow = mlflow_place(training, folder.uri)
        if place_in_mlflow is None and config.output.mlflow:
            say(tracking.NO_PLACE)
        elif place_in_mlflow is not None:
            tracking.begin(folder.uri, place_in_mlflow, say)
        last_step = min(training.total_steps, config.stop_at or training.total_steps)
        pauses = [step for step in (judge.pauses if judge else ()) if step < last_step]
        paused = False
        for step in [*pauses, last_step]:
            checkpoint = checkpoints.latest_checkpoint(folder.uri)
            reached = -1 if checkpoint is None else checkpoints.step_of(checkpoint)
            if step < last_step and reached > step:
                continue
            if judge is not None and checkpoint is not None and reached == step < last_step:
                judge_once(judge, folder, checkpoint, placement, place_in_mlflow, say)
                continue
            if checkpoint is not None and reached >= step:
                say(f"nothing is left to train: step {reached:,} of {last_step:,} is reached")
                last = last_metrics(read_metrics(folder.uri))
                result = Result(folder.uri, reached, last, checkpoint)
            else:
                segment = Segment(stop_at=step, last_step=last_step, after_pause=paused)
                folder, result = fit_while_it_advances(
                    training, segment, folder, placement, say=say, follow=follow
                )
            if judge is not None:
                figures = judge_once(judge, folder, result.checkpoint, placement, place_in_mlflow, say)
                result = replace(result, metrics={**result.metrics, **figures})
            if result.step < step:
                break  # `follow` has ended the run: no later segment is trained.
            folder, paused = RunFolder(folder.uri, folder.attempt + 1), True
        return folder, result


def judge_once(
    judge: Judge,
    folder: RunFolder,
    checkpoint: str,
    placement: Placement,
    place_in_mlflow: MlflowRun | None,
    say: Callable[[str], None],
) -> Mapping[str, float]:
    """Judge a checkpoint unless that was done before an interruption; returns the figures. A step that was
    trained again, as after going back to an earlier checkpoint, has other weights, and is judged again.
    """
    step = checkpoints.step_of(checkpoint)
    remedy = f"resume it by --resume {folder.uri}: the training until step {step:,} is kept"
    with resumable("while the model was judged", remedy, folder=folder.uri, say=say):
        found = evaluations.saved_at(folder.uri, judge.folder, step, variant=judge.variant)
        known = checkpoints.read_progress(checkpoint).digests
        weights = known.get(MODEL_FILES[0]) or model_digest(checkpoint)  # Older checkpoints know none.
        if found is None or found.get("weights", weights) != weights:
            found = judge.judge(folder, checkpoint, placement, step)
            saved = {**found, "weights": weights}
            evaluations.save(folder.uri, judge.folder, step, saved, variant=judge.variant)
            say(judge.line({"step": step, **found}))
    figures = judge.figures(found)
    evaluations.tell_mlflow(folder.uri, place_in_mlflow, step, figures, say)
    return figures


def _paths(training: Training[Any], folder: RunFolder) -> dict[str, str]:
    """The paths that every machine must see, by the option that names them."""
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
