from dataclasses import replace

import numpy as np
import pytest

from beit.plain import override
from beit.tokenizer.registry import load_tokenizer
from pipelines.presets import pretrain as presets
from pipelines.scenes.shards import write_scenes
from pipelines.sources import open_source
from pipelines.stream.fixed_samples import fixed_samples
from pipelines.stream.token_cache import CacheDescription, TokenCache, view_fields


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes")
    write_scenes(folder, images=48, seed=0, rows_per_group=16)
    return open_source(str(folder)).manifest


CONFIG = override(presets.quickstart(), {"evaluation.images": 12})


def test_runs_that_differ_in_seed_views_and_masks_are_measured_on_the_same_samples(manifest):
    first = fixed_samples(CONFIG, manifest, None, None)
    other = override(
        CONFIG,
        {"seed": 5, "view.min_area": 0.1, "view.jitter": 0.0, "mask.ratio": 0.7, "mask.kind": "random"},
    )
    second = fixed_samples(other, manifest, None, None)
    assert first.keys() == second.keys()
    for name, column in first.items():
        np.testing.assert_array_equal(column, second[name])
    assert len(first["row"]) == 12
    assert first["mask"].mean() == pytest.approx(24 / 64, abs=0.03)
    masks = fixed_samples(override(CONFIG, {"evaluation.mask.ratio": 0.7}), manifest, None, None)
    assert masks["mask"].mean() > 0.6
    np.testing.assert_array_equal(masks["patch_view"], first["patch_view"])


def test_their_tokens_are_computed_once_and_kept_in_the_cache(manifest, tmp_path):
    tokenizer = load_tokenizer("scenes64")
    description = CacheDescription(
        data=manifest.digest,
        units=len(manifest.rows),
        seed=0,
        view=view_fields(CONFIG.view),
        patch_px=64,
        token_px=64,
        tokenizer=tokenizer.digest,
        vocab_size=tokenizer.vocab_size,
        precision=tokenizer.precision,
        epochs=1,
    )
    cache = TokenCache.create(str(tmp_path / "tokens"), description, option="out")
    calls = []

    class Counting:
        def encode(self, images):
            calls.append(len(images))
            return tokenizer.encode(images)

    first = fixed_samples(CONFIG, manifest, Counting(), cache)
    second = fixed_samples(replace(CONFIG, mask=CONFIG.evaluation.mask), manifest, Counting(), cache)
    assert calls == [12]
    np.testing.assert_array_equal(first["tokens"], second["tokens"])
    np.testing.assert_array_equal(first["tokens"], fixed_samples(CONFIG, manifest, tokenizer, None)["tokens"])
    assert cache.missing() == [0], "what is kept beside the epochs is none of their parts"
