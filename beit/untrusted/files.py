"""Read weights that others published without running any code in them, or say what a file is instead."""

from __future__ import annotations

import hashlib
import re
import string
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from torch import Tensor

from beit.errors import UserError
from beit.untrusted.pickled import NotWeightsError, read_torch

_HEAD = 4096

_PRINTABLE = frozenset(string.printable.encode())

_BEGINNINGS = {
    b"version https://git-lfs": "a Git LFS pointer in place of the file",
    b"\x1f\x8b": "a gzip archive",
    b"\xfd7zXZ": "an xz archive",
    b"\x89PNG": "a PNG image",
    b"\xff\xd8\xff": "a JPEG image",
    b"\x89HDF": "an HDF5 file",
    b"%PDF": "a PDF document",
}


def read_bytes(path: Path, sha256: str | None, *, largest: int, what: str, sources: str) -> tuple[bytes, str]:
    """Return a file's bytes and their SHA-256 in hexadecimal.

    Args:
        path: The file.
        sha256: The SHA-256 that it must have. None: any.
        largest: No file of this kind has more bytes.
        what: The kind of file, for messages.
        sources: Which files can be given, for messages.

    Raises:
        UserError: If the file is too large, or its SHA-256 is a different one.
    """
    if (size := path.stat().st_size) > largest:
        raise UserError(f"{path} has {size / 2**30:.0f} GiB, more than any known {what}", f"give {sources}")
    data = path.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    if sha256 is not None and digest != sha256.strip().lower():
        raise UserError(
            f"{path} has the SHA-256 {digest}, not {sha256}", "download it again, or find out who changed it"
        )
    return data, digest


def read_tensors(data: bytes) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file or of a file of `torch.save`, by name.

    Raises:
        NotWeightsError: If it is anything else; its text says what ("an HTML page", "a pickle with the
            global os.system").
    """
    if (found := _describe_non_weights(data)) is not None:
        raise NotWeightsError(found)
    if _is_safetensors(data):
        try:
            return load_safetensors(data)
        except (SafetensorError, KeyError) as error:
            raise NotWeightsError(
                f"a damaged safetensors file, as of a download that broke off ({error})"
            ) from None
    # Every pickle ends with a dot; the oldest ones are text.
    if not data.startswith((b"PK", b"\x80")) and not data.endswith(b"."):
        raise NotWeightsError(f"{len(data):,} bytes of an unknown kind, the first 0x{data[:8].hex()}")
    return read_torch(data)


def _is_safetensors(data: bytes) -> bool:
    return data[8:9] == b"{" and int.from_bytes(data[:8], "little") < 100_000_000


def _describe_non_weights(data: bytes) -> str | None:
    """Say what a file is that a failed download left in place of weights; None if it may hold weights."""
    if not data:
        return "an empty file"
    head = data[:_HEAD]
    for beginning, what in _BEGINNINGS.items():
        if head.startswith(beginning):
            return what
    if head[257:262] == b"ustar":
        return "a tar archive"
    text = head.strip().lower()
    if text.startswith((b"<!doctype html", b"<html")) or (text.startswith(b"<") and b"<html" in text):
        return "an HTML page"
    if text.startswith(b"<?xml") or text.startswith(b"<error"):
        return "an XML page, as a storage server answers with"
    if re.match(rb"--\d{4}-\d\d-\d\d", text) or b"http request sent, awaiting response" in text:
        return "a log of wget"
    if text.startswith(b"% total") and b"xferd" in text:
        return "a log of curl"
    if _PRINTABLE.issuperset(head) and not data.endswith(b"."):
        first = head.decode("ascii").strip().partition("\n")[0]
        return f"text that begins with {first[:40]!r}"
    return None
