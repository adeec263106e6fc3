import numpy as np
import pytest
from PIL import Image

from beit.config import ModelConfig, ViewConfig
from beit.errors import UserError
from beit.plain import to_dict
from beit.pretraining.model import Beit
from beit.vit.checkpoints import save_model
from pipelines.cli import main
from pipelines.scenes.render import render_scene
from pipelines.tools.show_attention import AttentionConfig, show


@pytest.fixture
def given(tmp_path):
    """A run folder with a model, and an image."""
    model = Beit(ModelConfig(image_size=32, patch_size=8, dim=24, depth=2, heads=3), 5)
    save_model(model, tmp_path / "run" / "model", extra={"view": to_dict(ViewConfig())})
    Image.fromarray(render_scene(np.random.default_rng(0)).image).save(tmp_path / "scene.png")
    return tmp_path


@pytest.mark.parametrize("folder", ["run", "run/model"])
def test_the_sheet_has_a_row_a_point_and_the_asking_patch_is_red(given, folder, capsys):
    out = given / "sheet.png"
    image = str(given / "scene.png")
    main(
        [
            "attention",
            str(given / folder),
            image,
            "--points",
            "0.1,0.9",
            "1,0",
            "--size",
            "48",
            "--side",
            "60",
            "--out",
            str(out),
        ]
    )
    assert "6 x 6 patches, positions resampled from 4 x 4" in capsys.readouterr().out
    sheet = np.asarray(Image.open(out))
    assert sheet.shape == (6 + 17 + 2 * (60 + 6 + 17), 6 + 6 * 66, 3)
    for row, (y, x) in enumerate([(5, 0), (0, 5)]):
        top = 6 + 17 + row * 83
        red = (sheet[top : top + 60, 6:66] == (235, 30, 30)).all(-1)
        assert red[10 * y : 10 * y + 10, 10 * x : 10 * x + 10].all()
        assert red.sum() == 100


def test_mistakes_are_named(given):
    run, image = str(given / "run"), str(given / "scene.png")
    for point, what in (
        ("240,100", "is not in the picture"),
        ("0.5", "not two numbers"),
        ("a,b", "not two numbers"),
        ("nan,0", "not in"),
    ):
        with pytest.raises(UserError, match=what):
            AttentionConfig(run=run, images=(image,), points=(point,))
    (given / "cut.png").write_bytes((given / "scene.png").read_bytes()[:300])
    for options, what in (
        ({"run": run}, "IMAGE is missing"),
        ({"run": str(given / "none"), "images": (image,)}, "none holds no model"),
        ({"run": run, "images": (str(given / "none.png"),)}, r"none\.png is not there"),
        ({"run": run, "images": (str(given / "cut.png"),)}, r"cut\.png: cut short"),
        ({"run": run, "images": (image,), "size": 50}, "--size 50 is not a multiple"),
        ({"run": run, "images": (image,), "size": 8000}, "1000 x 1000 patches"),
    ):
        with pytest.raises(UserError, match=what):
            list(show(AttentionConfig(**options, out=str(given / "sheet.png"))))
    assert not (given / "sheet.png").exists()
