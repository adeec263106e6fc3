"""Export a checkpoint folder for Hugging Face's transformers, timm or the released code, microsoft/unilm."""

from __future__ import annotations

import json
import shutil
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor

from beit.config import ModelConfig, ViewConfig
from beit.errors import UserError
from beit.foreign.huggingface import CLASSES, CONFIG, PREPROCESSOR, model_config, preprocessor_config, stages
from beit.foreign.layout import TABLE
from beit.foreign.names import INDEX, PARTS, QKV, Spelling, to_hub
from beit.foreign.report import KeyReport
from beit.foreign.translation import translate
from beit.loading import KINDS, load_model
from beit.plain import from_dict
from beit.pretraining.targets import VisualTokens
from beit.segmentation.model import default_taps
from beit.vit.attention import relative_position_index
from beit.vit.checkpoints import SavedConfig, read_config, read_tensors
from beit.vit.transfer import SHARED_TABLE, finetuning_config, per_block_tables

Format = Literal["hf", "timm", "unilm"]

TIMM_MODELS = {(768, 12, 12): "beit_base_patch16_224", (1024, 24, 16): "beit_large_patch16_224"}
"""timm's names of the published models, by width, depth and heads."""


@dataclass(frozen=True)
class Exported:
    """What `export_weights` wrote."""

    path: Path
    kind: str
    report: KeyReport
    next_step: str
    """Python code that loads it."""
    notes: list[str] = field(default_factory=list)
    """How the other project's model differs from ours, and what its files cannot say."""


def export_weights(folder: Path, out: Path, *, format: Format) -> Exported:
    """Write a checkpoint folder's model in another project's format, with unchanged values.

    Args:
        folder: Written by `save_model`.
        out: A folder to write for hf, a file for timm (.safetensors or .pth) and unilm (.pth).
        format: hf, timm or unilm.

    Raises:
        UserError: If the folder is no checkpoint, if `out` exists or has the wrong ending, or if the format
            cannot hold this model.
    """
    saved = read_config(folder)
    if out.exists():
        raise UserError(f"{out} exists already", "give another name, or delete it first")
    endings = {"hf": ("",), "timm": (".safetensors", ".pth"), "unilm": (".pth",)}[format]
    if format != "hf" and out.suffix not in endings:
        raise UserError(
            f"--format {format} writes a file, and {out.name} does not end in {' or '.join(endings)}",
            f"write {out}{endings[0]}",
        )
    if refusal := _cannot_hold(saved, format):
        raise UserError(
            f"{folder} cannot be written with --format {format}: {refusal}", "choose another format"
        )
    # Loading only checks names and shapes. The file's own values are written, in their own precision.
    model, tensors = load_model(folder), read_tensors(folder)
    # `head_config` is used because it is complete; the file may leave defaults out.
    writers: dict[str, Callable[[SavedConfig, dict[str, Any], dict[str, Tensor], Path], Exported]]
    writers = {"hf": _write_hf, "timm": _write_timm, "unilm": _write_unilm}
    return writers[format](saved, model.head_config, tensors, out)


def _cannot_hold(saved: SavedConfig, format: Format) -> str | None:
    """Why a format cannot hold a model; None if it can."""
    if saved.kind == "mim" and (target := saved.head.get("target", VisualTokens.kind)) != VisualTokens.kind:
        return f"its head predicts {target}, and theirs visual tokens"
    if saved.kind == "backbone" and not saved.head["norm"] and format != "unilm":
        return "their models have a norm after the last block, and this backbone has none"
    if saved.kind == "segmenter":
        if saved.head.get("head") == "setr-pup":
            return "only UPerNet was released, and this head is SETR-PUP"
        if format == "timm":
            return "timm has no segmentation heads"
        usual = default_taps("upernet", saved.model.depth)
        if format == "unilm" and tuple(saved.head.get("taps") or usual) != usual:
            return (
                f"its head reads blocks {saved.head['taps']}, which no file of theirs says, and theirs "
                f"reads {list(usual)}"
            )
        if format == "hf" and saved.head.get("channels") not in (None, saved.model.dim):
            return (
                f"their head is as wide as the backbone ({saved.model.dim}), and this one has "
                f"{saved.head['channels']} channels"
            )
    return None


