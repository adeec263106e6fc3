from dataclasses import asdict, replace

import pytest
import ray.tune

from beit.config import ModelConfig
from beit.pretraining.model import Beit
from beit.vit.checkpoints import save_model
from pipelines.evaluation.every_image import FOLDER
from pipelines.runs import evaluations
from tune.ablation import chain_run
from tune.ablation.chain import (
    Chain,
    JobState,
    chains_of,
    is_settled,
    left_to_do,
    read_state,
    value_of,
    write_state,
)
from tune.ablation.chain_run import CHAIN, Setup, pretrain_config, run_chain, run_job
from tune.ablation.config import ClassifyProtocol, SegmentProtocol, ablation_preset
from tune.ablation.table import read_table

CHAIN_0 = Chain(row="pixels", seed=0, tasks=("classify", "segment"))


def finish(folder, chain, task, value, status="finished"):
    figure = {"classify": "top1", "segment": "mean_iou"}[task]
    evaluations.save(f"{folder}/{chain.job_name(task)}", FOLDER, 5, {figure: value / 200})
    evaluations.save(f"{folder}/{chain.job_name(task)}", FOLDER, 10, {figure: value / 100})
    evaluations.save(f"{folder}/{chain.job_name(task)}", FOLDER, 10, {figure: 0.0}, variant="-flip")
    write_state(folder, chain, task, JobState(status=status))


def setup_of(tmp_path, **values):
    config = replace(ablation_preset("quickstart"), **values)
    steps = {"classify": 100, "segment": 60}
    return Setup(
        config=config,
        folder=str(tmp_path),
        preset="quickstart",
        images=4000,
        steps=steps,
        tokens={0: "/tokens"},
        debug=False,
    )


def test_every_row_is_begun_with_the_first_seed_before_the_next():
    chains = chains_of(["beit", "pixels"], [3, 4], ["classify"])
    assert [chain.name for chain in chains] == ["beit-seed3", "pixels-seed3", "beit-seed4", "pixels-seed4"]
    assert chains[0].jobs == ("pretrain", "classify")
    assert CHAIN_0.job_name("segment") == "pixels-seed0-segment"


def test_finished_jobs_are_kept_and_all_others_are_left_to_do(tmp_path):
    folder = str(tmp_path)
    assert left_to_do(folder, CHAIN_0) == ["pretrain", "classify", "segment"]
    write_state(folder, CHAIN_0, "pretrain", JobState(status="finished"))
    write_state(folder, CHAIN_0, "classify", JobState(status="failed", error="it broke"))
    write_state(folder, CHAIN_0, "segment", JobState(status="running"))
    assert left_to_do(folder, CHAIN_0) == ["classify", "segment"]
    assert read_state(folder, CHAIN_0, "classify").error == "it broke"


def test_a_chain_is_settled_when_nothing_was_broken_off(tmp_path):
    cases = {
        ("finished", "finished", "finished"): True,
        ("finished", "failed", "finished"): True,
        ("failed", "waiting", "waiting"): True,
        ("finished", "running", "waiting"): False,
        ("finished", "failed", "waiting"): False,
        ("waiting", "waiting", "waiting"): False,
    }
    for number, (states, settled) in enumerate(cases.items()):
        folder = str(tmp_path / str(number))
        for job, status in zip(CHAIN_0.jobs, states, strict=True):
            write_state(folder, CHAIN_0, job, JobState(status=status))
        assert is_settled(folder, CHAIN_0) == settled, states


def test_a_value_is_that_of_the_last_step_and_of_a_task_that_came_to_its_end(tmp_path):
    folder = str(tmp_path)
    finish(folder, CHAIN_0, "classify", 27.5)
    finish(folder, CHAIN_0, "segment", 30.0, status="running")
    assert value_of(folder, CHAIN_0, "classify") == pytest.approx(27.5)
    assert value_of(folder, CHAIN_0, "segment") is None


def test_the_table_is_read_from_the_folders_of_the_jobs(tmp_path):
    folder = str(tmp_path)
    for seed, value in ((0, 20.0), (1, 24.0)):
        chain = replace(CHAIN_0, seed=seed)
        write_state(folder, chain, "pretrain", JobState(status="finished"))
        finish(folder, chain, "classify", value)
    write_state(folder, CHAIN_0, "segment", JobState(status="failed", error="it broke"))
    (line,) = read_table(folder, ["pixels"], [0, 1], ["classify", "segment"]).lines
    assert line.results["classify"].mean == pytest.approx(22)
    assert line.results["classify"].spread == pytest.approx(8**0.5)
    assert "segment" not in line.results
    assert line.missing == ("pixels-seed0-segment failed: it broke", "pixels-seed1-segment was not begun")


