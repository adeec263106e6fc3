import dataclasses

import pytest
import torch
from torch import nn

from beit.classification.model import Classifier
from beit.config import ModelConfig
from beit.pretraining.model import Beit
from beit.segmentation.model import Segmenter

PAPER = ModelConfig(image_size=64, dim=48, depth=3, heads=3, position="absolute")
SHARED = dataclasses.replace(PAPER, position="relative", layer_scale=0.1)
PER_BLOCK = dataclasses.replace(SHARED, position="relative-per-block")
NAMES = ["cat", "dog", "newt", "owl", "yak"]

MODELS = {
    "mim, paper": lambda: Beit(PAPER, 50),
    "mim, released": lambda: Beit(SHARED, 50),
    "classifier, paper, class token": lambda: Classifier(PAPER, 5, pooling="cls"),
    "classifier, released": lambda: Classifier(PER_BLOCK, 5, class_names=NAMES),
    "segmenter": lambda: Segmenter(dataclasses.replace(PER_BLOCK, depth=6), 5, class_names=NAMES),
}


@pytest.fixture
def build():
    """Builds one of MODELS in which every value is drawn: no two tensors are the same, none is constant."""

    def build(which: str) -> nn.Module:
        model, generator = MODELS[which](), torch.Generator().manual_seed(0)
        with torch.no_grad():
            for name, tensor in model.state_dict().items():
                if tensor.is_floating_point():
                    tensor.normal_(std=0.2, generator=generator)
                    if "var" in name:
                        tensor.abs_().add_(0.5)
                else:
                    tensor.fill_(3)
        return model.eval()

    return build
