"""The base class of all models: what it takes to train, save and load one."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Self

from torch import nn

from beit.config import ModelConfig


class VitModel(nn.Module):
    """A Vision Transformer, with or without a head, that can be saved as a checkpoint folder."""

    kind: ClassVar[str]
    """Its name in a checkpoint's `config.json`: mim, classifier, segmenter, backbone, or one of your own."""

    config: ModelConfig
    """Sizes and variant of the backbone."""

    @property
    @abstractmethod
    def head_config(self) -> dict[str, Any]:
        """What `from_config` needs in addition to `config`, as JSON types; it is saved in a checkpoint's
        `config.json`.
        """

    @classmethod
    @abstractmethod
    def from_config(cls, config: ModelConfig, head: Mapping[str, Any]) -> Self:
        """Build the model that `config` and `head_config` describe, with uninitialised weights."""
