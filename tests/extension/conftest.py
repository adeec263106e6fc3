"""Extensions are files that no worker of Ray can import, as those of a user are: they travel by value."""

import contextlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from ray import cloudpickle

from beit.plain import override
from pipelines.presets.pretrain import quickstart
from pipelines.pretrain import pretrain
from pipelines.training.frame import run

OUTPUT = {"output.mlflow": False, "output.log_seconds": 0.0}


@contextlib.contextmanager
def extensions() -> Iterator[Callable[[str], ModuleType]]:
    """Import files of this folder by their names, as a program of one's own would be."""
    imported = []

    def load(name: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
        cloudpickle.register_pickle_by_value(module)
        imported.append(module)
        return module

    try:
        yield load
    finally:
        for module in imported:
            cloudpickle.unregister_pickle_by_value(module)
            del sys.modules[module.__name__]


@pytest.fixture
def extension() -> Iterator[Callable[[str], ModuleType]]:
    """Import a file of this folder by its name."""
    with extensions() as load:
        yield load


@pytest.fixture(scope="session")
def arrays(tmp_path_factory):
    """A folder with three files of sixteen images of one colour each, and the colours."""
    folder = tmp_path_factory.mktemp("arrays")
    colours = np.random.default_rng(0).integers(0, 256, (3, 16, 3), np.uint8)
    for number, each in enumerate(colours):
        np.savez(folder / f"{number}.npz", images=np.broadcast_to(each[:, None, None], (16, 64, 64, 3)))
    return str(folder), colours.reshape(-1, 3)


@pytest.fixture(scope="session")
def pretrained(ray_cluster, arrays, tmp_path_factory):
    """A pretraining with target, masks and files of one's own: its result, and its lines."""
    values = {
        "target.kind": "brightness",
        "data.train": arrays[0],
        "mask.kind": "stripes",
        "mask.ratio": 0.3,
        "epochs": 1,
        "optim.global_batch_size": 16,
        "optim.warmup_steps": 1,
        "output.root": str(tmp_path_factory.mktemp("pretrained")),
    }
    lines = []
    with extensions() as load:
        load("brightness"), load("stripes"), load("arrays")
        result = pretrain(override(quickstart(), {**values, **OUTPUT}), say=lines.append)
    return SimpleNamespace(result=result, lines=lines)


@pytest.fixture(scope="session")
def turned(ray_cluster, tmp_path_factory):
    """A run of a task of one's own, on a source of one's own: its result, and its lines."""
    values = {"data.train": "noise://3", "output.root": str(tmp_path_factory.mktemp("turned"))}
    lines = []
    with extensions() as load:
        rotation, _ = load("rotation"), load("arrays")
        config = override(rotation.quickstart(), {**values, **OUTPUT})
        result = run(rotation.Rotation(), config, say=lines.append)
    return SimpleNamespace(result=result, lines=lines)
