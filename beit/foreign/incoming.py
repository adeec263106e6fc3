"""Weights of microsoft/unilm, timm and Hugging Face -> a checkpoint folder. What a file is, is told from its contents."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from beit.checkpoints import CONFIG_FILE, WEIGHTS_FILE, class_of, save_model
from beit.config import ViewConfig, to_dict
from beit.errors import UserError
from beit.foreign.files import read_bytes, read_tensors
from beit.foreign.huggingface import FoldersSettings, read_settings
from beit.foreign.layout import Described, Kind, describe, kind_of
from beit.foreign.names import BACKBONE, INDEX, PARTS, Spelling, from_hugging_face, spelling_of
from beit.foreign.pickled import NotWeightsError
from beit.foreign.report import KeyReport

if TYPE_CHECKING:
    from beit.checkpoints import Model

LARGEST_BYTES = 16 * 2**30

WEIGHTS_OF_FOLDERS = ("model.safetensors", "pytorch_model.bin")
WRAPPED = ("module.", "_orig_mod.")
"""Before every name of a model that was wrapped for several GPUs, or compiled."""

SOURCES = "unilm's or timm's file of weights, or a folder or file of Hugging Face's"

Pixels = Literal["half", "imagenet"]
PIXELS: dict[Pixels, tuple[tuple[float, float, float], tuple[float, float, float]]] = {
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "imagenet": (ViewConfig().mean, ViewConfig().std),
}
"""Mean and standard deviation that pixels in [0, 1] are normalised with."""

SPELLINGS: dict[Spelling, str] = {
    "unilm": "unilm's and timm's names",
    "hub": "the names of Hugging Face's files",
    "v5": "the names of Hugging Face's modules since version 5",
}

_TOKENS = "predicts visual tokens, which this model does not"
_DROPPED: dict[Kind, dict[str, str]] = {
    "mim": {"fc_norm.": "pools, which pretraining does not"},
    "classifier": {"lm_head.": _TOKENS, "mask_token": "nothing is hidden from a classifier"},
    "segmenter": {
        "lm_head.": _TOKENS,
        "mask_token": "nothing is hidden from a segmenter",
        "norm.": "a segmenter has no last norm",
        "fc_norm.": "pools, which a segmenter does not",
        "head.": "classifies whole images, which a segmenter does not",
    },
}
"""What a model of a kind does not use, by the beginning of the name."""


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
    """Where mean and std are from."""


def import_weights(
    source: Path, out: Path, *, pixels: Pixels | None = None, heads: int | None = None, sha256: str | None = None
) -> Imported:
    """Write published weights as a checkpoint folder, every value as it is. No code in the file runs.

    Args:
        source: A file of unilm's, timm's or Hugging Face's, or a folder of the latter.
        out: The folder to write.
        pixels: How pixels were normalised. None: as a folder says, or as the published models of that kind were.
        heads: Attention heads, where nothing tells them.
        sha256: What the weights' file must have, in hexadecimal.

    Raises:
        UserError: If the file is not what it should be (it says what it is), a tensor is missing, unexpected or of the wrong shape, or
            the folder holds a checkpoint already.
    """
    if any((out / name).exists() for name in (WEIGHTS_FILE, CONFIG_FILE)):
        raise UserError(f"{out} holds a checkpoint already", "give another folder, or delete that one first")
    file, settings = _locate(source)
    found, digest = _read(file, sha256)
    spelling = spelling_of(_unwrapped(name) for name in found)
    if spelling is None:
        some = ", ".join(list(found)[:3]) or "none"
        raise UserError(f"{file} holds no BEiT: {len(found)} tensors ({some}{', …' * (len(found) > 3)})", f"give {SOURCES}")
    tensors, report = translate(found, spelling)
    kind = kind_of(tensors)
    if kind is None:
        raise UserError(f"{file} holds a backbone without a head", "give weights with lm_head, head (classifier) or decode_head")
    _drop(tensors, report, kind)
    described = describe(tensors, kind, heads=heads or settings.heads, layer_scale=settings.layer_scale, names=settings.class_names)
    model = fill(described, tensors, file, report)
    view, origin = _view(described, pixels, settings)
    extra = {"view": to_dict(view), "imported_from": {"file": file.name, "sha256": digest, "spelling": spelling}}
    save_model(model, out, extra=extra)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return Imported(out, described, spelling, parameters, report, view, origin)


def translate(found: Mapping[str, Tensor], spelling: Spelling) -> tuple[dict[str, Tensor], KeyReport]:
    """Tensors under our names, and what became of each name.

    Raises:
        UserError: If names are unexpected, or two stand for one tensor.
    """
    report, tensors, unexpected = KeyReport(), {}, []
    parts: dict[str, dict[str, Tensor]] = {}
    segmenter = any(_unwrapped(name).startswith("decode_head.") for name in found)
    for name, tensor in found.items():
        inner = _unwrapped(name)
        if inner.endswith(INDEX):
            report.dropped[name] = "follows from the grid"
            continue
        ours = inner if spelling == "unilm" else from_hugging_face(inner, segmenter=segmenter)
        if ours is None:
            unexpected.append(name)
            continue
        if spelling == "unilm" and not segmenter:
            ours = ours.removeprefix(BACKBONE)
        whole, bracket, part = ours.partition("[")
        if whole in tensors or part.rstrip("]") in parts.get(whole, {}):
            raise UserError(f"{name} is a second tensor for {whole}", "give a model with one of them: both cannot be held")
        if bracket:
            parts.setdefault(whole, {})[part.rstrip("]")] = tensor
        else:
            tensors[ours] = tensor
        if whole == name:
            report.same.append(name)
        else:
            report.renamed[name] = whole
    if unexpected:
        raise UserError(_listed(unexpected, "is", "are") + f" no part of a BEiT in {SPELLINGS[spelling]}", f"give {SOURCES}")
    for whole, rows in parts.items():
        if missing := [part for part in PARTS if part not in rows]:
            raise UserError(f"{whole} has no {missing[0]}: of queries, keys and values one is missing", "give the weights of a whole model")
        tensors[whole] = torch.cat([rows[part] for part in PARTS])
    return tensors, report


def fill(described: Described, tensors: Mapping[str, Tensor], file: Path, report: KeyReport) -> Model:
    """The model with these tensors in it, of their own precision, after a check of names, shapes and values."""
    with torch.device("meta"):
        model = class_of(described.kind).laid_out(described.model, described.head)
    expected = model.state_dict()
    origins: dict[str, str] = {new: old for old, new in report.renamed.items()}
    if missing := [name for name in expected if name not in tensors]:
        raise UserError(f"{file}: {_listed(missing, 'is', 'are')} missing from this {described.kind}", "give the file as it was published")
    if unexpected := [origins.get(name, name) for name in tensors if name not in expected]:
        raise UserError(
            f"{file}: {_listed(unexpected, 'is', 'are')} unexpected in a {described.kind} of {described.model.depth} blocks",
            f"only what can be held in full is taken: give {SOURCES}",
        )
    for name, tensor in expected.items():
        if tensors[name].shape != tensor.shape:
            raise UserError(
                f"{file}: {origins.get(name, name)} has the shape {list(tensors[name].shape)}, and should have {list(tensor.shape)}",
                "give the file as it was published",
            )
        if tensors[name].is_floating_point() != tensor.is_floating_point() or not tensors[name].isfinite().all():
            raise UserError(f"{file}: {origins.get(name, name)} holds values that are no finite numbers of its kind", "download it again")
    # Own memory for each: parts of one storage cannot be saved apart.
    model.load_state_dict({name: tensors[name].clone(memory_format=torch.contiguous_format) for name in expected}, assign=True)
    return model


def _locate(source: Path) -> tuple[Path, FoldersSettings]:
    """The file with the weights, and what lies beside it."""
    if source.is_dir():
        file = next((source / name for name in WEIGHTS_OF_FOLDERS if (source / name).is_file()), None)
        if file is None:
            raise UserError(f"{source} holds neither {' nor '.join(WEIGHTS_OF_FOLDERS)}", f"give {SOURCES}")
        return file, read_settings(source)
    if not source.is_file():
        raise UserError(f"{source} is not there", f"give {SOURCES}")
    # A folder's file by name: what its config says still holds.
    return source, read_settings(source.parent) if source.name in WEIGHTS_OF_FOLDERS else FoldersSettings()


def _read(path: Path, sha256: str | None) -> tuple[dict[str, Tensor], str]:
    data, digest = read_bytes(path, sha256, largest=LARGEST_BYTES, what="BEiT", sources=SOURCES)
    try:
        tensors = read_tensors(data)
        if sum(tensor.numel() * tensor.element_size() for name, tensor in tensors.items() if not name.endswith(INDEX)) > len(data):
            raise NotWeightsError("a file whose tensors would unfold to more than it holds")
    except NotWeightsError as error:
        raise UserError(f"{path} is {error}; nothing in it was run", "get the file from its publisher, and compare --sha256") from None
    return tensors, digest


def _unwrapped(name: str) -> str:
    for prefix in WRAPPED:
        name = name.removeprefix(prefix)
    return name


def _drop(tensors: dict[str, Tensor], report: KeyReport, kind: Kind) -> None:
    """Take out what a model of this kind does not use."""
    reasons = dict(_DROPPED[kind])
    if kind == "classifier" and "fc_norm.weight" in tensors:
        reasons["norm."] = "the mean of the patches goes through fc_norm instead"
    origins = {new: old for old, new in report.renamed.items()}
    for name in list(tensors):
        inner = name.removeprefix(BACKBONE)
        why = next((why for beginning, why in reasons.items() if inner.startswith(beginning)), None)
        if why is None:
            continue
        del tensors[name]
        origin = origins.get(name, name)
        report.renamed.pop(origin, None)
        if origin in report.same:
            report.same.remove(origin)
        report.dropped[origin] = why


def _view(described: Described, pixels: Pixels | None, settings: FoldersSettings) -> tuple[ViewConfig, str]:
    """How pixels are normalised for these weights, and how that is known."""
    if pixels is not None:
        (mean, std), origin = PIXELS[pixels], f"--pixels {pixels}"
    elif settings.mean is not None and settings.std is not None:
        mean, std, origin = settings.mean, settings.std, "from preprocessor_config.json"
    else:
        imagenet = described.kind == "segmenter" or described.model.position == "absolute"
        kind = "segmenters" if described.kind == "segmenter" else f"models with {'absolute' if imagenet else 'relative'} positions"
        (mean, std), origin = PIXELS["imagenet" if imagenet else "half"], f"as the published {kind}; --pixels says otherwise"
    return dataclasses.replace(ViewConfig(), mean=mean, std=std), origin


def _listed(names: list[str], one: str, many: str) -> str:
    """The first three names and how many more, with the verb that follows."""
    more = f" (and {len(names) - 3} more)" if len(names) > 3 else ""
    return f"{', '.join(names[:3])}{more} {one if len(names) == 1 else many}"
