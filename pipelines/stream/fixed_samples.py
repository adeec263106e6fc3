"""Draw the fixed samples of an evaluation, which no step trains on. They are the same for all runs on the
same data, whatever the runs' own views and masks.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from beit.config import ViewConfig
from beit.tokenizer.protocol import ImageTokenizer
from pipelines.config.pretrain import PretrainConfig
from pipelines.sources import Manifest
from pipelines.stream.samples import Batch, SampleConfig, draw_unseen
from pipelines.stream.token_cache import TokenCache, view_fields

# This is not the run's seed: runs with different seeds are compared on the same samples.
SEED = 0

AT_ONCE = 64


def fixed_samples(
    config: PretrainConfig, manifest: Manifest, tokenizer: ImageTokenizer | None, cache: TokenCache | None
) -> Batch:
    """Draw the `evaluation.images` samples of an evaluation; fewer if there are not enough images.

    Args:
        config: Configuration of the run.
        manifest: The run's data.
        tokenizer: Computes their tokens, if tokens are the target.
        cache: Token cache of the same tokenizer. It keeps the tokens of these samples too, so that several
            runs need not compute them again.

    Returns:
        "patch_view", "mask", "status", the key, and "tokens" if there is a tokenizer.
    """
    samples = SampleConfig(
        seed=SEED,
        view=centre(config.view),
        patch_px=config.model.image_size,
        token_px=None if tokenizer is None else config.tokenizer.image_size,
        mask=config.evaluation.mask,
        grid=config.model.grid,
    )
    batch = draw_unseen(manifest, samples, config.evaluation.images)
    views = batch.pop("token_view", batch["patch_view"])
    if tokenizer is not None:
        batch["tokens"] = _tokens(_name_of(samples, batch), views, tokenizer, cache)
    return batch


def centre(view: ViewConfig) -> ViewConfig:
    """The centre square of an image, unchanged."""
    return replace(view, min_area=1.0, max_area=1.0, aspect=1.0, short_side=None, flip=0.0, jitter=0.0)


def _name_of(samples: SampleConfig, batch: Batch) -> str:
    """A name for these views in a token cache, which already belongs to one data set, size and tokenizer."""
    said = json.dumps(
        [view_fields(samples.view), *(batch[name].tolist() for name in ("unit", "row"))], sort_keys=True
    )
    return f"evaluation-{len(batch['row'])}-{hashlib.sha256(said.encode()).hexdigest()[:12]}"


def _tokens(
    name: str, views: NDArray[np.uint8], tokenizer: ImageTokenizer, cache: TokenCache | None
) -> NDArray[np.int16]:
    if cache is not None and (kept := cache.extra_tokens(name)) is not None:
        return kept
    parts = [
        torch.from_numpy(views[start : start + AT_ONCE]).permute(0, 3, 1, 2)
        for start in range(0, len(views), AT_ONCE)
    ]
    tokens = np.concatenate([tokenizer.encode(part).to(torch.int16).numpy() for part in parts])
    if cache is not None:
        cache.write_extra(name, tokens)
    return tokens
