"""Which weights a model takes from another model."""

import dataclasses

import pytest
import torch

from beit.classification.model import Classifier
from beit.config import ModelConfig
from beit.errors import UserError
from beit.loading import load_model
from beit.pretraining.model import Beit
from beit.segmentation.model import Segmenter
from beit.vit.checkpoints import save_model
from beit.vit.resolution import resample_absolute, resample_table
from beit.vit.transfer import finetuning_config, start_from, start_from_folder

PAPER = ModelConfig(image_size=64, dim=24, depth=2, heads=3)
HEADS = ("decode_head", "auxiliary_head")
RELEASED = dataclasses.replace(PAPER, position="relative", layer_scale=0.1)


def stirred(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3, generator=generator)
    return model


def fresh(config: ModelConfig, classes: int = 5, **options: object) -> Classifier:
    return Classifier(config, classes, generator=torch.Generator().manual_seed(7), **options)


def test_fine_tuning_takes_the_blocks_clones_the_table_and_draws_the_head():
    pretrained = stirred(Beit(RELEASED, 16))
    model = fresh(finetuning_config(RELEASED, drop_path=0.2))
    head = model.head.weight.clone()
    report = start_from(model, pretrained.state_dict(), RELEASED)
    assert model.config.drop_path == 0.2
    assert set(report.dropped) == {"mask_token", "lm_head.weight", "lm_head.bias", "norm.weight", "norm.bias"}
    assert report.fresh == ["fc_norm.weight", "fc_norm.bias", "head.weight", "head.bias"]
    assert report.resampled == []
    assert torch.equal(model.head.weight, head)
    pixels = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    (ours,), (theirs,) = (each.eval().features(pixels, norm=False) for each in (model, pretrained))
    assert torch.equal(ours, theirs), "tables of blocks that are copies do what the shared one does"
    tables = [block.attn.relative_position_bias_table for block in model.blocks]
    assert tables[0].data_ptr() != tables[1].data_ptr()
    assert report.lines()[0] == f"taken: {len(report.taken)} tensors"


def test_a_classifier_of_the_class_token_takes_the_final_norm():
    pretrained = stirred(Beit(PAPER, 16))
    model = fresh(finetuning_config(PAPER), pooling="cls")
    report = start_from(model, pretrained.state_dict(), PAPER)
    assert torch.equal(model.norm.weight, pretrained.norm.weight)
    assert report.fresh == ["head.weight", "head.bias"]


@pytest.mark.parametrize("config", [PAPER, RELEASED], ids=["paper", "released"])
def test_another_resolution_takes_positions_resampled_and_the_same_head(config, tmp_path):
    source = dataclasses.replace(config, position="relative-per-block") if config is RELEASED else config
    low = stirred(fresh(source))
    save_model(low, tmp_path)
    high = fresh(finetuning_config(source, image_size=96))
    report = start_from_folder(high, tmp_path)
    assert (report.fresh, report.dropped) == ([], {})
    assert torch.equal(high.head.weight, low.head.weight)
    assert report.lines()[-1] == "head taken: both have 5 classes, names unknown"
    if config is PAPER:
        assert report.resampled == ["pos_embed"]
        assert torch.equal(high.pos_embed, resample_absolute(low.pos_embed, (4, 4), (6, 6)))
    else:
        assert report.resampled == [
            f"blocks.{number}.attn.relative_position_bias_table" for number in range(2)
        ]
        expected = resample_table(low.blocks[1].attn.relative_position_bias_table, (4, 4), (6, 6))
        assert torch.equal(high.blocks[1].attn.relative_position_bias_table, expected)


def test_a_head_for_other_classes_is_dropped_and_says_so(tmp_path):
    save_model(stirred(fresh(PAPER, classes=9)), tmp_path)
    report = start_from_folder(fresh(PAPER, classes=5), tmp_path)
    assert report.dropped["head.weight"] == "shape [9, 24], [5, 24] in the new model"
    assert report.fresh == ["head.weight", "head.bias"]


def test_a_head_for_as_many_other_classes_is_dropped_and_one_for_the_same_is_taken(tmp_path):
    save_model(stirred(fresh(PAPER, classes=2, class_names=["cat", "dog"])), tmp_path)
    other = start_from_folder(fresh(PAPER, classes=2, class_names=["car", "van"]), tmp_path)
    assert (other.dropped, other.fresh) == (
        dict.fromkeys(["head.bias", "head.weight"], "of other classes"),
        ["head.weight", "head.bias"],
    )
    for names in (["cat", "dog"], None):
        assert start_from_folder(fresh(PAPER, classes=2, class_names=names), tmp_path).dropped == {}
    segmenter = Segmenter(
        PAPER, 2, channels=8, class_names=["cat", "dog"], generator=torch.Generator().manual_seed(7)
    )
    save_model(segmenter, tmp_path / "segmenter")
    streets = Segmenter(
        PAPER, 2, channels=8, class_names=["sky", "road"], generator=torch.Generator().manual_seed(8)
    )
    report = start_from_folder(streets, tmp_path / "segmenter")
    assert (
        set(report.fresh)
        == set(report.dropped)
        == {f"{head}.conv_seg.{name}" for head in HEADS for name in ("weight", "bias")}
    )
    assert torch.equal(
        streets.decode_head.bottleneck.conv.weight, segmenter.decode_head.bottleneck.conv.weight
    )


@pytest.mark.parametrize(
    ("theirs", "ours", "message"),
    [
        (PAPER, dataclasses.replace(PAPER, depth=3), "model.depth=2 there, 3 here"),
        (
            PAPER,
            RELEASED,
            "model.position=absolute there, relative here; model.layer_scale=None there, 0.1 here",
        ),
        (
            dataclasses.replace(RELEASED, position="relative-per-block"),
            RELEASED,
            "model.position=relative-per-block there, relative here",
        ),
    ],
)
def test_another_backbone_is_refused_and_nothing_is_changed(theirs, ours, message):
    model = fresh(ours)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(UserError, match=message):
        start_from(model, stirred(Beit(theirs, 16)).state_dict(), theirs)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_a_classifier_comes_back_from_its_folder_with_its_class_names(tmp_path):
    model = stirred(fresh(PAPER, classes=2, pooling="cls", class_names=["cat", "dog"]))
    save_model(model, tmp_path)
    loaded = load_model(tmp_path, Classifier)
    assert (loaded.pooling, loaded.class_names, loaded.config) == ("cls", ("cat", "dog"), PAPER)
    pixels = torch.randn(1, 3, 64, 64)
    assert torch.equal(loaded(pixels), model.eval()(pixels))
    with pytest.raises(UserError, match="holds a classifier, and a mim is needed"):
        load_model(tmp_path, Beit)
