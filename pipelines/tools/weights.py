"""`beit import FILE OUT`: convert published weights to a checkpoint. `beit export RUN OUT`: convert a
checkpoint to another project's format.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from beit.checks import CommandConfig, NotNegativeInt, PositiveInt
from beit.errors import UserError
from beit.foreign import incoming, outgoing
from beit.foreign.layout import Described
from beit.foreign.translation import SPELLINGS
from pipelines.command_line.options import parse
from pipelines.runs.models import find_model, model_files

COPY = "give a local OUT, and copy it from there"
DOWNLOAD = "download it first, and give the file"


@dataclass(frozen=True, kw_only=True)
class ImportConfig(CommandConfig):
    """Read published weights without running any code in their file, and write them as a checkpoint
    folder.
    """

    file: str
    """Published weights: a .pth of microsoft/unilm (pretrained, fine-tuned, or mmsegmentation's), a file of
    timm's, or a folder of Hugging Face's."""

    out: str
    """Checkpoint folder to write."""

    pixels: Literal["half", "imagenet"] | None = None
    """Mean and std with which pixels are normalised. half: 0.5, like the released ImageNet-22k weights.
    imagenet: ImageNet's. None: those that the folder names, or those of the published models of this kind;
    the choice is printed."""

    heads: PositiveInt | None = None
    """Number of attention heads. None: found from the tables of relative biases, from config.json, or from
    the published widths."""

    taps: tuple[NotNegativeInt, ...] | None = None
    """Blocks, counted from 0, that a segmentation head reads, such as 3 5 7 11. None: those that transformers
    reads according to the folder's out_indices, or the authors' blocks; the choice is printed."""

    sha256: str | None = None
    """SHA-256 digest that the file must have, in hexadecimal. None: any file is accepted. The digest is saved
    with the checkpoint."""


@dataclass(frozen=True, kw_only=True)
class ExportConfig(CommandConfig):
    """Write a model in another project's format, with all values unchanged."""

    run: str
    """Run folder, whose last weights are taken, or checkpoint folder."""

    out: str
    """Folder (hf) or file to write (timm: .safetensors or .pth, unilm: .pth)."""

    format: Literal["hf", "timm", "unilm"] = "hf"
    """Format to write. hf: a folder for transformers' from_pretrained. timm: a file for timm.create_model.
    unilm: a file for the released code."""


def import_weights(config: ImportConfig) -> Iterator[str]:
    """Import weights; returns lines that describe the result."""
    check_local(config.file, DOWNLOAD)
    check_local(config.out, COPY)
    out = Path(config.out)
    with _refusals_told():
        fresh = not out.exists()
        out.mkdir(parents=True, exist_ok=True)
        try:
            done = incoming.import_weights(
                Path(config.file),
                out,
                pixels=config.pixels,
                heads=config.heads,
                taps=config.taps,
                sha256=config.sha256,
            )
        except (UserError, OSError):
            if fresh:
                shutil.rmtree(out)
            raise
    described = done.described
    model = described.model
    yield (
        f"{described.kind}: {model.dim} wide, {model.depth} deep, {model.heads} heads "
        f"({described.heads_by}), patches of "
        f"{model.patch_size} px at {model.image_size} px, {model.position} positions, "
        f"{'LayerScale' if model.layer_scale else 'no LayerScale'}, {_behind(described)}"
    )
    yield f"{done.parameters:,} parameters, in {SPELLINGS[done.spelling]}"
    yield from done.report.lines()
    yield f"pixels: mean {list(done.view.mean)}, std {list(done.view.std)} ({done.pixels})"
    for note in done.notes:
        yield f"note: {note}"
    yield f"written: {done.folder}"
    use = (
        f"beit export {out} OUT --format hf"
        if described.kind == "segmenter"
        else f"beit finetune {out} --data.train IMAGES"
    )
    yield f"next: {use}, or beit.load_model({str(out)!r}) in Python"


def _behind(described: Described) -> str:
    """Describe the layers that follow the backbone."""
    head = described.head
    if described.kind == "mim":
        return f"{head['vocab_size']:,} visual tokens"
    if described.kind == "backbone":
        return "no head" + ("" if head["norm"] else " and no last norm")
    return f"{head['classes']:,} classes"


def check_local(path: str, remedy: str) -> None:
    """Refuse addresses: published files must be downloaded and checked first, and results are written
    locally.

    Raises:
        UserError: If `path` is an address.
    """
    if "://" in path:
        raise UserError(
            f"{path} is an address, and weights are imported and exported on this machine", remedy
        )


@contextlib.contextmanager
def _refusals_told() -> Iterator[None]:
    """Turn errors of the file system into user errors: a name that is too long, no permission, a full
    disk.
    """
    try:
        yield
    except UserError:  # Some errors are both.
        raise
    except OSError as error:
        raise UserError(
            f"{error.filename}: {error.strerror}" if error.filename else str(error),
            "give another file or OUT",
        ) from None


def export_weights(config: ExportConfig) -> Iterator[str]:
    """Export a model; returns lines that describe the result."""
    check_local(config.out, COPY)
    with _refusals_told():
        _check_own(config.run)
        Path(config.out).parent.mkdir(parents=True, exist_ok=True)
        with model_files(find_model(config.run)) as folder:
            done = outgoing.export_weights(folder, Path(config.out), format=config.format)
    yield f"{done.kind} for {config.format}"
    yield from done.report.lines()
    for note in done.notes:
        yield f"note: {note}"
    yield f"written: {done.path}"
    yield f"next: {done.next_step}"


def _check_own(run: str) -> None:
    """Refuse published weights, which `beit import` reads and `beit export` does not.

    Raises:
        UserError: If `run` is another project's weights.
    """
    path = Path(run)
    what = None
    if run.startswith(("http://", "https://")):
        what = "an address of the web"
    elif path.is_file():
        what = "a file"
    elif path.is_dir() and _says_model_type(path / "config.json"):
        what = "a folder of Hugging Face's"
    if what is not None:
        raise UserError(
            f"{run} is {what}, and no run or checkpoint",
            f"beit import {run} FOLDER makes one of published weights",
        )


def _says_model_type(path: Path) -> bool:
    """Whether a config.json is one of Hugging Face's."""
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError):
        return False
    return isinstance(values, dict) and "model_type" in values


def import_command(arguments: list[str], debug: bool) -> None:
    """`beit import FILE OUT`."""
    config = parse(arguments, ImportConfig, command="import FILE OUT", positional=("file", "out"))
    for line in import_weights(config):
        print(line)


def export_command(arguments: list[str], debug: bool) -> None:
    """`beit export RUN OUT`."""
    config = parse(arguments, ExportConfig, command="export RUN OUT", positional=("run", "out"))
    for line in export_weights(config):
        print(line)
