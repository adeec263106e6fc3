"""Draw a sample from an encoded image and its key. The same key gives the same sample in every process, on
every machine and in every attempt.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from beit.classification.config import AugmentConfig
from beit.classification.views import augment, draw_erased
from beit.config import MaskConfig, ViewConfig
from beit.images.decode import Status
from beit.images.views import make_view
from beit.pretraining.masking import MaskKind, find_mask
from pipelines import seeds
from pipelines.sources import Manifest, Unit
from pipelines.stream.token_cache import TokenCache

Batch = dict[str, NDArray[Any]]

KEYS = ("epoch", "unit", "row")

UNSEEN_EPOCH = 1 << 30
"""An epoch number that no run reaches, so no model was trained on its views and masks."""


class Samples(Protocol):
    """Turns rows of the data into samples, in the same way in every process."""

    @property
    def seed(self) -> int:
        """The run's."""

    @property
    def columns(self) -> tuple[str, ...]:
        """What is read of a unit."""

    @property
    def cache(self) -> TokenCache | None:
        """The token cache that tokens are read from; None if there is none."""

    @property
    def row_bytes(self) -> int:
        """Approximate bytes of a sample in the stream."""

    def make(self, batch: Batch) -> Batch:
        """Turn the columns, with keys, into samples with keys and "status", one for each row."""

    def reason(self, unit: Unit, row: int, status: int) -> str:
        """Describe why a sample with a status other than 0 cannot be used."""


@dataclass(frozen=True, kw_only=True)
class SampleConfig:
    """Turns an encoded image and its key into a sample, in the same way in every process."""

    seed: int
    view: ViewConfig
    patch_px: int
    token_px: int | None = None
    """Side of the token view, in pixels. None: no token view (when a tokenizer is trained)."""
    mask: MaskConfig | None = None
    grid: int = 0
    """Side of the mask, in patches."""
    mask_kind: MaskKind | None = None
    """How masks are drawn. It is found by the name in `mask` when this config is made, and sent to the
    reading tasks with the rest, so their processes need not know the name."""

    augment: AugmentConfig | None = None
    """Augmentation for a classifier, whose samples also have labels. None: no augmentation and no labels."""

    cache: TokenCache | None = None
    """Token cache that tokens are read from. Views are then those of its epochs, repeated; masks are always
    those of the true epoch."""

    def __post_init__(self) -> None:
        if self.mask is not None and (self.mask_kind is None or self.mask_kind.name != self.mask.kind):
            object.__setattr__(self, "mask_kind", find_mask(self.mask.kind))

    @property
    def columns(self) -> tuple[str, ...]:
        """What is read of a unit."""
        return ("image",) if self.augment is None else ("image", "label")

    @property
    def row_bytes(self) -> int:
        """Bytes of a sample in the stream: three values per pixel of each view."""
        return 3 * (self.patch_px**2 + (self.token_px or 0) ** 2) + 1024

    def make(self, batch: Batch) -> Batch:
        """See `make_samples`."""
        return make_samples(batch, config=self)

    def reason(self, unit: Unit, row: int, status: int) -> str:
        """Describe why an image cannot be decoded."""
        return Status(status).reason


def make_samples(batch: Batch, *, config: SampleConfig) -> Batch:
    """Turn encoded images into views and masks. Every row gives one row, whatever the image.

    An image that cannot be decoded becomes a zero view with an empty mask and a non-zero status. If the batch
    has "tokens", they are passed on in place of the token view. A classifier's samples have a "label", and in
    "erase" the rectangle that the training device fills with noise.
    """
    token_px = config.patch_px if config.token_px is None else config.token_px
    if "tokens" in batch:
        token_px = max(
            config.patch_px, token_px
        )  # The patch view is made from the token view if that is larger; a smaller one is not needed.
    keys = list(zip(*(batch[name].tolist() for name in KEYS), strict=True))
    view_keys = (
        keys
        if config.cache is None
        else [(epoch % config.cache.epochs, unit, row) for epoch, unit, row in keys]
    )
    views = [
        make_view(
            encoded,
            seeds.generator(config.seed, seeds.VIEW, *key),
            view=config.view,
            patch_px=config.patch_px,
            token_px=token_px,
        )
        for encoded, key in zip(batch["image"], view_keys, strict=True)
    ]
    samples: Batch = {name: batch[name] for name in KEYS}
    samples["patch_view"] = np.stack([view.patch_view for view in views])
    samples["status"] = np.array([view.status for view in views], np.uint8)
    if "tokens" in batch:
        samples["tokens"] = batch["tokens"]
    elif token_px != config.patch_px:
        samples["token_view"] = np.stack([view.token_view for view in views])
    if config.mask is not None and config.mask_kind is not None:
        masks = np.stack(
            [
                config.mask_kind.draw(
                    seeds.generator(config.seed, seeds.MASK, *key), config.mask, config.grid
                )
                for key in keys
            ]
        )
        samples["mask"] = masks.reshape(len(keys), -1) & (samples["status"] == 0)[:, None]
    if config.augment is not None:
        samples["label"] = batch["label"]
        _augment(samples, keys, config, config.augment)
    return samples


def _augment(
    samples: Batch, keys: list[tuple[int, int, int]], config: SampleConfig, augmentation: AugmentConfig
) -> None:
    samples["erase"] = np.zeros((len(keys), 4), np.int16)
    for i in np.flatnonzero(samples["status"] == 0).tolist():
        rng = seeds.generator(config.seed, seeds.AUGMENT, *keys[i])
        samples["patch_view"][i] = augment(samples["patch_view"][i], rng, augmentation, config.view)
        samples["erase"][i] = draw_erased(rng, augmentation, config.patch_px)


def draw_unseen(manifest: Manifest, config: SampleConfig, count: int) -> Batch:
    """Draw samples of random images, in views that no epoch has; fewer than `count` if there are not enough
    images or some are broken.

    They come from about 16 units (more if units are small, fewer if there are few images), because a unit of
    Parquet has to be read whole.
    """
    config = replace(config, cache=None)
    rng = seeds.generator(config.seed, seeds.REPORT, 0, 0, 0)
    share = -(-count // 16) if len(manifest.rows) >= 16 else -(-2 * count // len(manifest.rows))
    found: list[Batch] = []
    for unit in rng.permutation(len(manifest.rows)).tolist():
        rows = np.sort(rng.permutation(int(manifest.rows[unit]))[:share])
        keys = {"epoch": np.full(len(rows), UNSEEN_EPOCH), "unit": np.full(len(rows), unit), "row": rows}
        samples = make_samples({**manifest.unit(unit).read(rows, config.columns), **keys}, config=config)
        found.append({name: column[samples["status"] == 0] for name, column in samples.items()})
        if sum(len(samples["row"]) for samples in found) >= count:
            break
    return {name: np.concatenate([samples[name] for samples in found])[:count] for name in found[0]}
