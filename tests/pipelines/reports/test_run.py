import json
import re
import shlex
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from beit.config import MaskConfig, ModelConfig, TargetConfig
from beit.plain import to_dict
from beit.pretraining.pictures import Reconstructions
from beit.pretraining.targets import VisualTokens
from pipelines.config.pretrain import PretrainConfig
from pipelines.reports.charts import Chart, chart_svg
from pipelines.reports.page import Charts, Picture, Section, Table, Text
from pipelines.reports.reconstructions import reconstruction_picture
from pipelines.reports.run import write_report

VOID = {"meta", "img", "br", "link", "input"}


class Page(HTMLParser):
    """Text, attributes, and whether every element that is opened is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open, self.words, self.sources, self.links = [], [], [], []
        self.feed(text)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attributes):
        if tag not in VOID:
            self.open.append(tag)
        self.sources += [value for name, value in attributes if name == "src"]
        self.links += [
            value
            for name, value in attributes
            if name in ("href", "xlink:href") and not value.startswith("#")
        ]

    def handle_startendtag(self, tag, attributes):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] != ["style"]:
            self.words.append(data)


def row(step: int, **metrics: float | None) -> dict:
    return {"step": step, "images": 32 * step, "time": 1000.0 + step, **metrics}


def write_run(folder, rows, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(content)


def page_of(folder, **arguments) -> Page:
    path = write_report(folder, **arguments)
    assert path == str(folder / "report" / "index.html")
    page = Page((folder / "report" / "index.html").read_text())
    assert page.open == [], "every element is closed"
    assert all(source.startswith("data:") for source in page.sources)
    assert page.links == [], "the page needs nothing else"
    return page


def pretraining_rows(steps: int) -> list[dict]:
    return [
        row(
            step,
            **{
                "train/loss": 6 - step / 100,
                "train/unigram": 5.5,
                "train/accuracy": step / 1000,
                "train/majority": 0.05,
                "train/hidden": 0.38,
                "optim/lr": 1e-3,
                "speed/images_per_second": 100.0,
                "speed/data_wait": 0.25,
            },
        )
        for step in range(10, steps + 1, 10)
    ]


def test_key_figures_are_those_of_the_last_row_with_their_baselines(tmp_path):
    write_run(tmp_path, pretraining_rows(100))
    text = page_of(tmp_path).text
    for expected in (
        "5.000",
        "+0.500 nats better than the unigram baseline, 5.500",
        "10.0%",
        "5.0%",
        "3,200",
        "25%",
        "more CPUs",
    ):
        assert expected in text
    write_run(tmp_path, pretraining_rows(20))
    assert "not yet below the unigram baseline" in page_of(tmp_path).text


def test_everything_a_run_left_behind_is_on_the_page(tmp_path):
    config = PretrainConfig(
        model=ModelConfig(image_size=64, patch_size=8), mask=MaskConfig(kind="random", ratio=0.25)
    )
    write_run(
        tmp_path,
        pretraining_rows(50),
        config__json=json.dumps({"job": "pretrain", "preset": "quick<start", "config": to_dict(config)}),
        environment__json=json.dumps({"versions": {"torch": "9.9"}}),
        quarantine__csv='image,reason\n"a,<b>.jpg",cut short\nc.jpg,cut short\nd.jpg,empty file\n',
    )
    picture = Picture(title="A sheet", image=Image.new("RGB", (8, 8)), legend=[("left", "what is there")])
    page = page_of(
        tmp_path,
        pictures=[picture],
        class_counts=[8, 4, 4, 0],
        commands=[("Classify", "beit classify <run>")],
    )
    for expected in (
        "pretrain quick<start",
        "cut short 2",
        "a,<b>.jpg",
        "A sheet",
        "what is there",
        "3 of 4 tokens occurred",
        "commonest stands for 50.0%",
        "as evenly as 3 equally",  # exp(0.5 ln 2 + 2 * 0.25 ln 4) = 2.83
        (
            "Random masks with a budget of 16 of 64 patches hide 25.0% on average; the training saw 38.0%, "
            "which does not agree"
        ),
        "beit classify <run>",
        f"beit pretrain --resume {tmp_path}",
        f"beit report {tmp_path}",
        '"torch": "9.9"',
    ):
        assert expected in page.text
    assert len(page.sources) == 1


def test_commands_can_be_pasted_whatever_the_folder_is_called(tmp_path):
    folder = tmp_path / "a run's <folder>"
    write_run(folder, [], config__json=json.dumps({"job": "pretrain", "config": {}}))
    text = page_of(folder).text
    for command in (["beit", "pretrain", "--resume", str(folder)], ["beit", "report", str(folder)]):
        assert shlex.join(command) in text


def test_a_job_hands_over_sections_pictures_and_commands(tmp_path):
    write_run(tmp_path, pretraining_rows(50))
    text = page_of(
        tmp_path,
        sections=[
            Section("Angles", [Text("Off by 3° < 5°."), Table(["image", "angle"], [["a.jpg", "90"]])]),
            Section("Votes", [Charts([chart_svg(Chart(title="Votes", lines=[]))])]),
        ],
        pictures=[Picture(title="Turned images", image=Image.new("RGB", (8, 8)))],
        commands=[("Turn back", "beit turn back")],
    ).text
    places = [
        text.index(part)
        for part in ("Angles", "Off by 3° < 5°.", "Votes", "Turned images", "Curves", "Turn back")
    ]
    assert places == sorted(places)


def test_other_jobs_metrics_get_a_chart_each(tmp_path):
    write_run(
        tmp_path,
        [
            row(step, **{"train/other": 1.0 * step, "val/miou": 0.5, "train/empty": None})
            for step in (1, 2, 3)
        ],
    )
    text = (tmp_path / "report" / "index.html").read_text() if page_of(tmp_path) else ""
    assert re.findall(r'aria-label="([^"]*)"', text) == ["train/other", "val/miou"]


@pytest.mark.parametrize("rows", [[], [row(1, **{"train/loss": 3.0})], [row(1, **{"train/loss": None})]])
def test_a_run_that_hardly_began_has_a_report_too(tmp_path, rows):
    write_run(tmp_path, rows)
    assert "Quarantine" in page_of(tmp_path).text


def test_long_runs_do_not_make_large_pages(tmp_path):
    write_run(tmp_path / "short", pretraining_rows(5_000))
    write_run(tmp_path / "long", pretraining_rows(50_000))
    short, long = (
        len((tmp_path / name / "report" / "index.html").read_text())
        for name in ("short", "long")
        if page_of(tmp_path / name)
    )
    assert long < 1.2 * short


@pytest.mark.parametrize("decoder", [True, False])
def test_legend_explains_the_columns_that_are_there(decoder):
    picture = np.zeros((1, 16, 16, 3), dtype=np.uint8) if decoder else None
    shown = Reconstructions(
        target=VisualTokens,
        images=np.zeros((1, 32, 32, 3), dtype=np.uint8),
        masks=np.array([[[True, False], [False, True]]]),
        asked=np.array([[[True, False], [False, True]]]),
        true=np.array([[1, 2, 3, 4]]),
        predicted=np.array([[1, 0, 0, 0]]),
        painted_true=picture,
        painted_filled=picture,
        painted_predicted=picture,
    )
    legend = dict(reconstruction_picture(shown).legend)
    assert "50.0% of the hidden patches are right" in legend["right and wrong"]
    assert ("true tokens, decoded" in legend) == decoder


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
def test_a_run_with_another_target_is_told_in_its_own_words(tmp_path, target, metrics, there, absent):
    config = to_dict(
        PretrainConfig(
            model=ModelConfig(image_size=64, patch_size=8), target=target, mask=MaskConfig(kind="random")
        )
    )
    del config["mask"]
    write_run(
        tmp_path,
        [row(1, **metrics), row(2, **metrics)],
        config__json=json.dumps({"job": "pretrain", "config": config}),
    )
    text = page_of(tmp_path, class_counts=None if target.kind == "pixels" else [8, 4, 4, 0]).text
    text = text[: text.index("Configuration")]
    assert all(expected in text for expected in there)
    assert not any(word in text for word in absent)
