import numpy as np
import pytest

from beit.pretraining.pictures import Reconstructions
from beit.pretraining.targets import VisualTokens
from pipelines.reports.reconstructions import reconstruction_picture


@pytest.mark.parametrize("decoder", [True, False])
def test_legend_explains_the_columns_that_are_there(decoder):
    picture = np.zeros((1, 16, 16, 3), dtype=np.uint8) if decoder else None
    shown = Reconstructions(
        target=VisualTokens,
        images=np.zeros((1, 32, 32, 3), dtype=np.uint8),
        masks=np.array([[[True, False], [False, True]]]),
        asked=np.array([[[True, False], [False, True]]]),
        true=np.array([[1, 2, 3, 4]]),
        predicted=np.array([[1, 0, 0, 0]]),
        painted_true=picture,
        painted_filled=picture,
        painted_predicted=picture,
    )
    legend = dict(reconstruction_picture(shown).legend)
    assert "50.0% of the hidden patches are right" in legend["right and wrong"]
    assert ("true tokens, decoded" in legend) == decoder
