"""Write the report page of an ablation, `report/index.html` in its folder: one HTML file that needs no other
file.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from markupsafe import Markup

from pipelines import storage
from pipelines.reports.page import Block, Charts, Items, KeyFigure, Section, Text, code
from pipelines.reports.page import Table as TableBlock
from pipelines.runs.progress import duration
from tune.ablation.config import AblationConfig
from tune.ablation.table import (
    ROWS_FILE,
    TABLE_FILE,
    Order,
    Table,
    cell_words,
    order_words,
    orders_of,
    paper_words,
)
from tune.ablation.table4 import PAPER_DATA, ROWS, TASK_NAMES, Task, changes_of
from tune.charts import dot_rows
from tune.report import next_section, write_report_page
from tune.space import described

SOURCE = (
    "BEiT, arXiv 2106.08254, table 4: ViT-B, 300 epochs of ImageNet-1k unless a row says otherwise, "
    "one run each."
)


def write_ablation_report(
    folder: str,
    config: AblationConfig,
    table: Table,
    *,
    preset: str,
    seconds: float,
    lines: Sequence[str],
    mlflow: str | None,
) -> str:
    """Write the page of an ablation from its table.

    Args:
        folder: The ablation's folder.
        config: The ablation.
        table: The results of its rows.
        preset: Its preset.
        seconds: Duration of this start.
        lines: Sentences on how it was done: concurrency, tokens.
        mlflow: Address of the ablation in MLflow.

    Returns:
        Path or URI of the page.
    """
    orders = orders_of(table)
    return write_report_page(
        folder,
        heading=f"ablation {preset}",
        figures=_figures(table, orders, seconds),
        sections=[
            _rows(table, config),
            *_order(orders),
            *_dots(table),
            *_missing(table, folder),
            _next_section(folder, mlflow),
        ],
        lines=lines,
        config=config,
    )


def _figures(table: Table, orders: Sequence[Order], seconds: float) -> list[KeyFigure]:
    done = sum(len(result.values) for line in table.lines for result in line.results.values())
    wanted = len(table.lines) * len(table.seeds) * len(table.tasks)
    product = f"{len(table.lines)} rows x {len(table.seeds)} seeds x {len(table.tasks)} tasks"
    return [
        *(
            KeyFigure(
                f"Kendall's tau, {order.task}", f"{order.tau:+.2f}", f"over {len(order.pairs)} pairs of rows"
            )
            for order in orders
        ),
        KeyFigure("results", f"{done} of {wanted}", product),
        KeyFigure("time", duration(seconds)),
    ]


def _rows(table: Table, config: AblationConfig) -> Section:
    titles = ["row", "what it changes"]
    for task in table.tasks:
        titles += [f"{TASK_NAMES[task]}, %", f"{PAPER_DATA[task]} in the paper, %"]
    rows = []
    for line in table.lines:
        changes = described(changes_of(line.row, config, longer=config.longer)) or "nothing"
        cells = [ROWS[line.row].title, changes]
        for task in table.tasks:
            cells += [cell_words(line.results.get(task), len(table.seeds)), paper_words(line.row, task)]
        rows.append(cells)
    note = (
        f"Mean and standard deviation over {len(table.seeds)} seeds." if len(table.seeds) > 1 else "One seed."
    )
    compared = "Results here and in the paper cannot be compared by value, but by their order."
    return Section("Rows", [TableBlock(titles, rows), Text(f"{note} The paper's: {SOURCE} {compared}")])


def _order(orders: Sequence[Order]) -> list[Section]:
    """Whether the order agrees with the paper's, a list for each task."""
    if not orders:
        return []
    blocks: list[Block] = []
    for order in orders:
        first, *others = order_words(order)
        blocks.append(Text(first[0].upper() + first[1:]))
        if others:
            blocks.append(Items(others))
    meaning = (
        "Tau is 1 for the same order, -1 for the reversed one, and about 0 by chance. The standard error of "
        "a difference comes from the spread of all results, without the effects of row and seed."
    )
    return [Section("Is the order the paper's?", [*blocks, Text(meaning)])]


def _dots(table: Table) -> list[Section]:
    charts = [_dots_of(table, task) for task in table.tasks if table.results(task)]
    if not charts:
        return []
    note = Text("A dot for each seed, a stroke at their mean; diamonds: the paper.")
    return [Section("Rows as dots", [Charts(charts, one_a_row=True), note])]


def _dots_of(table: Table, task: Task) -> Markup:
    results = table.results(task)
    rows = [line.row for line in table.lines]
    published = [None if (figures := ROWS[row].paper) is None else figures[task] for row in rows]
    values = [list(results[row].values.values()) if row in results else [] for row in rows]
    return dot_rows(
        TASK_NAMES[task], rows, values, published, labels=("here, %", f"{PAPER_DATA[task]} in the paper, %")
    )


def _missing(table: Table, folder: str) -> list[Section]:
    missing = [what for line in table.lines for what in line.missing]
    if not missing:
        return []
    resume = Text("To resume: " + code(f"beit ablate --resume {shlex.quote(folder)}"))
    return [Section("What is missing", [Items(missing), resume])]


def _next_section(folder: str, mlflow: str | None) -> Section:
    commands = [
        ("Resume after an interruption", f"beit ablate --resume {shlex.quote(folder)}"),
        ("Write this report again", f"beit report {shlex.quote(folder)}"),
    ]
    files = [storage.join(folder, name) for name in (ROWS_FILE, TABLE_FILE)]
    return next_section(
        commands, mlflow, files, "The table, every seed's values in it, and a copy for a page"
    )
