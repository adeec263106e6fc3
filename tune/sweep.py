"""Sweep a pretraining: `beit sweep [PRESET] [--space mask-lr] [--trials N] [--option value …]`, or `python -m
tune.sweep …`.

Ray Tune runs the trials, ASHA stops the worse ones early, and each is logged to MLflow. A trial is the same
pretraining that `beit pretrain` would run.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from beit.errors import UserError
from beit.plain import override
from beit.pretraining.targets import find_target
from pipelines import storage
from pipelines.cluster import session
from pipelines.cluster.nodes import cluster_nodes, this_machine
from pipelines.command_line.options import parse_job
from pipelines.command_line.run import run_program
from pipelines.config.pretrain import PretrainConfig
from pipelines.pretrain import PretrainTask
from pipelines.reports.page import REPORT_FILE
from pipelines.runs import lease, run_folder
from tune.concurrency import Schedule
from tune.config import SWEEPS, SweepConfig, sweep_preset
from tune.explain import explain, in_words
from tune.goal import GOALS
from tune.parent import How, keep_how, run_to_the_end
from tune.prepare import Prepared, make_design, plan_concurrency, prepare
from tune.progress import Progress
from tune.report import JOB, write_report
from tune.result import BEST_FILE, TRIALS_FILE, write_best, write_trials
from tune.search import Learned, Planned
from tune.space import described
from tune.state import Trial, read_trials, winner, write_trial
from tune.stopping import scheduler
from tune.tokens import Tokens, keep, kept, prepare_tokens, shareable
from tune.tracking import SweepLog, check_store
from tune.trial import check_trial, entry_of, run_trial, trial_config
from tune.tuner import run_tuner

PLAN_FILE = "plan.json"


@dataclass(frozen=True)
class SweepResult:
    """The folder and the trials of a finished sweep."""

    sweep: str
    """The sweep's folder."""
    trials: list[Trial]
    best: Trial | None
    report: str


def sweep(
    config: SweepConfig,
    *,
    preset: str = "custom",
    resume: str | None = None,
    debug: bool = False,
    say: Callable[[str], None] = print,
) -> SweepResult:
    """Run the trials of a sweep; write a folder with their run folders, the table, the best configuration
    and the report.

    Args:
        config: The whole sweep.
        preset: Name that the folder starts with when `output.name` is not given.
        resume: Folder of a sweep to resume: trials that have ended are kept, the others continue from their
            last checkpoints.
        debug: Show Ray's own messages.
        say: Takes the lines for the user.

    Raises:
        UserError: If the configuration, the space or the data has a mistake that can be found before the
            first trial.
        JobFailedError: If every trial failed.
    """
    if resume is None:
        run_folder.check_free(config)
    design = make_design(config)
    # This is checked before Ray is started and anything is computed, if possible, because Ray would wait for
    # ever for resources that do not fit.
    if here := this_machine(config.resources.cpus):
        plan_concurrency(config, design.space, here)
    prepared = prepare(config, design, preset=preset, say=say)
    with session.start(cpus=config.resources.cpus, debug=debug):
        timetable = plan_concurrency(config, design.space, cluster_nodes())
        folder = _open_folder(prepared, resume)
        with lease.hold(folder, say):
            return _Sweep(prepared, timetable, folder, debug=debug, say=say).run()


def _open_folder(prepared: Prepared, resume: str | None) -> str:
    """Open the sweep's folder with the plan of its trials. A resumed sweep must find the same data, and keeps
    its plan.
    """
    inputs = {"data.train": prepared.source.manifest.digest}
    if resume is None:
        check_store(
            prepared.config,
            storage.join(prepared.config.output.root, prepared.config.output.name or prepared.preset),
        )
        folder = run_folder.create(prepared.config, job=JOB, preset=prepared.preset, inputs=inputs).uri
        storage.write_text(storage.join(folder, PLAN_FILE), json.dumps(prepared.design.plan, indent=1) + "\n")
        return folder
    folder = run_folder.reopen(resume, inputs=inputs).uri
    # The plan is written and read back, because JSON turns the tuples of a Python space into lists.
    if json.loads(storage.read_text(storage.join(folder, PLAN_FILE))) != json.loads(
        json.dumps(prepared.design.plan)
    ):
        raise UserError(
            (
                f"--resume {folder}: --space {prepared.config.space} draws other trials than those that the "
                "sweep began with"
            ),
            "bring back the file as it was, or start a new sweep",
        )
    return folder


