"""The direction of imports: a module imports what is below it, never what is above, and there are no circles.

Imports inside functions count like all others. `pipelines/cli.py` names its commands as strings and imports
none.
"""

import ast
from collections import defaultdict
from pathlib import Path

from pipelines.cli import COMMANDS

ROOT = Path(__file__).resolve().parents[1]

JOBS = ("pretrain", "finetune", "segment", "train_tokenizer", "encode_tokens", "features", "probe")
LAYERS = [
    "beit.errors",
    "beit.checks",
    "beit.registry",
    "beit.plain",
    "beit.cores",
    "beit.config",
    "beit.untrusted",
    "beit.vit",
    "beit.images",
    "beit.objectives",
    "beit.tokenizer",
    "beit.pretraining",
    "beit.classification",
    "beit.segmentation",
    "beit.loading",
    "beit.probing",
    "beit.foreign",
    "beit",
    "pipelines.redaction",
    "pipelines.schemes",
    "pipelines.storage",
    "pipelines.csv_files",
    "pipelines.seeds",
    "pipelines.config",
    "pipelines.presets",
    "pipelines.runs",
    "pipelines.command_line",
    "pipelines.cluster",
    "pipelines.sources",
    "pipelines.scenes",
    "pipelines.parts",
    "pipelines.stream",
    "pipelines.datasets",
    "pipelines.evaluation",
    "pipelines.reports",
    "pipelines.training",
    "jobs",
    "pipelines.planning",
    "pipelines.tools",
    "tune",
    "pipelines.cli",
]
"""From the bottom to the top. A wing is one layer; "jobs" are the modules that `python -m
pipelines.JOB` runs."""

NOT_IN_BEIT = {"ray", "mlflow", "pyarrow"}


def modules() -> dict[str, ast.Module]:
    """The syntax of every module by its dotted name."""
    found = {}
    for package in ("beit", "pipelines", "tune"):
        for path in (ROOT / package).rglob("*.py"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            found[name] = ast.parse(path.read_text())
    return found


MODULES = modules()


def imported(tree: ast.AST) -> set[str]:
    """Every module or package that is imported anywhere in a file; of `from a import b`, a.b where
    that is one of ours.
    """
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"a relative import of {node.module}"
            names |= {
                inner if (inner := f"{node.module}.{alias.name}") in MODULES else node.module
                for alias in node.names
            }
    return names


ARROWS = {
    name: {other for other in imported(tree) if other in MODULES} - {name} for name, tree in MODULES.items()
}


def layer(module: str) -> str:
    """The layer that a module belongs to."""
    package, _, rest = module.partition(".")
    if package == "tune":
        return "tune"
    first = rest.partition(".")[0]
    return "jobs" if package == "pipelines" and first in JOBS else f"{package}.{first}" if first else package


def test_every_module_has_its_layer():
    homeless = {name: layer(name) for name in MODULES if layer(name) not in LAYERS and name != "pipelines"}
    assert not homeless, "name the layer of a new wing in LAYERS, where it belongs"


def test_every_layer_and_job_is_there():
    assert {layer(name) for name in MODULES} - {"pipelines"} == set(LAYERS)
    assert {f"pipelines.{job}" for job in JOBS} <= MODULES.keys()


def test_every_command_names_a_function_that_is_there():
    for name, entry in COMMANDS.items():
        for place in filter(None, (entry.function, entry.report)):
            module, function = place.split(":")
            defined = {node.name for node in MODULES[module].body if isinstance(node, ast.FunctionDef)}
            assert function in defined, f"beit {name}: {place}"


def test_no_import_runs_upward():
    upward = [
        f"{module} imports {other}"
        for module, others in ARROWS.items()
        for other in others
        if other != "pipelines" and LAYERS.index(layer(other)) > LAYERS.index(layer(module))
    ]
    assert not upward


def test_no_circle_of_imports():
    left = {name: set(others) for name, others in ARROWS.items()}
    while free := [name for name, others in left.items() if not others & left.keys()]:
        for name in free:
            del left[name]
    assert not left, f"circles among {sorted(left)}"


def test_our_own_modules_are_imported_at_the_top():
    hidden = defaultdict(list)
    for name, tree in MODULES.items():
        for function in ast.walk(tree):
            if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef)):
                hidden[name] += sorted(imported(function) & MODULES.keys())
    assert {name: others for name, others in hidden.items() if others} == {
        "beit": ["beit.loading", "beit.tokenizer.registry"]  # `import beit` alone is to take no seconds.
    }


def test_the_method_knows_nothing_of_ray_mlflow_or_arrow():
    for name, tree in MODULES.items():
        if layer(name).startswith("beit"):
            assert not {other.partition(".")[0] for other in imported(tree)} & NOT_IN_BEIT, name
