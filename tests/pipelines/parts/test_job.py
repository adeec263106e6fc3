"""The job that writes missing parts, with a store of text files in place of a model's outputs."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest

from beit.errors import UserError
from pipelines.cluster import session
from pipelines.cluster.nodes import cluster_nodes
from pipelines.cluster.placement import place
from pipelines.config.resources import ResourceConfig
from pipelines.evaluation.every_image import pool
from pipelines.parts import job
from pipelines.parts.job import PartWriter, Piece, write_missing
from pipelines.parts.store import PartStore
from pipelines.scenes.shards import write_scenes
from pipelines.sources import open_source


@dataclass(frozen=True)
class Nothing:
    pass


class Lists(PartStore[Nothing]):
    """Part n lists the rows of unit n in epoch n + 10."""

    description_files: ClassVar[tuple[str, ...]] = ("lists.json",)
    what: ClassVar[str] = "lists"
    mismatch: ClassVar[str] = "holds other lists"

    @property
    def parts(self):
        return 5

    def name(self, part):
        return f"{part}.txt"


class WriteList(PartWriter):
    def __init__(self, store):
        self._store = store

    def write(self, part, views):
        with self._store.open_output(part) as file:
            file.write(" ".join(views["key"].tolist()).encode())
        return {"name": self._store.name(part)}


def keys(manifest, pieces):
    found = [
        f"{piece.epoch}/{piece.unit}/{row}" for piece in pieces for row in range(piece.first, piece.last)
    ]
    assert manifest.total == 17
    return {"key": np.array(found, object)}


def run(store, manifest, **options):
    with session.start():
        placement = place(ResourceConfig(), cluster_nodes(), tokenize=False)
        write_missing(
            store.missing(),
            manifest,
            placement,
            pieces=lambda part: [Piece(part, 0, int(manifest.rows[part]), part + 10)],
            images=sum(int(manifest.rows[part]) for part in store.missing()),
            views=keys,
            writer=WriteList,
            options={"store": store},
            actors=lambda parts: pool(placement, parts),
            words=("list", "rows"),
            **options,
        )


@pytest.fixture
def manifest(tmp_path):
    write_scenes(tmp_path / "scenes", images=17, seed=0, image_size=16, rows_per_group=4)
    return open_source(str(tmp_path / "scenes")).manifest


@pytest.mark.usefixtures("ray_cluster")
def test_missing_parts_are_written_in_rounds_and_the_others_are_left_alone(tmp_path, manifest, monkeypatch):
    monkeypatch.setattr(job, "PARTS_PER_ROUND", 2)
    store = Lists(str(tmp_path / "out"), Nothing())
    store.begin()
    (tmp_path / "out" / "1.txt").write_text("old")
    lines, seen = [], []
    run(store, manifest, say=lines.append, check=seen.append)
    written = {part: (tmp_path / "out" / f"{part}.txt").read_text() for part in range(5)}
    expected = {
        part: " ".join(f"{part + 10}/{part}/{row}" for row in range(count))
        for part, count in enumerate([4, 4, 4, 4, 1])
    }
    assert written == {**expected, 1: "old"}
    assert sorted((row["name"], int(row["images"])) for row in seen) == [
        ("0.txt", 4),
        ("2.txt", 4),
        ("3.txt", 4),
        ("4.txt", 1),
    ]
    assert lines[-1].startswith("list 4/4 | ")
    assert lines[-1].endswith(" rows/s | eta 0s")

    def refuse(row):
        raise UserError("no good", "do better")

    (tmp_path / "out" / "3.txt").unlink()
    with pytest.raises(UserError, match="no good"):
        run(store, manifest, say=lines.append, check=refuse)


def test_blocks_that_ray_divided_or_joined_are_noticed(tmp_path):
    write = WriteList(Lists(str(tmp_path), Nothing()))
    whole = {"part": np.full(3, 2), "images": np.full(3, 3), "key": np.array(["a", "b", "c"])}
    assert {name: column.tolist() for name, column in write(whole).items()} == {
        "images": [3],
        "name": ["2.txt"],
    }
    for broken in (
        {name: column[:2] for name, column in whole.items()},
        {**whole, "part": np.array([2, 2, 1])},
    ):
        with pytest.raises(RuntimeError, match="Ray has divided or joined blocks"):
            write(broken)
