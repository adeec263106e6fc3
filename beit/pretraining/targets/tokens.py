"""The target of BEiT: visual tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

from torch import Tensor

from beit.pretraining.targets.base import Drawing, TargetSetting
from beit.pretraining.targets.classes import Classes
from beit.tokenizer.protocol import ImageTokenizer


class VisualTokens(Classes):
    """The visual token of a patch: BEiT's target."""

    kind = "tokens"
    noun = "token"
    needs_tokenizer = True
    columns = ("tokens",)
    drawing = Drawing(
        truth=(
            "true tokens, decoded",
            "What the tokenizer keeps of the original. This is the ceiling: its blur is the tokenizer's, not "
            "the model's.",
        ),
        unpainted=(
            "no decoded columns",
            "This tokenizer has no decoder, so tokens cannot be shown as images.",
        ),
        judged="Many tokens look alike, so a red patch can still decode well.",
    )
    histogram = (
        "Visual tokens",
        "Far below the vocabulary, the task is easy: the tokenizer says little.",
    )

    def __init__(self, vocab_size: int, tokenizer: ImageTokenizer | None = None) -> None:
        """`tokenizer` paints tokens; training needs none."""
        super().__init__(vocab_size)
        self._tokenizer = tokenizer

    @classmethod
    def from_setting(cls, setting: TargetSetting) -> Self:
        """As many classes as the tokenizer has tokens."""
        return cls(setting.vocab_size, setting.tokenizer)

    @classmethod
    def predicted(cls, setting: TargetSetting) -> str:
        """One class a patch."""
        return "the visual token"

    @classmethod
    def baseline(cls, metrics: Mapping[str, float]) -> str:
        """What the unigram baseline is, and which accuracies are normal."""
        meaning = super().baseline(metrics)
        return meaning and f"{meaning} Accuracies of a few percent are normal with thousands of tokens."

    def truth(self, batch: Mapping[str, Tensor], pixels: Tensor, positions: Tensor) -> Tensor:
        """The column "tokens", int [B, N], at `positions`."""
        return batch["tokens"].flatten(1).gather(1, positions).long()

    def paint(self, values: Tensor) -> Tensor | None:
        """The images that the tokenizer decodes from the tokens."""
        if self._tokenizer is None or not self._tokenizer.has_decoder:
            return None
        return self._tokenizer.decode(values).permute(0, 2, 3, 1)
