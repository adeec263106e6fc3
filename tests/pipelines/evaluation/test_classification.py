import numpy as np
import torch

from beit.classification.model import Classifier
from beit.config import ModelConfig, ViewConfig
from beit.plain import to_dict
from beit.vit.checkpoints import save_model
from pipelines.evaluation.classification import IMAGES_AT_ONCE, ClassJudge

TINY = ModelConfig(image_size=16, patch_size=8, dim=8, depth=1, heads=2)


def test_a_large_block_goes_through_the_model_in_parts_and_every_image_gets_its_own_result(tmp_path):
    model = Classifier(TINY, 3, head_scale=100, generator=torch.Generator().manual_seed(0))
    save_model(model, tmp_path, extra={"view": to_dict(ViewConfig())})
    rng, images = np.random.default_rng(0), 2 * IMAGES_AT_ONCE + 5
    block = {name: np.arange(images) for name in ("unit", "row")} | {"status": np.zeros(images, np.uint8)}
    block |= {
        "view": rng.integers(0, 256, (images, 16, 16, 3), np.uint8),
        "label": rng.integers(0, 3, images),
    }
    judge, seen = ClassJudge(str(tmp_path), device="cpu", threads=1), []
    judge._model.register_forward_hook(lambda module, inputs, logits: seen.append(len(logits)))
    judged = judge(block)
    assert seen == [IMAGES_AT_ONCE, IMAGES_AT_ONCE, 5]
    assert len(set(judged["prediction"].tolist())) == 3
    for image in (0, IMAGES_AT_ONCE, images - 1):
        alone = judge({name: column[image : image + 1] for name, column in block.items()})
        assert all(
            judged[name][image] == alone[name][0] for name in ("unit", "row", "label", "prediction", "rank")
        )
        np.testing.assert_allclose(judged["loss"][image], alone["loss"][0], rtol=1e-5)
