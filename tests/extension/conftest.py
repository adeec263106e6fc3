"""Extensions are files that no worker of Ray can import, as those of a user are: they travel by value."""

import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture
def extension() -> Iterator[Callable[[str], ModuleType]]:
    """Import a file of this folder by its name, as a program of one's own would be."""
    from ray import cloudpickle

    imported = []

    def load(name: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
        cloudpickle.register_pickle_by_value(module)
        imported.append(module)
        return module

    yield load
    for module in imported:
        cloudpickle.unregister_pickle_by_value(module)
        del sys.modules[module.__name__]
