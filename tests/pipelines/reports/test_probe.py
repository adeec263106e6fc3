import pytest

from pipelines.evaluation.probe_table import ProbeRow
from pipelines.reports.probe import _lines, _verdict, probe_sections


def row(weights, layer, pooling, knn, linear):
    counts = {"train_images": 10, "val_images": 5}
    return ProbeRow(
        weights=weights,
        layer=layer,
        pooling=pooling,
        knn_top1=knn,
        knn_top5=1.0,
        linear_top1=linear,
        linear_top5=1.0,
        **counts,
    )


ROWS = [
    row("trained", 1, "mean", 0.30, 0.20),
    row("trained", 1, "cls", 0.10, 0.15),
    row("trained", 2, "mean", 0.25, 0.20),
    row("trained", 2, "cls", 0.12, 0.40),
    row("random", 1, "mean", 0.11, 0.05),
    row("random", 1, "cls", 0.09, 0.07),
]


def test_the_verdict_names_the_best_layer_of_the_trained_weights_the_last_and_what_random_ones_reach():
    assert _verdict(ROWS) == (
        "K-NN is best at layer 1 (mean): 30.00%, against 25.00% at the last, layer 2; random weights reach "
        "11.00%; "
        "the linear probe is best at layer 2 (cls): 40.00%, which is the last; random weights reach 7.00%."
    )
    assert "random" not in _verdict(ROWS[:4])


@pytest.mark.parametrize(("field", "random"), [("knn_top1", [0.11]), ("linear_top1", [0.07])])
def test_there_is_a_curve_a_pooling_and_the_better_random_one_as_a_baseline(field, random):
    lines = _lines(ROWS, field)
    assert [(line.name, list(line.x), line.baseline) for line in lines] == [
        ("mean of the patches", [1, 2], False),
        ("class token", [1, 2], False),
        ("random weights, the better pooling", [1], True),
    ]
    assert list(lines[0].y) == [getattr(ROWS[0], field), getattr(ROWS[2], field)]
    assert list(lines[2].y) == random


def test_the_best_figures_of_the_trained_weights_stand_out_and_no_others():
    page = "".join(section.html() for section in probe_sections(ROWS))
    assert [page.count(f"<b>{figure}</b>") for figure in ("30.00%", "40.00%", "11.00%")] == [1, 1, 0]
    assert probe_sections([]) == []
