"""The published files by their names and shapes, written down here by hand: nothing below is taken from a
model of ours.

Names and shapes are those of the released code's modules and of Hugging Face's conversion of them; a {} is a
block's number. The files themselves could not be had.
"""

import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from beit.config import ModelConfig
from beit.foreign.incoming import import_weights
from beit.foreign.layout import describe, kind_of
from beit.loading import KINDS, load_model

Shapes = dict[str, tuple[int, ...]]

BASE = {"dim": 768, "depth": 12, "heads": 12}
LARGE = {"dim": 1024, "depth": 24, "heads": 16}


def table(grid: int, heads: int) -> Shapes:
    """A table of relative biases and its index, under a module's name."""
    tokens = grid**2 + 1
    return {
        "relative_position_bias_table": ((2 * grid - 1) ** 2 + 3, heads),
        "relative_position_index": (tokens, tokens),
    }


def under(prefix: str, shapes: Shapes) -> Shapes:
    return {prefix + name: shape for name, shape in shapes.items()}


def repeated(block: Shapes, depth: int) -> Shapes:
    return {name.format(number): shape for number in range(depth) for name, shape in block.items()}


def unilm_body(
    *, dim: int, depth: int, heads: int, own_tables: int | None = None, gains: bool = True
) -> Shapes:
    """The backbone of beit/modeling_pretrain.py and beit/modeling_finetune.py; `own_tables` is the grid of a
    table in every block.
    """
    wide = 4 * dim
    block: Shapes = {
        **({"blocks.{}.gamma_1": (dim,), "blocks.{}.gamma_2": (dim,)} if gains else {}),
        "blocks.{}.norm1.weight": (dim,),
        "blocks.{}.norm1.bias": (dim,),
        "blocks.{}.attn.q_bias": (dim,),
        "blocks.{}.attn.v_bias": (dim,),
        **(under("blocks.{}.attn.", table(own_tables, heads)) if own_tables else {}),
        "blocks.{}.attn.qkv.weight": (3 * dim, dim),
        "blocks.{}.attn.proj.weight": (dim, dim),
        "blocks.{}.attn.proj.bias": (dim,),
        "blocks.{}.norm2.weight": (dim,),
        "blocks.{}.norm2.bias": (dim,),
        "blocks.{}.mlp.fc1.weight": (wide, dim),
        "blocks.{}.mlp.fc1.bias": (wide,),
        "blocks.{}.mlp.fc2.weight": (dim, wide),
        "blocks.{}.mlp.fc2.bias": (dim,),
    }
    return {
        "cls_token": (1, 1, dim),
        "patch_embed.proj.weight": (dim, 3, 16, 16),
        "patch_embed.proj.bias": (dim,),
        **repeated(block, depth),
    }


def unilm_pretrained(sizes: dict[str, int], *, plain: bool = False) -> Shapes:
    dim = sizes["dim"]
    return {
        **unilm_body(**sizes, gains=not plain),
        "mask_token": (1, 1, dim),
        **({"pos_embed": (1, 197, dim)} if plain else under("rel_pos_bias.", table(14, sizes["heads"]))),
        "norm.weight": (dim,),
        "norm.bias": (dim,),
        "lm_head.weight": (8192, dim),
        "lm_head.bias": (8192,),
    }


def unilm_classifier(sizes: dict[str, int], *, grid: int, classes: int) -> Shapes:
    dim = sizes["dim"]
    return {
        **unilm_body(**sizes, own_tables=grid),
        "fc_norm.weight": (dim,),
        "fc_norm.bias": (dim,),
        "head.weight": (classes, dim),
        "head.bias": (classes,),
    }


def conv_norm(name: str, inside: int, outside: int, side: int) -> Shapes:
    return {
        f"{name}.conv.weight": (outside, inside, side, side),
        f"{name}.bn.weight": (outside,),
        f"{name}.bn.bias": (outside,),
        f"{name}.bn.running_mean": (outside,),
        f"{name}.bn.running_var": (outside,),
        f"{name}.bn.num_batches_tracked": (),
    }


