"""Compute visual tokens once, for many runs: `beit tokenizer encode [PRESET | CONFIG.json] --data.train …
--out DIR`, or `python -m pipelines.encode_tokens …`.

This is a job of `pipelines.parts.job`: tasks on CPUs make token views, and actors that hold the tokenizer
compute the tokens. Views are drawn as in pretraining, so `beit pretrain PRESET --data.tokens DIR` sees the
same samples and tokens as a run that tokenises while it trains.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from beit.config import TokenizerConfig
from beit.errors import UserError
from beit.tokenizer.protocol import ImageTokenizer
from pipelines import storage
from pipelines.cluster import session
from pipelines.cluster.nodes import cluster_nodes, local_path_warnings
from pipelines.cluster.placement import Node, Placement, place
from pipelines.command_line.options import parse
from pipelines.command_line.run import run_program
from pipelines.config.data import DataConfig
from pipelines.config.pretrain import PretrainConfig
from pipelines.config.resources import ResourceConfig
from pipelines.config.tokenizer import EncodeConfig
from pipelines.datasets import open_train
from pipelines.parts.job import PartWriter, Piece, write_missing
from pipelines.presets.pretrain import pretrain_preset
from pipelines.runs import run_folder
from pipelines.sources import Manifest
from pipelines.sources.base import Columns
from pipelines.stream.graph import Tokenize, open_tokenizer, read_patiently, tokenizer_actors
from pipelines.stream.samples import SampleConfig, make_samples
from pipelines.stream.token_cache import CacheDescription, TokenCache, view_fields

# Images that the tokenizer encodes at once: limits the GPU memory that a part with many images needs.
IMAGES_AT_ONCE = 256


@dataclass(frozen=True, kw_only=True)
class EncodeResult:
    """The tokens in the folder."""

    out: str
    views: int
    parts: int
    written: int
    """Parts that this call wrote; the others existed before."""


def config_of(name: str) -> EncodeConfig:
    """Return the configuration for a pretraining preset or for a run.

    Raises:
        UserError: If `name` is neither.
    """
    run = (
        run_folder.saved_config(name, PretrainConfig, job="pretrain")[0]
        if name.endswith(".json")
        else pretrain_preset(name)
    )
    return EncodeConfig(
        data=DataConfig(train=run.data.train, list=run.data.list, image=run.data.image),
        image_size=run.model.image_size,
        tokenizer=run.tokenizer,
        view=run.view,
        seed=run.seed,
    )


def encode_tokens(
    config: EncodeConfig,
    *,
    one_of_many: bool = False,
    debug: bool = False,
    say: Callable[[str], None] = print,
) -> EncodeResult:
    """Write the tokens of the views of the first epochs. Parts that an earlier call wrote are kept.

    Args:
        config: What to tokenise.
        one_of_many: `out` holds caches by their `CacheDescription.name`, and this is to be one of them.
        debug: Show Ray's own messages.
        say: Takes the lines for the user.

    Raises:
        UserError: If the configuration or the data has mistakes, or the folder holds other tokens.
    """
    import ray.data  # noqa: F401 (sets up its loggers, which session.start then silences)

    if (train := config.data.train) is None:
        raise UserError(
            "data.train is not given", "set --data.train to the images that the pretraining will read"
        )
    if config.tokenizer.path is not None:
        config = replace(
            config, tokenizer=replace(config.tokenizer, path=storage.absolute(config.tokenizer.path))
        )
    source = open_train(train, config.data, say=say)
    manifest, tokenizer = source.manifest, _checked_tokenizer(config.tokenizer)
    with session.start(cpus=config.resources.cpus, debug=debug):
        nodes = cluster_nodes()
        placement = place_encoding(config.resources, nodes)
        description = CacheDescription(
            data=manifest.digest,
            units=len(manifest.rows),
            seed=config.seed,
            view=view_fields(config.view),
            patch_px=config.image_size,
            token_px=config.tokenizer.image_size,
            tokenizer=tokenizer.digest,
            vocab_size=tokenizer.vocab_size,
            precision=_precision(tokenizer, config.tokenizer, placement),
            epochs=config.epochs,
        )
        out = storage.join(config.out, description.name) if one_of_many else config.out
        cache = TokenCache.create(out, description, option="out")
        missing = cache.missing()
        parts, views = cache.parts, cache.epochs * manifest.total
        say(f"data: {manifest.total:,} images in {len(manifest.rows):,} units ({manifest.kind})")
        say(
            f"tokens: {config.epochs} epochs x {manifest.total:,} images = {views:,} views; "
            f"{len(missing):,} of {parts:,} parts missing"
        )
        if missing:
            # There are no workers, so the first line of the placement is left out.
            for line in (
                *local_path_warnings(nodes, {"out": cache.path, "data.train": storage.absolute(train)}),
                *placement.lines()[1:],
            ):
                say(line)
            _encode_missing(cache, missing, manifest, config, placement, say)
    return EncodeResult(out=cache.path, views=views, parts=parts, written=len(missing))


def _checked_tokenizer(config: TokenizerConfig) -> ImageTokenizer:
    tokenizer = open_tokenizer(config)
    if config.image_size % (px := tokenizer.px_per_token):
        raise UserError(
            (
                f"tokenizer.image_size={config.image_size} is not a multiple of the {px} px that a token "
                "stands for"
            ),
            f"set --tokenizer.image-size {max(1, round(config.image_size / px)) * px}",
        )
    return tokenizer


def place_encoding(config: ResourceConfig, nodes: list[Node]) -> Placement:
    """Place views and tokenizers as in training, with the workers' resources for the tokenizers.

    Each tokenizer gets a GPU. Without GPUs, tokenizers get all cores except those of one reading task.
    """
    on_gpu = config.device != "cpu" and any(int(node.gpus) for node in nodes)
    cores = sum(node.cpus for node in nodes)
    share = (1.0 if on_gpu else 0.0) if config.tokenizer_gpus is None else config.tokenizer_gpus
    cpus = config.tokenizer_cpus or (
        1.0 if not share and max((node.cpus for node in nodes), default=0) >= 2 else None
    )
    # A worker on a CPU that takes almost nothing: place() needs at least one worker.
    config = replace(
        config, workers=1, streams=1, worker_cpus=0.01, tokenizer_gpus=share, tokenizer_cpus=cpus
    )
    placement = place(
        replace(config, device="cuda" if config.device == "cuda" and not on_gpu else "cpu"),
        nodes,
        tokenize=True,
    )
    if config.tokenizers is not None or placement.tokenizer_gpus:
        return placement
    return replace(
        placement,
        tokenizers=(1, max(1, int((cores - placement.view_cpus) / max(1.0, placement.tokenizer_cpus)))),
    )


def _precision(tokenizer: ImageTokenizer, config: TokenizerConfig, placement: Placement) -> str:
    """Return the precision that the tokenizer will compute in; its GPU may be on another machine."""
    if placement.tokenizer_device == "cpu":
        return tokenizer.precision
    import ray

    ask: Any = ray.remote(lambda: open_tokenizer(config, device=placement.tokenizer_device).precision)
    resources = {
        "num_cpus": placement.tokenizer_cpus,
        "num_gpus": placement.tokenizer_gpus,
        "resources": placement.tag("tokens"),
    }
    precision: str = ray.get(ask.options(**resources).remote())
    return precision


def _encode_missing(
    cache: TokenCache,
    missing: list[int],
    manifest: Manifest,
    config: EncodeConfig,
    placement: Placement,
    say: Callable[[str], None],
) -> None:
    def pieces(part: int) -> list[Piece]:
        epoch, units = cache.place(part)
        return [Piece(unit, 0, int(manifest.rows[unit]), epoch) for unit in units]

    units = [cache.place(part)[1] for part in missing]
    samples = SampleConfig(
        seed=config.seed, view=config.view, patch_px=config.image_size, token_px=config.tokenizer.image_size
    )
    ends = np.cumsum(manifest.rows, dtype=np.int64)
    write_missing(
        missing,
        manifest,
        placement,
        pieces=pieces,
        images=sum(
            int(ends[there.stop - 1] - ends[there.start] + manifest.rows[there.start]) for there in units
        ),
        views=functools.partial(views_of_pieces, samples=samples),
        writer=EncodePart,
        options={
            "cache": cache,
            "tokenizer": config.tokenizer,
            "device": placement.tokenizer_device,
            "threads": placement.tokenizer_threads,
        },
        actors=lambda parts: tokenizer_actors(placement),
        words=("part", "views"),
        say=say,
    )


def views_of_pieces(manifest: Manifest, pieces: Sequence[Piece], samples: SampleConfig) -> Columns:
    """Make the token views of the images of a part.

    Args:
        manifest: The data.
        pieces: The images of the part.
        samples: How views are drawn.

    Returns:
        "unit", "status" and "token_view" uint8 [n, S, S, 3].
    """
    total, side = sum(piece.images for piece in pieces), samples.token_px or samples.patch_px
    views = np.empty((total, side, side, 3), np.uint8)
    unit, status = np.empty(total, np.int64), np.empty(total, np.uint8)
    start = 0
    for piece in pieces:
        rows = np.arange(piece.first, piece.last)
        images = read_patiently(manifest.unit(piece.unit).read, rows)["image"]
        keys = {"epoch": np.full(len(rows), piece.epoch), "unit": np.full(len(rows), piece.unit), "row": rows}
        made = make_samples({"image": images, **keys}, config=samples)
        here = slice(start, start + len(rows))
        views[here], status[here] = made.get("token_view", made["patch_view"]), made["status"]
        unit[here] = piece.unit
        start = here.stop
    return {"unit": unit, "status": status, "token_view": views}


class EncodePart(PartWriter):
    """Tokenises the views of a part and writes its file."""

    def __init__(self, cache: TokenCache, tokenizer: TokenizerConfig, *, device: str, threads: int) -> None:
        self._cache = cache
        self._tokenize = Tokenize(tokenizer, device=device, threads=threads)

    def write(self, part: int, views: Columns) -> dict[str, Any]:
        """Write the tokens of a part's views: zeros for images that cannot be decoded."""
        images = views["token_view"]
        tokens = np.concatenate(
            [
                self._tokenize({"token_view": images[start : start + IMAGES_AT_ONCE]})["tokens"]
                for start in range(0, len(images), IMAGES_AT_ONCE)
            ]
        )
        tokens[views["status"] != 0] = 0
        _, units = self._cache.place(part)
        self._cache.write_part(part, [tokens[views["unit"] == unit] for unit in units])
        return {}


def command(arguments: list[str], debug: bool) -> None:
    """`beit tokenizer encode [PRESET | CONFIG.json] --data.train … --out DIR`."""
    name = arguments.pop(0) if arguments and not arguments[0].startswith("-") else "quickstart"
    default = config_of(name)
    config = parse(
        arguments, type(default), command="tokenizer encode [PRESET]", positional=(), default=default
    )
    result = encode_tokens(config, debug=debug)
    print(f"{result.views:,} views in {result.parts:,} parts ({result.written:,} written now): {result.out}")
    print(
        f"next, with the same options: beit pretrain {name} --data.train {config.data.train} "
        f"--data.tokens {result.out}"
    )


if __name__ == "__main__":
    run_program(command)
