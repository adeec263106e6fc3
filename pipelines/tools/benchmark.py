"""Compare alternatives by measuring them in one process: `python -m pipelines.tools.benchmark views --data
PATH`, `… tokens PRESET`, `… coordinator`.

Only the ratios within one run can be compared; absolute times depend on the machine that the header names.
"""

from __future__ import annotations

import argparse
import io
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageOps

from beit.config import ViewConfig
from beit.images.views import FACTOR_UNIT, ViewParameters, draw_parameters, make_view
from beit.plain import override
from beit.pretraining.masking import draw_mask
from beit.pretraining.objective import MimObjective
from beit.pretraining.targets import VisualTokens
from pipelines.cluster import session
from pipelines.cluster.hardware import machine_line
from pipelines.command_line.run import run_program
from pipelines.config.pretrain import PretrainConfig
from pipelines.presets.pretrain import pretrain_preset
from pipelines.sources import open_source
from pipelines.stream.graph import open_tokenizer
from pipelines.tools.benchmark_coordinator import BLOCK_ROWS, ROW_BYTES, measure_coordinator

Views = tuple[NDArray[np.uint8], NDArray[np.uint8]]


@dataclass(frozen=True, kw_only=True)
class ViewsResult:
    """CPU milliseconds per image for each implementation of the views, one value per round, and how much our
    views differ from the released code's.
    """

    milliseconds: dict[str, list[float]]
    patch_difference: float
    """Mean absolute difference of the patch views, in grey levels of 255."""
    token_difference: float


RELEASED, RELEASED_UINT8, OURS = "released transform", "the same, uint8 out", "beit.images.views"


def released_views(image: Any, parameters: ViewParameters, *, patch_px: int, token_px: int) -> Views:
    """The views of the released code, written out with Pillow (microsoft/unilm, `beit/datasets.py`,
    `beit/transforms.py`).

    Jitter and flip the whole image, then crop it, and resize the crop twice.

    Args:
        image: An RGB `PIL.Image.Image`.
        parameters: The random parameters, drawn for an image of this size.
        patch_px: Side of the patch view.
        token_px: Side of the token view.
    """
    enhance = {
        "brightness": ImageEnhance.Brightness,
        "contrast": ImageEnhance.Contrast,
        "saturation": ImageEnhance.Color,
    }
    for step, factor in parameters.jitter:
        image = enhance[step](image).enhance(factor / FACTOR_UNIT)
    left = parameters.left
    if parameters.flip:
        image = ImageOps.mirror(image)
        left = image.width - left - parameters.width
    crop = image.crop((left, parameters.top, left + parameters.width, parameters.top + parameters.height))
    patch_view = crop.resize((patch_px, patch_px), Image.Resampling.BICUBIC)
    token_view = crop.resize((token_px, token_px), Image.Resampling.LANCZOS)
    return np.asarray(patch_view), np.asarray(token_view)


def to_floats(views: Views) -> None:
    """Convert views to float, channels first, normalised and mapped. The released transform does this on the
    host; our stream leaves it to the device.
    """
    patch_view, token_view = (
        torch.from_numpy(np.array(view)).permute(2, 0, 1).contiguous().float().div(255) for view in views
    )
    mean, std = (
        torch.tensor([0.485, 0.456, 0.406])[:, None, None],
        torch.tensor([0.229, 0.224, 0.225])[:, None, None],
    )
    patch_view.sub_(mean).div_(std)
    token_view.mul_(0.8).add_(0.1)


