"""Targets are found by name, and a registered target is described and drawn like a built-in one."""

import copy

import numpy as np
import pytest
import torch

from beit.config import MaskConfig, ModelConfig, OptimConfig, TargetConfig, ViewConfig
from beit.errors import UserError
from beit.pretraining.model import Beit
from beit.pretraining.objective import MimObjective
from beit.pretraining.pictures import reconstruct, reconstruction_sheet
from beit.pretraining.targets import (
    TARGETS,
    MeanColour,
    Pixels,
    Target,
    TargetSetting,
    VisualTokens,
    find_target,
    register_target,
)

MODEL = ModelConfig(image_size=32, patch_size=8, dim=16, depth=2, heads=2, drop_path=0.0)
SETTING = TargetSetting(
    target=TargetConfig(), model=MODEL, view=ViewConfig(), mask=MaskConfig(), seed=0, vocab_size=20
)


class Contrast(Target):
    """The standard deviation of a patch's values in each channel: the smallest possible target."""

    kind, noun = "contrast", "contrast"

    def __init__(self) -> None:
        self.outputs = 3

    @classmethod
    def from_setting(cls, setting):
        return cls()

    @classmethod
    def predicted(cls, setting):
        return "the contrast"

    def truth(self, batch, pixels, positions):
        squares = pixels.unflatten(3, (-1, 8)).unflatten(2, (-1, 8))
        contrast = squares.std((3, 5)).flatten(2).transpose(1, 2)
        return contrast.gather(1, positions[..., None].expand(-1, -1, 3))

    def sums(self, outputs, truth, asked):
        return {"loss": torch.where(asked, (outputs - truth).square().mean(-1), 0).sum()}

    def metrics(self, sums, weight):
        return {"loss": float(sums["loss"]) / weight}

    def guess(self, outputs):
        return outputs


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    monkeypatch.setattr(TARGETS, "_choices", dict(TARGETS._choices))
    assert register_target(Contrast) is Contrast


def test_targets_are_found_by_name_and_built_from_what_a_run_knows():
    for kind, target, outputs in (
        ("tokens", VisualTokens, 20),
        ("pixels", Pixels, 192),
        ("colour", MeanColour, 512),
        ("contrast", Contrast, 3),
    ):
        assert find_target(kind) is target
        built = find_target(kind).from_setting(SETTING)
        assert (type(built), built.outputs) == (target, outputs)


def test_an_unknown_name_is_refused_with_the_nearest_one():
    with pytest.raises(UserError) as refused:
        find_target("pixel")
    assert refused.value.cause == "target.kind=pixel is none of tokens, pixels, colour, contrast"
    assert refused.value.remedy.startswith("perhaps you meant pixels; ")


def test_a_name_is_replaced_by_the_latest_but_a_built_in_one_is_not():
    class Again(Contrast):
        pass

    register_target(Again)
    assert find_target("contrast") is Again

    class Tokens(Contrast):
        kind = "tokens"

    with pytest.raises(ValueError, match="is built in"):
        register_target(Tokens)
    register_target(VisualTokens)


def test_every_target_says_what_a_run_prints_and_draws():
    metrics = {"train/loss": 2.0, "train/unigram": 3.0, "train/accuracy": 0.1, "train/variance": 4.0}
    for target in map(find_target, TARGETS.names):
        assert target.predicted(SETTING)
        assert "2.000" in target.conclusion(metrics)
        assert target.key_figures(metrics)[0][:2] == ("loss", "2.000")
        assert target.key_figures({}) == []
        assert target.conclusion({}) is None
        assert target.baseline({}) == ""
        drawn = {metric for chart in target.charts() for metric, _ in (*chart.curves, *chart.baselines)}
        assert {"train/loss", "eval/loss"} <= drawn
        printed = {name for _, names in target.progress for name in names.split()}
        assert printed <= drawn, "what the progress line shows has a curve"


def test_one_that_gathers_nothing_and_cannot_be_painted_trains_and_is_drawn(tmp_path):
    mim = MimObjective(
        MODEL, OptimConfig(), ViewConfig(), target=Contrast.from_setting(SETTING), total_steps=10, seed=0
    )
    rng = torch.Generator().manual_seed(0)
    batch = {
        "patch_view": torch.randint(0, 256, (3, 32, 32, 3), dtype=torch.uint8, generator=rng),
        "mask": torch.rand(3, 16, generator=rng) < 0.4,
    }
    sums = mim({name: batch[name] for name in mim.columns})
    sums["loss"].backward()
    found = {name: value.detach().numpy() for name, value in sums.items()}
    weight = mim.weight({name: column.numpy() for name, column in batch.items()})
    assert mim.metrics(found, weight)["loss"] == mim.unseen_metrics(found, weight)["loss"] > 0
    mim.save(tmp_path)
    copy.deepcopy(mim).load(tmp_path)
    shown = reconstruct(mim.model, mim.target, batch, ViewConfig())
    assert shown.right is None
    assert shown.painted_predicted is None
    sheet = np.asarray(reconstruction_sheet(shown, side=64))
    assert sheet.shape[1] == 6 + 2 * 70, "the original, and what the model sees"


def test_a_model_says_what_it_predicts_though_its_target_is_not_known_here():
    model = Beit(MODEL, 3, target="somebody's")
    assert Beit.from_config(MODEL, model.head_config).target == "somebody's"
