"""The rows of the paper's table 4 (arXiv 2106.08254, section 3.3): what each changes in the full method, and
its results in the paper.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from pipelines.config.pretrain import PretrainConfig

Task = Literal["classify", "segment"]
RowName = Literal[
    "beit", "random-masks", "pixels", "pixels-random-masks", "all-tokens", "no-masks", "mean-colour", "longer"
]

FULL: RowName = "beit"
LONGER: RowName = "longer"

PAPER_LONGER = 800 / 300
"""Factor on the length of the longer row: it has 800 epochs in the paper, the others 300."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row of the table."""

    title: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    """Changed fields of the pretraining by their dotted names. The length of the longer row is set by the
    ablation."""
    paper: Mapping[Task, float] | None
    """Top-1 on ImageNet-1k and mIoU on ADE20K, in per cent. None: the paper has no such row."""


ROWS: dict[RowName, Row] = {
    "beit": Row(title="BEiT", paper={"classify": 82.86, "segment": 44.65}),
    "random-masks": Row(
        title="random instead of blockwise masks",
        changes={"mask.kind": "random"},
        paper={"classify": 82.77, "segment": 42.93},
    ),
    "pixels": Row(
        title="pixels instead of tokens",
        changes={"target.kind": "pixels"},
        paper={"classify": 81.04, "segment": 41.38},
    ),
    "pixels-random-masks": Row(
        title="pixels instead of tokens, random masks",
        changes={"target.kind": "pixels", "mask.kind": "random"},
        paper={"classify": 80.50, "segment": 37.09},
    ),
    "all-tokens": Row(
        title="recover 100 % of the tokens",
        changes={"target.positions": "all"},
        paper={"classify": 82.59, "segment": 40.93},
    ),
    "no-masks": Row(
        title="no masking, recover 100 % of the tokens",
        changes={"target.positions": "all", "mask.ratio": 0.0},
        paper={"classify": 81.67, "segment": 36.73},
    ),
    # The target of ViT's own experiment (arXiv 2010.11929, appendix B.1.2), which the paper mentions and does
    # not ablate.
    "mean-colour": Row(title="mean colours instead of tokens", changes={"target.kind": "colour"}, paper=None),
    "longer": Row(
        title="longer schedule (the paper: 800 epochs, not 300)", paper={"classify": 83.19, "segment": 45.58}
    ),
}

TASK_NAMES: Mapping[Task, str] = {"classify": "classification, top-1", "segment": "segmentation, mIoU"}
PAPER_DATA: Mapping[Task, str] = {"classify": "ImageNet-1k", "segment": "ADE20K"}


def changes_of(name: RowName, config: PretrainConfig, *, longer: float) -> dict[str, Any]:
    """Return what a row changes in a pretraining, by dotted names."""
    if name != LONGER:
        return dict(ROWS[name].changes)
    return (
        {"steps": round(config.steps * longer)}
        if config.steps is not None
        else {"epochs": config.epochs * longer}
    )
