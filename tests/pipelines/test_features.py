"""Features of a data set, as files, against the model called directly."""

import csv
import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from beit.classification.views import make_centre_view
from beit.config import ModelConfig, ViewConfig
from beit.errors import UserError
from beit.images.decode import Status
from beit.images.pixels import normalise
from beit.loading import load_model
from beit.pretraining.model import Beit
from beit.vit.checkpoints import SavedConfig, save_model
from pipelines.config.resources import ResourceConfig
from pipelines.evaluation.extract import Embed, views_of_pieces
from pipelines.evaluation.feature_files import Description, FeatureFiles, plan_files
from pipelines.features import FeaturesConfig, default_layer, features
from pipelines.scenes.shards import write_scenes
from pipelines.sources import open_source

TINY = ModelConfig(image_size=32, patch_size=8, dim=24, depth=3, heads=2, drop_path=0.0)
VIEW = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.25]}


def describe(**changes):
    values = {
        "data": "d",
        "images": 5,
        "model": "m",
        "image_size": 32,
        "view": VIEW,
        "centre": 1.0,
        "layers": [2],
        "poolings": ["mean"],
    }
    values |= {
        "dim": 4,
        "numbers": "float16",
        "bf16": False,
        "label": "label",
        "label_kind": "whole",
        "class_names": None,
        "images_per_file": 3,
    }
    return Description(**{**values, **changes})


def about(images, status=None):
    names = np.array([f"{unit}/{row}" for unit, row in images], object)
    unit, row = np.array(images).T
    return {
        "unit": unit,
        "row": row,
        "path": names,
        "label": np.arange(len(images)),
        "status": np.array(status or [0] * len(images)),
    }


@pytest.mark.parametrize("size", [1, 3, 4, 7, 100])
def test_every_image_goes_into_one_file_and_no_file_is_too_large(size):
    rows = np.array([3, 4, 1, 10, 2, 2, 9], np.int32)
    files = plan_files(rows, size)
    flat = [
        (piece.unit, row) for pieces in files for piece in pieces for row in range(piece.first, piece.last)
    ]
    assert flat == [(unit, row) for unit, count in enumerate(rows.tolist()) for row in range(count)]
    assert all(0 < sum(piece.images for piece in pieces) <= size for pieces in files)


def test_unfinished_features_do_not_look_complete_and_go_on_only_with_the_same_description(tmp_path):
    rows = np.array([3, 2], np.int32)
    files = FeatureFiles.create(str(tmp_path / "out"), describe(), rows)
    values = np.arange(8, dtype=np.float16).reshape(2, 4)
    files.write(1, about([(1, 0), (1, 1)]), {(2, "mean"): values})
    again = FeatureFiles.create(str(tmp_path / "out"), describe(), rows)
    assert again.missing() == [0]
    with pytest.raises(FileNotFoundError):
        again.finish()
    assert not (tmp_path / "out" / "features.json").exists()
    with pytest.raises(UserError, match=r"centre is 1\.0 there and 0\.5 here"):
        FeatureFiles.create(str(tmp_path / "out"), describe(centre=0.5), rows)

    again.write(0, about([(0, 0), (0, 1), (0, 2)], [0, int(Status.TRUNCATED), 0]), {(2, "mean"): -values})
    again.finish()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "features.json",
        "parts",
        "undecodable.csv",
    ]
    assert [path.name for path in sorted((tmp_path / "out" / "parts").iterdir())] == [
        f"part-0000{n}-of-00002.parquet" for n in (0, 1)
    ]
    found, labels = again.read(2, "mean")
    assert np.array_equal(found, np.concatenate([-values, values]))
    assert labels.tolist() == [0, 2, 0, 1]
    assert again.undecodable() == [("0/1", Status.TRUNCATED.reason)]


def test_a_file_with_other_images_than_planned_is_noticed(tmp_path):
    files = FeatureFiles.create(str(tmp_path / "out"), describe(), np.array([3], np.int32))
    files.write(0, about([(0, 0), (0, 1)]), {(2, "mean"): np.zeros((2, 4), np.float16)})
    with pytest.raises(RuntimeError, match=r"2 \+ 0 images instead of 3"):
        files.finish()


def test_a_folder_with_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("")
    with pytest.raises(UserError, match="not empty"):
        FeatureFiles.create(str(tmp_path), describe(), np.array([3], np.int32))


