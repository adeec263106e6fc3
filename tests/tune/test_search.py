from dataclasses import replace

import pytest
import ray.tune

from beit.errors import UserError
from tune.config import sweep_preset
from tune.goal import GOALS
from tune.search import Learned, Planned, check_search
from tune.space import load_space
from tune.state import Trial
from tune.trial import OBJECTIVE


def entry(trial):
    return {"number": trial.number, "params": trial.params}


def never(trial, error):
    pytest.fail(f"trial {trial.number} was refused")


def test_a_plan_is_gone_through_in_its_order_and_ends():
    search = Planned([{"number": 2}, {"number": 5}], GOALS["loss"])
    assert [search.suggest(name) for name in "abc"] == [{"number": 2}, {"number": 5}, "FINISHED"]


def test_optuna_goes_on_with_interrupted_trials_and_learns_from_ended_ones():
    pytest.importorskip("optuna", reason="optuna is not installed")
    earlier = [
        Trial(
            number=0,
            params={"mask.ratio": 0.3, "optim.peak_lr": 1e-3},
            status="finished",
            points=((1, 10, 5.0),),
        ),
        Trial(number=1, params={"mask.ratio": 0.5, "optim.peak_lr": 2e-3}, status="running"),
    ]
    search = Learned(
        load_space("mask-lr"), GOALS["loss"], seed=0, earlier=earlier, trials=12, entry=entry, refused=never
    )
    assert search.suggest("first") == entry(earlier[1])
    search.on_trial_complete("first", {OBJECTIVE: 5.5})
    found = []
    for number in range(2, 12):
        suggested = search.suggest(f"trial-{number}")
        assert suggested["number"] == number
        assert 0.15 <= suggested["params"]["mask.ratio"] <= 0.75
        found.append(suggested["params"]["mask.ratio"])
        search.on_trial_complete(f"trial-{number}", {OBJECTIVE: abs(suggested["params"]["mask.ratio"] - 0.4)})
    assert len(set(found)) == 10
    assert search.suggest("last") == "FINISHED"


def test_a_suggestion_that_no_trial_can_begin_with_counts_and_the_next_is_tried():
    pytest.importorskip("optuna", reason="optuna is not installed")

    def picky(trial):
        if trial.params["mask.ratio"] > 0.4:
            raise UserError("too much is hidden", "hide less")
        return entry(trial)

    # The driver was killed when the second of two trials side by side had been noted, and the first had not.
    earlier = [Trial(number=1, params={"mask.ratio": 0.7, "optim.peak_lr": 2e-3}, status="running")]
    refused = []
    search = Learned(
        load_space("mask-lr"),
        GOALS["loss"],
        seed=0,
        earlier=earlier,
        trials=10,
        entry=picky,
        refused=lambda trial, error: refused.append((trial.number, error.cause)),
    )
    begun = []
    while (suggested := search.suggest(f"ray-{len(begun)}")) != "FINISHED":
        begun.append(suggested["number"])
        search.on_trial_complete(f"ray-{len(begun) - 1}", {OBJECTIVE: 5.0})
    assert refused[0] == (1, "too much is hidden")
    assert begun
    assert len(refused) > 1
    assert sorted([*begun, *(number for number, _ in refused)]) == list(range(10))


def test_optuna_is_refused_without_its_package_and_for_grids(monkeypatch):
    config = replace(sweep_preset("quickstart"), search="optuna", space="mine")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    with pytest.raises(UserError, match=r"grid for mask\.ratio"):
        check_search(config, {"mask.ratio": ray.tune.grid_search([0.3, 0.4])})
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError) as raised:
        check_search(config, {"mask.ratio": ray.tune.uniform(0.3, 0.4)})
    assert "beit-pretraining[optuna]" in raised.value.remedy
