"""The base of every model: what those who train, save and load one need of it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Self

from torch import nn

from beit.config import ModelConfig


class VitModel(nn.Module):
    """A Vision Transformer with or without a head, that a checkpoint folder can hold."""

    kind: ClassVar[str]
    """Its name in a checkpoint's `config.json`: mim, classifier, segmenter, backbone, or one of your own."""

    config: ModelConfig
    """Sizes and variant of the backbone."""

    @property
    @abstractmethod
    def head_config(self) -> dict[str, Any]:
        """What a checkpoint's `config.json` says beside the sizes, as JSON types."""

    @classmethod
    @abstractmethod
    def from_config(cls, config: ModelConfig, head: Mapping[str, Any]) -> Self:
        """The model that `config` and `head_config` describe, its weights left to be loaded."""
