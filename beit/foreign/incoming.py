"""Import weights of microsoft/unilm, timm and Hugging Face as a checkpoint folder.

Files are recognised by their contents.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from beit.checks import check
from beit.config import ViewConfig
from beit.errors import UserError
from beit.foreign.huggingface import Settings
from beit.foreign.layout import HEADS_OPTION, Described, describe, kind_of
from beit.foreign.names import Spelling, spelling_of
from beit.foreign.report import KeyReport
from beit.foreign.source import read_published
from beit.foreign.translation import SOURCES, drop, listed, translate, unwrapped
from beit.loading import KINDS
from beit.plain import to_dict
from beit.segmentation.model import default_taps
from beit.vit.checkpoints import is_checkpoint, save_model
from beit.vit.layers import NORM_EPS
from beit.vit.model import VitModel

Pixels = Literal["half", "imagenet"]
PIXELS: dict[Pixels, tuple[tuple[float, float, float], tuple[float, float, float]]] = {
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "imagenet": (ViewConfig().mean, ViewConfig().std),
}
"""Mean and standard deviation that pixels in [0, 1] are normalised with."""


@dataclass(frozen=True)
class Imported:
    """A checkpoint that `import_weights` wrote."""

    folder: Path
    described: Described
    spelling: Spelling
    parameters: int
    report: KeyReport
    view: ViewConfig
    pixels: str
    """How mean and std of the view are known."""
    notes: list[str] = field(default_factory=list)
    """How this model differs from theirs, and what was assumed because nothing says it."""


def import_weights(
    source: Path,
    out: Path,
    *,
    pixels: Pixels | None = None,
    heads: int | None = None,
    taps: Sequence[int] | None = None,
    sha256: str | None = None,
) -> Imported:
    """Write published weights as a checkpoint folder, with unchanged values. No code in the file is run.

    Args:
        source: A file of unilm's, timm's or Hugging Face's, or a folder of Hugging Face's.
        out: The folder to write.
        pixels: How pixels were normalised. None: as the folder says, or as for the published models of that
            kind.
        heads: Number of attention heads, if nothing else says it.
        taps: Blocks, from 0, whose tokens a segmenter's head reads. None: as the folder says, or the
            authors'.
        sha256: The SHA-256 that the weights' file must have, in hexadecimal.

    Raises:
        UserError: If the file is not what it should be (it says what it is), a tensor is missing, unexpected
            or of the wrong shape, or the folder to write is not empty.
    """
    _check_empty(out)
    published = read_published(source, sha256)
    file, found, settings = published.path, published.tensors, published.settings
    if heads is not None:
        settings = dataclasses.replace(settings, heads=heads, heads_by=HEADS_OPTION)
    if taps is not None:
        settings = dataclasses.replace(settings, taps=list(taps), out_indices=None)
    spelling = spelling_of(unwrapped(name) for name in found)
    if spelling is None:
        some = ", ".join(list(found)[:3]) or "none"
        raise UserError(
            f"{file} holds no BEiT: {len(found)} tensors ({some}{', …' * (len(found) > 3)})",
            f"give {SOURCES}",
        )
    tensors, report = translate(found, spelling)
    kind = kind_of(tensors)
    if taps is not None and kind != "segmenter":
        raise UserError(
            (
                f"--taps {' '.join(map(str, taps))}: {file} holds a {kind}, and only segmenters read several "
                "blocks"
            ),
            "leave it out",
        )
    drop(tensors, report, kind)
    described = describe(tensors, kind, settings)
    model = fill(described, tensors, file, report)
    view, origin = _view(described, pixels, settings)
    origins = {"files": published.digests, "spelling": spelling}
    save_model(model, out, extra={"view": to_dict(view), "imported_from": origins})
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return Imported(out, described, spelling, parameters, report, view, origin, _notes(described, settings))


def _check_empty(out: Path) -> None:
    if is_checkpoint(out):
        raise UserError(f"{out} holds a checkpoint already", "give another folder, or delete that one first")
    if out.is_dir() and (inside := next(out.iterdir(), None)) is not None:
        raise UserError(f"{out} is not empty: {inside.name} is in it", "give a folder that is new or empty")


def _notes(described: Described, settings: Settings) -> list[str]:
    """Return notes on everything that a user of the folder might not expect."""
    notes = []
    if settings.norm_eps is not None and settings.norm_eps != NORM_EPS:
        notes.append(
            f"config.json says layer_norm_eps={settings.norm_eps:g}; here it is {NORM_EPS:g}, with which the "
            "authors trained: transformers' numbers with that folder differ a little"
        )
    if described.kind == "segmenter":
        usual, taps = list(default_taps("upernet", described.model.depth)), described.head["taps"]
        if taps is None:
            notes.append(f"the head reads blocks {usual}, as the authors'; --taps chooses others")
        elif taps != usual:
            indices = settings.out_indices
            theirs = indices is not None and taps == [index - 2 for index in indices]
            by = ", as transformers does with this folder" if theirs else ""
            notes.append(
                f"the head reads blocks {taps}{by}; the authors' reads {usual}: for weights that they "
                f"trained, give --taps {' '.join(map(str, usual))}"
            )
    if described.kind == "backbone":
        notes.append("there is no head: it can be fine-tuned, but predicts nothing as it is")
    return notes


def fill(described: Described, tensors: Mapping[str, Tensor], file: Path, report: KeyReport) -> VitModel:
    """Build the model with these tensors, in their own precision, after checking names, shapes and values."""
    with torch.device("meta"):
        model = KINDS[described.kind].from_config(described.model, described.head)
    expected = model.state_dict()
    origins: dict[str, str] = {new: old for old, new in report.renamed.items()}
    report.missing = [name for name in expected if name not in tensors]
    report.unexpected = [origins.get(name, name) for name in tensors if name not in expected]
    if report.missing:
        raise UserError(
            f"{file}: {listed(report.missing, 'is', 'are')} missing from this {described.kind}",
            "give the file as it was published",
        )
    if report.unexpected:
        raise UserError(
            (
                f"{file}: {listed(report.unexpected, 'is', 'are')} unexpected in a {described.kind} of "
                f"{described.model.depth} blocks"
            ),
            f"only what can be held in full is taken: give {SOURCES}",
        )
    for name, tensor in expected.items():
        if tensors[name].shape != tensor.shape:
            raise UserError(
                (
                    f"{file}: {origins.get(name, name)} has the shape {list(tensors[name].shape)}, and "
                    f"should have {list(tensor.shape)}"
                ),
                "give the file as it was published",
            )
        if (
            tensors[name].is_floating_point() != tensor.is_floating_point()
            or not tensors[name].isfinite().all()
        ):
            raise UserError(
                f"{file}: {origins.get(name, name)} holds values that are not finite numbers of its type",
                "download it again",
            )
    # A copy of each tensor, because tensors that share memory cannot be saved.
    model.load_state_dict(
        {name: tensors[name].clone(memory_format=torch.contiguous_format) for name in expected}, assign=True
    )
    return model


def _view(described: Described, pixels: Pixels | None, settings: Settings) -> tuple[ViewConfig, str]:
    """Return how pixels are normalised for these weights, and how that is known."""
    if pixels is not None:
        (mean, std), origin = PIXELS[pixels], f"--pixels {pixels}"
    elif settings.mean is not None and settings.std is not None:
        mean, std, origin = settings.mean, settings.std, "from preprocessor_config.json"
    else:
        imagenet = described.kind == "segmenter" or described.model.position == "absolute"
        kind = (
            "segmenters"
            if described.kind == "segmenter"
            else f"models with {'absolute' if imagenet else 'relative'} positions"
        )
        (mean, std), origin = (
            PIXELS["imagenet" if imagenet else "half"],
            f"as the published {kind}; --pixels says otherwise",
        )
    view = ViewConfig(mean=mean, std=std)
    check(view, "view.")
    return view, origin
