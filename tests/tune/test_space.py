import json

import numpy as np
import pytest
import ray.tune

from beit.errors import UserError
from tune.space import draw, load_space, rounded


def test_the_same_seed_draws_the_same_trials_with_three_digits_within_the_space():
    space = load_space("mask-lr")
    trials = draw(space, None, seed=3)
    assert trials == draw(space, None, seed=3) != draw(space, None, seed=4)
    assert len(trials) == 8
    for trial in trials:
        assert 0.15 <= trial["mask.ratio"] <= 0.75
        assert 3e-4 <= trial["optim.peak_lr"] <= 6e-3
        assert all(float(f"{value:.3g}") == value for value in trial.values())
    rates = [trial["optim.peak_lr"] for trial in draw(space, 400, seed=0)]
    below = sum(rate < (3e-4 * 6e-3) ** 0.5 for rate in rates) / len(rates)
    assert 0.4 < below < 0.6, (
        f"{below:.0%} of the rates lie below the geometric middle: they are not drawn log-uniformly"
    )


def test_a_grid_gives_every_combination_once_and_as_often_as_asked_with_distributions():
    grid = {
        "mask.ratio": ray.tune.grid_search([0.2, 0.4]),
        "mask.kind": ray.tune.grid_search(["random", "blockwise"]),
    }
    trials = draw(grid, None, seed=0)
    assert {(trial["mask.ratio"], trial["mask.kind"]) for trial in trials} == {
        (r, k) for r in (0.2, 0.4) for k in ("random", "blockwise")
    }
    assert len(trials) == 4
    with pytest.raises(UserError, match=r"--trials 6 does not fit the grid of 2 x 2 = 4 combinations"):
        draw(grid, 6, seed=0)

    mixed = draw({**grid, "optim.peak_lr": ray.tune.loguniform(1e-4, 1e-2)}, 8, seed=0)
    assert len({trial["optim.peak_lr"] for trial in mixed}) == 8
    assert [trial["mask.ratio"] for trial in mixed].count(0.2) == 4


def test_json_and_python_say_the_same(tmp_path):
    (tmp_path / "space.json").write_text(
        json.dumps({"mask.ratio": [0.3, 0.5], "optim.peak_lr": {"loguniform": [1e-4, 1e-2]}})
    )
    (tmp_path / "space.py").write_text(
        "import ray.tune\nSPACE = {'mask.ratio': ray.tune.grid_search([0.3, 0.5]), 'optim.peak_lr': "
        "ray.tune.loguniform(1e-4, 1e-2)}\n"
    )
    drawn = [draw(load_space(str(tmp_path / name)), 4, seed=1) for name in ("space.json", "space.py")]
    assert drawn[0] == drawn[1]
    assert len(drawn[0]) == 4


def test_an_array_is_a_grid_of_plain_numbers(tmp_path):
    (tmp_path / "space.py").write_text(
        "import numpy as np, ray.tune\nSPACE = {'mask.ratio': ray.tune.grid_search(np.array([0.5, 0.75], "
        "np.float32))}\n"
    )
    trials = draw(load_space(str(tmp_path / "space.py")), None, seed=0)
    assert json.loads(json.dumps(trials)) == [{"mask.ratio": 0.5}, {"mask.ratio": 0.75}]


def test_digits_are_dropped_only_where_the_value_stays_in_its_space():
    narrow = ray.tune.uniform(0.999, 0.9999)
    drawn = [trial["optim.beta2"] for trial in draw({"optim.beta2": narrow}, 50, seed=0)]
    assert all(0.999 <= value <= 0.9999 for value in drawn)
    assert rounded(0.99904, narrow) == 0.999
    assert rounded(0.99987, narrow) == 0.99987
    assert rounded(0.123456, ray.tune.quniform(0, 1, 1e-6)) == 0.123456
    steps = draw({"view.jitter": ray.tune.quniform(0.0, 2.0, 0.0625)}, 50, seed=0)
    assert all(trial["view.jitter"] % 0.0625 == 0 for trial in steps), (
        "these have more digits than three, and mean them"
    )
    assert all(
        isinstance(value, (int, float)) and not isinstance(value, np.generic)
        for trial in steps
        for value in trial.values()
    )


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ('{"output.root": ["a", "b"]}', "output.root is the same for all trials"),
        ('{"optim.peak_lr": {"lognormal": [0, 1]}}', "optim.peak_lr is"),
        ('{"optim.peak_lr": 0.1}', "optim.peak_lr is 0.1"),
        ('{"optim.peak_lr": {"uniform": [1]}}', "uniform"),
        ("[1, 2]", "holds no table"),
        ("{", "is no JSON"),
        ("\xff", "is no JSON"),
        (
            '{"model.depth": {"randint": [5, 2]}}',
            "model.depth: no value can be drawn: ValueError: low >= high",
        ),
        ('{"optim.peak_lr": {"uniform": [0.7, 0.2]}}', "optim.peak_lr: no value can be drawn"),
        ('{"mask.kind": {"choice": []}}', "mask.kind: no value can be drawn"),
        ('{"mask.kind": []}', "mask.kind is {'grid_search': []}"),
        ("# Python\nSPACE = {", "cannot be run: SyntaxError"),
        (
            "# Python\nSPACE = {'mask.ratio': tune.uniform(0, 1)}",
            "cannot be run: NameError: name 'tune' is not defined",
        ),
        ("# Python\nraise SystemExit(3)", "cannot be run: SystemExit: 3"),
        ("# Python\nSPACE = {1: [2]}", "1 is no name of a field"),
        (
            "# Python\nimport ray.tune\nSPACE = {'model.dim': ray.tune.sample_from(lambda spec: spec.x)}",
            "model.dim is",
        ),
        (
            "# Python\nimport ray.tune\nSPACE = {'model.dim': ray.tune.choice([object()])}",
            "model.dim: no value can be drawn: TypeError",
        ),
    ],
)
def test_what_is_no_space_is_refused_by_name(tmp_path, content, says):
    file = tmp_path / ("space.py" if content.startswith("#") else "space.json")
    file.write_text(content, "latin-1")
    with pytest.raises(UserError) as raised:
        load_space(str(file))
    assert says in raised.value.cause
    assert "\n" not in raised.value.cause


def test_an_unknown_space_names_those_that_there_are():
    with pytest.raises(UserError) as raised:
        load_space("mask-rate")
    assert "mask-lr" in raised.value.remedy
