import math

import pytest

from beit.config import ViewConfig
from beit.errors import UserError
from beit.plain import from_dict, to_dict
from beit.tokenizer.config import DvaeConfig
from beit.tokenizer.objective import DvaeObjective
from pipelines.config.tokenizer import TrainTokenizerConfig
from pipelines.presets.tokenizer import PRESETS, dalle
from pipelines.train_tokenizer import TokenizerTask

TASK = TokenizerTask()


def test_dalles_schedules_are_those_of_its_appendix():
    config = dalle()
    small = DvaeConfig(vocab_size=8, encoder_width=4, decoder_width=4, blocks=1, bottleneck=4)
    objective = DvaeObjective(small, config.train, config.optim, total_steps=config.steps, seed=0)

    def at(step):
        objective.start_step(step)
        return objective.kl_weight, objective.temperature, objective.learning_rate(step)

    def cosine(step, steps, first, last):
        return last + (first - last) * (1 + math.cos(math.pi * min(1, step / steps))) / 2

    for step in (0, 1, 2_500, 5_000, 75_000, 150_000, 600_000, 1_200_000, 2_999_999):
        expected = (
            cosine(step, 5_000, 0, 6.6),
            cosine(step, 150_000, 1, 1 / 16),
            cosine(step, 1_200_000, 1e-4, 1.25e-6),
        )
        assert at(step) == pytest.approx(expected, rel=1e-4, abs=1e-12)
    assert at(2_999_999) == (6.6, 1 / 16, 1.25e-6)
    assert objective.average is not None
    assert {group["lr_scale"] for group in objective.optimizer().param_groups} == {1.0}
    assert config.dvae == DvaeConfig(
        vocab_size=8192, encoder_width=256, decoder_width=256, blocks=2, bottleneck=128
    )
    assert (config.optim.global_batch_size, config.steps, config.image_size) == (512, 3_000_000, 256)
    assert config.view == ViewConfig(short_side=(288, 384), jitter=0)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_survives_its_json(name):
    config = TASK.preset(name)
    assert from_dict(TrainTokenizerConfig, to_dict(config)) == config


def test_large_tokenizers_want_images_and_unknown_names_are_refused():
    with pytest.raises(UserError, match=r"data\.train is not given"):
        TASK.prepare(dalle(), preset="dalle", say=lambda line: None)
    with pytest.raises(UserError, match="tokenizer train has no preset dale"):
        TASK.preset("dale")
