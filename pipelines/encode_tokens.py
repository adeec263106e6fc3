"""Tokenise once: `beit tokenizer encode [PRESET | CONFIG.json] --data.train … --out DIR`, or `python -m
pipelines.encode_tokens …`.

A Ray Data job: the numbers of the parts that are missing -> their token views (CPU tasks) -> tokens, written
by the tokenizer's actors. Views are drawn as in pretraining, so `beit pretrain PRESET --data.tokens DIR` sees
the samples and tokens of a run that tokenises itself.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from beit.config import TokenizerConfig
from beit.errors import UserError
from beit.tokenizer.protocol import ImageTokenizer
from pipelines import storage
from pipelines.cluster import session
from pipelines.cluster.nodes import cluster_nodes, local_path_warnings
from pipelines.cluster.placement import Node, Placement, place
from pipelines.command_line.options import parse
from pipelines.command_line.run import run
from pipelines.config.data import DataConfig
from pipelines.config.pretrain import PretrainConfig
from pipelines.config.resources import ResourceConfig
from pipelines.config.tokenizer import EncodeConfig
from pipelines.presets.pretrain import pretrain_preset
from pipelines.runs import run_folder
from pipelines.runs.progress import duration
from pipelines.sources import Manifest, open_source
from pipelines.stream.graph import Tokenize, open_tokenizer, read_patiently
from pipelines.stream.samples import Batch, SampleConfig, make_samples
from pipelines.stream.token_cache import CacheDescription, TokenCache, view_fields

PROGRESS_SECONDS = 10.0

# Images that the tokenizer is given at once: bounds what a part of many images takes on a GPU.
IMAGES_AT_ONCE = 256


@dataclass(frozen=True, kw_only=True)
class EncodeResult:
    """What lies in the folder now."""

    out: str
    views: int
    parts: int
    written: int
    """Parts that this call wrote; the others were there."""


def config_of(name: str) -> EncodeConfig:
    """What goes with a pretraining preset, or with the configuration of a run.

    Raises:
        UserError: For a name that is neither.
    """
    run = (
        run_folder.saved_config(name, PretrainConfig, job="pretrain")[0]
        if name.endswith(".json")
        else pretrain_preset(name)
    )
    return EncodeConfig(
        data=DataConfig(train=run.data.train),
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
    """Write the tokens of the first epochs' views; what an earlier call has written stays.

    Args:
        config: What to tokenise.
        one_of_many: `out` holds caches by their `CacheDescription.name`, and this is to be one of them.
        debug: Let Ray's own messages through.
        say: Takes the lines for the user.

    Raises:
        UserError: For mistakes in the configuration or the data, and a folder that holds other tokens.
    """
    import ray.data  # noqa: F401 (sets up its loggers, which cluster.start then quietens)

    if (train := config.data.train) is None:
        raise UserError(
            "data.train is not given", "set --data.train to the images that the pretraining will read"
        )
    if config.tokenizer.path is not None:
        config = replace(
            config, tokenizer=replace(config.tokenizer, path=storage.absolute(config.tokenizer.path))
        )
    source = open_source(train, split="train", say=say)
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
        parts, views = cache.epochs * cache.parts_of_epoch, cache.epochs * manifest.total
        say(f"data: {manifest.total:,} images in {len(manifest.rows):,} units ({manifest.kind})")
        say(
            f"tokens: {config.epochs} epochs x {manifest.total:,} images = {views:,} views; "
            f"{len(missing):,} of {parts:,} parts missing"
        )
        if missing:
            # There are no workers, which the first line of the placement is about.
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
                "stands "
                "for"
            ),
            f"set --tokenizer.image-size {max(1, round(config.image_size / px)) * px}",
        )
    return tokenizer


def place_encoding(config: ResourceConfig, nodes: list[Node]) -> Placement:
    """Where views are made and tokenised: as in training, but that the tokenizers have what the workers do
    not need.

    That is a GPU each, and without GPUs all cores but what one reading task takes.
    """
    on_gpu = config.device != "cpu" and any(int(node.gpus) for node in nodes)
    cores = sum(node.cpus for node in nodes)
    share = (1.0 if on_gpu else 0.0) if config.tokenizer_gpus is None else config.tokenizer_gpus
    cpus = config.tokenizer_cpus or (
        1.0 if not share and max((node.cpus for node in nodes), default=0) >= 2 else None
    )
    # A worker on a CPU, of next to nothing: place() knows no cluster without workers.
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
    """The arithmetic of the tokenizer where it will run; a GPU may be on another machine only."""
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
    """Run the job, with a line every ten seconds."""
    ends = np.cumsum(manifest.rows, dtype=np.int64)
    units = [cache.place(part)[1] for part in missing]
    left = sum(int(ends[there.stop - 1] - ends[there.start] + manifest.rows[there.start]) for there in units)
    samples = SampleConfig(
        seed=config.seed, view=config.view, patch_px=config.image_size, token_px=config.tokenizer.image_size
    )
    done, start = 0, time.monotonic()
    last = start
    for count, rows in enumerate(_run(cache, missing, manifest, samples, config.tokenizer, placement), 1):
        done += rows
        now = time.monotonic()
        if now - last >= PROGRESS_SECONDS or count == len(missing):
            rate = done / (now - start)
            say(
                f"part {count:,}/{len(missing):,} | {rate:,.0f} views/s | eta "
                f"{duration((left - done) / rate)}"
            )
            last = now


def _run(
    cache: TokenCache,
    missing: list[int],
    manifest: Manifest,
    samples: SampleConfig,
    tokenizer: TokenizerConfig,
    placement: Placement,
) -> Iterator[int]:
    """Yield the views of each part as it is written."""
    import ray
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = False
    block_size, context.target_max_block_size = (
        context.target_max_block_size,
        None,
    )  # A part is a block, however large.
    try:
        parts = ray.data.from_blocks([pa.table({"part": [part]}) for part in missing])
        views = parts.map_batches(
            functools.partial(views_of_part, cache=cache, manifest=ray.put(manifest), samples=samples),
            batch_size=1,
            num_cpus=placement.view_cpus,
            resources=placement.tag("views"),
        )
        written = views.map_batches(
            EncodePart,
            fn_constructor_args=(cache, tokenizer),
            fn_constructor_kwargs={
                "device": placement.tokenizer_device,
                "threads": placement.tokenizer_threads,
            },
            compute=ray.data.ActorPoolStrategy(
                min_size=placement.tokenizers[0], max_size=placement.tokenizers[1]
            ),
            batch_size=None,
            num_cpus=placement.tokenizer_cpus,
            num_gpus=placement.tokenizer_gpus,
            resources=placement.tag("tokens"),
        )
        for row in written.iter_rows():
            yield int(row["views"])
    finally:
        context.target_max_block_size = block_size


def views_of_part(batch: Batch, *, cache: TokenCache, manifest: Any, samples: SampleConfig) -> Batch:
    """The number of a part -> the token views of its units, one after the other, all in one batch.

    Args:
        batch: "part" [1].
        cache: Says which epoch and units a part is.
        manifest: Reference to the manifest.
        samples: How views are drawn.
    """
    import ray

    torch.set_num_threads(1)
    data: Manifest = ray.get(manifest)
    part = int(batch["part"][0])
    epoch, units = cache.place(part)
    total, side = int(data.rows[units.start : units.stop].sum()), cache.description.token_px
    views = np.empty((total, side, side, 3), np.uint8)
    unit_of, status = np.empty(total, np.int64), np.empty(total, np.uint8)
    start = 0
    for unit in units:
        rows = np.arange(data.rows[unit])
        images = read_patiently(data.unit(unit).read, rows)["image"]
        keys = {"epoch": np.full(len(rows), epoch), "unit": np.full(len(rows), unit), "row": rows}
        made = make_samples({"image": images, **keys}, config=samples)
        here = slice(start, start + len(rows))
        views[here], unit_of[here], status[here] = (
            made.get("token_view", made["patch_view"]),
            unit,
            made["status"],
        )
        start = here.stop
    return {
        "part": np.full(total, part),
        "views": np.full(total, total),
        "unit": unit_of,
        "status": status,
        "token_view": views,
    }


class EncodePart:
    """Tokenises the views of a part and writes its file. The tokenizer is loaded once an actor."""

    def __init__(self, cache: TokenCache, tokenizer: TokenizerConfig, *, device: str, threads: int) -> None:
        self._cache = cache
        self._tokenize = Tokenize(tokenizer, device=device, threads=threads)

    def __call__(self, batch: Batch) -> Batch:
        """What `views_of_part` made -> "part" [1] and "views" [1], their number. Images that cannot be
        decoded have tokens of zero.
        """
        part, views = int(batch["part"][0]), batch["token_view"]
        if (batch["part"] != part).any() or len(views) != batch["views"][0]:
            raise RuntimeError(
                f"Ray has divided or joined blocks: {len(views)} views of part {part} instead of "
                f"{batch['views'][0]}"
            )
        starts = range(0, len(views), IMAGES_AT_ONCE)
        tokens = np.concatenate(
            [
                self._tokenize({"token_view": views[start : start + IMAGES_AT_ONCE]})["tokens"]
                for start in starts
            ]
        )
        tokens[batch["status"] != 0] = 0
        _, units = self._cache.place(part)
        self._cache.write_part(part, [tokens[batch["unit"] == unit] for unit in units])
        return {"part": np.array([part]), "views": np.array([len(views)])}


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
    run(command)