def _write_hf(saved: SavedConfig, head: dict[str, Any], tensors: dict[str, Tensor], out: Path) -> Exported:
    indices = stages(head["taps"], saved.model.depth) if saved.kind == "segmenter" else []
    if len(set(indices)) < len(indices):
        raise UserError(
            f"taps {head['taps']} of {saved.model.depth} blocks are too close for Hugging Face's out_indices",
            "choose another format",
        )
    report = KeyReport()
    written: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name.endswith(QKV):
            places = [to_hub(f"{name}[{part}]", kind=saved.kind) for part in PARTS]
            written.update(zip(places, (rows.contiguous() for rows in tensor.chunk(len(PARTS))), strict=True))
            report.split[name] = places
        else:
            _take(report, written, name, to_hub(name, kind=saved.kind), tensor)
    _check_names(report, written, "hub", saved.kind, saved.model, head)
    view, notes = _view(saved)
    if saved.kind == "segmenter" and [tap + 2 for tap in head["taps"]] != indices:
        seen = [index - 2 for index in indices]
        notes.append(
            f"their class cannot read the last block: it reads blocks {seen} instead of {head['taps']}, so "
            "its numbers differ"
        )
    precision = next(tensor.dtype for tensor in tensors.values() if tensor.is_floating_point())
    configs = {
        CONFIG: model_config(saved.kind, saved.model, head)
        | {"dtype": str(precision).removeprefix("torch.")},
        PREPROCESSOR: preprocessor_config(saved.model, view),
    }
    # The folder gets its name only when it is complete.
    part = out.with_name(f".{out.name}.part")
    part.mkdir(parents=True, exist_ok=True)
    try:
        save_file(
            {name: tensor.clone() for name, tensor in written.items()},
            part / "model.safetensors",
            metadata={"format": "pt"},
        )
        for file, values in configs.items():
            (part / file).write_text(json.dumps(values, indent=2) + "\n")
        part.rename(out)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return Exported(
        out, saved.kind, report, f'transformers.{CLASSES[saved.kind]}.from_pretrained("{out}")', notes
    )


def _write_timm(saved: SavedConfig, head: dict[str, Any], tensors: dict[str, Tensor], out: Path) -> Exported:
    report = KeyReport()
    written: dict[str, Tensor] = {}
    if SHARED_TABLE in tensors:
        copied = per_block_tables(tensors, saved.model.depth)
        written = {name: tensor for name, tensor in copied.items() if name not in tensors}
        report.split[SHARED_TABLE] = list(written)
    for name, tensor in tensors.items():
        if name == "mask_token":
            report.dropped[name] = "timm hides no patches"
        elif name.startswith("lm_head."):
            report.dropped[name] = "timm predicts no visual tokens"
        elif name != SHARED_TABLE:
            _take(report, written, name, name, tensor)
    model = finetuning_config(saved.model)
    if saved.kind == "mim":
        _check_names(report, written, "unilm", "backbone", model, {"norm": True})
    else:
        _check_names(report, written, "unilm", saved.kind, model, head)
    _write_file(written, out)
    return Exported(out, saved.kind, report, _timm_call(saved.kind, saved.model, head, out), _view(saved)[1])


def _timm_call(kind: str, model: ModelConfig, head: dict[str, Any], out: Path) -> str:
    """Return Python code that builds timm's model and loads the file."""
    name = TIMM_MODELS.get((model.dim, model.depth, model.heads))
    options = {"checkpoint_path": str(out), "num_classes": head.get("classes", 0)}
    if kind != "classifier" or head["pooling"] == "cls":
        options["global_pool"] = "token"  # This makes timm keep the norm after the last block.
    if model.image_size != 224:
        options["img_size"] = model.image_size
    if model.patch_size != 16:
        options["patch_size"] = model.patch_size
    if name is None:
        options |= {"embed_dim": model.dim, "depth": model.depth, "num_heads": model.heads}
    if model.mlp_ratio != 4:
        options["mlp_ratio"] = model.mlp_ratio
    if model.position == "absolute":
        options |= {"use_abs_pos_emb": True, "use_rel_pos_bias": False}
    published = 1e-5 if name and "large" in name else 0.1
    if model.layer_scale != published:
        options["init_values"] = model.layer_scale or 0  # timm treats None as not given.
    listed = ", ".join(
        f"{option}={json.dumps(value) if isinstance(value, str) else value}"
        for option, value in options.items()
    )
    return f'timm.create_model("{name or "beit_base_patch16_224"}", {listed})'


