import itertools

import numpy as np
import torch

from beit.classification.model import Classifier
from beit.config import ModelConfig, ViewConfig
from beit.images.pixels import normalise
from beit.probing.attention import KEPT_MASS, attention, figure_size, look, patch_under, smallest_set
from beit.vit.backbone import backbone_of
from beit.vit.resolution import at_size

SMALL = ModelConfig(image_size=32, patch_size=8, dim=24, depth=2, heads=3)


def test_the_kept_set_is_the_smallest_that_holds_enough():
    rng = np.random.default_rng(0)
    for _ in range(50):
        mass = rng.integers(0, 6, 7).astype(np.float64)
        mass[0] += 1
        kept = smallest_set(torch.from_numpy(mass), 0.6).numpy()
        sets = [list(members) for count in range(1, 8) for members in itertools.combinations(range(7), count)]
        enough = [len(members) for members in sets if mass[members].sum() >= 0.6 * mass.sum()]
        assert mass[kept].sum() >= 0.6 * mass.sum()
        assert kept.sum() == min(enough)


def test_a_point_lies_on_the_patch_under_it():
    assert patch_under((0, 0), 4) == (0, 0)
    assert patch_under((1, 1), 4) == (3, 3)
    assert patch_under((0.9, 0.3), 4) == (1, 3)


def test_what_is_shown_is_the_last_block_of_the_resampled_model():
    model = Classifier(SMALL, 3, generator=torch.Generator().manual_seed(0)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3, generator=torch.Generator().manual_seed(1))
    image = np.random.default_rng(0).integers(0, 256, (48, 48, 3), dtype=np.uint8)
    shown = look(model, image, [(0.9, 0.3), (0, 1)], ViewConfig())
    assert shown.patches == [(1, 5), (5, 0)]
    whole = (
        attention(at_size(model, 48, 48), normalise(torch.from_numpy(image)[None], ViewConfig()))[0]
        .detach()
        .numpy()
    )
    for number, (row, column) in enumerate(shown.patches):
        np.testing.assert_allclose(
            shown.weights[number].reshape(3, 36), whole[:, 1 + 6 * row + column, 1:], atol=1e-6
        )
    mean = shown.weights.mean(1)
    assert ((mean * shown.kept).sum((1, 2)) >= KEPT_MASS * mean.sum((1, 2)) - 1e-6).all()


def test_a_figure_stretches_the_grid_as_far_as_the_papers_not_beyond_30_patches_nor_below_the_models_own():
    assert (
        figure_size(
            backbone_of(Classifier(ModelConfig(image_size=64, patch_size=8, dim=24, depth=1, heads=3), 2))
        )
        == 17 * 8
    )
    assert figure_size(backbone_of(Classifier(ModelConfig(dim=24, depth=1, heads=3), 2))) == 480
    assert (
        figure_size(backbone_of(Classifier(ModelConfig(image_size=512, dim=24, depth=1, heads=3), 2))) == 512
    )
