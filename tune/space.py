"""The space of a sweep: config fields with grids or `ray.tune` distributions, and the trials drawn from
them.
"""

from __future__ import annotations

import itertools
import json
import math
import runpy
import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import ray.tune
from ray.tune.search.sample import Domain, Float, Function, Quantized

from beit.errors import UserError
from pipelines import storage

Space = dict[str, Any]
"""Dotted field name -> {"grid_search": [value, …]}, as `ray.tune.grid_search` returns it, or a distribution
of `ray.tune`."""

Params = dict[str, Any]
"""One value for each name of a space."""

FIXED = ("output.", "resources.", "data.", "evaluation.", "knn.", "stop_at")
"""Fields that no space may change: output, resources, and what trials are compared on."""

DISTRIBUTIONS: dict[str, Callable[..., Any]] = {
    "uniform": ray.tune.uniform,
    "quniform": ray.tune.quniform,
    "loguniform": ray.tune.loguniform,
    "qloguniform": ray.tune.qloguniform,
    "randint": ray.tune.randint,
    "choice": lambda *options: ray.tune.choice(list(options)),
}
"""Distributions that a JSON space may name; the arguments are those of `ray.tune`."""

DEFAULT_TRIALS = 8
DIGITS = 3


def mask_lr() -> Space:
    """Mask ratio and peak learning rate, the two fields that matter most."""
    return {"mask.ratio": ray.tune.uniform(0.15, 0.75), "optim.peak_lr": ray.tune.loguniform(3e-4, 6e-3)}


def mask_lr_grid() -> Space:
    """The same fields as a grid of 4 x 4."""
    return {
        "mask.ratio": ray.tune.grid_search([0.2, 0.4, 0.6, 0.75]),
        "optim.peak_lr": ray.tune.grid_search([5e-4, 1e-3, 2e-3, 4e-3]),
    }


SPACES: dict[str, Callable[[], Space]] = {"mask-lr": mask_lr, "mask-lr-grid": mask_lr_grid}


def load_space(name: str) -> Space:
    """Load a space by its name, from a JSON file, or from a Python file.

    JSON: {"mask.ratio": [0.3, 0.4], "optim.peak_lr": {"loguniform": [3e-4, 6e-3]}}; a list is a grid; a key
    is a function of `ray.tune`, with its list of arguments. Python: `SPACE = {"optim.peak_lr":
    ray.tune.loguniform(3e-4, 6e-3)}`.

    Raises:
        UserError: If there is no such space, or it has another form.
    """
    if name in SPACES:
        return SPACES[name]()
    path = Path(name).expanduser()
    if path.suffix not in (".json", ".py"):
        raise UserError(f"--space {name} is no space", f"give {', '.join(SPACES)}, a .json or a .py file")
    if not path.is_file():
        raise UserError(
            f"--space {name}: there is no such file", f"give {', '.join(SPACES)}, or a file that is there"
        )
    space = _from_json(path) if path.suffix == ".json" else _from_python(path)
    if not isinstance(space, dict) or not space:
        raise UserError(
            f"--space {name} holds no table of fields",
            (
                'write SPACE = {"mask.ratio": ray.tune.uniform(0.2, 0.7)} in Python, {"mask.ratio": '
                '{"uniform": '
                "[0.2, 0.7]}} in JSON"
            ),
        )
    return {field: _checked(name, field, values) for field, values in space.items()}


def absolute_space(name: str) -> str:
    """Return a name of the space that is valid in any folder."""
    return name if name in SPACES else storage.absolute(Path(name).expanduser())


def _checked(name: str, field: Any, values: Any) -> Any:
    """Check one field of a space by drawing a value."""
    if not isinstance(field, str):
        raise UserError(
            f"--space {name}: {field!r} is no name of a field",
            "write names as the command line shows them, in quotes",
        )
    if field.startswith(FIXED):
        raise UserError(
            f"--space {name}: {field} is the same for all trials", f"set --{field} of the sweep instead"
        )
    if isinstance(values, dict) and isinstance(values.get("grid_search"), np.ndarray):
        values = ray.tune.grid_search(values["grid_search"].tolist())
    if isinstance(values, Function) or not (isinstance(values, Domain) or is_grid(values)):
        said = textwrap.shorten(repr(values), 80, placeholder=" …")
        raise UserError(
            (
                f"--space {name}: {field} is {said}, neither a grid nor a distribution of ray.tune that a "
                "seed can draw from"
            ),
            f"functions: {', '.join(DISTRIBUTIONS)}, grid_search",
        )
    try:
        # The plan is saved as plan.json, so values must be JSON.
        json.dumps(values if is_grid(values) else _drawn(values, np.random.default_rng(0)))
    except Exception as error:  # A distribution's arguments, or the user's own objects, can raise anything.
        raise UserError(
            f"--space {name}: {field}: no value can be drawn: {_line(error)}",
            "see ray.tune for its arguments",
        ) from error
    return values


