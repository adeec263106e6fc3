import csv

import numpy as np
import pytest
from scipy.stats import kendalltau

from tune.ablation.table import (
    Line,
    Result,
    Table,
    compare_order,
    order_words,
    orders_of,
    residual_spread,
    to_markdown,
    write_table,
)
from tune.ablation.table4 import ROWS

SEEDS = (0, 1, 2)


def make_table(means, **rest):
    """Rows with these means and a standard deviation of 1 over three seeds, every row's best seed another
    one.
    """
    lines = []
    for place, (row, mean) in enumerate(means.items()):
        values = (
            {}
            if mean is None
            else dict(zip(SEEDS, (mean + np.roll([-1.0, 1.0, 0.0], place)).tolist(), strict=True))
        )
        lines.append(
            Line(
                row=row,
                results={"classify": Result(values=values)} if values else {},
                missing=rest.get(row, ()),
            )
        )
    return Table(lines=tuple(lines), tasks=("classify",), seeds=SEEDS)


def published(row):
    return ROWS[row].paper["classify"]


def test_means_and_spreads_are_numpys():
    values = np.random.default_rng(0).normal(20, 3, 5)
    result = Result(values=dict(enumerate(values)))
    assert result.mean == pytest.approx(values.mean())
    assert result.spread == pytest.approx(values.std(ddof=1))
    assert Result(values={0: 3.0}).spread is None


def test_the_rank_correlation_is_scipys_and_counts_the_rows_that_the_paper_has():
    rows = [row for row in ROWS if row != "mean-colour"]
    for seed in range(5):
        means = dict(zip(rows, np.random.default_rng(seed).normal(20, 3, len(rows)), strict=True))
        order = compare_order("classify", make_table({**means, "mean-colour": 50.0}).results("classify"))
        assert len(order.pairs) == 21
        assert order.tau == pytest.approx(
            kendalltau([means[row] for row in rows], [published(row) for row in rows]).statistic
        )


def test_the_papers_own_figures_are_in_the_papers_order_and_reversed_ones_in_none():
    rows = [row for row in ROWS if ROWS[row].paper]
    same = compare_order("classify", make_table({row: published(row) for row in rows}).results("classify"))
    assert (same.tau, same.reversed) == (1.0, [])
    turned = compare_order("classify", make_table({row: -published(row) for row in rows}).results("classify"))
    assert (turned.tau, len(turned.reversed)) == (-1.0, 21)


def test_the_spread_is_what_a_linear_model_of_rows_and_seeds_leaves_over():
    values = np.random.default_rng(0).normal(20, 3, (5, 3)) + np.array([0.0, 10.0, 30.0])
    design = np.array([[*np.eye(5)[row], *np.eye(3)[seed]] for row in range(5) for seed in SEEDS])
    left = values.ravel() - design @ np.linalg.lstsq(design, values.ravel())[0]
    spread = residual_spread([Result(values=dict(zip(SEEDS, row, strict=True))) for row in values.tolist()])
    assert spread == pytest.approx(np.sqrt((left**2).sum() / (values.size - np.linalg.matrix_rank(design))))
    assert spread < 5, "what a seed does to all rows alike is no noise"
    complete = [Result(values=dict(zip(SEEDS, row, strict=True))) for row in values.tolist()]
    assert residual_spread([*complete, Result(values={0: 20.0})]) == spread, (
        "a row that lacks seeds takes nothing from the others"
    )


def test_a_pair_in_another_order_is_named_with_whether_it_is_more_than_chance():
    results = make_table({"beit": 20.0, "pixels": 21.0, "no-masks": 24.0}).results("classify")
    order = compare_order("classify", results)
    error = residual_spread(list(results.values())) * np.sqrt(2 / 3)
    assert error == pytest.approx(1, abs=0.01)
    found = {(pair.better, pair.worse): pair for pair in order.reversed}
    assert set(found) == {("beit", "pixels"), ("beit", "no-masks")}, "no-masks is above pixels here too"
    assert found["beit", "pixels"].error == pytest.approx(error)
    assert not found["beit", "pixels"].clear
    assert found["beit", "no-masks"].clear
    first, *others = order_words(order)
    assert "1 of 3 pairs" in first
    assert "tau -0.33" in first
    assert (
        "beit below no-masks: -4.00 points here, +1.19 in the paper; standard error 1.00: more than chance"
        in others[0]
    )
    assert (
        "beit below pixels: -1.00 points here, +1.82 in the paper; standard error 1.00: no more than chance"
        in others[1]
    )


def test_rows_that_lack_a_seed_are_compared_by_those_that_both_have():
    results = {
        "beit": Result(values={0: 10.0, 1: 50.0}),
        "pixels": Result(values={0: 9.0, 2: 1.0}),
        "longer": Result(values={1: 60.0}),
    }
    differences = {(pair.better, pair.worse): pair.ours for pair in compare_order("classify", results).pairs}
    assert differences == {("longer", "beit"): 10.0, ("beit", "pixels"): 1.0}


def test_with_one_seed_nothing_is_said_about_chance():
    results = {"beit": Result(values={0: 1.0}), "pixels": Result(values={0: 2.0})}
    order = compare_order("classify", results)
    assert (order.spread, order.pairs[0].error, order.pairs[0].clear) == (None, None, False)
    assert "nothing can be said about chance" in order_words(order)[0]


def test_the_table_says_what_is_missing_and_that_the_paper_has_no_mean_colours(tmp_path):
    table = make_table(
        {"beit": 20.0, "mean-colour": 19.0, "pixels": None},
        pixels=("pixels-seed0-pretrain failed: it broke",),
    )
    lines = to_markdown(table).splitlines()
    assert lines[2] == "| BEiT | `beit` | 20.00 ± 1.00 | 82.86 |"
    assert lines[3].endswith("| 19.00 ± 1.00 | not in the table |")
    assert lines[4].endswith("| missing | 81.04 |")
    assert lines[-1] == "- Missing: pixels-seed0-pretrain failed: it broke."
    write_table(str(tmp_path), table)
    with (tmp_path / "rows.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [rows[0][f"classify_{name}"] for name in ("mean", "std", "seed0", "seed1", "seed2", "paper")] == [
        "20.0000",
        "1.0000",
        "19.0000",
        "21.0000",
        "20.0000",
        "82.8600",
    ]
    assert (rows[1]["classify_paper"], rows[2]["classify_mean"], rows[2]["missing"]) == (
        "",
        "",
        "pixels-seed0-pretrain failed: it broke",
    )
    assert orders_of(make_table({"beit": 1.0, "mean-colour": 2.0})) == []
