"""Hugging Face's `config.json` and `preprocessor_config.json`: read theirs, and write them for our models."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from beit.config import ModelConfig, ViewConfig
from beit.errors import UserError
from beit.vit.layers import CHANNELS, NORM_EPS

CONFIG, PREPROCESSOR = "config.json", "preprocessor_config.json"

CLASSES = {
    "mim": "BeitForMaskedImageModeling",
    "classifier": "BeitForImageClassification",
    "segmenter": "BeitForSemanticSegmentation",
    "backbone": "BeitModel",
}

BICUBIC = 3
"""Pillow's number for this filter."""

Triple = tuple[float, float, float]


TAPS = "beit_taps"
"""An entry of our own in their `config.json`: the blocks that a segmenter's head reads. Their `out_indices`
cannot name the last block."""

POOL_SCALES = [1, 2, 3, 6]
"""The sides of UPerNet's pyramid, which no tensor reveals."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings that tensors do not reveal, from a folder's JSON files or from the user. None: unknown."""

    heads: int | None = None
    heads_by: str = "num_attention_heads in config.json"
    """Where `heads` was read."""
    taps: list[int] | None = None
    """Blocks, from 0, whose tokens a segmenter's head reads."""
    out_indices: list[int] | None = None
    """The same in Hugging Face's numbering; see `stages`."""
    norm_eps: float | None = None
    layer_scale: float | None = None
    class_names: list[str] | None = None
    mean: Triple | None = None
    std: Triple | None = None


def read_settings(folder: Path) -> Settings:
    """Read `config.json` and `preprocessor_config.json`; either may be absent.

    Raises:
        UserError: If they are no JSON objects, or describe another model than BEiT or an unsupported variant.
    """
    config, preprocessor = _read(folder / CONFIG), _read(folder / PREPROCESSOR)
    kind = config.get("model_type", "beit")
    if kind != "beit":
        raise UserError(f"{folder / CONFIG} describes a model of the type {kind}", "give a folder of a BEiT")
    for name, only in (("hidden_act", "gelu"), ("pool_scales", POOL_SCALES)):
        if (value := config.get(name, only)) != only:
            raise UserError(f"{folder / CONFIG}: {name} is {value}", f"only models with {only} can be read")
    heads, gain, eps = (
        config.get(name) for name in ("num_attention_heads", "layer_scale_init_value", "layer_norm_eps")
    )
    return Settings(
        heads=heads if isinstance(heads, int) and heads > 0 else None,
        taps=_numbers(config.get(TAPS)),
        # Version 4 used the older name for a while.
        out_indices=_numbers(config.get("out_indices", config.get("segmentation_indices"))),
        norm_eps=float(eps) if isinstance(eps, (int, float)) else None,
        layer_scale=float(gain) if isinstance(gain, (int, float)) and gain > 0 else None,
        class_names=_class_names(config.get("id2label")),
        mean=_triple(preprocessor.get("image_mean")),
        std=_triple(preprocessor.get("image_std")),
    )


def model_config(kind: str, model: ModelConfig, head: dict[str, Any]) -> dict[str, Any]:
    """Return a `config.json` for one of our models."""
    names = head.get("class_names") or [f"LABEL_{number}" for number in range(head.get("classes", 0))]
    config: dict[str, Any] = {
        "architectures": [CLASSES[kind]],
        "model_type": "beit",
        "image_size": model.image_size,
        "patch_size": model.patch_size,
        "num_channels": CHANNELS,
        "hidden_size": model.dim,
        "num_hidden_layers": model.depth,
        "num_attention_heads": model.heads,
        "intermediate_size": round(model.dim * model.mlp_ratio),
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "drop_path_rate": model.drop_path,
        # Their default is 1e-12, which gives slightly different numbers.
        "layer_norm_eps": NORM_EPS,
        "layer_scale_init_value": model.layer_scale or 0.0,
        "use_mask_token": kind == "mim",
        "use_absolute_position_embeddings": model.position == "absolute",
        "use_shared_relative_position_bias": model.position == "relative",
        "use_relative_position_bias": model.position == "relative-per-block",
        # If this is False, their pretraining model applies the norm twice.
        "use_mean_pooling": kind != "backbone" and head.get("pooling", "mean") == "mean",
    }
    if kind == "backbone":
        return config
    if kind == "mim":
        return config | {"vocab_size": head["vocab_size"]}
    config |= {
        "id2label": {str(number): name for number, name in enumerate(names)},
        "label2id": {name: number for number, name in enumerate(names)},
    }
    if kind == "segmenter":
        config |= {
            "out_indices": stages(head["taps"], model.depth),
            TAPS: list(head["taps"]),
            "pool_scales": POOL_SCALES,
            "use_auxiliary_head": True,
            "auxiliary_channels": 256,
        }
    return config


def stages(taps: list[int], depth: int) -> list[int]:
    """Return Hugging Face's `out_indices` for blocks counted from 0.

    There, number i stands for the tokens after block i - 2, and none stands for those after the last block.
    """
    return [min(tap + 2, depth) for tap in taps]


def taps_of(settings: Settings, depth: int) -> list[int] | None:
    """Return the blocks, from 0, that a segmenter's head reads; None if unknown.

    Raises:
        UserError: If they are not four of the `depth` blocks.
    """
    indices = settings.out_indices
    if indices is None or (settings.taps is not None and stages(settings.taps, depth) == indices):
        taps, why = settings.taps, f"blocks {settings.taps}"
    else:
        taps = [index - 2 for index in indices]
        why = (
            f"out_indices {indices} in {CONFIG}, where number i means the tokens after block i - 2, "
            "counted from 0"
        )
    if taps is not None and (len(taps) != 4 or not all(0 <= tap < depth for tap in taps)):
        raise UserError(
            f"{why}: a segmenter's head reads four of the {depth} blocks, 0 to {depth - 1}",
            "give them with --taps",
        )
    return taps


def preprocessor_config(model: ModelConfig, view: ViewConfig) -> dict[str, Any]:
    """Return a `preprocessor_config.json`: whole images, bicubic, normalised as in training."""
    return {
        "image_processor_type": "BeitImageProcessor",
        "do_resize": True,
        "size": {"height": model.image_size, "width": model.image_size},
        "resample": BICUBIC,
        "do_center_crop": False,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(view.mean),
        "image_std": list(view.std),
        "do_reduce_labels": False,
    }


def _read(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error})", "download it again") from None
    if not isinstance(values, dict):
        raise UserError(f"{path} is no JSON object", "download it again")
    return values


def _triple(values: Any) -> Triple | None:
    if (
        isinstance(values, list)
        and len(values) == CHANNELS
        and all(isinstance(value, (int, float)) for value in values)
    ):
        return (float(values[0]), float(values[1]), float(values[2]))
    return None


def _numbers(values: Any) -> list[int] | None:
    if isinstance(values, list) and values and all(isinstance(value, int) for value in values):
        return list(values)
    return None


def _class_names(labels: Any) -> list[str] | None:
    """Return the names in the order of their numbers; None if there are none, or only numbers as names."""
    if (
        not isinstance(labels, dict)
        or not labels
        or set(labels) != {str(number) for number in range(len(labels))}
    ):
        return None
    names = [str(labels[str(number)]) for number in range(len(labels))]
    return None if all(name == f"LABEL_{number}" for number, name in enumerate(names)) else names
