import pytest
import torch

from beit.config import ModelConfig
from beit.errors import UserError
from beit.pretraining.model import Beit
from beit.probing.features import check_layers, middle_layer, pooled_features


def test_features_are_what_the_blocks_give_before_any_norm():
    model = Beit(
        ModelConfig(image_size=32, patch_size=8, dim=24, depth=3, heads=2, drop_path=0.0), 8, seed=3
    ).eval()
    pixels = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        found = pooled_features(model, pixels, (1, 3), ("mean", "cls"))
        tokens, behind = model.embed(pixels), []
        for block in model.blocks:
            tokens = block(tokens)
            behind.append(tokens)
    assert set(found) == {(1, "mean"), (1, "cls"), (3, "mean"), (3, "cls")}
    for (layer, pooling), values in found.items():
        expected = behind[layer - 1][:, 0] if pooling == "cls" else behind[layer - 1][:, 1:].sum(1) / 16
        torch.testing.assert_close(values, expected)


def test_layers_count_from_one_and_negative_ones_from_the_end():
    assert check_layers((-1, 2, 4, -4), 4) == (1, 2, 4)
    for wrong in (0, 5, -5):
        with pytest.raises(UserError, match="1 to 4"):
            check_layers((wrong,), 4)
    assert (middle_layer(12), middle_layer(24), middle_layer(4), middle_layer(1)) == (9, 14, 3, 1)
