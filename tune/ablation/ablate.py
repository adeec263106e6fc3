"""Run the rows of an ablation: `beit ablate`.

Every row of table 4 is pretrained, then fine-tuned for classification and for segmentation with the same
protocol, for several seeds. Ray Tune runs these jobs, and each is logged to MLflow. Each job is the same run
that `beit pretrain`, `beit finetune` or `beit segment` would make.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from beit.errors import UserError
from beit.pretraining.targets import find_target
from pipelines import storage
from pipelines.cluster import session
from pipelines.cluster.nodes import cluster_nodes, this_machine
from pipelines.command_line.options import parse_job
from pipelines.reports.page import REPORT_FILE
from pipelines.runs import lease, run_folder
from tune.ablation.chain import (
    Chain,
    JobName,
    JobState,
    chains_of,
    is_settled,
    left_to_do,
    read_state,
    write_state,
)
from tune.ablation.chain_progress import ChainProgress
from tune.ablation.chain_run import CHAIN, Setup, run_chain
from tune.ablation.config import ABLATIONS, AblationConfig, ablation_preset
from tune.ablation.prepare import Prepared, prepare
from tune.ablation.report import write_ablation_report
from tune.ablation.table import ROWS_FILE, TABLE_FILE, Table, read_table, to_markdown, write_table
from tune.ablation.table4 import FULL, ROWS, changes_of
from tune.concurrency import Schedule, schedule
from tune.parent import How, keep_how, link_of, read_how, run_to_the_end
from tune.space import described
from tune.tokens import prepare_tokens
from tune.tracking import ParentLog, check_store
from tune.tuner import run_tuner

JOB = "ablate"


@dataclass(frozen=True)
class AblationResult:
    """The folder and the table of a finished ablation."""

    folder: str
    table: Table
    report: str


def ablate(
    config: AblationConfig,
    *,
    preset: str = "custom",
    resume: str | None = None,
    debug: bool = False,
    say: Callable[[str], None] = print,
) -> AblationResult:
    """Run the rows of an ablation; write a folder with their run folders, the table and the report.

    Args:
        config: The whole ablation.
        preset: Name that the folder starts with when `output.name` is not given.
        resume: Folder of an ablation to resume: finished jobs are kept, the others continue from their last
            checkpoints.
        debug: Show Ray's own messages.
        say: Takes the lines for the user.

    Raises:
        UserError: If the configuration or the data has a mistake that can be found before the first row.
        JobFailedError: If no task was finished.
    """
    if resume is None:
        run_folder.check_free(config)
    else:
        _check_keeps_rows(config, resume)
    # This is checked before anything is read or computed, if possible, because Ray would wait for ever for
    # resources that do not fit.
    here = this_machine(config.resources.cpus)
    if here:
        plan_concurrency(config, here, tokenize=False)
    prepared = prepare(config, preset=preset, say=say)
    if here:
        plan_concurrency(config, here, tokenize=prepared.tokenises)
    with session.start(cpus=config.resources.cpus, debug=debug):
        timetable = plan_concurrency(config, cluster_nodes(), tokenize=prepared.tokenises)
        folder = _open_folder(prepared, resume)
        with lease.hold(folder, say):
            if resume is not None:  # It may have more rows or seeds than before.
                run_folder.save_config(
                    folder, prepared.config, job=JOB, preset=prepared.preset, inputs=prepared.inputs
                )
            return _Ablation(prepared, timetable, folder, debug=debug, say=say).run()


def _check_keeps_rows(config: AblationConfig, folder: str) -> None:
    """Refuse to resume with fewer rows or seeds: the table would lose results. More are allowed."""
    before, _ = run_folder.saved_config(folder, AblationConfig, job=JOB)
    if lost := [name for name in before.rows if name not in config.rows]:
        rows = " ".join(dict.fromkeys((*before.rows, *config.rows)))
        raise UserError(
            f"--rows {' '.join(config.rows)} leaves out {', '.join(lost)}, which {folder} has",
            f"set --rows {rows}",
        )
    if config.seeds < before.seeds:
        raise UserError(
            f"--seeds {config.seeds} is less than the {before.seeds} that {folder} has",
            f"set --seeds {before.seeds}, or more",
        )


def plan_concurrency(config: AblationConfig, nodes: Sequence[Any], *, tokenize: bool) -> Schedule:
    """Compute how many rows run at a time on the given machines."""
    resources = config.resources
    return schedule(
        resources,
        nodes,
        tokenize=tokenize,
        data_cpus=config.data_cpus,
        concurrent=config.concurrent,
        what="row",
    )


def _open_folder(prepared: Prepared, resume: str | None) -> str:
    """Open the ablation's folder. A resumed one must find the same data."""
    config = prepared.config
    if resume is None:
        check_store(config, storage.join(config.output.root, config.output.name or prepared.preset))
        return run_folder.create(config, job=JOB, preset=prepared.preset, inputs=prepared.inputs).uri
    return run_folder.reopen(resume, inputs=prepared.inputs).uri


