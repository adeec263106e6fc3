"""Compare the table of an ablation with the paper's, and the order of the rows in both."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pipelines import storage
from pipelines.csv_files import write_csv
from tune.ablation.chain import JobState, chains_of, read_state, value_of
from tune.ablation.table4 import PAPER_DATA, ROWS, TASK_NAMES, RowName, Task

ROWS_FILE = "rows.csv"
TABLE_FILE = "table.md"

CLEAR = 2.0
"""A difference of means counts as clear if it is at least this many times its standard error."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """The result of a row in a task, in per cent."""

    values: Mapping[int, float]
    """Results by seed; unfinished seeds are left out."""

    @property
    def mean(self) -> float:
        """The mean over the seeds."""
        return statistics.mean(self.values.values())

    @property
    def spread(self) -> float | None:
        """The standard deviation over the seeds; None for a single one."""
        return statistics.stdev(self.values.values()) if len(self.values) > 1 else None


@dataclass(frozen=True, kw_only=True)
class Line:
    """One row of the table."""

    row: RowName
    results: Mapping[Task, Result]
    """Results by task; tasks without a finished seed are left out."""
    missing: tuple[str, ...] = ()
    """What is unfinished, and why."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """The table of an ablation."""

    lines: tuple[Line, ...]
    tasks: tuple[Task, ...]
    seeds: tuple[int, ...]

    def results(self, task: Task) -> dict[RowName, Result]:
        """Results in a task, of the rows that have one."""
        return {line.row: line.results[task] for line in self.lines if task in line.results}


def read_table(folder: str, rows: Sequence[RowName], seeds: Sequence[int], tasks: Sequence[Task]) -> Table:
    """Read the table of an ablation from its folder, as far as its jobs are finished."""
    lines = []
    for row in rows:
        values: dict[Task, dict[int, float]] = {task: {} for task in tasks}
        missing = []
        for chain in chains_of([row], seeds, tasks):
            for task in tasks:
                if (value := value_of(folder, chain, task)) is not None:
                    values[task][chain.seed] = value
            states = [(job, read_state(folder, chain, job)) for job in chain.jobs]
            missing += [
                f"{chain.job_name(job)} {_why(state)}" for job, state in states if state.status != "finished"
            ]
        results = {task: Result(values=found) for task, found in values.items() if found}
        lines.append(Line(row=row, results=results, missing=tuple(missing)))
    return Table(lines=tuple(lines), tasks=tuple(tasks), seeds=tuple(seeds))


def _why(state: JobState) -> str:
    return {"failed": f"failed: {state.error}", "running": "was interrupted"}.get(
        state.status, "was not begun"
    )


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two rows, the better one of the paper first."""

    better: RowName
    worse: RowName
    paper: float
    """Difference in the paper, in points: the first row minus the second."""
    ours: float
    """Difference here, in points, over the seeds that both rows have: the first minus the second."""
    error: float | None
    """Standard error of `ours`; None if the spread is not known."""

    @property
    def agrees(self) -> bool:
        """Whether they are in the paper's order."""
        return self.ours > 0

    @property
    def clear(self) -> bool:
        """Whether the difference of the two rows is larger than the spread of the seeds."""
        return self.error is not None and abs(self.ours) > CLEAR * self.error


@dataclass(frozen=True, kw_only=True)
class Order:
    """All pairs of rows that have results both here and in the paper."""

    task: Task
    pairs: tuple[Pair, ...]
    spread: float | None
    """Standard deviation of a result, from `residual_spread`."""

    @property
    def tau(self) -> float:
        """Kendall's rank correlation (tau-a): the pairs in the paper's order minus those in the other order,
        as a share of all pairs.
        """
        return statistics.mean(int(pair.ours > 0) - int(pair.ours < 0) for pair in self.pairs)

    @property
    def reversed(self) -> list[Pair]:
        """The pairs that are not in the paper's order."""
        return [pair for pair in self.pairs if not pair.agrees]


def residual_spread(results: Sequence[Result]) -> float | None:
    """The standard deviation of a result without the effects of its row and of its seed (analysis of
    variance, rows x seeds).

    A seed determines views, initial weights and labels for all rows alike, so its effect does not change the
    order of the rows. Two seeds of a single row would say little; all rows together say more. Rows that lack
    a seed are left out. None: fewer than two rows have at least two seeds.
    """
    seeds = sorted({seed for result in results for seed in result.values})
    complete = [result for result in results if len(result.values) == len(seeds)]
    if len(complete) < 2 or len(seeds) < 2:
        return None
    degrees = (len(complete) - 1) * (len(seeds) - 1)
    table = np.array([[result.values[seed] for seed in seeds] for result in complete])
    residuals = table - table.mean(1, keepdims=True) - table.mean(0, keepdims=True) + table.mean()
    return float(np.sqrt((residuals**2).sum() / degrees))


