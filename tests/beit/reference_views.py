"""The transform of the released code written out with Pillow: jitter and flip on the whole image, then the crop, resized twice."""

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageOps

from beit.views import FACTOR_UNIT, ViewParameters

ENHANCE = {"brightness": ImageEnhance.Brightness, "contrast": ImageEnhance.Contrast, "saturation": ImageEnhance.Color}


def reference_views(
    encoded: bytes, parameters: ViewParameters, *, patch_px: int, token_px: int
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    image = Image.open(io.BytesIO(encoded)).convert("RGB")
    for step, factor in parameters.jitter:
        image = ENHANCE[step](image).enhance(factor / FACTOR_UNIT)
    left = parameters.left
    if parameters.flip:
        image = ImageOps.mirror(image)
        left = image.width - left - parameters.width
    crop = image.crop((left, parameters.top, left + parameters.width, parameters.top + parameters.height))
    patch_view = crop.resize((patch_px, patch_px), Image.Resampling.BICUBIC)
    token_view = crop.resize((token_px, token_px), Image.Resampling.LANCZOS)
    return np.asarray(patch_view), np.asarray(token_view)
