"""Use one thread: these models are so small that threads only wait for each other, for minutes if other work
is running.
"""

import copy
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from beit.tokenizer import dvae


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def pickle_as_published(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Saves a module whole, under the class names and with the attributes that the files of DALL-E's authors
    have.
    """

    def save(part: nn.Module, path: Path, *, legacy: bool) -> None:
        kind = type(part).__name__
        module = f"dall_e.{kind.lower()}"
        places = {
            type(part): (module, kind),
            dvae.Block: (module, f"{kind}Block"),
            dvae.Conv2d: ("dall_e.utils", "Conv2d"),
        }
        disguised = copy.deepcopy(part).requires_grad_(False)
        with monkeypatch.context() as patch:
            for name in ("dall_e", "dall_e.utils", module):
                patch.setitem(sys.modules, name, types.ModuleType(name))
            for cls, (at, name) in places.items():
                published = type(name, (cls,), {"__module__": at})
                setattr(sys.modules[at], name, published)
                for layer in disguised.modules():
                    if type(layer) is cls:
                        layer.__class__ = published
                        layer.device, layer.requires_grad, layer.use_mixed_precision = (
                            torch.device("cpu"),
                            False,
                            True,
                        )
            torch.save(disguised, path, _use_new_zipfile_serialization=not legacy)

    return save
