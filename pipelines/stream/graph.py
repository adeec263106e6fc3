"""Build the Ray Data graph of a stream. Tasks on CPUs read slots and make views and masks; actors add visual
tokens, unless they come from a cache; workers receive batches.
"""

from __future__ import annotations

import functools
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import numpy as np
import pyarrow as pa
import torch

from beit.config import TokenizerConfig
from beit.cores import compute_with
from beit.tokenizer import registry
from beit.tokenizer.folder import DESCRIPTION
from beit.tokenizer.protocol import ImageTokenizer
from beit.tokenizer.registry import load_tokenizer
from pipelines import seeds, storage
from pipelines.cluster.placement import Placement
from pipelines.runs.models import find_tokenizer
from pipelines.sources import Unit
from pipelines.stream.rounds import Part
from pipelines.stream.samples import KEYS, Batch, Samples
from pipelines.stream.token_cache import TokenCache

if TYPE_CHECKING:
    import ray.data

# Every block costs its stream's coordinator 4 to 10 ms. Many workers with small batches therefore share
# blocks, which have at least this many rows.
LEAST_BLOCK_ROWS = 64

Arguments = ParamSpec("Arguments")
Found = TypeVar("Found")

# A reading task mixes the rows of as many units as fit into this many encoded bytes.
MIX_BYTES = 128 << 20


def read_slot(
    parts: list[tuple[Unit, Part]],
    *,
    seed: int,
    rows_per_batch: int,
    mix_bytes: int = MIX_BYTES,
    columns: tuple[str, ...] = ("image",),
    cache: TokenCache | None = None,
) -> Iterator[Batch]:
    """Read the columns of a slot's units, with keys, and with tokens if there is a cache. Rows are permuted
    across units, within a limit on memory.

    The same parts give the same batches, because a retried task must repeat itself. A file that is no image
    passes through; a file that cannot be read is tried again, then the exception is raised.
    """
    pending: list[Batch] = []
    size = 0
    for unit, part in parts:
        found = read_patiently(unit.read, part.rows, columns)
        images = found["image"]
        constant = {"epoch": part.epoch, "unit": part.unit}
        pending.append(
            {
                **found,
                "row": part.rows,
                **{name: np.full(len(images), value) for name, value in constant.items()},
            }
        )
        if cache is not None:
            pending[-1]["tokens"] = read_patiently(cache.read, part.epoch, part.unit, part.rows)
        size += sum(map(len, images))
        if size >= mix_bytes:
            yield from _mixed(pending, seed, rows_per_batch)
            pending, size = [], 0
    if pending:
        yield from _mixed(pending, seed, rows_per_batch)


def read_patiently(
    read: Callable[Arguments, Found], *args: Arguments.args, **options: Arguments.kwargs
) -> Found:
    """Call `read`, and call it again if storage fails. Ray does not retry exceptions of a map function, and
    reads from a bucket occasionally fail.
    """
    for seconds in (1, 2, 4, 8):
        try:
            return read(*args, **options)
        except OSError:
            time.sleep(seconds)
    return read(*args, **options)


def _mixed(pending: list[Batch], seed: int, rows_per_batch: int) -> Iterator[Batch]:
    columns = {name: np.concatenate([batch[name] for batch in pending]) for name in pending[0]}
    first = pending[0]
    order = seeds.generator(seed, seeds.MIX, *(int(first[name][0]) for name in KEYS)).permutation(
        len(columns["row"])
    )
    for start in range(0, len(order), rows_per_batch):
        yield {name: column[order[start : start + rows_per_batch]] for name, column in columns.items()}


def open_tokenizer(config: TokenizerConfig, *, device: str = "cpu") -> ImageTokenizer:
    """Load a run's tokenizer; if it is on a bucket, it is downloaded first."""
    if config.path is None:
        return load_tokenizer(config.name, device=device)
    path = find_tokenizer(config.path)
    if not storage.is_remote(path):
        return load_tokenizer(path, device=device)
    with tempfile.TemporaryDirectory() as folder:
        for entry in storage.list_files(path, recursive=False):
            Path(folder, entry.name).write_bytes(storage.read_bytes(storage.join(path, entry.name)))
        return load_tokenizer(folder, device=device)