def unilm_segmenter(sizes: dict[str, int], *, grid: int, classes: int) -> Shapes:
    """beit/semantic_segmentation, by the modules of mmsegmentation that its configs name."""
    d = sizes["dim"]
    shapes = under("backbone.", unilm_body(**sizes, own_tables=grid))
    shapes |= {
        **{f"backbone.fpn{n}.{layer}.weight": (d, d, 2, 2) for n, layer in ((1, 0), (1, 3), (2, 0))},
        **{f"backbone.fpn{n}.{layer}.bias": (d,) for n, layer in ((1, 0), (1, 3), (2, 0))},
        **{f"backbone.fpn1.1.{name}": (d,) for name in ("weight", "bias", "running_mean", "running_var")},
        "backbone.fpn1.1.num_batches_tracked": (),
        "decode_head.conv_seg.weight": (classes, d, 1, 1),
        "decode_head.conv_seg.bias": (classes,),
        "auxiliary_head.conv_seg.weight": (classes, 256, 1, 1),
        "auxiliary_head.conv_seg.bias": (classes,),
        **conv_norm("auxiliary_head.convs.0", d, 256, 3),
        **conv_norm("decode_head.bottleneck", 5 * d, d, 3),
        **conv_norm("decode_head.fpn_bottleneck", 4 * d, d, 3),
    }
    for number in range(4):
        shapes |= conv_norm(f"decode_head.psp_modules.{number}.1", d, d, 1)
    for number in range(3):
        shapes |= conv_norm(f"decode_head.lateral_convs.{number}", d, d, 1)
        shapes |= conv_norm(f"decode_head.fpn_convs.{number}", d, d, 3)
    return shapes


PER_BLOCK = {"position": "relative-per-block"}
# By the name of the published file: what it holds, what it is to be told to be, and how many numbers its
# parameters have in all.
PUBLISHED = {
    "beit_base_patch16_224_pt22k": (
        unilm_pretrained(BASE),
        "mim",
        {**BASE, "position": "relative", "layer_scale": 0.1},
        91_965_776,
    ),
    "beit_large_patch16_224_pt22k": (
        unilm_pretrained(LARGE),
        "mim",
        {**LARGE, "position": "relative", "layer_scale": 1e-5},
        311_534_016,
    ),
    "beit_base_patch16_224_pt1k_800ep": (unilm_pretrained(BASE, plain=True), "mim", BASE, 92_089_856),
    "beit_base_patch16_224_pt22k_ft22k": (
        unilm_classifier(BASE, grid=14, classes=21841),
        "classifier",
        {**BASE, **PER_BLOCK, "layer_scale": 0.1},
        102_557_713,
    ),
    "beit_base_patch16_224_pt22k_ft22kto1k": (
        unilm_classifier(BASE, grid=14, classes=1000),
        "classifier",
        {**BASE, **PER_BLOCK, "layer_scale": 0.1},
        86_530_984,
    ),
    "beit_base_patch16_384_pt22k_ft22kto1k": (
        unilm_classifier(BASE, grid=24, classes=1000),
        "classifier",
        {**BASE, **PER_BLOCK, "layer_scale": 0.1, "image_size": 384},
        86_744_104,
    ),
    "beit_large_patch16_512_pt22k_ft22kto1k": (
        unilm_classifier(LARGE, grid=32, classes=1000),
        "classifier",
        {**LARGE, **PER_BLOCK, "layer_scale": 1e-5, "image_size": 512},
        305_674_728,
    ),
    "beit_base_patch16_640_pt22k_ft22ktoade20k": (
        unilm_segmenter(BASE, grid=40, classes=150),
        "segmenter",
        {**BASE, **PER_BLOCK, "layer_scale": 0.1, "image_size": 640},
        None,  # Known as 163 M only.
    ),
}


def without_buffers(shapes: Shapes) -> Shapes:
    return {name: shape for name, shape in shapes.items() if not name.endswith("relative_position_index")}


@pytest.mark.parametrize("file", PUBLISHED)
def test_a_published_file_is_told_from_its_names_and_shapes_and_is_all_of_the_model(file):
    shapes, kind, fields, parameters = PUBLISHED[file]
    held = without_buffers(shapes)
    tensors = {name: torch.empty(shape, device="meta") for name, shape in held.items()}
    described = describe(tensors, kind_of(tensors))
    assert described.kind == kind
    assert described.model == ModelConfig(**fields)
    with torch.device("meta"):
        model = KINDS[kind].from_config(described.model, described.head)
    assert {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()} == held
    numbers = sum(
        math.prod(shape) for name, shape in held.items() if "running" not in name and "tracked" not in name
    )
    assert numbers == parameters or (parameters is None and round(numbers / 1e6) == 163)


