"""The same random weights give the same numbers as Hugging Face's BEiT and timm's: logits, tokens after every
block, all gradients.
"""

import dataclasses
import re

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from beit.classification.model import Classifier
from beit.config import ModelConfig
from beit.pretraining.model import Beit
from beit.probing.attention import attention
from beit.segmentation.model import Segmenter
from beit.vit.resolution import at_size

transformers = pytest.importorskip("transformers")

DEPTH, DIM, VOCABULARY, CLASSES = 3, 96, 50, 10
PAPER = ModelConfig(dim=DIM, depth=DEPTH, heads=3, drop_path=0.0)
SHARED = dataclasses.replace(PAPER, position="relative", layer_scale=0.1)
PER_BLOCK = dataclasses.replace(SHARED, position="relative-per-block")
AT_384 = {"image_size": 384}
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}
"""Of the largest value of what is compared."""
# Behind class-token pooling the row of a bias table for the class token asking patches gathers gradients that
# cancel (those of a softmax's inputs sum to 0): in float32 each side is up to 5e-5 away from its own float64,
# and no closer to the other. In float64 it is no exception.
CANCELLING = {torch.float32: 3e-4, torch.float64: 1e-12}
PRECISIONS = pytest.mark.parametrize("dtype", TOLERANCE, ids=["float32", "float64"])


def stirred(model: nn.Module) -> nn.Module:
    """Change every parameter from its initial value: no bias or table is 0, no gain is 1."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            std = 0.05 if name.endswith("weight") and parameter.ndim > 1 else 0.3
            parameter.normal_(std=std, generator=generator)
            if "norm" in name and name.endswith("weight"):
                parameter += 1
    return model.eval()


def reference(kind: str, config: ModelConfig, **options: object) -> nn.Module:
    """Hugging Face's model of the same sizes; their LayerNorm has another epsilon by default."""
    settings = transformers.BeitConfig(
        vocab_size=VOCABULARY,
        hidden_size=config.dim,
        num_hidden_layers=config.depth,
        num_attention_heads=config.heads,
        intermediate_size=round(config.mlp_ratio * config.dim),
        image_size=config.image_size,
        use_mask_token=kind == "BeitForMaskedImageModeling",
        use_absolute_position_embeddings=config.position == "absolute",
        use_shared_relative_position_bias=config.position == "relative",
        use_relative_position_bias=config.position == "relative-per-block",
        layer_scale_init_value=config.layer_scale or 0.0,
        layer_norm_eps=1e-6,
        drop_path_rate=0.0,
        num_labels=CLASSES,
        **options,
    )
    return getattr(transformers, kind)(settings).eval()


def their_names(name: str, *, norm: str) -> list[str]:
    """Where Hugging Face 5 keeps one of our tensors; three places for queries, keys and values."""
    head = {"lm_head": "lm_head", "head": "classifier", "fc_norm": "beit.pooler.layernorm", "norm": norm}
    first, _, rest = name.partition(".")
    if first in head:
        return [f"{head[first]}.{rest}"]
    if first == "blocks":
        number, _, rest = rest.partition(".")
        for ours, theirs in (
            ("norm1", "layernorm_before"),
            ("norm2", "layernorm_after"),
            ("attn.q_bias", "attention.q_proj.bias"),
            ("attn.v_bias", "attention.v_proj.bias"),
            ("attn.relative", "relative_position_bias.relative"),
            ("attn.proj", "attention.o_proj"),
            ("gamma", "lambda"),
        ):
            rest = rest.replace(ours, theirs)
        names = [f"attention.{part}_proj.weight" for part in "qkv"] if rest == "attn.qkv.weight" else [rest]
        return [f"beit.layers.{number}.{part}" for part in names]
    for ours, theirs in (
        ("pos_embed", "position_embeddings"),
        ("patch_embed.proj", "patch_embeddings.projection"),
    ):
        name = name.replace(ours, theirs)
    return [
        f"beit.{name.replace('rel_pos_bias', 'shared_position_bias')}"
        if first == "rel_pos_bias"
        else f"beit.embeddings.{name}"
    ]


def filled(theirs: nn.Module, ours: nn.Module, *, norm: str = "layernorm") -> nn.Module:
    """Their model with our weights, every one of its parameters set."""
    state = {}
    for name, tensor in ours.state_dict().items():
        places = their_names(name, norm=norm)
        state.update(zip(places, tensor.chunk(len(places)), strict=True))
    theirs.load_state_dict(state, strict=True)
    return theirs


def assert_close(
    ours: Tensor, theirs: Tensor, what: str, tolerances: dict[torch.dtype, float] = TOLERANCE
) -> None:
    error = float((ours - theirs).detach().abs().max() / theirs.detach().abs().max())
    assert error <= tolerances[ours.dtype], f"{what}: {error:.1e} of the largest value"


