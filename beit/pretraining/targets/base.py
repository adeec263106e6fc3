"""`Target`: the interface of everything that a model can be trained to predict for a patch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from numpy.typing import NDArray
from torch import Tensor

from beit.config import MaskConfig, ModelConfig, TargetConfig, ViewConfig
from beit.objectives.metric_chart import LOSS, MetricChart
from beit.tokenizer.protocol import ImageTokenizer


@dataclass(frozen=True, kw_only=True)
class TargetSetting:
    """What is known about a run when its target is built."""

    target: TargetConfig
    model: ModelConfig
    view: ViewConfig
    mask: MaskConfig
    seed: int

    vocab_size: int = 0
    """Size of the tokenizer's vocabulary. 0: the target needs no tokenizer, or it is not open yet."""

    tokenizer: ImageTokenizer | None = None
    """Paints reconstructions. None if the target is sent to the workers, which only train."""


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """What the pictures of reconstructions say about a target."""

    truth: tuple[str, str] | None = None
    """Title of the column that shows the painted truth, and its explanation. None: no such column, as where
    the truth looks like the image."""

    unpainted: tuple[str, str] | None = None
    """Title and explanation in the legend where `Target.paint` gives None."""

    judged: str = ""
    """A sentence on right and wrong patches, added to what is said for every target."""


class Target(ABC):
    """What is predicted for a patch, the loss of a prediction, and the baselines to compare the loss with.

    Baselines are computed from all data since the run began; checkpoints keep them by `state` and
    `load_state`.

    An instance belongs to a run, and is pickled on its way to the workers. Class methods and class variables
    describe a run with this target: in its summary, progress line, last lines, report and pictures. Metrics
    are named there as they are recorded: "train/" or "eval/" before the names that `metrics` gives.
    """

    kind: ClassVar[str]
    """The name by which `target.kind` chooses it. Checkpoints keep it."""

    noun: ClassVar[str]
    """One of what is predicted, such as "token"; its plural ends with an s."""

    needs_tokenizer: ClassVar[bool] = False
    """Whether batches must have the column "tokens", from the run's tokenizer or a token cache."""

    columns: ClassVar[tuple[str, ...]] = ()
    """Columns of the batch that `truth` reads, in addition to "patch_view"."""

    judged: ClassVar[bool] = False
    """Whether a prediction is either right or wrong, as that of a class is. "accuracy" is then one of the
    metrics; otherwise pictures show the squared error."""

    progress: ClassVar[tuple[tuple[str, str], ...]] = (("loss {:.3f}", "train/loss"),)
    """Items of the progress line: (format, names of metrics with spaces between)."""

    drawing: ClassVar[Drawing] = Drawing()
    """What pictures of reconstructions say about it."""

    histogram: ClassVar[tuple[str, str] | None] = None
    """Title of the report's section on how often each class occurred, and a sentence on how to read it. It is
    shown where `state` has "counts". None: the nouns, and no sentence."""

    outputs: int
    """O, size of the head's output."""

    # -- how a run with it is described

    @classmethod
    @abstractmethod
    def from_setting(cls, setting: TargetSetting) -> Self:
        """Build the target of a run.

        Raises:
            UserError: If the setting does not suit the target; the message names the field.
        """

    @classmethod
    @abstractmethod
    def predicted(cls, setting: TargetSetting) -> str:
        """What is predicted, as words that "of every hidden patch" can follow: "the visual token"."""

    @classmethod
    def warnings(cls, setting: TargetSetting) -> list[str]:
        """Warnings, as lines, about settings that are allowed but probably not intended."""
        return []

    @classmethod
    def conclusion(cls, metrics: Mapping[str, float]) -> str | None:
        """The figures that a run ends with, against their baseline, in a line.

        Args:
            metrics: Means over the end of the training; those that are not finite are left out.
        """
        loss = metrics.get("train/loss")
        return None if loss is None else f"final loss {loss:.3f}"

    @classmethod
    def key_figures(cls, metrics: Mapping[str, float]) -> list[tuple[str, str, str]]:
        """The figures at the top of the report: (name, value, what to compare it with).

        Args:
            metrics: The last row; those that are not finite are left out.
        """
        loss = metrics.get("train/loss")
        return [] if loss is None else [("loss", f"{loss:.3f}", "")]

    @classmethod
    def baseline(cls, metrics: Mapping[str, float]) -> str:
        """A paragraph below the key figures on how to read them; "" if there is nothing to say."""
        return ""

    @classmethod
    def charts(cls) -> tuple[MetricChart, ...]:
        """Curves of its metrics, shown first in the report. Every metric that is not among them gets a chart
        of its own.
        """
        return (
            LOSS,
            MetricChart(title="Loss on fixed samples and masks", curves=(("eval/loss", "loss"),)),
        )

    # -- what it computes

    @abstractmethod
    def truth(self, batch: Mapping[str, Tensor], pixels: Tensor, positions: Tensor) -> Tensor:
        """What is to be predicted.

        Args:
            batch: "patch_view" uint8 [B, H, W, 3] and `columns`.
            pixels: The same views normalised, float [B, 3, H, W].
            positions: int64 [B, S], the patches asked for.

        Returns:
            int64 [B, S] for classes, float [B, S, O] for a regression.
        """

    @abstractmethod
    def sums(self, outputs: Tensor, truth: Tensor, asked: Tensor) -> dict[str, Tensor]:
        """Sums over the patches asked for: "loss", which carries the gradient, and what `metrics` needs.

        Args:
            outputs: The head's, float32 [B, S, O].
            truth: From `truth`.
            asked: Bool [B, S], False for the slots that only fill up the batch.
        """

    @abstractmethod
    def metrics(self, sums: Mapping[str, NDArray[Any]], weight: float) -> dict[str, float]:
        """What is reported, from sums over all workers since the last report and the number of patches in
        them. NaN: not defined.
        """

    @abstractmethod
    def guess(self, outputs: Tensor) -> Tensor:
        """The prediction, in the form of `truth`."""

    def paint(self, values: Tensor) -> Tensor | None:
        """Truth or prediction of all patches of square images as pictures, uint8 [B, h, w, 3]. None: it
        cannot be painted.
        """
        return None

    def state(self) -> dict[str, Any]:
        """What was counted since the run began, as JSON types."""
        return {}

    def load_state(self, state: Mapping[str, Any]) -> None:  # noqa: B027
        """Restore what `state` returned. `metrics` replaces this state and never changes it in place, because
        copies of a target share it.
        """
