"""Before a run starts, a sample of the images says what would go wrong in silence."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from beit.config import PixelConfig, ViewConfig
from beit.errors import UserError
from beit.segmentation.config import AnnotationConfig, SegmentViewConfig
from pipelines.sources import Source, open_source
from pipelines.sources.pairs import with_annotations
from pipelines.stream.first_look import check_annotated, warn_about_values


def save(path: Path, pixels: np.ndarray, **options) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)


def warnings_for(folder: Path, view: PixelConfig | None = None) -> list[str]:
    said: list[str] = []
    warn_about_values(open_source(str(folder)), view or ViewConfig(), said.append)
    return said


def test_12_bits_in_16_are_said_with_the_remedy_which_helps(tmp_path: Path):
    rng = np.random.default_rng(0)
    for number in range(4):
        save(tmp_path / f"{number}.png", rng.integers(0, 4096, (16, 16)).astype(np.uint16))
        save(tmp_path / f"ordinary{number}.jpg", rng.integers(0, 256, (16, 16, 3), np.uint8))
    (line,) = warnings_for(tmp_path)
    assert line.startswith("warning: 4 PNG images of 16 bits use 6.3% of the range")
    assert "view.range=LO..HI" in line
    assert warnings_for(tmp_path, ViewConfig(range="0..4095")) == []


def test_frames_and_damaged_exif_data_are_said(tmp_path: Path):
    rng = np.random.default_rng(0)
    frames = [Image.fromarray(rng.integers(0, 256, (16, 16), np.uint8)) for _ in range(3)]
    frames[0].save(tmp_path / "frames.gif", save_all=True, append_images=frames[1:])
    frames[0].save(tmp_path / "pages.tif", save_all=True, append_images=frames[1:])
    frames[0].save(tmp_path / "one.gif")
    exif = Image.Exif()
    exif[0x0112] = 12
    frames[0].save(tmp_path / "damaged.jpg", exif=exif)
    said = warnings_for(tmp_path)
    assert "warning: 2 of 4 images have more than one frame: the first is used" in said
    assert "warning: 1 of 4 images have damaged EXIF data: they are not turned by it" in said


def annotated(folder: Path, ids: np.ndarray, exif: Image.Exif | None = None) -> Source:
    rng = np.random.default_rng(0)
    for number in range(12):
        pixels = rng.integers(0, 256, (*ids.shape, 3), np.uint8)
        save(folder / "images" / f"{number}.jpg", pixels, **({} if exif is None else {"exif": exif}))
        save(folder / "masks" / f"{number}.png", ids)
    source = open_source(str(folder / "images"))
    return with_annotations(source, str(folder / "masks"), option="data.annotations")


def test_masks_of_0_and_255_are_refused_with_an_option_that_maps_them(tmp_path: Path):
    ids = np.zeros((16, 24), np.uint8)
    ids[4:9, 3:20] = 255
    source, view, said = annotated(tmp_path, ids), SegmentViewConfig(), []
    with pytest.raises(UserError, match=r"a single class, and 22% of the pixels .*ignored\n.*values 0 255"):
        check_annotated(source, view, AnnotationConfig(classes=2), said.append)
    check_annotated(source, view, AnnotationConfig(classes=2, values=(0, 255)), said.append)
    assert said == []


def test_classes_and_a_margin_that_is_ignored_are_fine(tmp_path: Path):
    ids = np.full((16, 24), 255, np.uint8)
    ids[:8], ids[8:12] = 0, 1
    said: list[str] = []
    check_annotated(annotated(tmp_path, ids), SegmentViewConfig(), AnnotationConfig(classes=2), said.append)
    assert said == []


@pytest.mark.parametrize("shape", [(16, 24), (24, 24)])
def test_annotations_of_photographs_that_exif_data_turns(tmp_path: Path, shape: tuple[int, int]):
    ids = np.zeros(shape, np.uint8)
    ids[:5] = 1
    exif = Image.Exif()
    exif[0x0112] = 6
    source, config, said = annotated(tmp_path, ids, exif), AnnotationConfig(classes=2), []
    if shape[0] == shape[1]:  # Nothing but the orientation tells.
        check_annotated(source, SegmentViewConfig(), config, said.append)
        assert len(said) == 1
        assert "12 of 12 images are turned" in said[0]
        assert "--view.exif-rotate False" in said[0]
    else:
        with pytest.raises(UserError, match=r"before its EXIF orientation is followed: set view.exif_rotate"):
            check_annotated(source, SegmentViewConfig(), config, said.append)
    said.clear()
    check_annotated(source, SegmentViewConfig(exif_rotate=False), config, said.append)
    assert said == []


def test_an_image_of_another_size_is_not_taken_for_a_turned_one(tmp_path: Path):
    ids = np.zeros((16, 24), np.uint8)
    source = annotated(tmp_path, ids)
    for number in range(12):
        save(tmp_path / "masks" / f"{number}.png", np.zeros((24, 16), np.uint8))
    with pytest.raises(UserError, match="annotation and image differ in size"):
        check_annotated(source, SegmentViewConfig(), AnnotationConfig(classes=2), print)


def test_the_sample_is_the_same_each_time(tmp_path: Path):
    rng = np.random.default_rng(0)
    for number in range(150):
        save(tmp_path / f"{number}.png", rng.integers(0, 20, (4, 4)).astype(np.uint8))
    assert warnings_for(tmp_path) == warnings_for(tmp_path) != []