class _Sweep:
    """A sweep that runs on a connected Ray."""

    def __init__(
        self, prepared: Prepared, timetable: Schedule, folder: str, *, debug: bool, say: Callable[[str], None]
    ) -> None:
        self.prepared, self.config, self.design, self.goal = (
            prepared,
            prepared.config,
            prepared.design,
            prepared.design.goal,
        )
        self.timetable, self.folder, self.debug, self.say = timetable, folder, debug, say
        self.started = time.monotonic()
        self.earlier = read_trials(folder, self.goal)
        self.log = SweepLog(folder, self.config, job=JOB, preset=prepared.preset, say=say)
        self.tokens: Tokens | None = None
        self.lines: list[str] = []

    def run(self) -> SweepResult:
        """Run the whole sweep."""
        return run_to_the_end(
            self._work,
            self._conclude,
            _failure,
            log=self.log,
            files=[TRIALS_FILE, REPORT_FILE, BEST_FILE, run_folder.CONFIG_FILE],
            again=f"beit sweep --resume {self.folder}",
            say=self.say,
        )

    def _work(self) -> bool:
        """Run the trials that are left; returns False if the user interrupted."""
        self._introduce()
        self._tokenise()
        return self._run_trials()

    def _introduce(self) -> None:
        config = self.config
        self.say(f"sweep folder: {self.folder}")
        for line in in_words(config, self.design):
            self.say(line)
        self.lines.append(self.timetable.line)
        self.say(f"trials at a time: {self.timetable.line}")
        if self.log.link:
            self.say(f"mlflow: {self.log.link}")
        if self.earlier:
            ended = [f"#{trial.number}" for trial in self.earlier if trial.ended]
            others = [f"#{trial.number}" for trial in self.earlier if not trial.ended]
            self.say(
                f"resumed: trials that have ended: {', '.join(ended) or 'none'}; to resume: "
                f"{', '.join(others) or 'none'}"
            )

    def _base(self) -> PretrainConfig:
        """Return the configuration that the trials share, with the data and the tokens that the sweep found
        for them.
        """
        base, placement = self.config.pretraining(), self.timetable.placement
        tokens = self.tokens.path if self.tokens is not None else self.config.data.tokens
        return replace(
            base,
            data=replace(base.data, train=self.prepared.source.uri, tokens=tokens),
            resources=replace(base.resources, workers=placement.workers),
        )

    def _tokenise(self) -> None:
        config = self.config
        if config.data.tokens is None:
            if not shareable(config.pretraining(), self.design.space):
                if find_target(config.target.kind).needs_tokenizer:
                    self.say(
                        "tokens: the space changes the views or their tokens, so every trial tokenises for "
                        "itself"
                    )
                return
            self.tokens = kept(self.folder) or self._computed_tokens()
            keep(self.folder, self.tokens)
        # The tokens of the evaluation's samples are computed once too, and kept in the cache.
        trial = Trial(number=0, params=self.design.examples[0])
        PretrainTask().prepare(self._config_of(trial), preset=self.prepared.preset, say=lambda line: None)

    def _computed_tokens(self) -> Tokens:
        """Compute the tokens for as many epochs as the longest known trial takes."""
        base, source = self.config.pretraining(), self.prepared.source
        configs = [override(base, params) for params in self.design.examples]
        lengths = [
            (
                each.total_steps(source.manifest.total, each.optim.global_batch_size),
                each.optim.global_batch_size,
            )
            for each in configs
        ]
        return prepare_tokens(
            base, source.uri, source.manifest, lengths, epochs=self.config.token_epochs, say=self.say
        )

    def _config_of(self, trial: Trial) -> PretrainConfig:
        images = self.prepared.source.manifest.total
        return trial_config(
            self._base(),
            trial.params,
            objective=self.config.objective,
            images=images,
            sweep=self.folder,
            name=trial.name,
        )

    def _entry(self, trial: Trial) -> dict[str, Any]:
        """Make the argument of a trial."""
        return entry_of(
            self._config_of(trial),
            trial,
            preset=self.prepared.preset,
            objective=self.config.objective,
            rows=self.prepared.source.manifest.total,
            debug=self.debug,
        )

    def _checked_entry(self, trial: Trial) -> dict[str, Any]:
        """Make the argument of a trial that could not be checked before the sweep."""
        check_trial(
            self._base(), trial.params, self.prepared.source.manifest.total, objective=self.config.objective
        )
        return self._entry(trial)

    def _refuse(self, trial: Trial, error: UserError) -> None:
        write_trial(self.folder, replace(trial, status="failed", error=error.cause))
        self.say(f"trial {trial.number} failed: {error.cause}")

    def _run_trials(self) -> bool:
        """Run the trials; returns whether all have ended."""
        import ray.tune

        ended = {trial.number for trial in self.earlier if trial.ended}
        if len(ended) == self.design.trials:
            return True
        stopper = scheduler(self.config, self.goal, self.folder)
        for trial in self.earlier:
            if trial.ended:
                stopper.remember(trial)
        search: Any
        if self.design.plan is not None:
            waiting = [
                Trial(number=number, params=params)
                for number, params in enumerate(self.design.plan)
                if number not in ended
            ]
            search = Planned([self._entry(trial) for trial in waiting], self.goal)
        else:
            search = Learned(
                self.design.space,
                self.goal,
                seed=self.config.seed,
                earlier=self.earlier,
                trials=self.design.trials,
                entry=self._checked_entry,
                refused=self._refuse,
            )
        progress = Progress(
            self.folder,
            self.goal,
            self.log,
            points=self.config.evaluation.points,
            trials=self.design.trials,
            say=self.say,
        )
        run_tuner(
            run_trial,
            ray.tune.TuneConfig(
                search_alg=search,
                scheduler=stopper,
                num_samples=self.design.trials - len(ended),
                max_concurrent_trials=self.timetable.concurrent,
                trial_dirname_creator=_name_of,
            ),
            folder=self.folder,
            callback=progress,
            debug=self.debug,
        )
        return (
            len([trial for trial in read_trials(self.folder, self.goal) if trial.status != "running"])
            == self.design.trials
        )

    def _conclude(self) -> SweepResult:
        """Write table, best configuration and report of the results so far, and say the last lines."""
        trials = read_trials(self.folder, self.goal)
        for trial in trials:
            self.log.end_trial(trial)
        config, best = self.config, winner(trials, self.goal)
        write_trials(self.folder, trials, self.goal)
        if self.tokens is not None and trials:
            read = sum(trial.points[-1][1] * self._batch(trial) for trial in trials if trial.points)
            self.lines.append(self.tokens.saved(read))
            self.say(self.lines[-1])
        if best is not None:
            chosen = config.pretraining(best.params)
            write_best(
                self.folder,
                replace(chosen, output=replace(chosen.output, name=None)),
                preset=self.prepared.preset,
            )
        seconds, images = time.monotonic() - self.started, self.prepared.source.manifest.total
        keep_how(self.folder, How(seconds=seconds, lines=self.lines, images=images))
        report, command = write_report(self.folder, config, trials, self.goal, preset=self.prepared.preset)
        counts = {
            status: sum(trial.status == status for trial in trials)
            for status in ("finished", "stopped", "failed")
        }
        self.say(
            f"trials: {counts['finished']} finished, {counts['stopped']} stopped early, "
            f"{counts['failed']} failed"
        )
        if best is not None:
            self.say(f"best: trial {best.number}, {self.goal.name} {best.last:.4f}: {described(best.params)}")
        self.say(f"table: {storage.join(self.folder, TRIALS_FILE)}")
        self.say(f"report: {report}")
        if command is not None:
            self.say(f"next, train the winner: {command}")
        return SweepResult(self.folder, trials, best, report)

    def _batch(self, trial: Trial) -> int:
        return int(trial.params.get("optim.global_batch_size", self.config.optim.global_batch_size))