def hub_pretrained(sizes: dict[str, int]) -> Shapes:
    """BeitForMaskedImageModeling in the spelling of the hub's files; those of its first years hold the index
    as well.
    """
    dim, wide = sizes["dim"], 4 * sizes["dim"]
    block: Shapes = {
        "encoder.layer.{}.lambda_1": (dim,),
        "encoder.layer.{}.lambda_2": (dim,),
        "encoder.layer.{}.attention.attention.query.weight": (dim, dim),
        "encoder.layer.{}.attention.attention.query.bias": (dim,),
        "encoder.layer.{}.attention.attention.key.weight": (dim, dim),
        "encoder.layer.{}.attention.attention.value.weight": (dim, dim),
        "encoder.layer.{}.attention.attention.value.bias": (dim,),
        "encoder.layer.{}.attention.output.dense.weight": (dim, dim),
        "encoder.layer.{}.attention.output.dense.bias": (dim,),
        "encoder.layer.{}.intermediate.dense.weight": (wide, dim),
        "encoder.layer.{}.intermediate.dense.bias": (wide,),
        "encoder.layer.{}.output.dense.weight": (dim, wide),
        "encoder.layer.{}.output.dense.bias": (dim,),
        "encoder.layer.{}.layernorm_before.weight": (dim,),
        "encoder.layer.{}.layernorm_before.bias": (dim,),
        "encoder.layer.{}.layernorm_after.weight": (dim,),
        "encoder.layer.{}.layernorm_after.bias": (dim,),
    }
    body: Shapes = {
        "embeddings.cls_token": (1, 1, dim),
        "embeddings.mask_token": (1, 1, dim),
        "embeddings.patch_embeddings.projection.weight": (dim, 3, 16, 16),
        "embeddings.patch_embeddings.projection.bias": (dim,),
        **repeated(block, sizes["depth"]),
        **under("encoder.relative_position_bias.", table(14, sizes["heads"])),
    }
    head: Shapes = {
        "layernorm.weight": (dim,),
        "layernorm.bias": (dim,),
        "lm_head.weight": (8192, dim),
        "lm_head.bias": (8192,),
    }
    return under("beit.", body) | head


def numbered(shapes: Shapes) -> dict[str, Tensor]:
    """A tensor of each shape, filled with its own number, so that it can be recognised later."""
    return {
        name: torch.full(
            shape, float(number), dtype=torch.int64 if "index" in name or "tracked" in name else torch.float32
        )
        for number, (name, shape) in enumerate(shapes.items(), start=1)
    }


@pytest.mark.parametrize("file", ["beit_base_patch16_224_pt22k", "beit_base_patch16_384_pt22k_ft22kto1k"])
def test_a_file_of_the_released_layout_is_imported_whole(file, tmp_path: Path):
    shapes, _, _, parameters = PUBLISHED[file]
    tensors = numbered(shapes)
    torch.save({"model": tensors}, tmp_path / f"{file}.pth")
    done = import_weights(tmp_path / f"{file}.pth", tmp_path / "ours")
    (tmp_path / f"{file}.pth").unlink()
    assert done.parameters == parameters
    assert done.report.same == list(without_buffers(shapes))
    assert done.report.dropped == {
        name: "follows from the grid" for name in shapes if name.endswith("relative_position_index")
    }
    assert done.report.renamed == {}
    read = load_model(tmp_path / "ours").state_dict()
    (tmp_path / "ours" / "model.safetensors").unlink()
    assert all(torch.equal(read[name], tensors[name]) for name in without_buffers(shapes))


def test_a_folder_of_the_hubs_layout_is_imported_whole(tmp_path: Path):
    shapes = hub_pretrained(BASE)
    tensors = numbered(shapes)
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    values = {
        "model_type": "beit",
        "num_attention_heads": 12,
        "layer_norm_eps": 1e-12,
        "layer_scale_init_value": 0.1,
        "out_indices": [3, 5, 7, 11],
    }
    (tmp_path / "config.json").write_text(json.dumps(values))
    done = import_weights(tmp_path, tmp_path / "ours")
    (tmp_path / "pytorch_model.bin").unlink()
    assert (done.spelling, done.parameters) == ("hub", 91_965_776)
    assert done.report.same == ["lm_head.weight", "lm_head.bias"]
    assert list(done.report.dropped) == ["beit.encoder.relative_position_bias.relative_position_index"]
    # 17 tensors a block, three of them joined to one.
    assert (done.report.read, done.report.written) == (12 * 17 + 4 + 2 + 4, 12 * 15 + 4 + 1 + 4)
    read = load_model(tmp_path / "ours").state_dict()
    (tmp_path / "ours" / "model.safetensors").unlink()
    for ours, theirs in (
        ("mask_token", "beit.embeddings.mask_token"),
        (
            "rel_pos_bias.relative_position_bias_table",
            "beit.encoder.relative_position_bias.relative_position_bias_table",
        ),
        ("blocks.11.gamma_2", "beit.encoder.layer.11.lambda_2"),
        ("blocks.3.mlp.fc2.weight", "beit.encoder.layer.3.output.dense.weight"),
        ("blocks.3.attn.proj.weight", "beit.encoder.layer.3.attention.output.dense.weight"),
        ("norm.weight", "layernorm.weight"),
    ):
        assert torch.equal(read[ours], tensors[theirs]), ours
    rows = [
        tensors[f"beit.encoder.layer.5.attention.attention.{part}.weight"]
        for part in ("query", "key", "value")
    ]
    assert torch.equal(read["blocks.5.attn.qkv.weight"], torch.cat(rows))