def measure_views(
    images: list[bytes], view: ViewConfig, *, patch_px: int, token_px: int, seconds: float
) -> ViewsResult:
    """Time each implementation of the views in turn, by the CPU time of this process, until `seconds` are
    over (one round at least).
    """

    def parameters_of(width: int, height: int, row: int) -> ViewParameters:
        return draw_parameters(
            np.random.default_rng([1, 2, 3, 4, row]), width=width, height=height, view=view, side=patch_px
        )

    def released(encoded: bytes, row: int) -> Views:
        image = Image.open(io.BytesIO(encoded)).convert("RGB")
        return released_views(image, parameters_of(*image.size, row), patch_px=patch_px, token_px=token_px)

    def released_floats(encoded: bytes, row: int) -> Views:
        views = released(encoded, row)
        to_floats(views)
        return views

    def ours(encoded: bytes, row: int) -> Views:
        made = make_view(
            encoded, np.random.default_rng([1, 2, 3, 4, row]), view=view, patch_px=patch_px, token_px=token_px
        )
        return made.patch_view, made.token_view

    ways: dict[str, Callable[[bytes, int], Views]] = {
        RELEASED: released_floats,
        RELEASED_UINT8: released,
        OURS: ours,
    }
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        pairs = [
            (ours(encoded, row), released(encoded, row)) for row, encoded in enumerate(images)
        ]  # also warms everything up
        differences = [
            [np.abs(a.astype(int) - b).mean() for a, b in zip(*pair, strict=True)] for pair in pairs
        ]
        milliseconds: dict[str, list[float]] = {name: [] for name in ways}
        deadline = time.perf_counter() + seconds
        while not milliseconds[OURS] or time.perf_counter() < deadline:
            for name, way in ways.items():
                start = time.process_time()
                for row, encoded in enumerate(images):
                    way(encoded, row)
                milliseconds[name].append((time.process_time() - start) / len(images) * 1e3)
    finally:
        torch.set_num_threads(threads)
    patch_difference, token_difference = np.mean(differences, axis=0).tolist()
    return ViewsResult(
        milliseconds=milliseconds, patch_difference=patch_difference, token_difference=token_difference
    )


def views_table(result: ViewsResult, *, title: str) -> list[str]:
    """The result as lines, a verdict at the end."""
    base = statistics.mean(result.milliseconds[RELEASED])
    lines = [title, machine_line("torch", "pillow", "simplejpeg", "numpy")]
    for name, rounds in result.milliseconds.items():
        mean = statistics.mean(rounds)
        spread = statistics.stdev(rounds) / mean if len(rounds) > 1 else float("nan")
        lines.append(
            f"{name:<22}{mean:7.2f} ms/image +- {spread:.0%}{1000 / mean:9,.0f} img/s a "
            f"core{base / mean:7.2f} x"
        )
    ours = statistics.mean(result.milliseconds[OURS])
    lines.append(
        f"-> {base / ours:.2f} x the released transform's rate; mean absolute difference "
        f"{result.patch_difference:.2f} (patch view), {result.token_difference:.2f} (token view) of 255 "
        "grey levels"
    )
    return lines


@dataclass(frozen=True, kw_only=True)
class TokensResult:
    """CPU seconds per image for tokenising and for a training step, one value per round."""

    encode: list[float]
    step: list[float]


