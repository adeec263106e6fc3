import dataclasses
import io
import json
import os
import runpy
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from beit.plain import override
from pipelines.cli import main
from pipelines.config.probe import ProbeConfig
from pipelines.config.supervised import FinetuneConfig, SegmentConfig
from pipelines.config.tokenizer import TrainTokenizerConfig
from pipelines.presets import pretrain as presets
from pipelines.runs import run_folder
from pipelines.scenes.shards import write_scenes
from tune.ablation.config import AblationConfig
from tune.config import sweep_preset


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes")
    write_scenes(folder, images=64, seed=0, image_size=64)
    return folder


def refused(arguments, capsys):
    """What the user sees: run the command, expect exit code 2, and nothing of Python's inside."""
    with pytest.raises(SystemExit) as exit_:
        main([str(argument) for argument in arguments])
    assert exit_.value.code == 2
    shown = "".join(capsys.readouterr())
    assert "Traceback" not in shown
    assert not shown.startswith("{"), "no configuration is printed that is refused afterwards"
    return shown


def error_lines(arguments, capsys):
    cause, remedy = [
        line for line in refused(arguments, capsys).splitlines() if line.startswith(("error: ", "       "))
    ]
    return cause.removeprefix("error: "), remedy.strip()


def test_help_lists_the_commands_without_importing_anything_heavy():
    heavy = "{'torch', 'ray', 'numpy', 'pyarrow', 'tyro'}"
    code = (
        f"import sys; from pipelines.cli import main; main(['--help']); print(sorted({heavy} & "
        "set(sys.modules)))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "beit pretrain" in shown
    assert shown.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    ("arguments", "cause", "remedy"),
    [
        (["pretrian"], "no command beit pretrian", "beit pretrain"),
        (["pretrain", "bse"], "pretrain has no preset bse", "perhaps you meant base"),
        (["pretrain", "tests"], "pretrain has no preset tests", "--data.train tests"),
        (["tokenizer", "train", "photo46"], "tokenizer train has no preset photo46", "photo64"),
        (["pretrain", "--mask.kind", "blok", "--dry-run"], "mask.kind=blok", "blockwise"),
        (["pretrain", "--target.kind", "token", "--dry-run"], "target.kind=token", "tokens"),
        (
            ["pretrain", "--evaluation.mask.kind", "blok", "--dry-run"],
            "evaluation.mask.kind=blok",
            "blockwise",
        ),
        (["pretrain", "--data.train", "/nowhere/at/all"], "data.train=/nowhere/at/all", ""),
        (["pretrain", "--tokenizer.name", "dall-e"], "'dall-e'", "random-dalle"),
        (["sweep", "--space", "nosuch"], "--space nosuch is no space", "mask-lr"),
        (["sweep", "--evaluation.images", "0"], "evaluation.images=0", "--evaluation.images 256"),
        (["sweep", "--trials", "5", "--space", "mask-lr-grid"], "4 x 4 = 16", "--trials 16"),
        (
            ["ablate", "--rows", "beit", "beit"],
            "--rows beit beit: each is to be given once",
            "leave out --rows",
        ),
        (["ablate", "base-300"], "data.train is not given", "beit ablate quickstart"),
        (["finetune", "nosuch"], "nosuch is neither a run folder", "quickstart"),
        (["probe", "runs/a", "images"], "images belongs to no option", "--data.train"),
        (["pretrain", "--resume", "--dry-run"], "--resume needs a value", "write --resume VALUE"),
        (["finetune", "base"], "data.train is not given", "--data.val"),
        (["finetune", "--data.fraction", "2"], "data.fraction=2.0", "data.fraction=1"),
        (["segment", "nosuch"], "nosuch is neither a run folder", "camvid"),
        (["segment", "ade20k"], "data.train is not given", "--data.val"),
        (["segment", "--test.stride", "65"], "test.stride=65 leaves pixels out", "test.stride=42"),
        (
            [
                "segment",
                "--head",
                "upernet",
                "--optim.global-batch-size",
                "65",
                "--resources.micro-batch-size",
                "8",
                "--resources.workers",
                "1",
            ],
            "leaves a part of one image",
            "--resources.micro-batch-size 9",
        ),
        (["pretrain", "--mask.ratio", "1.5"], "mask.ratio=1.5", "0.38"),
        (["pretrain", "--mask.ratio", "0.03"], "most masks would be empty", "mask.min_block"),
        (["pretrain", "--resources.workers", "3"], "64 / resources.workers=3 = 21.33", "63"),
        (["pretrain", "--resume", "/nowhere/run"], "/nowhere/run is no run", "folder of a run"),
        (["pretrain", "base"], "data.train is not given", "--data.train"),
        (["pretrain", "--steps", "0"], "--steps 0", "1 or more"),
    ],
)
def test_a_mistake_is_one_line_of_cause_and_one_of_remedy(arguments, cause, remedy, capsys, scenes, tmp_path):
    if arguments[0] == "pretrain" and not {"--data.train", "--resume", "base"} & set(arguments):
        arguments = [*arguments, "--data.train", scenes]
    if arguments[0] == "pretrain":
        arguments = [*arguments, "--output.root", tmp_path / "runs"]
    shown_cause, shown_remedy = error_lines(arguments, capsys)
    assert cause in shown_cause
    assert remedy in shown_remedy
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("command", ["pretrain", "finetune", "segment", "tokenizer train"])
def test_what_this_machine_has_no_room_for_is_refused_before_scenes_are_rendered(
    command, capsys, tmp_path, monkeypatch
):
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    output = ["--output.root", tmp_path / "runs", "--resources.cpus", 2, "--resources.worker-cpus", 4]
    cause, remedy = error_lines([*command.split(), *output], capsys)
    assert cause.startswith("1 worker x 4 CPU: there is room for 0 on 1 machine x 2 CPU")
    assert remedy == "set --resources.worker-cpus 1"
    assert list(tmp_path.iterdir()) == []