def test_a_folder_laid_out_by_hand_opens_and_goes_on(tmp_path):
    """The layout on disk must not change: features are kept for months."""
    kind = pa.list_(pa.float16(), 4)
    columns = {
        "unit": pa.array([0, 0], pa.int32()),
        "row": pa.array([0, 2], pa.int32()),
        "path": ["0/0", "0/2"],
        "label": [7, 8],
        "layer_2_mean": pa.array([[0.0, 1.0, 2.0, 3.0], [4.0, 5.0, 6.0, 7.0]], kind),
    }
    (tmp_path / "parts").mkdir()
    pq.write_table(
        pa.table(columns).replace_schema_metadata({"undecodable": '[["0/1", "cut short"]]'}),
        tmp_path / "parts" / "part-00000-of-00002.parquet",
    )
    description = """{
 "format": 1, "data": "d", "images": 5, "model": "m", "image_size": 32,
 "view": {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.25]}, "centre": 1.0,
 "layers": [2], "poolings": ["mean"], "dim": 4, "numbers": "float16", "bf16": false,
 "label": "label", "label_kind": "whole", "class_names": null, "images_per_file": 3
}
"""
    (tmp_path / "unfinished.json").write_text(description)
    rows = np.array([3, 2], np.int32)
    files = FeatureFiles.create(str(tmp_path), describe(), rows)
    assert files.missing() == [1]
    files.write(1, about([(1, 0), (1, 1)]), {(2, "mean"): np.arange(8, 16, dtype=np.float16).reshape(2, 4)})
    files.finish()
    assert json.loads((tmp_path / "features.json").read_text()) == json.loads(description)
    assert not (tmp_path / "unfinished.json").exists()
    assert (tmp_path / "undecodable.csv").read_bytes() == b"image,reason\r\n0/1,cut short\r\n"

    whole = FeatureFiles.create(str(tmp_path), describe(), rows)
    assert whole.missing() == []
    found, labels = whole.read(2, "mean")
    assert np.array_equal(found, np.arange(16, dtype=np.float16).reshape(4, 4))
    assert labels.tolist() == [7, 8, 0, 1]


def broken(shard, row):
    table = pq.read_table(shard)
    columns = table.to_pydict()
    columns["image"][row]["bytes"] = columns["image"][row]["bytes"][:60]
    pq.write_table(pa.Table.from_pydict(columns, table.schema), shard, row_group_size=8)


@pytest.mark.usefixtures("ray_cluster")
def test_the_job_writes_what_the_model_says_about_each_image_once(tmp_path):
    [shard] = write_scenes(tmp_path / "scenes", images=37, seed=0, image_size=48, rows_per_group=8)
    broken(shard, 11)
    save_model(Beit(TINY, 16, seed=1), tmp_path / "model", extra={"view": VIEW})
    config = FeaturesConfig(
        run=str(tmp_path / "model"),
        data=str(tmp_path / "scenes"),
        out=str(tmp_path / "out"),
        layers=(2, -1),
        poolings=("mean", "cls"),
        numbers="float32",
        images_per_file=13,
        resources=ResourceConfig(micro_batch_size=5),
    )
    lines = []
    result = features(config, say=lines.append)
    assert (result.images, result.undecodable, result.files, result.written) == (36, 1, 4, 4)

    model, view, data = (
        load_model(tmp_path / "model"),
        ViewConfig(mean=tuple(VIEW["mean"]), std=tuple(VIEW["std"])),
        tmp_path / "scenes",
    )
    manifest = open_source(str(data)).manifest
    table = pq.read_table(tmp_path / "out" / "parts").to_pydict()
    expected = [
        (unit, row)
        for unit, rows in enumerate(manifest.rows.tolist())
        for row in range(rows)
        if (unit, row) != (1, 3)
    ]
    assert sorted(zip(table["unit"], table["row"], strict=True)) == expected
    for place, (unit, row) in enumerate(zip(table["unit"], table["row"], strict=True)):
        found = manifest.unit(unit).read(np.array([row]), ("image", "label"))
        pixels, _ = make_centre_view(found["image"][0], view=view, image_size=32, share=1.0)
        with torch.inference_mode():
            second, last = model.features(
                normalise(torch.from_numpy(pixels[None].copy()), view), blocks=(1, 2), norm=False
            )
        assert table["label"][place] == found["label"][0]
        np.testing.assert_allclose(table["layer_2_mean"][place], second[0, 1:].mean(0), atol=1e-5)
        np.testing.assert_allclose(table["layer_3_cls"][place], last[0, 0], atol=1e-5)
        assert table["class_name"][place] == manifest.class_names[found["label"][0]]
    with open(tmp_path / "out" / "undecodable.csv") as file:
        [bad] = list(csv.DictReader(file))
    assert bad["reason"] == Status.TRUNCATED.reason
    assert json.loads((tmp_path / "out" / "features.json").read_text())["layers"] == [2, 3]

    # What is lost is written again, and nothing else.
    lost = sorted((tmp_path / "out" / "parts").iterdir())[2]
    lost.unlink()
    (tmp_path / "out" / "features.json").rename(tmp_path / "out" / "unfinished.json")
    again = features(config, say=lines.append)
    assert (again.images, again.written) == (36, 1)
    assert lost.exists()


