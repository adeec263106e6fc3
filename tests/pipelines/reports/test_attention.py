import numpy as np
import torch

from beit.classification.model import Classifier
from beit.config import ModelConfig, ViewConfig
from pipelines.reports.attention import POINTS, attention_picture

SMALL = ModelConfig(image_size=32, patch_size=8, dim=24, depth=3, heads=3, drop_path=0.5)


def test_the_sheet_has_a_row_for_each_point_of_three_images_and_no_chance_in_it():
    model = Classifier(SMALL, 3, generator=torch.Generator().manual_seed(0)).train()
    images = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), dtype=np.uint8)
    first, again = (attention_picture(model, images, ViewConfig()) for _ in range(2))
    assert (np.asarray(first.image) == np.asarray(again.image)).all()
    one = attention_picture(model, images[:1], ViewConfig())
    row = (first.image.height - one.image.height) // (2 * len(POINTS))
    assert row > 144, "three images have four rows more than one"
    assert {name for name, _ in first.legend} >= {"mean over heads", "60% of the mean"}
