import json
import os

import pytest

from beit.errors import UserError
from beit.plain import override
from pipelines.cli import main
from pipelines.config.pretrain import PretrainConfig
from pipelines.presets import pretrain as presets
from pipelines.runs import run_folder


def test_a_run_does_not_go_on_with_other_data(tmp_path):
    config = override(presets.tiny64(), {"output.root": str(tmp_path), "output.name": "run"})
    folder = run_folder.create(
        config, job="pretrain", preset="tiny64", inputs={"data.train": "abc", "tokenizer": "def"}
    )
    assert run_folder.reopen(folder.uri, inputs={"data.train": "abc", "tokenizer": "def"}).attempt == 1
    with pytest.raises(UserError, match="what tokenizer names is not what the run began with"):
        run_folder.reopen(folder.uri, inputs={"data.train": "abc", "tokenizer": "other"})


@pytest.mark.parametrize("preset", sorted(presets.PRESETS))
def test_a_saved_run_gives_back_its_configuration(preset, tmp_path):
    config = override(
        presets.PRESETS[preset](),
        {"output.root": str(tmp_path), "output.name": "run", "optim.clip_norm": None},
    )
    folder = run_folder.create(config, job="pretrain", preset=preset)
    assert run_folder.saved_config(folder.uri, PretrainConfig, job="pretrain") == (config, preset)
    with pytest.raises(UserError, match="belongs to the job pretrain"):
        run_folder.saved_config(folder.uri, PretrainConfig, job="finetune")
    assert json.loads((tmp_path / "run" / "environment.json").read_text())["versions"]["ray"]


def test_a_resumed_run_may_change_who_works_and_where_to_stop_but_nothing_else():
    saved = presets.tiny64()
    run_folder.check_same(
        saved,
        override(
            saved, {"resources.workers": 2, "output.checkpoint_steps": 5, "stop_at": 100, "data.max_bad": 0.1}
        ),
    )
    with pytest.raises(UserError) as error:
        run_folder.check_same(saved, override(saved, {"mask.ratio": 0.5, "seed": 1, "resources.workers": 2}))
    assert "mask.ratio was 0.3826" in error.value.cause
    assert "seed was 0 and is now 1" in error.value.cause
    assert "workers" not in error.value.cause


def test_a_submitted_job_may_not_leave_its_run_in_the_copy_of_the_checkout(tmp_path, monkeypatch):
    copy = tmp_path / "runtime_resources" / "working_dir_files" / "_ray_pkg_1"  # as Ray lays it out
    copy.mkdir(parents=True)
    monkeypatch.chdir(copy)
    with pytest.raises(UserError, match=r"output\.root=runs lies in the job's own folder"):
        run_folder.check_free(presets.tiny64())
    run_folder.check_free(override(presets.tiny64(), {"output.root": str(tmp_path / "runs")}))
    run_folder.check_free(override(presets.tiny64(), {"output.root": "s3://bucket/runs"}))


@pytest.mark.parametrize("command", ["report", "compare"])
@pytest.mark.parametrize(
    ("content", "why"),
    [
        ('{"kind": "mim", "model": {}, "head": {}, "extra": {}}', "it has no 'job'"),
        ('{"job": "pretr', "Unterminated string"),
        ("[1]", "list"),
    ],
    ids=["a checkpoint's", "cut off", "no table"],
)
def test_a_folder_with_another_config_is_no_run_for_any_command(command, content, why, tmp_path, capsys):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(SystemExit) as exit:
        main([command, str(tmp_path)])
    said = capsys.readouterr().err
    assert (exit.value.code, said.count("\n")) == (2, 2)
    assert "config.json is no run's configuration: " in said
    assert why in said


def test_a_mistyped_run_gets_the_nearest_name(tmp_path):
    run_folder.create(
        override(presets.tiny64(), {"output.root": str(tmp_path), "output.name": "first-try"}),
        job="pretrain",
        preset="tiny64",
    )
    with pytest.raises(UserError, match=r"perhaps you meant .*/first-try"):
        run_folder.saved_config(str(tmp_path / "first-tri"), PretrainConfig, job="pretrain")


def test_a_changed_learning_rate_is_recorded_and_any_other_change_is_refused(tmp_path):
    config = override(presets.tiny64(), {"output.root": str(tmp_path), "output.name": "run"})
    folder = run_folder.create(config, job="pretrain", preset="tiny64")
    rate = config.optim.peak_lr
    slower = override(config, {"optim.peak_lr": rate / 4, "resources.cpus": 2})
    run_folder.check_same(config, slower)
    (line,) = run_folder.record_changes(folder.uri, slower, step=70)
    assert line.startswith(f"optim.peak_lr was {rate} and is {rate / 4} from step 70;")
    saved, _ = run_folder.saved_config(folder.uri, PretrainConfig, job="pretrain")
    assert saved == override(config, {"optim.peak_lr": rate / 4}), "the next resume begins with it"
    (entry,) = json.loads((tmp_path / "run" / "config.json").read_text())["history"]
    assert (entry["step"], entry["changed"]) == (70, {"optim.peak_lr": [rate, rate / 4]})
    assert run_folder.record_changes(folder.uri, slower, step=90) == []
    with pytest.raises(UserError, match=r"optim\.weight_decay was .* and is now 0\.1"):
        run_folder.check_same(config, override(config, {"optim.weight_decay": 0.1}))


def test_runs_that_begin_in_the_same_second_have_folders_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setattr(run_folder.time, "strftime", lambda *_: "20261201-120000")
    config = override(presets.tiny64(), {"output.root": str(tmp_path)})
    uris = [run_folder.create(config, job="pretrain", preset="tiny64").uri for _ in range(3)]
    began = f"{tmp_path}/tiny64-20261201-120000"
    assert uris == [began, f"{began}-2", f"{began}-3"]


def test_the_newest_run_of_a_job_and_runs_in_the_usual_folder_are_found_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="there is no run of pretrain in runs/"):
        run_folder.find_run("latest", job="pretrain")
    for number, (name, job) in enumerate(
        (("first", "pretrain"), ("second", "pretrain"), ("third", "finetune"))
    ):
        run_folder.create(override(presets.tiny64(), {"output.name": name}), job=job, preset="tiny64")
        os.utime(tmp_path / "runs" / name / "config.json", ns=(number, number))
    assert run_folder.find_run("latest", job="pretrain") == "runs/second"
    assert run_folder.find_run("first", job="pretrain") == "runs/first"
    for given in ("runs/first", "elsewhere", str(tmp_path / "runs" / "third")):
        assert run_folder.find_run(given, job="pretrain") == given
