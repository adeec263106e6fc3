import numpy as np
import pytest

from beit.plain import to_dict
from beit.pretraining.masking import draw_mask
from pipelines.runs.run_folder import flatten
from tune.ablation.config import ablation_preset
from tune.ablation.table4 import ROWS, changes_of

EXPECTED = {
    "beit": set(),
    "random-masks": {"mask.kind"},
    "pixels": {"target.kind"},
    "pixels-random-masks": {"target.kind", "mask.kind"},
    "all-tokens": {"target.positions"},
    "no-masks": {"target.positions", "mask.ratio"},
    "mean-colour": {"target.kind"},
    "longer": {"epochs"},
}


@pytest.mark.parametrize("row", ROWS)
def test_a_row_differs_from_the_full_method_in_the_fields_it_names_and_in_no_other(row):
    config = ablation_preset("base-300")
    full, other = (flatten(to_dict(config.pretraining(name, 3))) for name in ("beit", row))
    assert (
        {name for name in full if full[name] != other[name]}
        == EXPECTED[row]
        == set(changes_of(row, config, longer=2))
    )


def test_the_longer_row_of_the_papers_ablation_has_its_800_epochs():
    config = ablation_preset("base-300")
    assert config.pretraining("beit", 0).epochs == 300
    assert config.pretraining("longer", 0).epochs == pytest.approx(800)
    assert ablation_preset("quickstart").pretraining("longer", 0).steps == 800


def test_without_masks_nothing_is_hidden_and_everything_asked_for():
    config = ablation_preset("quickstart").pretraining("no-masks", 0)
    assert not draw_mask(np.random.default_rng(0), config.mask, config.model.grid).any()
    assert config.target.positions == "all"


def test_the_papers_full_method_is_above_what_it_leaves_out_and_below_the_longer_schedule():
    for task in ("classify", "segment"):
        published = {row: figures.paper[task] for row, figures in ROWS.items() if figures.paper is not None}
        assert max(published, key=published.__getitem__) == "longer"
        assert sorted(published.values())[-2] == published["beit"]
    assert ROWS["mean-colour"].paper is None, "the paper has no such row"