def px_per_token(config: TokenizerConfig) -> int:
    """Side of the square of pixels that a token of a run's tokenizer stands for; its weights are not read."""
    if config.path is None:
        return registry.px_per_token(config.name)
    path = find_tokenizer(config.path)
    if not storage.is_remote(path):
        return registry.px_per_token(path)
    return registry.described_px(json.loads(storage.read_bytes(storage.join(path, DESCRIPTION))), path)


class Tokenize:
    """Adds the visual tokens of the token view. The tokenizer is loaded once per actor."""

    def __init__(self, config: TokenizerConfig, *, device: str, threads: int) -> None:
        compute_with(threads, device=device)
        self._device = device
        self._tokenizer = open_tokenizer(config, device=device)

    def __call__(self, batch: Batch) -> Batch:
        """Replace the token view, uint8 [B, h, w, 3], by its tokens, int16 [B, N]."""
        views = batch["token_view"] if "token_view" in batch else batch["patch_view"]
        images = torch.from_numpy(np.array(views)).to(self._device).permute(0, 3, 1, 2)
        tokens = self._tokenizer.encode(images).to(torch.int16).cpu().numpy()
        return {**{name: column for name, column in batch.items() if name != "token_view"}, "tokens": tokens}


def block_rows(batch_rows: int) -> int:
    """Return the rows of a block: about a worker's batch. Larger blocks would delay the first batch, because
    an equal split buffers a block for every other worker.
    """
    return max(LEAST_BLOCK_ROWS, batch_rows)


def build_stream(
    dispatcher: Any,
    *,
    slots: range,
    config: Samples,
    tokenizer: TokenizerConfig | None,
    placement: Placement,
    batch_rows: int,
    in_order: bool = False,
) -> ray.data.Dataset:
    """Build the dataset that the workers iterate over once per round.

    Args:
        dispatcher: Handle of the `Dispatcher`, which tells what a slot reads.
        slots: The slots of the dispatcher's plan that this stream reads.
        config: How samples are drawn.
        tokenizer: Adds the column "tokens". None: there is no such column, or the cache in `config` provides
            it.
        placement: Resources of the stages.
        batch_rows: Rows of a worker's batch.
        in_order: Keep the order of the slots. Otherwise blocks are delivered as soon as they are ready.
    """
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = in_order
    context.target_max_block_size = max(1 << 20, min(128 << 20, block_rows(batch_rows) * config.row_bytes))
    rows = max(1, context.target_max_block_size // config.row_bytes)
    # from_blocks passes metadata along; from_arrow would run a task for each block, and wait for ever if Ray
    # Train holds all cores.
    stream = ray.data.from_blocks([pa.table({"slot": [index]}) for index in slots])
    stream = stream.map_batches(
        functools.partial(produce, dispatcher=dispatcher, config=config, rows_per_batch=rows),
        batch_size=1,
        num_cpus=placement.view_cpus,
        resources=placement.tag("views"),
    )
    if tokenizer is None:
        return stream  # type: ignore[no-any-return]
    return stream.map_batches(  # type: ignore[no-any-return]
        Tokenize,
        fn_constructor_args=(tokenizer,),
        fn_constructor_kwargs={"device": placement.tokenizer_device, "threads": placement.tokenizer_threads},
        **tokenizer_actors(placement),
    )


def tokenizer_actors(placement: Placement) -> dict[str, Any]:
    """Options of `map_batches` for the actors that hold the tokenizer; each takes one block at a time."""
    import ray.data

    least, most = placement.tokenizers
    return {
        "compute": ray.data.ActorPoolStrategy(min_size=least, max_size=most),
        "batch_size": None,
        "num_cpus": placement.tokenizer_cpus,
        "num_gpus": placement.tokenizer_gpus,
        "resources": placement.tag("tokens"),
    }


def produce(batch: Batch, *, dispatcher: Any, config: Samples, rows_per_batch: int) -> Iterator[Batch]:
    """Produce the samples of a slot in batches. Reading, views and masks are done in one task, so that
    encoded bytes are never sent between processes.
    """
    import ray

    torch.set_num_threads(1)
    for index in batch["slot"].tolist():
        parts = ray.get(dispatcher.slot.remote(index))
        for encoded in read_slot(
            parts, seed=config.seed, rows_per_batch=rows_per_batch, columns=config.columns, cache=config.cache
        ):
            yield config.make(encoded)
