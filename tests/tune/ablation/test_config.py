import json

import pytest

from beit.errors import UserError
from beit.plain import from_dict, override, to_dict
from pipelines.finetune import ClassificationTask
from pipelines.runs.run_folder import check_same
from pipelines.segment import SegmentationTask
from pipelines.training.pretraining import check_config
from tune.ablation.config import ABLATIONS, AblationConfig, ablation_preset


@pytest.mark.parametrize("name", ABLATIONS)
def test_every_preset_can_be_ablated_and_a_saved_ablation_is_read_back(name):
    config = ablation_preset(name)
    assert from_dict(AblationConfig, json.loads(json.dumps(to_dict(config)))) == config
    for row in config.rows:
        check_config(config.pretraining(row, 0))
    assert ClassificationTask().preset(config.classify.recipe).model.image_size == config.model.image_size
    SegmentationTask().preset(config.segment.recipe)


def test_the_papers_ablation_is_fine_tuned_as_in_the_paper():
    config = ablation_preset("base-300")
    assert (config.classify.recipe, config.segment.recipe) == ("base", "ade20k")
    assert SegmentationTask().preset("ade20k").head == "setr-pup"


def test_rows_have_the_seeds_that_were_asked_for():
    config = override(ablation_preset("quickstart"), {"seed": 5, "seeds": 3})
    assert list(config.all_seeds) == [5, 6, 7]
    assert config.pretraining("pixels", 7).seed == 7


@pytest.mark.parametrize(
    ("values", "cause", "remedy"),
    [
        (
            {"mask.kind": "random"},
            "what the row random-masks has for itself",
            "leave random-masks out of --rows",
        ),
        ({"target.kind": "pixels"}, "what the row pixels has for itself", "--target.kind"),
        ({"rows": ["beit", "beit"]}, "--rows beit beit", "leave out --rows"),
        ({"tasks": []}, "--tasks nothing", "leave out --tasks"),
        ({"longer": 1.0}, "--longer 1.0 is not above 1", "--longer 2.67"),
        ({"stop_at": 5}, "--stop-at 5", "--steps"),
        ({"data.tokens": "x"}, "data.tokens=x holds the tokens of one seed", "leave out --data.tokens"),
        ({"classify.fraction": 1.5}, "classify.fraction=1.5", "classify.fraction=1"),
        ({"segment.steps": 0}, "segment.steps=0", "1 or more"),
    ],
)
def test_what_would_make_the_rows_meaningless_is_refused_in_words(values, cause, remedy):
    with pytest.raises(UserError) as raised:
        override(ablation_preset("quickstart"), values)
    assert cause in raised.value.cause
    assert remedy in raised.value.remedy


def test_a_full_method_of_another_kind_can_be_ablated_by_the_rows_that_still_differ():
    config = override(ablation_preset("quickstart"), {"mask.kind": "random", "rows": ["beit", "pixels"]})
    assert config.pretraining("pixels", 0).mask.kind == "random"


def test_an_ablation_goes_on_with_more_rows_and_seeds_but_with_no_other_method_or_protocol():
    config = override(ablation_preset("quickstart"), {"rows": ["beit", "pixels"]})
    check_same(config, override(config, {"rows": ["beit", "pixels", "longer"], "seeds": 4, "concurrent": 2}))
    for values in ({"seed": 1}, {"optim.peak_lr": 1e-3}, {"classify.steps": 7}, {"longer": 2.0}):
        with pytest.raises(UserError, match=next(iter(values)).replace(".", r"\.")):
            check_same(config, override(config, values))
