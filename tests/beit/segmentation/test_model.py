"""Segmenters: names, sizes, what their heads see, what reaches their weights."""

import dataclasses

import pytest
import torch

from beit.config import ModelConfig
from beit.errors import UserError
from beit.loading import load_model
from beit.pretraining.model import Beit
from beit.segmentation.model import Segmenter, default_taps
from beit.vit.checkpoints import save_model
from beit.vit.resolution import at_size
from beit.vit.transfer import finetuning_config, start_from, start_from_folder

PAPER = ModelConfig(image_size=64, dim=24, depth=4, heads=3, drop_path=0.1)
RELEASED = dataclasses.replace(PAPER, position="relative-per-block", layer_scale=0.1)
HEADS = pytest.mark.parametrize("head", ["upernet", "setr-pup"])


def drawn(config: ModelConfig, **options: object) -> Segmenter:
    return Segmenter(config, 5, generator=torch.Generator().manual_seed(0), **options)


def pixels(height: int = 64, width: int = 64) -> torch.Tensor:
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("options", "millions"),
    [({}, 163), ({"dim": 1024, "depth": 24, "heads": 16}, 441)],
    ids=["base", "large"],
)
def test_upernet_is_as_large_as_the_authors_at_640_pixels(options, millions):
    with torch.device("meta"):
        model = Segmenter(
            ModelConfig(image_size=640, position="relative-per-block", layer_scale=0.1, **options), 150
        )
    assert round(sum(parameter.numel() for parameter in model.parameters()) / 1e6) == millions


def test_first_weights_of_the_head_follow_hes_rule_and_the_backbones_are_those_of_fine_tuning():
    model = drawn(ModelConfig(image_size=64, dim=96, depth=4, heads=3))
    for conv in (model.decode_head.fpn_bottleneck.conv, model.decode_head.lateral_convs[0].conv):
        outgoing = 96 * conv.kernel_size[0] ** 2
        assert conv.weight.detach().std() == pytest.approx((2 / outgoing) ** 0.5, rel=0.05)
    assert model.decode_head.conv_seg.weight.detach().std() == pytest.approx(0.01, rel=0.1)
    bound = 1 / (96 * 4) ** 0.5
    assert model.backbone.fpn2[0].weight.detach().abs().max() == pytest.approx(bound, rel=0.01)
    assert model.backbone.patch_embed.proj.weight.detach().abs().max() == pytest.approx(
        1 / 768**0.5, rel=0.01
    )
    assert model.backbone.blocks[0].mlp.fc1.weight.detach().std() == pytest.approx(0.02, rel=0.02)
    synchronised = torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)
    assert not [module for module in synchronised.modules() if type(module) is torch.nn.BatchNorm2d]
    assert list(synchronised.state_dict()) == list(drawn(model.config).state_dict())


def test_taps_are_the_authors_and_scale_with_depth():
    assert default_taps("upernet", 12) == (3, 5, 7, 11)
    assert default_taps("upernet", 24) == (7, 11, 15, 23)
    assert default_taps("upernet", 6) == (1, 2, 3, 5)
    assert default_taps("upernet", 1) == (0, 0, 0, 0)
    assert default_taps("setr-pup", 12) == (11,)


def test_upernets_tensors_have_the_names_of_the_published_checkpoints():
    norm = {"weight", "bias", "running_mean", "running_var", "num_batches_tracked"}

    def units(*places: str) -> set[str]:
        return {f"{place}.conv.weight" for place in places} | {
            f"{place}.bn.{name}" for place in places for name in norm
        }

    def layers(*places: str) -> set[str]:
        return {f"{place}.{name}" for place in places for name in ("weight", "bias")}

    expected = units(
        *(f"decode_head.psp_modules.{number}.1" for number in range(4)),
        "decode_head.bottleneck",
        "decode_head.fpn_bottleneck",
    )
    expected |= units(
        *(f"decode_head.{kind}_convs.{number}" for kind in ("lateral", "fpn") for number in range(3))
    )
    expected |= units("auxiliary_head.convs.0") | layers("decode_head.conv_seg", "auxiliary_head.conv_seg")
    expected |= layers("backbone.fpn1.0", "backbone.fpn1.3", "backbone.fpn2.0") | {
        f"backbone.fpn1.1.{name}" for name in norm
    }
    names = set(Segmenter(RELEASED, 5).state_dict())
    inner = ("backbone.blocks.", "backbone.cls_token", "backbone.patch_embed.")
    assert {name for name in names if not name.startswith(inner)} == expected