def test_rows_that_predict_tokens_read_those_of_their_seed_and_the_others_none(tmp_path):
    setup = setup_of(tmp_path)
    configs = {row: pretrain_config(setup, replace(CHAIN_0, row=row)) for row in setup.config.rows}
    assert {row for row, config in configs.items() if config.data.tokens == "/tokens"} == {
        "beit",
        "random-masks",
        "all-tokens",
        "no-masks",
        "longer",
    }
    assert pretrain_config(setup, replace(CHAIN_0, row="beit", seed=1)).data.tokens is None
    assert configs["beit"].output.name == "beit-seed0-pretrain"
    assert (configs["beit"].output.checkpoint_steps, configs["longer"].output.checkpoint_steps) == (75, 200)


def test_both_tasks_begin_with_what_the_pretraining_has_left_and_follow_the_protocol(tmp_path, monkeypatch):
    pretrained = tmp_path / "pixels-seed3-pretrain"
    save_model(
        Beit(ModelConfig(image_size=32, patch_size=8, dim=24, depth=2, heads=2), 16, seed=1),
        pretrained / "model",
        extra={"view": {}},
    )
    protocol = {"recipe": "quickstart", "steps": 7, "peak_lr": 0.5, "val": "/val"}
    setup = setup_of(
        tmp_path,
        classify=ClassifyProtocol(train="/labelled", fraction=0.25, **protocol),
        segment=SegmentProtocol(
            train="/annotated", annotations="/ids", val_annotations="/val-ids", **protocol
        ),
    )
    jobs = []
    monkeypatch.setattr(
        "tune.ablation.chain_run.finetune", lambda config, **options: jobs.append((config, options))
    )
    monkeypatch.setattr(
        "tune.ablation.chain_run.segment", lambda config, **options: jobs.append((config, options))
    )
    chain = replace(CHAIN_0, seed=3)
    for task in chain.tasks:
        run_job(setup, chain, task, print)
    (classify, how), (segment, _) = jobs
    assert (how["preset"], how["resume"]) == ("quickstart", None)
    assert (classify.data.train, classify.data.fraction, classify.data.val) == ("/labelled", 0.25, "/val")
    assert (segment.data.train, segment.data.annotations, segment.data.val_annotations) == (
        "/annotated",
        "/ids",
        "/val-ids",
    )
    for task, config in {"classify": classify, "segment": segment}.items():
        assert (config.start, config.model.dim, config.seed) == (str(pretrained), 24, 3)
        assert (config.steps, config.optim.peak_lr) == (7, 0.5)
        assert (config.output.root, config.output.name) == (str(tmp_path), f"pixels-seed3-{task}")


def run(monkeypatch, setup, failing=()):
    """The jobs that a chain runs; some of them fail."""
    done = []

    def job(setup, chain, name, say):
        done.append(name)
        if name in failing:
            raise ValueError(f"{name} broke")

    monkeypatch.setattr(chain_run, "run_job", job)
    monkeypatch.setattr(ray.tune, "report", lambda metrics: None)
    try:
        run_chain({CHAIN: asdict(CHAIN_0)}, setup=setup)
    except ValueError as error:
        return done, str(error)
    return done, None


def test_a_task_that_fails_does_not_stop_the_other_and_is_done_again_by_the_next_start(tmp_path, monkeypatch):
    setup = setup_of(tmp_path)
    assert run(monkeypatch, setup, failing=["classify"]) == (
        ["pretrain", "classify", "segment"],
        "classify broke",
    )
    assert read_state(setup.folder, CHAIN_0, "classify") == JobState(status="failed", error="classify broke")
    assert run(monkeypatch, setup) == (["classify"], None)
    assert run(monkeypatch, setup) == ([], None)


def test_without_its_pretraining_nothing_of_a_chain_is_fine_tuned(tmp_path, monkeypatch):
    setup = setup_of(tmp_path)
    assert run(monkeypatch, setup, failing=["pretrain"]) == (["pretrain"], "pretrain broke")
    assert read_state(setup.folder, CHAIN_0, "segment").status == "waiting"
