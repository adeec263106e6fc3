import csv
import io
import json
import re
from pathlib import Path

from beit.plain import override
from pipelines.config.pretrain import PretrainConfig
from pipelines.reports.page import REPORT_FILE
from pipelines.runs import run_folder
from pipelines.runs.metrics import METRICS_FILE
from tune.config import sweep_preset
from tune.goal import GOALS
from tune.report import write_sweep_report
from tune.result import BEST_FILE, TRIALS_FILE, winner_command, write_best, write_trials
from tune.state import Trial, read_trials, write_trial

GOAL = GOALS["loss"]
PARAMS = [
    {"mask.ratio": 0.2, "optim.peak_lr": 1e-3},
    {"mask.ratio": 0.6, "optim.peak_lr": 5e-3},
    {"mask.ratio": 0.4, "optim.peak_lr": 2e-3},
]


def make_trials(sweep):
    """One that was finished, one that was stopped early, one that failed before its first point."""
    for number, (params, status, losses) in enumerate(
        zip(PARAMS, ("finished", "stopped", "failed"), ([6.0, 5.5, 4.75], [6.1, 6.2], []), strict=True)
    ):
        trial = Trial(
            number=number, params=params, status=status, error='it, "broke"' if status == "failed" else ""
        )
        write_trial(str(sweep), trial)
        rows = [{"step": 10 * place, "eval/loss": loss} for place, loss in enumerate(losses, 1)]
        (sweep / trial.name / METRICS_FILE).write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return read_trials(str(sweep), GOAL)


def test_the_table_has_a_row_a_trial_with_parameters_state_and_objective(tmp_path):
    write_trials(str(tmp_path), make_trials(tmp_path), GOAL)
    rows = list(csv.DictReader(io.StringIO((tmp_path / TRIALS_FILE).read_text())))
    assert [(row["trial"], row["status"], row["points"], row["steps"]) for row in rows] == [
        ("0", "finished", "3", "30"),
        ("1", "stopped", "2", "20"),
        ("2", "failed", "0", ""),
    ]
    assert [float(row["optim.peak_lr"]) for row in rows] == [1e-3, 5e-3, 2e-3]
    assert (rows[0][GOAL.name], rows[1]["best"], rows[2]["error"]) == ("4.75", "6.1", 'it, "broke"')


def test_the_best_configuration_is_one_that_pretraining_accepts(tmp_path):
    sweep = sweep_preset("quickstart")
    config = sweep.pretraining(PARAMS[0])
    write_best(str(tmp_path), config, preset="quickstart")
    loaded, preset = run_folder.saved_config(str(tmp_path / BEST_FILE), PretrainConfig, job="pretrain")
    assert (loaded, preset) == (config, "quickstart")
    assert (loaded.mask.ratio, loaded.optim.peak_lr) == (0.2, 1e-3)
    command = winner_command(str(tmp_path), config, list(PARAMS[0]), preset="quickstart", images=1000)
    assert (
        command
        == f"beit pretrain {tmp_path}/best/config.json --epochs 4 --data.scenes 4000 --optim.warmup-steps 25"
    )
    assert "--epochs" not in winner_command(
        str(tmp_path), config, ["epochs"], preset="quickstart", images=1000
    )


def test_the_winner_is_never_trained_for_less_than_its_trial(tmp_path):
    config = override(sweep_preset("quickstart").pretraining(PARAMS[0]), {"steps": 1000})
    command = winner_command(str(tmp_path), config, list(PARAMS[0]), preset="quickstart", images=1000)
    assert command == f"beit pretrain {tmp_path}/best/config.json"


def test_the_page_shows_every_trial_and_says_what_cannot_be_compared(tmp_path):
    trials = make_trials(tmp_path)
    path = write_sweep_report(
        str(tmp_path),
        sweep_preset("quickstart"),
        trials,
        GOAL,
        preset="quickstart",
        seconds=75,
        lines=["2 CPU / 1.25 = 1.60"],
        mlflow="http://host/#/experiments/1/runs/2",
        command="beit pretrain best/config.json",
    )
    assert path == str(tmp_path / REPORT_FILE)
    page = Path(path).read_text()
    for said in (
        "losses cannot be compared",
        "stopped early",
        "it, &#34;broke&#34;",
        "mask.ratio=0.2 optim.peak_lr=0.001",
        "2 CPU / 1.25",
    ):
        assert said in page, said
    for chart in (
        "at the end, in the nearest finished trial",
        "at point 2 of 10, which all reached",
        "A line for each trial",
    ):
        assert f'aria-label="{"" if chart.startswith("A") else GOAL.name + " "}{chart}"' in page
    assert '<a href="http://host/#/experiments/1/runs/2">' in page
    assert re.findall("<tr><td><b>(.*?)</b></td>", page) == ["0"], "the winner stands out"


def test_a_page_of_a_sweep_without_a_point_can_be_written(tmp_path):
    write_trial(str(tmp_path), Trial(number=0, params=PARAMS[0], status="failed", error="no"))
    trials = read_trials(str(tmp_path), GOAL)
    path = write_sweep_report(
        str(tmp_path),
        sweep_preset("quickstart"),
        trials,
        GOAL,
        preset="quickstart",
        seconds=1,
        lines=[],
        mlflow=None,
        command=None,
    )
    assert "failed: no" in Path(path).read_text()
