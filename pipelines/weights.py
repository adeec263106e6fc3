"""`beit import FILE OUT` and `beit export RUN OUT`: published weights to a checkpoint, a checkpoint to other projects' formats."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from beit.checks import positive
from beit.errors import UserError


@dataclass(frozen=True, kw_only=True)
class ImportConfig:
    """Read published weights without running anything in their file, and write them as a checkpoint folder."""

    source: str
    """A .pth of microsoft/unilm (pretrained, fine-tuned, or mmsegmentation's), a file of timm's, or a folder of Hugging Face's."""

    out: str
    """The folder to write."""

    pixels: Literal["half", "imagenet"] | None = None
    """Mean and std of the pixels. half: 0.5, as the released 22k weights. imagenet: ImageNet's. None: what the folder says, or as the
    published models of this kind; the choice is printed."""

    heads: int | None = None
    """Attention heads. None: as the tables of relative biases, config.json or the published widths tell."""

    sha256: str | None = None
    """What the file must be, in hexadecimal. None: whatever it is, it is written down."""

    def __post_init__(self) -> None:
        positive(self, "--", "heads")


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Write a model in another project's format, every value as it is."""

    run: str
    """A run folder (its last weights are taken), or a checkpoint folder."""

    out: str
    """The folder to write (hf) or the file (timm: .safetensors or .pth, unilm: .pth)."""

    format: Literal["hf", "timm", "unilm"] = "hf"
    """hf: a folder for transformers' from_pretrained. timm: a file for timm.create_model. unilm: a file for the released code."""


def import_weights(config: ImportConfig) -> Iterator[str]:
    """Import, and say in lines what came of it."""
    from beit.foreign import incoming

    _check_place(Path(config.out))
    done = incoming.import_weights(Path(config.source), Path(config.out), pixels=config.pixels, heads=config.heads, sha256=config.sha256)
    model, head = done.described.model, done.described.head
    size = f"{head['vocab_size']:,} visual tokens" if done.described.kind == "mim" else f"{head['classes']:,} classes"
    yield (
        f"{done.described.kind}: {model.dim} wide, {model.depth} deep, {model.heads} heads, patches of {model.patch_size} px at "
        f"{model.image_size} px, {model.position} positions, {'LayerScale' if model.layer_scale else 'no LayerScale'}, {size}"
    )
    yield f"{done.parameters:,} parameters, in {incoming.SPELLINGS[done.spelling]}"
    yield from done.report.lines()
    yield f"pixels: mean {list(done.view.mean)}, std {list(done.view.std)} ({done.pixels})"
    yield f"written: {done.folder}"
    yield f"next: beit export {done.folder} OUT --format hf, or beit.load_model({str(done.folder)!r}) in Python"


def _check_place(folder: Path) -> None:
    """Make the folder to write into.

    Raises:
        UserError: If it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder} cannot be made: {error.strerror}", "give another OUT") from None


def export_weights(config: ExportConfig) -> Iterator[str]:
    """Export, and say in lines what came of it."""
    from beit.foreign import outgoing

    _check_place(Path(config.out).parent)
    done = outgoing.export_weights(_checkpoint(config.run), Path(config.out), format=config.format)
    yield f"{done.kind} for {config.format}"
    yield from done.report.lines()
    for note in done.notes:
        yield f"note: {note}"
    yield f"written: {done.path}"
    yield f"next: {done.next_step}"


def _checkpoint(run: str) -> Path:
    """The checkpoint folder that a path means.

    Raises:
        UserError: If it is on a bucket.
    """
    if "://" in run:
        raise UserError(f"{run} is on a bucket", f"copy {run.rstrip('/')}/model here first")
    folder = Path(run)
    return folder / "model" if (folder / "model").is_dir() else folder