def compare_order(task: Task, results: Mapping[RowName, Result]) -> Order:
    """Compare the order of the rows with the paper's. Rows that the paper does not have form no pairs, but
    count for the spread.
    """
    spread = residual_spread(list(results.values()))
    published = {row: figures[task] for row in results if (figures := ROWS[row].paper) is not None}
    pairs = []
    for better, worse in itertools.combinations(sorted(published, key=lambda row: -published[row]), 2):
        first, second = results[better].values, results[worse].values
        if seeds := set(first) & set(second):
            pairs.append(
                Pair(
                    better=better,
                    worse=worse,
                    paper=published[better] - published[worse],
                    ours=statistics.mean(first[seed] - second[seed] for seed in seeds),
                    error=None if spread is None else spread * math.sqrt(2 / len(seeds)),
                )
            )
    return Order(task=task, pairs=tuple(pairs), spread=spread)


def orders_of(table: Table) -> list[Order]:
    """Compare the order in every task with at least two rows of the paper."""
    return [order for task in table.tasks if (order := compare_order(task, table.results(task))).pairs]


def order_words(order: Order) -> list[str]:
    """Describe in sentences whether the order agrees with the paper's."""
    agreeing, other = len(order.pairs) - len(order.reversed), order.reversed
    share = f"{agreeing} of {len(order.pairs)} pairs of rows are in the paper's order"
    said = f"{TASK_NAMES[order.task]}: {share} (Kendall's tau {order.tau:+.2f})"
    if order.spread is None:
        said += "; with one seed, or one row, nothing can be said about chance"
    else:
        clear = [pair for pair in order.pairs if pair.clear]
        said += (
            f"; beyond what a seed does to all rows alike, results spread by {order.spread:.2f} points; "
            f"{len(clear)} of the differences are more than {CLEAR:g} standard errors, "
            f"{sum(pair.agrees for pair in clear)} of these in the paper's order"
        )
    return [f"{said}.", *(f"In another order: {pair_words(pair)}." for pair in other)]


def pair_words(pair: Pair) -> str:
    """Describe a pair that is in another order than in the paper."""
    where = "below" if pair.ours < 0 else "level with"
    here = f"{pair.better} {where} {pair.worse}: {pair.ours:+.2f} points here, {pair.paper:+.2f} in the paper"
    if pair.error is None:
        return here
    return (
        f"{here}; standard error {pair.error:.2f}: "
        f"{'more than chance' if pair.clear else 'no more than chance'}"
    )


def to_markdown(table: Table) -> str:
    """Format the table, the order and what is missing as Markdown."""
    head = ["row", ""]
    for task in table.tasks:
        head += [f"{TASK_NAMES[task]} % here", f"{PAPER_DATA[task]} % in the paper"]
    lines = [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
    for line in table.lines:
        cells = [ROWS[line.row].title, f"`{line.row}`"]
        for task in table.tasks:
            cells += [cell_words(line.results.get(task), len(table.seeds)), paper_words(line.row, task)]
        lines.append(f"| {' | '.join(cells)} |")
    said = [
        f"{'  ' * (place > 0)}- {words}"
        for order in orders_of(table)
        for place, words in enumerate(order_words(order))
    ]
    missing = [f"- Missing: {what}." for line in table.lines for what in line.missing]
    seeds = (
        f"- Mean ± standard deviation over seeds {', '.join(map(str, table.seeds))}."
        if len(table.seeds) > 1
        else "- One seed."
    )
    return "\n".join([*lines, "", seeds, *said, *missing]) + "\n"


def cell_words(result: Result | None, seeds: int) -> str:
    """Format mean and spread, and the number of seeds if some are missing."""
    if result is None:
        return "missing"
    spread = "" if result.spread is None else f" ± {result.spread:.2f}"
    return f"{result.mean:.2f}{spread}" + (
        f" ({len(result.values)} of {seeds} seeds)" if len(result.values) < seeds else ""
    )


def paper_words(row: RowName, task: Task) -> str:
    """Format the paper's result."""
    figures = ROWS[row].paper
    return "not in the table" if figures is None else f"{figures[task]:.2f}"


def write_rows(file: str, table: Table) -> None:
    """Write a CSV file with a line for each row: for every task the mean, the standard deviation, each seed's
    value and the paper's value, in per cent.
    """
    figures_of_task = ["mean", "std", *(f"seed{seed}" for seed in table.seeds), "paper"]
    columns = [
        "row",
        "title",
        *(f"{task}_{figure}" for task in table.tasks for figure in figures_of_task),
        "missing",
    ]
    rows = []
    for line in table.lines:
        cells: list[str] = []
        for task in table.tasks:
            result, figures = line.results.get(task), ROWS[line.row].paper
            numbers = [None, None] if result is None else [result.mean, result.spread]
            numbers += [None if result is None else result.values.get(seed) for seed in table.seeds]
            cells += [
                "" if number is None else f"{number:.4f}"
                for number in [*numbers, None if figures is None else figures[task]]
            ]
        rows.append([line.row, ROWS[line.row].title, *cells, "; ".join(line.missing)])
    write_csv(file, columns, rows)


def write_table(folder: str, table: Table) -> None:
    """Write `rows.csv` and `table.md` into the ablation's folder."""
    write_rows(storage.join(folder, ROWS_FILE), table)
    storage.write_text(storage.join(folder, TABLE_FILE), to_markdown(table))