@pytest.mark.slow
def test_a_killed_job_goes_on_by_the_same_command_and_every_image_is_there_once_with_the_same_features(
    run_beit, tmp_path
):
    write_scenes(tmp_path / "scenes", images=1200, seed=0, image_size=48, rows_per_group=32)
    slow_enough = replace(TINY, image_size=64, dim=96, depth=6)
    save_model(Beit(slow_enough, 16, seed=1), tmp_path / "model", extra={"view": VIEW})

    def command(out):
        return (
            "features",
            tmp_path / "model",
            tmp_path / "scenes",
            out,
            "--images-per-file",
            8,
            "--resources.cpus",
            2,
        )

    def parts(out):
        return {path.name: path.stat().st_mtime_ns for path in out.glob("parts/*.parquet")}

    out, first = tmp_path / "out", {}
    for _ in range(2):
        enough = len(first) + 5
        run_beit(*command(out), until=lambda enough=enough: len(parts(out)) >= enough)
        second = parts(out)
        assert first.items() < second.items(), "a file was written twice"
        first = second
    assert len(first) < 150
    assert not (out / "features.json").exists()
    assert "1,200 images" in run_beit(*command(out))
    assert len(parts(out)) == 150
    assert first.items() < parts(out).items()

    run_beit(*command(tmp_path / "whole"))
    broken, whole = (pq.read_table(folder / "parts") for folder in (out, tmp_path / "whole"))
    assert (
        len(set(zip(broken["unit"].to_pylist(), broken["row"].to_pylist(), strict=True)))
        == len(broken)
        == 1200
    )
    assert broken.equals(whole)


def test_numbers_that_float16_cannot_hold_are_noticed_and_not_written(tmp_path):
    model = Beit(TINY, 16, seed=1)
    with torch.no_grad():
        model.blocks[1].mlp.fc2.bias.fill_(1e5)
    save_model(model, tmp_path / "model", extra={"view": VIEW})
    images = {
        **about([(0, row) for row in range(3)]),
        "part": np.zeros(3, int),
        "images": np.full(3, 3),
        "view": np.zeros((3, 32, 32, 3), np.uint8),
    }
    for numbers, overflow in (("float16", 2), ("float32", 0)):
        description = describe(layers=[1, 2], dim=24, numbers=numbers)
        files = FeatureFiles.create(str(tmp_path / numbers), description, np.array([3], np.int32))
        options = {"device": "cpu", "threads": 1, "images_at_once": 2}
        found = Embed(files, str(tmp_path / "model"), ViewConfig(mean=tuple(VIEW["mean"])), **options)(images)
        assert (found["overflow"].tolist(), found["broken"].tolist()) == ([overflow], [False])
        assert files.missing() == ([0] if overflow else [])
        with torch.no_grad():
            model.blocks[1].mlp.fc2.bias.fill_(torch.nan)
        save_model(model, tmp_path / "broken", extra={"view": VIEW})
        assert Embed(files, str(tmp_path / "broken"), ViewConfig(), **options)(images)["broken"].tolist() == [
            True
        ]


def test_the_layer_of_a_deep_pretrained_model_is_a_middle_one():
    saved = SavedConfig(kind="mim", model=ModelConfig(), head={}, extra={})
    assert default_layer(saved) == 9
    assert default_layer(replace(saved, kind="classifier")) == 12
    assert default_layer(replace(saved, model=TINY)) == 3


@pytest.mark.parametrize(
    ("values", "kind", "written"),
    [
        (pa.array([1, 2, None, 4], pa.int32()), "whole", [1, 2, None, 4]),
        (pa.array([1.0, 2.0, 1.5, None]), "number", [1.0, 2.0, 1.5, None]),
        (pa.array(["a", "b", None, "d"]), "text", ["a", "b", None, "d"]),
    ],
)
def test_labels_have_one_type_in_all_files_whatever_a_row_group_holds(tmp_path, values, kind, written):
    image = pa.array([{"bytes": b"", "path": f"{row}.png"} for row in range(4)])
    pq.write_table(pa.table({"image": image, "target": values}), tmp_path / "train.parquet", row_group_size=2)
    manifest = open_source(str(tmp_path / "train.parquet")).manifest
    assert (manifest.kind_of("image.path"), manifest.column("image.path").tolist()) == (
        "text",
        [f"{row}.png" for row in range(4)],
    )
    description = describe(label="target", label_kind=manifest.kind_of("target"), images_per_file=2)
    assert description.label_kind == kind
    files = FeatureFiles.create(str(tmp_path / "out"), description, manifest.rows)
    view = ViewConfig(mean=tuple(VIEW["mean"]), std=tuple(VIEW["std"]))
    for number, pieces in enumerate(files.pieces):
        found = {**views_of_pieces(manifest, pieces, description, view), "status": np.zeros(2, int)}
        files.write(number, found, {(2, "mean"): np.zeros((2, 4), np.float16)})
    assert pq.read_table(tmp_path / "out" / "parts")["label"].to_pylist() == written
