"""Read single image files for commands that show them, and check the path of the picture that they write."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from beit.classification.views import make_centre_view
from beit.config import ViewConfig
from beit.errors import UserError
from beit.images.views import Status
from pipelines import storage


def read_square(image: str, px: int) -> NDArray[np.uint8]:
    """Read the centre square of an image file: resize the shorter side to `px`, then crop to [px, px, 3].

    Raises:
        UserError: If there is no such file, or it cannot be decoded.
    """
    if storage.entry(image) is None:
        raise UserError(f"{image} is not there, or is no file", "give the paths of image files")
    square, status = make_centre_view(storage.read_bytes(image), view=ViewConfig(), image_size=px, share=1.0)
    if status != Status.DECODED:
        raise UserError(f"{image}: {status.reason}", "leave it out")
    return square


def check_picture(out: str, *, option: str = "--out") -> None:
    """Refuse to write a picture over a file that is not one.

    Raises:
        UserError: If the name does not end in .png.
    """
    if not out.lower().endswith(".png"):
        raise UserError(
            f"{option} {out} does not end in .png, and a picture would be written there",
            f"write {option} NAME.png",
        )
