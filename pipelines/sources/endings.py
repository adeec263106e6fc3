"""Which names are those of image files: by their endings, in folders and in tars."""

from __future__ import annotations

IMAGE_ENDINGS = frozenset(
    (
        *("jpg", "jpeg", "jpe", "jfif", "png", "webp", "bmp", "gif", "tif", "tiff"),
        *("ppm", "pgm", "jp2", "avif"),
    )
)
"""Names with these endings, in any case, are taken for images."""

UNREAD_IMAGE_ENDINGS = frozenset(
    (
        *("heic", "heif", "hif", "jxl", "jxr", "jls", "psd", "exr", "hdr", "svg", "ico"),
        *("dng", "cr2", "cr3", "nef", "arw", "orf", "rw2", "raf", "dcm"),
    )
)
"""Names with these endings are those of images too, of formats that are not decoded here."""

NO_IMAGE_ENDINGS = frozenset(
    (
        *("txt", "md", "json", "jsonl", "csv", "tsv", "xml", "html", "yaml", "yml", "log", "crc", "lock"),
        *("npy", "npz", "pt", "pth", "safetensors", "py", "sh", "zip", "gz", "tar", "parquet", "arrow"),
    )
)
"""Endings behind which nobody looks for an image."""