def test_a_folder_without_images_and_a_shard_without_an_image_column_say_what_is_there(tmp_path, capsys):
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "notes.txt").write_text("no image")
    assert "texts" in error_lines(["pretrain", "--data.train", tmp_path / "texts"], capsys)[0]
    pq.write_table(pa.table({"caption": ["a"], "id": [1]}), tmp_path / "shard.parquet")
    cause, _ = error_lines(["pretrain", "--data.train", tmp_path / "shard.parquet"], capsys)
    assert "caption" in cause


def test_a_path_is_shown_as_it_was_typed(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for typed in ("nowhere", "/nowhere"):
        cause, _ = error_lines(["finetune", "quickstart", "--data.train", typed], capsys)
        assert f"data.train={typed} " in cause


def test_tokens_that_do_not_lie_on_the_patches_are_refused_with_the_size_that_would(scenes, capsys):
    cause, remedy = error_lines(["pretrain", "--data.train", scenes, "--tokenizer.image-size", "112"], capsys)
    assert "14 x 14 visual tokens" in cause
    assert "8 x 8 patches" in cause
    assert remedy == "set --tokenizer.image-size 64"


def test_a_name_in_use_is_refused_and_resuming_with_other_settings_shows_the_difference(
    scenes, tmp_path, capsys
):
    config = dataclasses.replace(
        presets.quickstart(),
        data=dataclasses.replace(presets.quickstart().data, train=str(scenes)),
        output=dataclasses.replace(presets.quickstart().output, root=str(tmp_path), name="mine"),
        optim=dataclasses.replace(presets.quickstart().optim, warmup_steps=0),
        stop_at=10,
    )
    run_folder.create(config, job="pretrain", preset="quickstart")
    cause, remedy = error_lines(
        ["pretrain", "--data.train", scenes, "--output.root", tmp_path, "--output.name", "mine"], capsys
    )
    assert "mine" in cause
    assert f"--resume {tmp_path}/mine" in remedy
    main(["pretrain", "--resume", str(tmp_path / "mine"), "--dry-run"])
    assert json.loads(capsys.readouterr().out)["stop_at"] is None  # to go on means to go past it
    cause, _ = error_lines(
        ["pretrain", "--resume", tmp_path / "mine", "--optim.beta2", "0.5", "--resources.workers", "2"],
        capsys,
    )
    assert "optim.beta2 was 0.999 and is now 0.5" in cause
    assert "workers" not in cause


@pytest.mark.parametrize(
    ("job", "config"),
    [
        ("pretrain", presets.quickstart()),
        ("tokenizer train", TrainTokenizerConfig()),
        ("finetune", FinetuneConfig()),
        ("segment", SegmentConfig()),
        ("probe", ProbeConfig()),
        ("sweep", sweep_preset("quickstart")),
        ("ablate", AblationConfig()),
    ],
)
def test_every_job_goes_on_with_other_resources_and_without_other_settings(job, config, tmp_path, capsys):
    config = override(config, {"output.root": str(tmp_path), "output.name": "mine"})
    run_folder.create(config, job=job, preset="mine")
    main([*job.split(), "--resume", str(tmp_path / "mine"), "--resources.cpus", "3", "--dry-run"])
    assert json.loads(capsys.readouterr().out)["resources"]["cpus"] == 3
    cause, _ = error_lines([*job.split(), "--resume", tmp_path / "mine", "--seed", "7"], capsys)
    assert "seed was 0 and is now 7" in cause


def test_a_dry_run_prints_a_configuration_that_a_run_accepts(tmp_path, capsys):
    main(
        [
            "pretrain",
            "base",
            "--optim.peak-lr",
            "1e-3",
            "--view.mean",
            "0.5",
            "0.5",
            "0.5",
            "--steps",
            "9",
            "--dry-run",
        ]
    )
    shown = capsys.readouterr()
    printed = json.loads(shown.out)
    assert printed["optim"]["peak_lr"] == 1e-3
    assert "9 x 2,048 images = 18,432" in shown.err, "the arithmetic does not disturb what is piped"
    saved = tmp_path / "config.json"
    saved.write_text(json.dumps({"job": "pretrain", "preset": "base", "inputs": {}, "config": printed}))
    main(["pretrain", str(saved), "--dry-run"])
    again = json.loads(capsys.readouterr().out)
    assert again == printed
    assert np.isclose(again["view"]["mean"][0], 0.5)


def test_each_line_is_written_when_it_is_printed_and_a_reader_that_leaves_ends_the_command(monkeypatch):
    into_a_file = io.TextIOWrapper(io.BytesIO())
    monkeypatch.setattr(sys, "stdout", into_a_file)
    main(["--help"])
    assert into_a_file.buffer.getvalue().startswith(b"beit: pretrain BEiT")
    ours, theirs = os.pipe()
    os.close(ours)
    command = subprocess.Popen(
        [sys.executable, "-m", "pipelines.cli", "data", "scenes", "--help"],
        stdout=theirs,
        stderr=subprocess.PIPE,
    )
    os.close(theirs)
    assert command.communicate()[1] == b""
    assert command.returncode == 141, "what a shell says of a command that a closed pipe has ended"


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
@pytest.mark.parametrize("module", ["pretrain", "finetune", "segment", "train_tokenizer"])
def test_the_modules_of_long_jobs_take_the_same_options(module, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [module, "--seed", "3", "--dry-run"])
    # What `python -m` does, in a process that has imported torch already.
    runpy.run_module(f"pipelines.{module}", run_name="__main__", alter_sys=True)
    assert json.loads(capsys.readouterr().out)["seed"] == 3
