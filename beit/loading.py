"""Load the model of a checkpoint folder: the one place that knows every kind of model."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar, overload

from beit.classification.model import Classifier
from beit.errors import UserError
from beit.pretraining.model import Beit
from beit.segmentation.model import Segmenter
from beit.vit.backbone import Backbone
from beit.vit.checkpoints import CONFIG_FILE, fill, not_a_checkpoint, read_config
from beit.vit.model import VitModel

Kind = TypeVar("Kind", bound=VitModel)

KINDS: dict[str, type[VitModel]] = {kind.kind: kind for kind in (Beit, Classifier, Segmenter, Backbone)}
"""The models of this package, by their names in checkpoints."""


@overload
def load_model(folder: Path | str) -> VitModel: ...
@overload
def load_model(folder: Path | str, kind: type[Kind]) -> Kind: ...
def load_model(folder: Path | str, kind: type[Any] | None = None) -> VitModel:
    """Build the model of a checkpoint folder, on the CPU and in evaluation mode.

    Args:
        folder: Written by `save_model`.
        kind: The class that the model must have. None: any.

    Raises:
        UserError: If the folder is no checkpoint or one of another kind, or if its weights are damaged or do
            not fit its config.
    """
    folder = Path(folder)
    saved = read_config(folder)
    if kind is not None and saved.kind != kind.kind:
        raise UserError(
            f"{folder} holds a {saved.kind}, and a {kind.kind} is needed",
            f"name a checkpoint of a {kind.kind}",
        )
    try:
        model = (kind or class_of(saved.kind, folder)).from_config(saved.model, saved.head)
    except (TypeError, ValueError, KeyError) as error:
        raise not_a_checkpoint(
            folder, f"the head in its {CONFIG_FILE} is not one of a {saved.kind} ({error})"
        ) from None
    fill(model, folder)
    return model.eval()


def class_of(kind: str, folder: Path | str) -> type[VitModel]:
    """Return the class of a kind of model.

    Args:
        kind: The "kind" in a checkpoint's `config.json`.
        folder: The checkpoint, for the message.

    Raises:
        UserError: If this package has no such kind.
    """
    if kind not in KINDS:
        raise UserError(
            f"{folder} holds a {kind}, which is none of {', '.join(KINDS)}",
            "load it by load_model(folder, ITS_CLASS), in a program that has that class",
        )
    return KINDS[kind]
