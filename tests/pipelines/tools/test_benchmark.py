import io
import re

import numpy as np
from PIL import Image

from beit.config import ViewConfig
from pipelines.tools.benchmark import OURS, RELEASED, RELEASED_UINT8, main, measure_views, views_table


def test_views_are_measured_against_the_released_transform_on_any_folder(tmp_path, capsys):
    rng = np.random.default_rng(0)
    for name in "abc":
        small = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
        small.resize((80, 60), Image.Resampling.BICUBIC).save(tmp_path / f"{name}.jpg", quality=95)
    main(["views", "--data", str(tmp_path), "--seconds", "0", "--patch-px", "32", "--token-px", "16"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("views of 32 and 16 px from 3 images")
    assert re.search(r"torch \d+\.\d+", lines[1])
    differences = [float(number) for number in re.findall(r"(\d\.\d\d) \(", lines[-1])]
    assert len(differences) == 2
    assert max(differences) < 1.5


def test_verdict_is_the_ratio_of_the_mean_times():
    image = Image.new("RGB", (40, 40), (10, 200, 30))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    result = measure_views([buffer.getvalue()], ViewConfig(jitter=0), patch_px=32, token_px=16, seconds=0)
    assert result.patch_difference == result.token_difference == 0
    assert set(result.milliseconds) == {RELEASED, RELEASED_UINT8, OURS}
    result.milliseconds.update({RELEASED: [6.0, 8.0], RELEASED_UINT8: [5.0, 5.0], OURS: [2.0, 2.0]})
    table = views_table(result, title="title")
    assert "3.50 x" in table[-1]
    assert "500 img/s" in table[-2]