def rebuild_report(run: str) -> str:
    """Write the report of a sweep again, from its folder; returns its path."""
    folder = storage.absolute(run)
    config, preset = run_folder.saved_config(folder, SweepConfig, job=JOB)
    goal = GOALS[config.objective]
    return write_report(folder, config, read_trials(folder, goal), goal, preset=preset)[0]


def _failure(result: SweepResult) -> str | None:
    if any(trial.status != "failed" for trial in result.trials):
        return None
    return (
        f"every trial failed, the first with: {result.trials[0].error}"
        if result.trials
        else "no trial could begin"
    )


def _name_of(trial: Any) -> str:
    """Name Ray Tune's folder of a trial. Ray Tune's own name would contain the whole configuration."""
    return Trial(number=trial.config["number"], params={}).name


def command(arguments: list[str], debug: bool) -> None:
    """`beit sweep [PRESET] [--space …] [--trials N] [--option value …]`."""
    parsed = parse_job(
        arguments,
        SweepConfig,
        job=JOB,
        program=f"beit {JOB}",
        default="quickstart",
        presets=SWEEPS,
        preset=sweep_preset,
        explain=explain,
    )
    if parsed is not None:
        sweep(parsed.config, preset=parsed.preset, resume=parsed.resume, debug=debug)


if __name__ == "__main__":
    run_program(command)
