import pytest

from beit.config import MaskConfig, ModelConfig, TargetConfig
from pipelines.config.pretrain import PretrainConfig
from pipelines.reports.pretraining import pretraining_report

MODEL = ModelConfig(image_size=64, patch_size=8)


def pretraining_rows(steps: int) -> list[dict]:
    return [
        {
            "step": step,
            "train/loss": 6 - step / 100,
            "train/unigram": 5.5,
            "train/accuracy": step / 1000,
            "train/majority": 0.05,
            "train/hidden": 0.38,
        }
        for step in range(10, steps + 1, 10)
    ]


def told(config: PretrainConfig, rows, counts=None) -> tuple[list[tuple[str, ...]], str]:
    """The key figures, and the text of all the rest as HTML."""
    report = pretraining_report(config, rows, counts)
    figures = [(figure.name, figure.value, figure.note) for figure in report.key_figures]
    rest = [report.reading, *(chart.title for chart in report.charts), *(one.html() for one in report.checks)]
    return figures, "\n".join(rest)


def test_key_figures_are_those_of_the_last_row_with_their_baselines():
    figures, text = told(PretrainConfig(model=MODEL), pretraining_rows(100))
    assert figures == [
        ("loss", "5.000", "+0.500 nats better than the unigram baseline, 5.500"),
        ("accuracy", "10.0%", "always the commonest token: 5.0%"),
    ]
    assert "The unigram baseline is the loss of a model" in text
    ((_, _, note), _), _ = told(PretrainConfig(model=MODEL), pretraining_rows(20))
    assert note.startswith("not yet below the unigram baseline")


def test_classes_are_counted_and_masks_are_compared_with_their_rule():
    config = PretrainConfig(model=MODEL, mask=MaskConfig(kind="random", ratio=0.25))
    _, text = told(config, pretraining_rows(50), [8, 4, 4, 0])
    for expected in (
        "3 of 4 tokens occurred behind hidden patches",
        "commonest stands for 50.0%",
        "as evenly as 3 equally",  # exp(0.5 ln 2 + 2 * 0.25 ln 4) = 2.83
        "Random masks with a budget of 16 of 64 patches hide 25.0% on average; the training saw 38.0%, "
        "which does not agree",
    ):
        assert expected in text
    hidden = [{"step": 1, "train/hidden": 0.25}, {"step": 2, "train/hidden": 0.25}]
    assert "the training saw 25.0%." in told(config, hidden)[1]
    assert (
        "the training saw 0.0%, which does not agree" in told(config, [{"step": 1, "train/hidden": 0.0}])[1]
    )
    nothing = PretrainConfig(model=MODEL, mask=MaskConfig(ratio=0.0))
    assert "No patch was hidden" in told(nothing, [])[1]


@pytest.mark.parametrize(
    ("target", "metrics", "there", "absent"),
    [
        (
            TargetConfig(kind="pixels"),
            {"train/loss": 0.75, "train/variance": 1.0, "train/explained": 0.25},
            ("mean squared error; always the mean colour: 1.000", "25.0% of the pixels' variance"),
            ("unigram", "token", "nats"),
        ),
        (
            TargetConfig(kind="colour", positions="all"),
            {"train/loss": 5.0, "train/unigram": 5.5, "train/accuracy": 0.1, "train/majority": 0.05},
            ("always the commonest colour: 5.0%", "3 of 4 colours occurred in the patches"),
            ("token", "hidden"),
        ),
    ],
    ids=["pixels", "colour"],
)
def test_a_run_with_another_target_is_told_in_its_own_words(target, metrics, there, absent):
    config = PretrainConfig(model=MODEL, target=target)
    counts = None if target.kind == "pixels" else [8, 4, 4, 0]
    figures, text = told(config, [{"step": 1, **metrics}, {"step": 2, **metrics}], counts)
    text = "\n".join([*map(" ".join, figures), text[: text.index("masks with a budget")]])
    assert all(expected in text for expected in there)
    assert not any(word in text for word in absent)
