from pathlib import Path

from pipelines.reports.page import REPORT_FILE
from tune.ablation.config import ablation_preset
from tune.ablation.report import write_ablation_report
from tune.ablation.table import Line, Result, Table


def write(folder, lines):
    config = ablation_preset("quickstart")
    table = Table(lines=tuple(lines), tasks=("classify", "segment"), seeds=(0, 1))
    how = {
        "preset": "quickstart",
        "seconds": 75,
        "lines": ["2 CPU / 1.25 = 1.60"],
        "mlflow": "http://host/#/experiments/1/runs/2",
    }
    path = write_ablation_report(str(folder), config, table, **how)
    assert path == str(folder / REPORT_FILE)
    return Path(path).read_text()


def both(first, second):
    return {
        "classify": Result(values={0: first, 1: first + 1}),
        "segment": Result(values={0: second, 1: second - 1}),
    }


def test_the_page_shows_our_table_beside_the_papers_the_order_and_what_is_missing(tmp_path):
    page = write(
        tmp_path,
        [
            Line(row="beit", results=both(27.0, 30.0)),
            Line(row="pixels", results=both(24.0, 33.0)),
            Line(row="mean-colour", results=both(25.0, 29.0)),
            Line(row="longer", results={}, missing=("longer-seed0-pretrain failed: <it broke>",)),
        ],
    )
    for said in (
        "<td>27.50 ± 0.71</td><td>82.86</td>",
        "<td>target.kind=pixels</td>",
        "<td>not in the table</td>",
        "Classification, top-1: 1 of 1 pairs of rows are in the paper&#39;s order",
        "beit below pixels: -3.00 points here, +3.27 in the paper",
        "longer-seed0-pretrain failed: &lt;it broke&gt;",
        "2 CPU / 1.25",
        '<a href="http://host/#/experiments/1/runs/2">',
    ):
        assert said in page, said
    for chart in ("classification, top-1", "segmentation, mIoU"):
        assert f'aria-label="{chart}"' in page


def test_a_page_of_an_ablation_without_a_result_can_be_written(tmp_path):
    assert "was not begun" in write(
        tmp_path, [Line(row="beit", results={}, missing=("beit-seed0-pretrain was not begun",))]
    )