@HEADS
@pytest.mark.parametrize("patch_size", [8, 16])
@pytest.mark.parametrize("config", [PAPER, RELEASED], ids=["paper", "released"])
def test_logits_are_as_large_as_the_image_at_any_size(config, head, patch_size):
    model = drawn(dataclasses.replace(config, patch_size=patch_size), head=head).eval()
    assert model(pixels()).shape == (2, 5, 64, 64)
    assert at_size(model, 48, 112)(pixels(48, 112)).shape == (2, 5, 48, 112)


@HEADS
def test_gradients_reach_every_parameter_up_to_the_last_tap(head):
    model = drawn(RELEASED, head=head).train()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2))
    main, auxiliary = model.training_logits(pixels(), generator=torch.Generator().manual_seed(3))
    loss = main.square().sum() + (0 if auxiliary is None else auxiliary.square().sum())
    loss.backward()
    assert (auxiliary is None) == (head == "setr-pup")
    assert [
        name
        for name, parameter in model.named_parameters()
        if parameter.grad is None or not parameter.grad.any()
    ] == []


def test_dropped_channels_and_branches_are_drawn_from_the_generator():
    model = drawn(dataclasses.replace(PAPER, drop_path=0.0)).train()
    once, again, other = (
        model.training_logits(pixels(), generator=torch.Generator().manual_seed(seed))[0]
        for seed in (1, 1, 2)
    )
    assert torch.equal(once, again)
    assert not torch.equal(once, other)
    with pytest.raises(ValueError, match="needs a generator"):
        model(pixels())


@HEADS
def test_heads_see_each_patch_where_it_is(head):
    # With the blocks' weights at 0, a patch's token does not depend on the others; so changing one patch
    # changes logits around it only.
    config = ModelConfig(image_size=256, dim=8, depth=4, heads=2)
    model = drawn(config, head=head).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith("backbone.blocks."):
                parameter.zero_()
    image = pixels(256, 256)
    other = image.clone()
    other[:, :, 16:32, 192:208] += 1  # row 1, column 12 of 16
    change = (model(image) - model(other)).abs().sum((0, 1))
    row, column = divmod(int(change.argmax()), 256)
    assert max(abs(row - 24), abs(column - 200)) <= 24
    near, far = change[:64, 160:240].mean(), change[128:, :96].mean()
    assert far < 0.05 * near


@HEADS
def test_a_pretrained_backbone_goes_under_the_head(head, tmp_path):
    shared = dataclasses.replace(RELEASED, position="relative")
    pretrained = Beit(shared, 16, seed=1)
    with torch.no_grad():
        pretrained.rel_pos_bias.relative_position_bias_table.normal_(
            generator=torch.Generator().manual_seed(2)
        )
    model = drawn(finetuning_config(shared), head=head).eval()
    report = start_from(model, pretrained.state_dict(), shared)
    assert set(report.dropped) == {"mask_token", "lm_head.weight", "lm_head.bias", "norm.weight", "norm.bias"}
    assert {name.split(".")[0] for name in report.fresh} <= {"decode_head", "auxiliary_head", "backbone"}
    assert not [
        name for name in report.fresh if name.startswith("backbone.") and not name.startswith("backbone.fpn")
    ]
    (ours,), (theirs,) = (each.features(pixels(), norm=False) for each in (model.backbone, pretrained.eval()))
    assert torch.equal(ours, theirs)

    save_model(model, tmp_path)
    larger = drawn(finetuning_config(model.config, image_size=96), head=head)
    report = start_from_folder(larger, tmp_path)
    assert (report.fresh, report.dropped, len(report.resampled)) == ([], {}, 4)
    assert torch.equal(larger.decode_head.conv_seg.weight, model.decode_head.conv_seg.weight)


@HEADS
def test_a_segmenter_comes_back_from_its_folder(head, tmp_path):
    model = drawn(PAPER, head=head, channels=12, class_names=["road", "sky", "car", "tree", "sign"]).eval()
    save_model(model, tmp_path)
    loaded = load_model(tmp_path, Segmenter)
    assert (loaded.config, loaded.head_config) == (model.config, model.head_config)
    assert torch.equal(loaded(pixels()), model(pixels()))


def test_what_no_segmenter_can_be_is_refused():
    with pytest.raises(ValueError, match=r"taps=\(1, 2\) do not fit the head upernet"):
        Segmenter(PAPER, 5, taps=(1, 2))
    with pytest.raises(ValueError, match="head='fcn' is not one of upernet, setr-pup"):
        Segmenter(PAPER, 5, head="fcn")
    with pytest.raises(UserError, match="has one patch"):
        Segmenter(dataclasses.replace(PAPER, image_size=16), 5)
