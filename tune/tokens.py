"""Compute the tokens of a sweep's views once, before the first trial; every trial reads them. Masks are drawn
in each trial.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace

from beit.pretraining.targets import find_target
from pipelines import storage
from pipelines.config.pretrain import PretrainConfig
from pipelines.config.tokenizer import EncodeConfig
from pipelines.encode_tokens import encode_tokens
from pipelines.sources import Manifest

TOKENS_FILE = "tokens.json"
FOLDER = "tokens"

MOST_EPOCHS = 20
"""Most epochs of views that are tokenised, unless the user asks for more: 10 GB for ImageNet-1k at 14 x 14
tokens."""

OTHER_VIEWS = ("seed", "view.", "tokenizer.", "model.image_size")
"""Fields that change the views or their tokens. `view.mean` and `view.std` are exceptions."""


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """The tokens that were computed for the trials."""

    path: str
    views: int
    parts: int
    computed: int
    """Parts that this sweep computed; the others existed before."""
    seconds: float
    """Seconds that this took."""

    def saved(self, read: int) -> str:
        """Describe the time that was saved, for trials that read this many views."""
        if not self.computed:
            return (
                f"tokens: {self.views:,} views were computed by an earlier sweep; the trials read "
                f"{read:,}, and nothing was tokenised"
            )
        computed = self.views * self.computed / self.parts
        rate = computed / max(self.seconds, 1e-9)
        one_by_one = read / rate
        return (
            f"tokens: {computed:,.0f} views tokenised once in {self.seconds:.0f} s ({rate:,.0f} per second, "
            f"start included); the trials read {read:,}, which would have taken {one_by_one:.0f} s in all if "
            "each trial had tokenised its own"
            + (f": {one_by_one - self.seconds:.0f} s saved" if one_by_one > self.seconds else "")
        )


def shareable(config: PretrainConfig, varied: Iterable[str]) -> bool:
    """Whether one cache serves all trials."""
    return find_target(config.target.kind).needs_tokenizer and not changing_views(varied)


def changing_views(varied: Iterable[str]) -> list[str]:
    """List the varied fields that change the views or their tokens."""
    return [name for name in varied if name.startswith(OTHER_VIEWS) and name not in ("view.mean", "view.std")]


def prepare_tokens(
    config: PretrainConfig,
    train: str,
    manifest: Manifest,
    steps: Iterable[tuple[int, int]],
    *,
    epochs: int | None,
    say: Callable[[str], None],
) -> Tokens:
    """Compute the tokens of the trials' views, or find tokens that were computed before.

    Args:
        config: The configuration that the trials share.
        train: Path of the images.
        manifest: The manifest of the images.
        steps: (optimizer steps, images per step) of each trial.
        epochs: Number of epochs of views. None: as many as the longest trial takes, at most `MOST_EPOCHS`.
        say: Takes the lines for the user.
    """
    if epochs is None:
        epochs = min(MOST_EPOCHS, max(math.ceil(count * batch / manifest.total) for count, batch in steps))
    encode = EncodeConfig(
        data=replace(config.data, train=train, tokens=None),
        image_size=config.model.image_size,
        tokenizer=config.tokenizer,
        view=config.view,
        seed=config.seed,
        epochs=epochs,
        out=storage.join(storage.absolute(config.output.root), FOLDER),
        resources=replace(config.resources, workers=None, worker_cpus=None),
    )
    start = time.monotonic()
    result = encode_tokens(encode, one_of_many=True, say=say)
    return Tokens(
        path=result.out,
        views=result.views,
        parts=result.parts,
        computed=result.written,
        seconds=time.monotonic() - start,
    )


def keep(sweep: str, tokens: Tokens) -> None:
    """Record in the sweep's folder what was computed, for a later start."""
    storage.write_text(storage.join(sweep, TOKENS_FILE), json.dumps(asdict(tokens), indent=1) + "\n")


def kept(sweep: str) -> Tokens | None:
    """Read what an earlier start recorded."""
    file = storage.join(sweep, TOKENS_FILE)
    return Tokens(**json.loads(storage.read_text(file))) if storage.exists(file) else None