class _Ablation:
    """An ablation that runs on a connected Ray."""

    def __init__(
        self, prepared: Prepared, timetable: Schedule, folder: str, *, debug: bool, say: Callable[[str], None]
    ) -> None:
        self.prepared, self.timetable, self.folder, self.debug, self.say = (
            prepared,
            timetable,
            folder,
            debug,
            say,
        )
        # Rows that run side by side have the workers that the schedule gives them.
        resources = replace(prepared.config.resources, workers=timetable.placement.workers)
        self.config = replace(prepared.config, resources=resources)
        self.chains = chains_of(self.config.rows, self.config.all_seeds, self.config.tasks)
        self.started = time.monotonic()
        self.log = ParentLog(folder, self.config, job=JOB, preset=prepared.preset, say=say)
        self.lines: list[str] = []

    def run(self) -> AblationResult:
        """Run the whole ablation."""
        return run_to_the_end(
            self._work,
            self._conclude,
            _failure,
            log=self.log,
            files=[ROWS_FILE, TABLE_FILE, REPORT_FILE, run_folder.CONFIG_FILE],
            again=f"beit ablate --resume {self.folder}",
            say=self.say,
        )

    def _work(self) -> bool:
        """Run the rows that are left; returns False if the user interrupted."""
        self._introduce()
        self._run_chains()
        return all(is_settled(self.folder, chain) for chain in self.chains)

    def _introduce(self) -> None:
        config = self.config
        self.say(f"ablation folder: {self.folder}")
        counts = (
            f"{len(config.rows)} rows x {config.seeds} seed{'s' * (config.seeds > 1)} x "
            f"{1 + len(config.tasks)} jobs"
        )
        self.say(
            f"{counts} = {len(self.chains) * (1 + len(config.tasks))} runs; progress of each is in its "
            "train.log"
        )
        self.lines.append(self.timetable.line)
        self.say(f"rows at a time: {self.timetable.line}")
        if self.log.link:
            self.say(f"mlflow: {self.log.link}")
        done = [chain.name for chain in self.chains if not self._left(chain)]
        begun = [chain for chain in self.chains if self._left(chain) and self._begun(chain)]
        if done or begun:
            others = [f"{chain.name} ({', '.join(self._left(chain))})" for chain in begun]
            self.say(
                f"resumed: finished: {', '.join(done) or 'none'}; to resume: {', '.join(others) or 'none'}"
            )

    def _left(self, chain: Chain) -> list[JobName]:
        return left_to_do(self.folder, chain)

    def _begun(self, chain: Chain) -> bool:
        return any(read_state(self.folder, chain, job).status != "waiting" for job in chain.jobs)

    def _run_chains(self) -> None:
        import ray.tune

        waiting = [chain for chain in self.chains if self._left(chain)]
        if not waiting:
            return
        for chain in waiting:
            for job in self._left(chain):
                if read_state(self.folder, chain, job).status == "failed":
                    write_state(self.folder, chain, job, JobState())  # A failed job is tried again.
        setup = Setup(
            config=self.config,
            folder=self.folder,
            preset=self.prepared.preset,
            images=self.prepared.source.manifest.total,
            steps=self.prepared.steps,
            tokens=self._tokenise(waiting),
            debug=self.debug,
        )
        run_tuner(
            functools.partial(run_chain, setup=setup),
            ray.tune.TuneConfig(
                max_concurrent_trials=self.timetable.concurrent, trial_dirname_creator=_name_of
            ),
            param_space={CHAIN: ray.tune.grid_search([asdict(chain) for chain in waiting])},
            folder=self.folder,
            callback=ChainProgress(self.folder, self.chains, self.log, say=self.say),
            debug=self.debug,
        )

    def _tokenise(self, waiting: Sequence[Chain]) -> dict[int, str]:
        """Compute the token caches of the seeds whose rows have not all been pretrained on tokens."""
        epochs, manifest = self.prepared.token_epochs, self.prepared.source.manifest
        if not epochs:
            if self.prepared.tokenises:
                self.say(
                    f"tokens: a row goes through more than {self.config.token_epochs} epochs of views, so "
                    "each tokenises as it trains"
                )
            return {}
        found = {}
        for seed in self.config.all_seeds:
            rows = [chain.row for chain in waiting if chain.seed == seed and "pretrain" in self._left(chain)]
            configs = [
                config
                for row in rows
                if find_target((config := self.config.pretraining(row, seed)).target.kind).needs_tokenizer
            ]
            if not configs:
                continue
            base = self.config.pretraining(FULL, seed)
            tokens = prepare_tokens(base, self.prepared.source.uri, manifest, [], epochs=epochs, say=self.say)
            found[seed] = tokens.path
            computed = round(tokens.views * tokens.computed / tokens.parts)
            took = f"{computed:,} of them tokenised now, in {tokens.seconds:.0f} s"
            self.lines.append(f"tokens, seed {seed}: {tokens.views:,} views, {took}, for {len(configs)} rows")
            self.say(self.lines[-1])
        return found

    def _conclude(self) -> AblationResult:
        """Write table and report of the results so far, and say the last lines."""
        for chain in self.chains:
            for job in chain.jobs:
                self.log.end_child(chain.job_name(job), read_state(self.folder, chain, job).status)
        table = read_table(self.folder, self.config.rows, self.config.all_seeds, self.config.tasks)
        write_table(self.folder, table)
        means = {
            f"{line.row}/{task}": result.mean for line in table.lines for task, result in line.results.items()
        }
        self.log.enter(
            sum(len(result.values) for line in table.lines for result in line.results.values()), means
        )
        seconds, images = time.monotonic() - self.started, self.prepared.source.manifest.total
        keep_how(self.folder, How(seconds=seconds, lines=self.lines, images=images))
        report = write_report(self.folder, self.config, table, preset=self.prepared.preset)
        for line in to_markdown(table).splitlines():
            self.say(line)
        self.say(f"table: {storage.join(self.folder, TABLE_FILE)}, {storage.join(self.folder, ROWS_FILE)}")
        self.say(f"report: {report}")
        return AblationResult(self.folder, table, report)


