"""The check counts what is there, names what is broken, and shows it."""

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from beit.errors import UserError
from beit.images.decode import Status
from pipelines.scenes.objects import CLASS_NAMES
from pipelines.scenes.shards import write_scenes
from pipelines.tools.check import CheckConfig, check, command, draw_sample


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch) -> None:
    monkeypatch.setenv("BEIT_CACHE", str(tmp_path_factory.mktemp("cache")))


def encode(size: tuple[int, int], mode: str, form: str) -> bytes:
    buffer = io.BytesIO()
    Image.effect_noise(size, 60).convert(mode).save(buffer, form)
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twelve good images of two classes, and four broken files."""
    good = [encode((40 + i, 30), "RGB", "JPEG") for i in range(9)] + [
        encode((64, 64), mode, "PNG") for mode in ("L", "RGBA", "P")
    ]
    broken = {
        "empty": b"",
        "page": b"<!DOCTYPE html><html></html>",
        "cut": good[0][:200],
        "text": b"not at all an image",
    }
    for i, content in enumerate(good):
        (tmp_path / "data" / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / "ab"[i % 2] / f"{i}.jpg").write_bytes(content)
    for name, content in broken.items():
        (tmp_path / "data" / "a" / f"{name}.jpg").write_bytes(content)
    return tmp_path / "data"


def test_everything_is_counted_and_the_broken_are_named(folder: Path, tmp_path: Path):
    result = check(CheckConfig(source=str(folder), sheet=str(tmp_path / "sheet.png")))
    assert (result.images, result.checked) == (16, 16)
    assert {Path(where).name: status for where, status in result.broken} == {
        "empty.jpg": Status.EMPTY,
        "page.jpg": Status.HTML,
        "cut.jpg": Status.TRUNCATED,
        "text.jpg": Status.NOT_AN_IMAGE,
    }
    assert result.statuses[Status.DECODED] == 12
    assert result.formats == {"JPEG": 9, "PNG": 3}
    assert result.modes == {"RGB": 9, "L": 1, "RGBA": 1, "P": 1}
    assert result.classes == {"a": 10, "b": 6}
    assert result.percentiles["width"][0] == 40
    assert result.percentiles["width"][-1] == 64
    assert "decoded 12 of 16 (all of them)" in result.lines()
    assert Image.open(tmp_path / "sheet.png").width > 10 * 96


@pytest.mark.parametrize(
    ("labels", "counted"),
    [
        (pa.array(["b", None, "a", "b"]).dictionary_encode(), {"a": 1, "b": 2, "no label": 1}),
        (pa.array([True, None, True, False]), {"False": 1, "True": 2, "no label": 1}),
        (pa.array([[1, 2], [1], [], [1]]), {"[1 2]": 1, "[1]": 2, "[]": 1}),
    ],
)
def test_labels_of_every_kind_are_counted_with_those_that_are_missing(labels, counted, tmp_path: Path):
    image = encode((8, 8), "RGB", "PNG")
    table = pa.table(
        {"image": pa.array([{"bytes": image, "path": f"{i}.png"} for i in range(4)]), "labels": labels}
    )
    pq.write_table(table, tmp_path / "a.parquet")
    assert (
        check(CheckConfig(source=str(tmp_path / "a.parquet"), sheet=str(tmp_path / "sheet.png"))).classes
        == counted
    )


def test_all_images_by_ray_and_a_sample_of_all_agree(folder: Path, ray_cluster):
    sampled, whole = (
        check(CheckConfig(source=str(folder), all=every, sheet=None)) for every in (False, True)
    )
    assert sampled == whole


def test_a_sample_of_the_scenes_shows_their_classes(tmp_path: Path):
    write_scenes(tmp_path, images=400, seed=0, image_size=32, rows_per_group=20)
    result = check(CheckConfig(source=str(tmp_path), sample=200, sheet=None))
    assert result.checked < 400
    assert set(result.classes) == set(CLASS_NAMES)
    assert sum(result.classes.values()) == result.checked
    assert not result.broken


@pytest.mark.parametrize("rows", [[1] * 5000, [100] * 300, [3000, 10, 10, 5000]])
def test_a_sample_has_about_the_size_asked_for_and_no_row_twice(rows):
    counts = np.array(rows, np.int32)
    drawn = draw_sample(counts, 1000, seed=0)
    assert 900 <= sum(map(len, drawn.values())) <= 1000
    for unit, chosen in drawn.items():
        assert len(set(chosen.tolist())) == len(chosen)
        assert chosen.max() < counts[unit]
    assert drawn.keys() != draw_sample(counts, 1000, seed=1).keys() or len(drawn) <= 4


def test_an_empty_sample_is_refused():
    with pytest.raises(UserError, match="--sample 0 is not positive"):
        CheckConfig(source="x", sample=0)


def test_values_are_looked_at_too(tmp_path: Path):
    rng = np.random.default_rng(0)
    for number in range(3):
        dark = rng.integers(0, 4096, (16, 16)).astype(np.uint16)
        Image.fromarray(dark).save(tmp_path / f"{number}.png")
        Image.fromarray(rng.integers(0, 256, (16, 16), np.uint8)).save(tmp_path / f"{number}.jpg")
    result = check(CheckConfig(source=str(tmp_path), sheet=None))
    assert result.ranges == {"JPEG of 8 bits": (0, 0, 0, 0, 3), "PNG of 16 bits": (0, 3, 0, 0, 0)}
    assert any("3 PNG images of 16 bits use" in line and "view.range" in line for line in result.lines())


def test_pixels_of_each_id_are_counted(tmp_path: Path):
    ids = np.zeros((10, 10), np.uint8)
    ids[:3] = 255
    for number in range(4):
        (tmp_path / "images").mkdir(exist_ok=True)
        (tmp_path / "masks").mkdir(exist_ok=True)
        Image.effect_noise((10, 10), 60).save(tmp_path / "images" / f"{number}.jpg")
        Image.fromarray(ids if number else ids[:5]).save(tmp_path / "masks" / f"{number}.png")
    result = check(
        CheckConfig(source=str(tmp_path / "images"), annotations=str(tmp_path / "masks"), sheet=None)
    )
    assert result.pixels == {0: 210, 255: 90}
    assert result.bad_annotations == {"annotation and image differ in size": 1}
    assert "annotation ids 2: 0 210 pixels (70.0%), 255 90 pixels (30.0%)" in result.lines()
    assert any("--annotation.values 0 255" in line for line in result.warnings)


def test_data_of_which_nothing_can_be_decoded_ends_with_an_error(tmp_path: Path, capsys):
    (tmp_path / "a.jpg").write_bytes(b"")
    (tmp_path / "b.jpg").write_bytes(b"\0\0\0\x18ftypheic" + bytes(100))
    with pytest.raises(UserError, match="none of the 2 images checked can be decoded"):
        command([str(tmp_path), "--sheet", "None"], debug=False)
    assert "1 a HEIC image, which is not read: convert it to JPEG or PNG" in capsys.readouterr().out
