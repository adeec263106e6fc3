import json
from types import SimpleNamespace

from pipelines.runs.metrics import METRICS_FILE
from tune.config import sweep_preset
from tune.goal import GOALS
from tune.state import Trial, is_asked_to_stop, read_trials, winner, write_trial
from tune.stopping import rungs, scheduler
from tune.trial import OBJECTIVE, POINT

GOAL = GOALS["loss"]


def write(sweep, number, losses, status="finished"):
    """A trial with a loss at every tenth step, and rows between that have none."""
    trial = Trial(number=number, params={"mask.ratio": 0.1 * (number + 1)}, status=status)
    write_trial(str(sweep), trial)
    rows = [{"step": 10 * place - 5, "train/loss": 9.0} for place in range(1, len(losses) + 1)]
    rows += [
        {"step": 10 * place, "train/loss": 9.0, "eval/loss": loss} for place, loss in enumerate(losses, 1)
    ]
    (sweep / trial.name / METRICS_FILE).write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return trial


def test_trials_are_read_back_from_their_folders_with_their_points(tmp_path):
    write(tmp_path, 1, [6.0, 5.0, 4.0])
    write(tmp_path, 0, [6.1, 5.9], status="stopped")
    (tmp_path / "trial-002").mkdir()  # One that was killed before it was noted.
    (tmp_path / "tokens").mkdir()
    trials = read_trials(str(tmp_path), GOAL)
    assert [trial.number for trial in trials] == [0, 1]
    assert trials[0].points == ((1, 10, 6.1), (2, 20, 5.9))
    assert (trials[1].status, trials[1].last) == ("finished", 4.0)


def test_a_trial_that_was_stopped_early_cannot_win_over_one_that_came_to_its_end(tmp_path):
    write(tmp_path, 0, [6.0, 5.5, 5.2])
    write(tmp_path, 1, [6.0, 5.4, 5.1])
    write(tmp_path, 2, [5.0], status="stopped")
    write(tmp_path, 3, [4.0], status="failed")
    best = winner(read_trials(str(tmp_path), GOAL), GOAL)
    assert best is not None
    assert best.number == 1
    assert winner([], GOAL) is None


def test_the_worse_of_later_trials_are_asked_to_stop_also_against_trials_of_an_earlier_start(tmp_path):
    config = sweep_preset("quickstart")
    assert rungs(config) == [3, 6]
    write(tmp_path, 0, [6.0, 5.9, 5.0, 4.9])
    write(tmp_path, 1, [6.0, 5.9, 5.2, 4.9])

    def decide(remembering, number, losses):
        stopper = scheduler(config, GOAL, str(tmp_path))
        for trial in read_trials(str(tmp_path), GOAL) if remembering else []:
            stopper.remember(trial)
        known = SimpleNamespace(trial_id=f"new-{number}", config={"number": number})
        stopper.on_trial_add(None, known)
        for point, loss in enumerate(losses, 1):
            assert stopper.on_trial_result(None, known, {POINT: point, OBJECTIVE: loss}) == "CONTINUE", (
                "Ray Tune must not kill it"
            )
        return is_asked_to_stop(str(tmp_path / f"trial-{number:03d}"))

    assert not decide(True, 2, [7.0, 7.0]), "there is no rung before point 3"
    assert not decide(True, 3, [7.0, 7.0, 5.05])
    assert decide(True, 4, [7.0, 7.0, 5.3])
    assert not decide(False, 5, [7.0, 7.0, 5.3]), "there is nobody to be compared with"