def _line(error: BaseException) -> str:
    return " ".join([f"{type(error).__name__}:", *str(error).split()])


def _from_python(path: Path) -> Any:
    try:
        return runpy.run_path(str(path)).get("SPACE")
    except (Exception, SystemExit) as error:  # This is the user's program, which can raise anything.
        raise UserError(f"--space {path} cannot be run: {_line(error)}", "correct the file") from error


def _from_json(path: Path) -> Any:
    try:
        content = json.loads(path.read_text("utf-8"))
    except ValueError as error:  # This includes text that is not UTF-8.
        raise UserError(f"--space {path} is no JSON: {_line(error)}", "correct the file") from error
    return (
        {field: _distribution(path, field, value) for field, value in content.items()}
        if isinstance(content, dict)
        else content
    )


def _distribution(path: Path, field: str, value: Any) -> Any:
    if isinstance(value, list):
        return ray.tune.grid_search(value)
    if (
        isinstance(value, dict)
        and len(value) == 1
        and (kind := next(iter(value))) in DISTRIBUTIONS
        and isinstance(value[kind], list)
    ):
        try:
            return DISTRIBUTIONS[kind](*value[kind])
        except (TypeError, ValueError) as error:
            raise UserError(
                f"--space {path}: {field}: {kind}{tuple(value[kind])}: {error}",
                "see ray.tune for its arguments",
            ) from error
    raise UserError(
        f"--space {path}: {field} is {json.dumps(value)}",
        (
            f'write [first, second, …] for a grid, or {{"FUNCTION": [arguments]}} with one of '
            f"{', '.join(DISTRIBUTIONS)}"
        ),
    )


def is_grid(values: Any) -> bool:
    """Whether a value is what `ray.tune.grid_search` returns."""
    return isinstance(values, dict) and set(values) == {"grid_search"} and _is_filled(values["grid_search"])


def _is_filled(values: Any) -> bool:
    return isinstance(values, list | tuple) and len(values) > 0


def draw(space: Space, trials: int | None, seed: int) -> list[Params]:
    """Draw the trials of a random or grid search, in the order in which they run.

    Every combination of the grids occurs equally often, each time with new values from the distributions.
    Drawn floats have three significant digits: a learning rate of 0.00142 is as good as one of 0.0014193847.

    Args:
        space: The fields to vary.
        trials: Number of trials. None: 8, or as many as the grids have combinations.
        seed: Seed of the sweep.

    Raises:
        UserError: If the combinations of the grids do not fit into `trials`.
    """
    grids = {name: values["grid_search"] for name, values in space.items() if is_grid(values)}
    combinations = [dict(zip(grids, values, strict=True)) for values in itertools.product(*grids.values())]
    if trials is None:
        trials = len(combinations) if grids else DEFAULT_TRIALS
    if trials % len(combinations) or (len(grids) == len(space) and trials != len(combinations)):
        counts = " x ".join(str(len(values)) for values in grids.values())
        raise UserError(
            f"--trials {trials} does not fit the grid of {counts} = {len(combinations)} combinations",
            f"set --trials {len(combinations)}"
            + (", or leave it out" if len(grids) == len(space) else ", or a multiple of it"),
        )
    rng = np.random.default_rng(seed)
    return [
        {name: combination[name] if name in grids else _drawn(space[name], rng) for name in space}
        for _ in range(trials // len(combinations))
        for combination in combinations
    ]


def _drawn(domain: Domain, rng: np.random.Generator) -> Any:
    value = domain.sample(random_state=rng)
    return rounded(value.item() if isinstance(value, np.generic) else value, domain)


def rounded(value: Any, domain: Domain) -> Any:
    """Round a drawn float to three digits, unless it has steps of its own or would leave its domain."""
    if not isinstance(domain, Float) or isinstance(domain.get_sampler(), Quantized):  # type: ignore[no-untyped-call]
        return value
    if not math.isfinite(value):
        return value
    short = float(f"{value:.{DIGITS}g}")
    return short if domain.lower <= short <= domain.upper else value


def described(params: Mapping[str, Any]) -> str:
    """Format parameters as on the command line: mask.ratio=0.4 optim.peak_lr=0.0015."""
    return " ".join(
        f"{name}={value:.4g}" if isinstance(value, float) else f"{name}={value}"
        for name, value in params.items()
    )