def _write_unilm(saved: SavedConfig, head: dict[str, Any], tensors: dict[str, Tensor], out: Path) -> Exported:
    report = KeyReport()
    written: OrderedDict[str, Tensor] = OrderedDict()
    index = (
        None
        if saved.model.position == "absolute"
        else relative_position_index(saved.model.grid, saved.model.grid)
    )
    for name, tensor in tensors.items():
        _take(report, written, name, name, tensor)
        if index is not None and name.endswith(TABLE):
            buffer = f"{name.rpartition('.')[0]}.{INDEX}"
            written[buffer] = index.clone()
            report.added[buffer] = "a buffer that the released code saves and expects"
    _check_names(report, written, "unilm", saved.kind, saved.model, head)
    names = {"CLASSES": head.get("class_names")}
    _write_file(
        {"state_dict": written, "meta": names} if saved.kind == "segmenter" else {"model": written}, out
    )
    finetune = f"run_class_finetuning.py --finetune {out}"
    commands = {
        "mim": f"run_beit_pretraining.py --resume {out}, or {finetune}",
        "classifier": f"run_class_finetuning.py --eval --resume {out}",
        "segmenter": f"semantic_segmentation/tools/test.py CONFIG {out}",
        "backbone": finetune,
    }
    view, notes = _view(saved)
    return Exported(
        out,
        saved.kind,
        report,
        f"in the released code: {commands[saved.kind]}",
        [*notes, *_unilm_options(saved, view)],
    )


def _unilm_options(saved: SavedConfig, view: ViewConfig) -> list[str]:
    """Return a note with the options that the released code needs to load the file.

    Its files do not say the variant of the model, nor how pixels were normalised.
    """
    if saved.kind == "segmenter":
        return []  # There, config files say both.
    options = []
    if (view.mean, view.std) == (ViewConfig().mean, ViewConfig().std):
        options.append("--imagenet_default_mean_and_std")
    if saved.model.position == "absolute":
        options += ["--abs_pos_emb", "--disable_rel_pos_bias"]
    if saved.model.layer_scale is None:
        options.append("--layer_scale_init_value 0")
    return [f"there, give {' '.join(options)} with it"] if options else []


def _check_names(
    report: KeyReport,
    written: Mapping[str, Tensor],
    spelling: Spelling,
    kind: str,
    model: ModelConfig,
    head: dict[str, Any],
) -> None:
    """Read the names back as an import would, and check that they are those of a model of these sizes."""
    with torch.device("meta"):
        expected = KINDS[kind].from_config(model, head).state_dict()
    read, _ = translate({name: tensor.to("meta") for name, tensor in written.items()}, spelling)
    report.missing = [name for name in expected if name not in read]
    report.unexpected = [name for name in read if name not in expected]
    if report.missing or report.unexpected:
        raise ValueError(f"not written: missing are {report.missing}, unexpected {report.unexpected}")


def _take(report: KeyReport, written: dict[str, Tensor], name: str, new: str, tensor: Tensor) -> None:
    written[new] = tensor
    if new == name:
        report.same.append(name)
    else:
        report.renamed[name] = new


def _write_file(content: Any, out: Path) -> None:
    """Write weights to a temporary file, then rename it."""
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(f".{out.name}.part")
    try:
        if out.suffix == ".safetensors":
            save_file(content, part, metadata={"format": "pt"})
        else:
            torch.save(content, part)
        part.replace(out)
    finally:
        part.unlink(missing_ok=True)


def _view(saved: SavedConfig) -> tuple[ViewConfig, list[str]]:
    """Return how pixels were normalised for these weights, and a note about it for the user."""
    recorded = saved.extra.get("view")
    if not isinstance(recorded, dict) or not {"mean", "std"} <= set(recorded):
        return ViewConfig(), [
            "the checkpoint does not say how pixels were normalised: ImageNet's mean and std are assumed"
        ]
    view = from_dict(ViewConfig, {name: recorded[name] for name in ("mean", "std")}, at="extra.view.")
    return view, [f"pixels in [0, 1] are normalised with mean {list(view.mean)} and std {list(view.std)}"]