def _failure(result: AblationResult) -> str | None:
    if any(line.results for line in result.table.lines):
        return None
    return (
        "no task was finished; the first failure: "
        f"{next(what for line in result.table.lines for what in line.missing)}"
    )


def write_report(folder: str, config: AblationConfig, table: Table, *, preset: str) -> str:
    """Write the page of an ablation from its folder; returns its path."""
    how, link = read_how(folder, job=JOB), link_of(folder, config)
    return write_ablation_report(
        folder, config, table, preset=preset, seconds=how.seconds, lines=how.lines, mlflow=link
    )


def rebuild_report(run: str) -> str:
    """Write the table and the report of an ablation again, from its folder; returns the report's path."""
    folder = storage.absolute(run)
    config, preset = run_folder.saved_config(folder, AblationConfig, job=JOB)
    table = read_table(folder, config.rows, config.all_seeds, config.tasks)
    write_table(folder, table)
    return write_report(folder, config, table, preset=preset)


def explain(config: AblationConfig, preset: str) -> list[str]:
    """Describe the rows and what each changes, as lines. This reads no data."""
    lines = [f"ablation: {preset}, {len(config.rows)} rows x seeds {', '.join(map(str, config.all_seeds))}"]
    for row in config.rows:
        pretraining = config.pretraining(row, config.seed)
        length = (
            f"{pretraining.steps:,} steps"
            if pretraining.steps is not None
            else f"{pretraining.epochs:g} epochs"
        )
        changed = described(changes_of(row, config, longer=config.longer))
        lines.append(
            f"{row}: {ROWS[row].title}{f' ({changed})' if changed else ''}, {length} of "
            f"{pretraining.optim.global_batch_size:,}"
        )
    for task in config.tasks:
        protocol = getattr(config, task)
        length = "as long as that says" if protocol.steps is None else f"{protocol.steps:,} steps"
        lines.append(f"{task}: recipe {protocol.recipe}, {length}, the same for every row")
    return lines


def _name_of(trial: Any) -> str:
    """Name Ray Tune's folder of a chain."""
    return Chain(**trial.config[CHAIN]).name


def command(arguments: list[str], debug: bool) -> None:
    """`beit ablate [PRESET] [--rows …] [--seeds N] [--option value …]`."""
    parsed = parse_job(
        arguments,
        AblationConfig,
        job=JOB,
        program=f"beit {JOB}",
        default="quickstart",
        presets=ABLATIONS,
        preset=ablation_preset,
        explain=explain,
    )
    if parsed is not None:
        ablate(parsed.config, preset=parsed.preset, resume=parsed.resume, debug=debug)