def measure_tokens(config: PretrainConfig, *, images: int, rounds: int) -> TokensResult:
    """Time the tokenizer and the training step in turn, by the CPU time of this process, on one thread and
    random images.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        tokenizer, rng, grid = open_tokenizer(config.tokenizer), np.random.default_rng(0), config.model.grid
        hidden = config.mask.budget(grid)
        target = VisualTokens(tokenizer.vocab_size)
        objective = MimObjective(
            config.model,
            config.optim,
            config.view,
            target=target,
            total_steps=10 * rounds,
            seed=0,
            max_hidden=hidden,
        ).train()
        optimizer = objective.optimizer()
        views = torch.from_numpy(
            rng.integers(0, 256, (images, config.model.image_size, config.model.image_size, 3), np.uint8)
        )
        token_views = torch.from_numpy(
            rng.integers(
                0, 256, (images, 3, config.tokenizer.image_size, config.tokenizer.image_size), np.uint8
            )
        )
        mask = torch.from_numpy(
            np.stack([draw_mask(rng, config.mask, grid) for _ in range(images)]).reshape(images, -1)
        )
        result = TokensResult(encode=[], step=[])
        for number in range(rounds + 1):
            start = time.process_time()
            tokens = tokenizer.encode(token_views)
            between = time.process_time()
            objective.start_step(number)
            optimizer.zero_grad()
            (objective({"patch_view": views, "tokens": tokens, "mask": mask})["loss"] / mask.sum()).backward()
            optimizer.step()
            if number:  # The first round warms everything up.
                result.encode.append((between - start) / images)
                result.step.append((time.process_time() - between) / images)
    finally:
        torch.set_num_threads(threads)
    return result


def tokens_table(result: TokensResult, *, title: str) -> list[str]:
    """The result as lines, a verdict at the end."""
    lines = [title, machine_line("torch", "numpy")]
    for name, rounds in (("tokenizer", result.encode), ("training step", result.step)):
        lines.append(
            f"{name:<22}{1e3 * statistics.mean(rounds):9.0f} ms/image +- "
            f"{statistics.stdev(rounds) / statistics.mean(rounds):.0%}"
        )
    ratios = [(encode + step) / step for encode, step in zip(result.encode, result.step, strict=True)]
    spread = statistics.stdev(ratios)
    lines.append(
        f"-> cached tokens save up to {statistics.mean(ratios):.2f} x +- {spread:.2f} where tokenizer and "
        "training share cores"
    )
    return lines


def read_images(path: str, count: int) -> list[bytes]:
    """Read the first images of evenly spaced units of a data path."""
    source = open_source(path, option="data")
    units = source.manifest.rows
    wanted = np.linspace(0, len(units) - 1, min(len(units), 8)).round().astype(int)
    share = -(-count // len(wanted))
    images: list[bytes] = []
    for unit in wanted:
        images += list(source.unit(int(unit)).read(np.arange(min(share, int(units[unit]))))["image"])
    return images[:count]


def main(arguments: list[str]) -> None:
    """`views --data PATH`: time our views and the released transform's. `tokens PRESET`: time a tokenizer and
    the training step.

    `coordinator`: measure how many blocks one stream passes on.
    """
    parser = argparse.ArgumentParser(prog="python -m pipelines.tools.benchmark", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    views = commands.add_parser(
        "views", help="CPU time per image of decoding, crop, flip, jitter and two resizes"
    )
    views.add_argument("--data", required=True, help="shards, folder or tars of images")
    views.add_argument("--images", type=int, default=200, help="number of images")
    views.add_argument("--patch-px", type=int, default=224, help="side of the patch view, in pixels")
    views.add_argument("--token-px", type=int, default=112, help="side of the token view, in pixels")
    views.add_argument("--seconds", type=float, default=30.0, help="shortest duration of the measurement")
    tokens = commands.add_parser("tokens", help="CPU time per image of the tokenizer and of a training step")
    tokens.add_argument("preset", help="a pretraining preset")
    tokens.add_argument(
        "--tokenizer", help="a built-in tokenizer or the folder of one; default: the preset's"
    )
    tokens.add_argument("--images", type=int, default=8, help="images per batch")
    tokens.add_argument("--rounds", type=int, default=5, help="number of measurements")
    coordinator = commands.add_parser(
        "coordinator", help="blocks per second of the process that divides a stream among the workers"
    )
    coordinator.add_argument(
        "--workers", type=int, nargs="+", default=[1, 2, 8], help="numbers of workers to measure"
    )
    coordinator.add_argument(
        "--operators",
        type=int,
        nargs="+",
        default=[1, 2],
        choices=[1, 2],
        help="1: without tokenizers, 2: with",
    )
    coordinator.add_argument("--blocks", type=int, default=2000, help="blocks of an execution")
    coordinator.add_argument("--rounds", type=int, default=2, help="number of measurements")
    given = parser.parse_args(arguments)
    if given.command == "coordinator":
        print(
            f"one stream's coordinator, blocks of {BLOCK_ROWS} rows x {ROW_BYTES:,} bytes",
            machine_line("ray"),
            sep="\n",
            flush=True,
        )
        with session.start(cpus=4):
            for operators in given.operators:
                for workers in given.workers:
                    for passed in measure_coordinator(
                        consumers=workers, operators=operators, blocks=given.blocks, rounds=given.rounds
                    ):
                        print(passed.line(), flush=True)
        return
    if given.command == "tokens":
        config = pretrain_preset(given.preset)
        if given.tokenizer is not None:
            place = "tokenizer.path" if Path(given.tokenizer).is_dir() else "tokenizer.name"
            config = override(config, {place: given.tokenizer})
        named = f"{given.tokenizer or config.tokenizer.name} at {config.tokenizer.image_size} px"
        title = (
            f"{named} and ViT {config.model.dim}/{config.model.depth} at {config.model.image_size} px, "
            "float32, one thread"
        )
        print(
            "\n".join(
                tokens_table(
                    measure_tokens(config, images=given.images, rounds=max(2, given.rounds)), title=title
                )
            )
        )
        return
    images = read_images(given.data, given.images)
    size = sum(map(len, images)) / len(images) / 1e3
    title = f"views of {given.patch_px} and {given.token_px} px from {len(images)} images of {size:.0f} kB"
    # The released code ignores the EXIF orientation, and so does this comparison.
    result = measure_views(
        images,
        ViewConfig(exif_rotate=False),
        patch_px=given.patch_px,
        token_px=given.token_px,
        seconds=given.seconds,
    )
    print("\n".join(views_table(result, title=title)))


if __name__ == "__main__":
    run_program(lambda arguments, debug: main(arguments))
