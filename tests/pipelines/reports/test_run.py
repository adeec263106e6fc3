import json
import re
import shlex
from html.parser import HTMLParser

import pytest
from PIL import Image

from pipelines.reports.charts import Chart, chart_svg
from pipelines.reports.page import Charts, KeyFigure, Picture, Section, Table, Text
from pipelines.reports.run import Report, write_report

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


def page_of(folder, report=Report(), program="beit pretrain") -> Page:  # noqa: B008 (frozen)
    path = write_report(folder, report, program=program)
    assert path == str(folder / "report" / "index.html")
    page = Page((folder / "report" / "index.html").read_text())
    assert page.open == [], "every element is closed"
    assert all(source.startswith("data:") for source in page.sources)
    assert page.links == [], "the page needs nothing else"
    return page


def rows_of(steps: int) -> list[dict]:
    return [
        row(
            step,
            **{"train/loss": 6 - step / 100, "speed/images_per_second": 100.0, "speed/data_wait": 0.25},
        )
        for step in range(10, steps + 1, 10)
    ]


def test_key_figures_are_the_last_loss_and_how_fast_the_run_was(tmp_path):
    write_run(tmp_path, rows_of(100))
    page = page_of(tmp_path)
    for expected in ("5.000", "3,200", "25%", "more CPUs"):
        assert expected in page.text
    assert "nats" not in page.text, "what the loss means is the job's to say"
    text = page_of(
        tmp_path, Report(key_figures=[KeyFigure("angle", "3°", "of 90°")], reading="Small is good.")
    ).text
    for expected in ("angle", "3°", "of 90°", "Small is good."):
        assert expected in text
    assert "5.000" not in text


def test_everything_a_run_left_behind_is_on_the_page(tmp_path):
    write_run(
        tmp_path,
        rows_of(50),
        config__json=json.dumps({"job": "pretrain", "preset": "quick<start", "config": {"seed": 7}}),
        environment__json=json.dumps({"versions": {"torch": "9.9"}}),
        quarantine__csv='image,reason\n"a,<b>.jpg",cut short\nc.jpg,cut short\nd.jpg,empty file\n',
    )
    picture = Picture(title="A sheet", image=Image.new("RGB", (8, 8)), legend=[("left", "what is there")])
    checks = [Section("Masks", [Text("All hidden.")])]
    page = page_of(
        tmp_path, Report(pictures=[picture], checks=checks, commands=[("Classify", "beit classify <run>")])
    )
    for expected in (
        "pretrain quick<start",
        "cut short 2",
        "a,<b>.jpg",
        "A sheet",
        "what is there",
        "All hidden.",
        '"seed": 7',
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


def test_a_job_that_beit_does_not_know_is_offered_no_command_of_beit(tmp_path):
    write_run(tmp_path, rows_of(20), config__json=json.dumps({"job": "turn", "config": {}}))
    text = page_of(tmp_path, program=None).text
    assert "--resume" not in text
    assert "beit report" not in text
    text = page_of(tmp_path, program="python turn.py").text
    assert f"python turn.py --resume {tmp_path}" in text
    assert "beit report" not in text


def test_a_job_hands_over_sections_pictures_and_commands(tmp_path):
    write_run(tmp_path, rows_of(50))
    text = page_of(
        tmp_path,
        Report(
            sections=[
                Section("Angles", [Text("Off by 3° < 5°."), Table(["image", "angle"], [["a.jpg", "90"]])]),
                Section("Votes", [Charts([chart_svg(Chart(title="Votes", lines=[]))])]),
            ],
            pictures=[Picture(title="Turned images", image=Image.new("RGB", (8, 8)))],
            commands=[("Turn back", "beit turn back")],
        ),
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
    write_run(tmp_path / "short", rows_of(5_000))
    write_run(tmp_path / "long", rows_of(50_000))
    short, long = (
        len((tmp_path / name / "report" / "index.html").read_text())
        for name in ("short", "long")
        if page_of(tmp_path / name)
    )
    assert long < 1.2 * short
