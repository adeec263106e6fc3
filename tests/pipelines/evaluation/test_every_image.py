"""Every image of a set is evaluated once, whichever process is killed."""

import os
import signal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.cluster.nodes import cluster_nodes
from pipelines.cluster.placement import place
from pipelines.config.resources import ResourceConfig
from pipelines.evaluation.every_image import _check_once, judge_all
from pipelines.sources import open_source


@pytest.fixture
def manifest(tmp_path, monkeypatch):
    """Twelve rows in two units."""
    monkeypatch.setenv("BEIT_CACHE", str(tmp_path / "cache"))
    images = pa.array([{"bytes": bytes([row]), "path": f"{row}.png"} for row in range(12)])
    pq.write_table(pa.table({"image": images}), tmp_path / "val.parquet", row_group_size=6)
    return open_source(str(tmp_path / "val.parquet")).manifest


def views(unit, index, count):
    """A row at a time."""
    for row, image in enumerate(unit.read(np.arange(count))["image"]):
        yield {
            "unit": np.array([index]),
            "row": np.array([row]),
            "status": np.zeros(1, np.uint8),
            "value": np.array([image[0]]),
        }


class MortalJudge:
    """A judge whose process is killed at its second unit, once."""

    def __init__(self, checkpoint, *, device, threads):
        self.killed, self.units = Path(checkpoint, "killed"), 0

    def __call__(self, batch):
        self.units += 1
        if self.units == 2 and not self.killed.exists():
            self.killed.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return {name: batch[name] for name in ("unit", "row", "value")}


@pytest.mark.usefixtures("ray_cluster")
def test_a_judge_that_is_killed_loses_no_image_and_judges_none_twice(manifest, tmp_path):
    placement = place(ResourceConfig(), cluster_nodes(), tokenize=False)
    columns = judge_all(manifest, placement, views=views, judge=MortalJudge, checkpoint=str(tmp_path))
    assert (tmp_path / "killed").exists()
    assert columns["value"].tolist() == list(range(12))


@pytest.mark.parametrize("rows", [[0, 1, 2, 2, 3, 4, 5], [0, 1, 2, 4, 5], [0, 1, 2, 2, 4, 5]])
def test_an_image_that_is_judged_twice_or_not_at_all_is_an_error(manifest, rows):
    unit = np.repeat(np.arange(2), 6)
    row = np.tile(np.arange(6), 2)
    _check_once(manifest, {"unit": unit, "row": row})
    with pytest.raises(RuntimeError, match="12 images were to be judged once each"):
        _check_once(
            manifest,
            {"unit": np.concatenate([[0] * len(rows), unit[6:]]), "row": np.concatenate([rows, row[6:]])},
        )
