import io

import numpy as np
import pytest
import torch
from PIL import Image

from beit.errors import UserError
from beit.tokenizer.figures import measure
from beit.tokenizer.pictures import colour_of
from beit.tokenizer.registry import load_tokenizer
from pipelines.cli import main
from pipelines.scenes.render import render_scene
from pipelines.scenes.shards import write_scenes
from pipelines.sources import open_source
from pipelines.tools.show_tokens import ShowConfig, TokenizerConfig, show

SMALL = TokenizerConfig(image_size=64)


@pytest.fixture
def scene(tmp_path):
    pixels = render_scene(np.random.default_rng(0)).image
    Image.fromarray(pixels).save(tmp_path / "scene.png")
    return tmp_path / "scene.png", pixels


def test_the_sheet_shows_the_image_its_tokens_and_their_reconstruction(scene, tmp_path, capsys):
    path, pixels = scene
    out = tmp_path / "sheet.png"
    main(
        [
            "tokenizer",
            "show",
            str(path),
            str(path),
            "--tokenizer.image-size",
            "64",
            "--side",
            "128",
            "--out",
            str(out),
        ]
    )
    assert "2 image(s) of 64 px: 64 tokens each" in capsys.readouterr().out
    sheet = np.asarray(Image.open(out))
    tokenizer = load_tokenizer("scenes64")
    assert pixels.shape == (64, 64, 3)
    tokens = tokenizer.encode(torch.from_numpy(pixels).permute(2, 0, 1)[None])
    painted = tokenizer.decode(tokens)[0].permute(1, 2, 0).numpy()
    for row in range(2):
        top = 6 + 17 + row * (128 + 6 + 17)
        shown = [sheet[top : top + 128, 6 + column * 134 :][:, :128] for column in range(3)]
        assert (shown[0][::2, ::2] == pixels).all()
        assert (shown[1][8::16, 8::16] == colour_of(tokens.reshape(8, 8).numpy())).all()
        assert (shown[2][::2, ::2] == painted).all()


def test_the_figures_of_a_data_path_are_those_of_its_images(tmp_path):
    write_scenes(tmp_path / "scenes", images=40, seed=1, rows_per_group=10)
    config = ShowConfig(
        data=str(tmp_path / "scenes"),
        measured=100,
        shown=5,
        out=str(tmp_path / "sheet.png"),
        side=64,
        tokenizer=SMALL,
    )
    lines = list(show(config))
    source = open_source(config.data)
    images = [render for unit in range(4) for render in source.unit(unit).read(np.arange(10))["image"]]
    pixels = torch.stack(
        [
            torch.from_numpy(np.array(Image.open(io.BytesIO(one)).convert("RGB"))).permute(2, 0, 1)
            for one in images
        ]
    )
    figures = measure(load_tokenizer("scenes64"), pixels)
    assert lines[0].startswith(
        f"on 40 images: mean absolute error {figures['error']:.3f}, perplexity {figures['perplexity']:,.0f} "
        "of 512"
    )
    assert lines[1].startswith("5 image(s) of 64 px: 64 tokens each")
    assert Image.open(config.out).width == 6 + 3 * (64 + 6)


def test_a_tokenizer_without_decoder_shows_two_columns(scene, tmp_path):
    out = tmp_path / "sheet.png"
    config = ShowConfig(
        images=(str(scene[0]),),
        out=str(out),
        side=64,
        tokenizer=TokenizerConfig(name="random-dalle", image_size=32),
    )
    assert "16 tokens each" in next(iter(show(config)))
    assert Image.open(out).width == 6 + 2 * (64 + 6)


def test_tokens_have_colours_of_their_own():
    colours = colour_of(np.arange(8192).reshape(64, 128)).reshape(-1, 3).astype(int)
    assert len(np.unique(colours, axis=0)) == 8192
    assert np.abs(np.diff(colours, axis=0)).sum(1).min() > 100, "of numbers next to each other"
    assert colours.max(1).min() > 130, "none is nearly black"


def test_images_that_cannot_be_shown_are_named(scene, tmp_path):
    (tmp_path / "page.jpg").write_bytes(b"<html>not found</html>")
    Image.fromarray(scene[1]).save(file := io.BytesIO(), "PNG")
    (tmp_path / "cut.png").write_bytes(file.getvalue()[:300])
    for name, what in (
        ("page.jpg", r"page\.jpg: a web page"),
        ("cut.png", r"cut\.png: "),
        ("none.png", r"none\.png is not there"),
    ):
        with pytest.raises(UserError, match=what):
            list(
                show(
                    ShowConfig(
                        images=(str(scene[0]), str(tmp_path / name)),
                        out=str(tmp_path / "sheet.png"),
                        tokenizer=SMALL,
                    )
                )
            )
    with pytest.raises(UserError, match=r"image_size=60 is not a multiple of the 8 px"):
        list(show(ShowConfig(images=(str(scene[0]),), tokenizer=TokenizerConfig(image_size=60))))
    with pytest.raises(UserError, match="IMAGE is missing"):
        list(show(ShowConfig()))
    with pytest.raises(UserError, match="both IMAGE and --data"):
        list(show(ShowConfig(images=(str(scene[0]),), data=str(tmp_path))))
    assert not (tmp_path / "sheet.png").exists()