def assert_same_gradients(
    ours: nn.Module,
    theirs: nn.Module,
    *,
    norm: str = "layernorm",
    tables: dict[torch.dtype, float] = TOLERANCE,
) -> None:
    found = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    for name, parameter in ours.named_parameters():
        expected = torch.cat([found[place] for place in their_names(name, norm=norm)])
        assert_close(
            parameter.grad, expected, f"gradient of {name}", tables if name.endswith("table") else TOLERANCE
        )


def tokens_behind_blocks(theirs: nn.Module) -> list[Tensor]:
    """A list that their next forward pass fills."""
    behind: list[Tensor] = []
    for layer in theirs.beit.layers:
        layer.register_forward_hook(lambda _module, _inputs, output: behind.append(output))
    return behind


def drawn_pixels(config: ModelConfig, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(
        2, 3, config.image_size, config.image_size, generator=torch.Generator().manual_seed(1)
    ).to(dtype)


@PRECISIONS
@pytest.mark.parametrize("size", [{}, AT_384], ids=["224", "384"])
@pytest.mark.parametrize("config", [PAPER, SHARED], ids=["paper", "released"])
def test_masked_image_modelling(config, size, dtype):
    config = dataclasses.replace(config, **size)
    ours = stirred(Beit(config, VOCABULARY)).to(dtype)
    # Mean pooling, although nothing is pooled: without it their model norms twice.
    theirs = filled(reference("BeitForMaskedImageModeling", config, use_mean_pooling=True).to(dtype), ours)
    pixels, behind = drawn_pixels(config, dtype), tokens_behind_blocks(theirs)
    mask = torch.rand(2, config.patches, generator=torch.Generator().manual_seed(2)) < 0.4
    logits, expected = ours(pixels, mask), theirs(pixels, bool_masked_pos=mask).logits[mask]
    assert_close(logits, expected, "logits")
    for number, tokens in enumerate(ours.features(pixels, mask, blocks=range(DEPTH), norm=False)):
        assert_close(tokens, behind[number], f"tokens behind block {number}")
    targets = torch.randint(VOCABULARY, (len(logits),), generator=torch.Generator().manual_seed(3))
    for each in (logits, expected):
        F.cross_entropy(each, targets).backward()
    assert_same_gradients(ours, theirs)


@PRECISIONS
@pytest.mark.parametrize("size", [{}, AT_384], ids=["224", "384"])
@pytest.mark.parametrize("config", [PAPER, PER_BLOCK], ids=["paper", "released"])
@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_classification(config, pooling, size, dtype):
    config = dataclasses.replace(config, **size)
    ours = stirred(Classifier(config, CLASSES, pooling=pooling)).to(dtype)
    norm = "beit.layernorm"
    theirs = filled(
        reference("BeitForImageClassification", config, use_mean_pooling=pooling == "mean").to(dtype),
        ours,
        norm=norm,
    )
    pixels, behind = drawn_pixels(config, dtype), tokens_behind_blocks(theirs)
    logits, expected = ours(pixels), theirs(pixels).logits
    assert_close(logits, expected, "logits")
    for number, tokens in enumerate(ours.features(pixels, blocks=range(DEPTH), norm=False)):
        assert_close(tokens, behind[number], f"tokens behind block {number}")
    for each in (logits, expected):
        F.cross_entropy(each, torch.tensor([3, 7])).backward()
    assert_same_gradients(ours, theirs, norm=norm, tables=CANCELLING if pooling == "cls" else TOLERANCE)


@pytest.mark.parametrize("size", [224, 320])
@pytest.mark.parametrize("config", [PAPER, SHARED, PER_BLOCK], ids=["paper", "shared", "per-block"])
def test_attention_weights(config, size):
    # At the other size, theirs is a model of that size with our resampled positions.
    ours = at_size(stirred(Classifier(config, CLASSES, pooling="cls")), size, size)
    theirs = filled(
        reference(
            "BeitForImageClassification", ours.config, use_mean_pooling=False, attn_implementation="eager"
        ),
        ours,
        norm="beit.layernorm",
    )
    pixels = drawn_pixels(ours.config)
    with torch.no_grad():
        expected = theirs(pixels, output_attentions=True).attentions
        for number in range(DEPTH):
            found = attention(ours, pixels, block=number)
            torch.testing.assert_close(found.sum(-1), torch.ones(found.shape[:-1]))
            assert_close(found, expected[number], f"attention of block {number}")
        rows = torch.tensor([[7, 1, 196], [3, 2, 100]])
        asked = attention(ours, pixels, rows=rows)
        assert_close(
            asked,
            torch.stack([expected[-1][image][:, rows[image]] for image in range(2)]),
            "attention of some rows",
        )


def their_segmentation_names(name: str) -> list[str]:
    """Where Hugging Face 5 keeps one of our segmenter's tensors."""
    first, _, rest = name.partition(".")
    if first == "backbone" and not rest.startswith("fpn"):
        return their_names(rest, norm="")
    for ours, theirs in (
        ("fpn1.0", "fpn1.conv_transpose1"),
        ("fpn1.1", "fpn1.normalization"),
        ("fpn1.3", "fpn1.conv_transpose2"),
        ("fpn2.0", "fpn2"),
    ):
        if first == "backbone" and rest.startswith(ours):
            return [f"fpn.{rest.replace(ours, theirs)}"]
    rest = re.sub(r"^psp_modules\.(\d)\.1\.", r"psp_modules.blocks.\1.conv.", rest)
    rest = re.sub(r"^bottleneck\.", "psp_bottleneck.", rest)
    rest = re.sub(r"(^|\.)conv\.(weight)$", r"\1convolution.\2", rest)
    rest = re.sub(r"(^|\.)bn\.", r"\1normalization.", rest)
    return [f"{first}.{rest.replace('conv_seg', 'classifier')}"]


@pytest.mark.parametrize("config", [PAPER, PER_BLOCK], ids=["paper", "released"])
def test_segmentation_of_the_same_blocks(config):
    # Their out_indices count from 2 for the first block, so the authors' taps of the last block cannot be
    # said there.
    config = dataclasses.replace(config, depth=5, image_size=112)
    ours = stirred(Segmenter(config, CLASSES, taps=(0, 1, 2, 3)))
    with torch.no_grad():
        for name, buffer in ours.named_buffers():
            if "running" in name:
                buffer.uniform_(0.5, 2, generator=torch.Generator().manual_seed(4))
    theirs = reference("BeitForSemanticSegmentation", config, out_indices=[2, 3, 4, 5])
    state = {}
    for name, tensor in ours.state_dict().items():
        places = their_segmentation_names(name)
        state.update(zip(places, tensor.chunk(len(places)) if tensor.ndim else [tensor], strict=True))
    theirs.load_state_dict(state, strict=False)
    # Mean pooling or not, their segmenter builds norms that nothing reads.
    assert {name for name in theirs.state_dict() if name not in state} <= {
        "beit.layernorm.weight",
        "beit.layernorm.bias",
    }
    pixels = drawn_pixels(config)
    logits, expected = (
        ours(pixels),
        F.interpolate(theirs(pixels).logits, size=(112, 112), mode="bilinear", align_corners=False),
    )
    assert_close(logits, expected, "logits")
    auxiliary = ours.auxiliary_head(ours.maps(pixels))
    behind = theirs.fpn(taps_of(theirs, pixels))
    expected_auxiliary = theirs.auxiliary_head(behind)
    assert_close(auxiliary, expected_auxiliary, "auxiliary logits")
    for each, other in ((logits, auxiliary), (expected, expected_auxiliary)):
        (each.square().mean() + other.square().mean()).backward()
    found = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    for name, parameter in ours.named_parameters():
        if parameter.grad is None:
            assert "blocks.4." in name, "only the block behind the last tap is not used"
            continue
        gradient = torch.cat([found[place] for place in their_segmentation_names(name)])
        assert_close(parameter.grad, gradient, f"gradient of {name}")


def taps_of(theirs: nn.Module, pixels: Tensor) -> list[Tensor]:
    """Maps after their first four blocks."""
    behind = tokens_behind_blocks(theirs)
    theirs.beit(pixels)
    side = pixels.shape[2] // 16
    return [tokens[:, 1:].transpose(1, 2).reshape(len(pixels), -1, side, side) for tokens in behind[:4]]


@PRECISIONS
@pytest.mark.parametrize("size", [{}, AT_384], ids=["224", "384"])
@pytest.mark.parametrize("config", [PAPER, PER_BLOCK], ids=["paper", "released"])
@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_classification_in_timm(config, pooling, size, dtype):
    timm_beit = pytest.importorskip("timm.models.beit", exc_type=ImportError)
    config = dataclasses.replace(config, **size)
    ours = stirred(Classifier(config, CLASSES, pooling=pooling)).to(dtype)
    theirs = timm_beit.Beit(
        img_size=config.image_size,
        num_classes=CLASSES,
        global_pool="avg" if pooling == "mean" else "token",
        embed_dim=DIM,
        depth=DEPTH,
        num_heads=3,
        init_values=config.layer_scale,
        use_abs_pos_emb=config.position == "absolute",
        use_rel_pos_bias=config.position == "relative-per-block",
    )
    theirs.to(dtype).eval().load_state_dict(ours.state_dict(), strict=True)
    pixels, behind = drawn_pixels(config, dtype), []
    for block in theirs.blocks:
        block.register_forward_hook(lambda _module, _inputs, output: behind.append(output))
    logits, expected = ours(pixels), theirs(pixels)
    assert_close(logits, expected, "logits")
    for number, tokens in enumerate(ours.features(pixels, blocks=range(DEPTH), norm=False)):
        assert_close(tokens, behind[number], f"tokens behind block {number}")
    for each in (logits, expected):
        F.cross_entropy(each, torch.tensor([3, 7])).backward()
    found = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        tolerances = CANCELLING if pooling == "cls" and name.endswith("table") else TOLERANCE
        assert_close(parameter.grad, found[name].grad, f"gradient of {name}", tolerances)
