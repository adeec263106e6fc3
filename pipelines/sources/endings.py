"""Which names are those of image files: by their endings, in folders and in tars."""

from __future__ import annotations

IMAGE_ENDINGS = frozenset(
    (
        *("jpg", "jpeg", "jpe", "jfif", "png", "webp", "bmp", "gif", "tif", "tiff"),
        *("ppm", "pgm", "jp2", "avif"),
    )
)
"""Names with these endings, in any case, are taken for images."""
