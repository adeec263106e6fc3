"""Describe a sweep, as lines, before it starts."""

from __future__ import annotations

from pipelines.training.pretraining import explain as explain_pretraining
from tune.config import SweepConfig
from tune.prepare import Design, make_design
from tune.space import described
from tune.stopping import rungs


def explain(config: SweepConfig, preset: str) -> list[str]:
    """List the trials, then the recipe that they share. Reads the space, and what `beit pretrain --dry-run`
    reads.

    Raises:
        UserError: If there is a mistake that can be found without the images.
    """
    design = make_design(config)
    trials = [f"trial {number}: {described(params)}" for number, params in enumerate(design.plan or ())]
    common = explain_pretraining(config.pretraining(), preset)
    return [
        *in_words(config, design),
        *trials,
        "what the trials have in common, where these say nothing else:",
        *common,
    ]


def in_words(config: SweepConfig, design: Design) -> list[str]:
    """Say what is varied, how a trial is judged, and when it is stopped."""
    varied = f"space: {config.space}: {', '.join(design.space)}; {design.trials} trials, {config.search}"
    lines = [varied, f"objective: {design.goal.meaning}"]
    if at := rungs(config):
        of = f"of {config.evaluation.points}"
        lines.append(
            f"early stopping: ASHA compares trials at points {', '.join(map(str, at))} {of}; one in "
            f"{config.halving:g} continues"
        )
    return lines
