"""The report page of an ablation: one HTML file that needs nothing else, `report/index.html` in its
folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from pipelines import storage
from pipelines.reports.page import figure_cards
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
from tune.report import go_on, write_report_page
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
        folder: The ablation's.
        config: The ablation.
        table: What its rows reached.
        preset: Its preset.
        seconds: What it took, in this start.
        lines: Sentences on how it was done: concurrency, tokens.
        mlflow: Where to look at it in MLflow.

    Returns:
        Path or URI of the page.
    """
    orders = orders_of(table)
    parts = [
        _figures(table, orders, seconds),
        _table(table, config),
        _order(orders),
        _dots(table),
        _missing(table, folder),
        _go_on(folder, mlflow),
    ]
    return write_report_page(folder, parts, heading=f"ablation {preset}", lines=lines, config=config)


def _figures(table: Table, orders: Sequence[Order], seconds: float) -> str:
    done = sum(len(result.values) for line in table.lines for result in line.results.values())
    wanted = len(table.lines) * len(table.seeds) * len(table.tasks)
    figures = [
        (f"Kendall's tau, {order.task}", f"{order.tau:+.2f}", f"over {len(order.pairs)} pairs of rows")
        for order in orders
    ]
    figures += [
        (
            "results",
            f"{done} of {wanted}",
            f"{len(table.lines)} rows x {len(table.seeds)} seeds x {len(table.tasks)} tasks",
        ),
        ("time", duration(seconds), ""),
    ]
    return figure_cards(figures)


def _table(table: Table, config: AblationConfig) -> str:
    head = ["row", "what it changes"]
    for task in table.tasks:
        head += [f"{TASK_NAMES[task]}, %", f"{PAPER_DATA[task]} in the paper, %"]
    rows = []
    for line in table.lines:
        cells = [
            ROWS[line.row].title,
            described(changes_of(line.row, config, longer=config.longer)) or "nothing",
        ]
        for task in table.tasks:
            cells += [cell_words(line.results.get(task), len(table.seeds)), paper_words(line.row, task)]
        rows.append("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>")
    titles = "".join(f"<th>{escape(name)}</th>" for name in head)
    note = (
        f"Mean and standard deviation over {len(table.seeds)} seeds. "
        if len(table.seeds) > 1
        else "One seed. "
    )
    return (
        "<h2>Rows</h2><div "
        f"class='wide'><table><thead><tr>{titles}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
        f"<p>{escape(note)}The paper's: {escape(SOURCE)} Figures of the two do not compare with each other, "
        "their order may.</p>"
    )


def _order(orders: Sequence[Order]) -> str:
    """Whether the order agrees, a list a task."""
    if not orders:
        return ""
    parts = []
    for order in orders:
        first, *others = order_words(order)
        items = "".join(f"<li>{escape(words)}</li>" for words in others)
        parts.append(
            f"<p>{escape(first[0].upper() + first[1:])}</p>" + (f"<ul>{items}</ul>" if items else "")
        )
    return (
        "<h2>Is the order the paper's?</h2>"
        + "".join(parts)
        + "<p>Tau is 1 for the same order, -1 for the reversed one, and about 0 "
        "by chance. The standard error of a difference comes from the spread of all results without what a "
        "row and what a seed does.</p>"
    )


def _dots(table: Table) -> str:
    charts = [_dots_of(table, task) for task in table.tasks if table.results(task)]
    if not charts:
        return ""
    figures = "".join(f"<figure>{chart}</figure>" for chart in charts)
    return (
        f"<h2>Rows as dots</h2><div class='one'>{figures}</div><p>A dot a seed, a stroke at their mean; "
        "diamonds: the paper.</p>"
    )


def _dots_of(table: Table, task: Task) -> str:
    results = table.results(task)
    rows = [line.row for line in table.lines]
    published = [None if (figures := ROWS[row].paper) is None else figures[task] for row in rows]
    values = [list(results[row].values.values()) if row in results else [] for row in rows]
    return dot_rows(
        TASK_NAMES[task], rows, values, published, labels=("here, %", f"{PAPER_DATA[task]} in the paper, %")
    )


def _missing(table: Table, folder: str) -> str:
    missing = [what for line in table.lines for what in line.missing]
    items = "".join(f"<li>{escape(what)}</li>" for what in missing)
    return (
        (
            f"<h2>What is missing</h2><ul>{items}</ul><p>To go on: <code>beit ablate --resume "
            f"{escape(folder)}</code></p>"
        )
        if items
        else ""
    )


def _go_on(folder: str, mlflow: str | None) -> str:
    blocks = [
        ("Go on after an interruption", f"beit ablate --resume {folder}"),
        ("Write this report again", f"beit report {folder}"),
    ]
    files = [storage.join(folder, name) for name in (ROWS_FILE, TABLE_FILE)]
    return go_on(blocks, mlflow, files, "The table, every seed's values in it, and a copy for a page")
