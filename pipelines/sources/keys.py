"""Keys of WebDataset: what comes before the first dot of a name. Files of one key are one sample, and one of
them is its image.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

IMAGE_NAMES = ("image", "img", "picture", "photo", "rgb", "jpg", "jpeg", "png", "webp")
"""What the image of a sample is called where others are beside it, as in 7.image.jpg and 7.mask.png."""


def one_image_a_key(keys: Sequence[str], endings: Sequence[str]) -> tuple[list[int], Counter[str]]:
    """Choose the image of each key where names tell which it is: 7.jpg rather than 7.depth.png, and
    7.image.jpg rather than 7.mask.png. Where they do not tell, all images stay.

    Args:
        keys: Key of each image.
        endings: What follows the first dot of its name, in lower case.

    Returns:
        The images that are kept, in order, and how many others there are by ending.
    """
    left: set[int] = set()
    for rows in _repeated(keys):
        if any(_parts(endings[row]) == "" for row in rows):
            left.update(row for row in rows if _parts(endings[row]))
            continue
        named = [row for row in rows if _is_name(_parts(endings[row]))]
        images = {endings[row] for row in named if _parts(endings[row]) in IMAGE_NAMES}
        if len(images) == 1:
            left.update(row for row in named if endings[row] not in images)
    kept = [row for row in range(len(keys)) if row not in left] if left else list(range(len(keys)))
    return kept, Counter(endings[row] for row in left)


def images_with_ending(endings: Sequence[str], wanted: str) -> tuple[list[int], Counter[str]]:
    """Choose the images that the user asks for by their ending; returns what `one_image_a_key` does."""
    kept = [row for row, ending in enumerate(endings) if ending == wanted]
    return kept, Counter(ending for ending in endings if ending != wanted)


def keys_with_several_images(keys: Sequence[str], endings: Sequence[str]) -> list[tuple[str, str]]:
    """Find the keys with images of different endings. Names such as 7.2019.jpg are whole: no sample calls
    its files by numbers.

    Returns:
        For each such key the names of two images.
    """
    found = []
    for rows in _repeated(keys):
        several = sorted(
            {endings[row] for row in rows if not _parts(endings[row]) or _is_name(_parts(endings[row]))}
        )
        if len(several) > 1:
            key = keys[rows[0]]
            found.append((f"{key}.{several[0]}", f"{key}.{several[1]}"))
    return found


def _repeated(keys: Sequence[str]) -> Iterator[list[int]]:
    """The rows of every key that occurs more than once."""
    rows: dict[str, list[int]] = {}
    for row, key in enumerate(keys):
        rows.setdefault(key, []).append(row)
    yield from (several for several in rows.values() if len(several) > 1)


def _parts(ending: str) -> str:
    """The part of an ending before its last dot: depth of depth.png, nothing of png."""
    return ending.rpartition(".")[0]


def _is_name(part: str) -> bool:
    return any(letter.isalpha() for letter in part)
