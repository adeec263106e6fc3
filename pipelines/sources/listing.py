"""The files that a path names: a folder, one file, or a glob."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass

from beit.errors import UserError
from pipelines import schemes, storage
from pipelines.storage import Entry


@dataclass(frozen=True)
class Listing:
    """The files that a path names, sorted."""

    root: str
    """Folder that the names are relative to: an absolute path or a URI."""

    entries: list[Entry]

    def uri(self, name: str) -> str:
        """Return the path of one of the files."""
        return storage.join(self.root, name)


def find_files(path: str, *, option: str) -> Listing:
    """List the files that a path names.

    Raises:
        UserError: Naming `option`, where nothing is there.
    """
    schemes.check_scheme(path, option=option)
    pattern, query = storage.split_query(path)
    if re.search(r"[*?\[]", pattern) and not storage.exists(path):
        return _glob(pattern, query, option)
    if (found := storage.entry(path)) is not None:
        return Listing(storage.parent(path), [found])
    if not storage.exists(path):
        raise _missing(path, option)
    return Listing(storage.absolute(path), storage.list_files(path))


def _glob(pattern: str, query: str, option: str) -> Listing:
    """List the files that match a glob: * and ? stay within a folder's name, ** crosses folders. `query` is
    that of a bucket's URI.
    """
    parts = pattern.split("/")
    fixed = next(i for i, part in enumerate(parts) if re.search(r"[*?\[]", part))
    root = ("/".join(parts[:fixed]) or ("/" if pattern.startswith("/") else ".")) + query
    if not storage.is_folder(root):
        raise _missing(root, option)
    rest = "/".join(parts[fixed:])
    expression = re.compile(_translate(rest))
    found = storage.list_files(root, recursive="/" in rest or "**" in rest)
    entries = [entry for entry in found if expression.fullmatch(entry.name)]
    if not entries:
        held = ", ".join(entry.name for entry in found[:5]) or "no files"
        raise UserError(
            f"{option}={pattern} matches nothing", f"{root} holds {held}{', …' if len(found) > 5 else ''}"
        )
    return Listing(storage.absolute(root), entries)


def _translate(pattern: str) -> str:
    """Translate a glob into a regular expression."""
    tokens = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    pieces = re.split(r"(\*\*/|\*\*|\*|\?|\[[^\]]+\])", pattern)
    return "".join(
        tokens.get(piece) or (piece.replace("[!", "[^") if piece.startswith("[") else re.escape(piece))
        for piece in pieces
    )


def _missing(path: str, option: str) -> UserError:
    """Say where the path stops existing, and what it may have meant."""
    base, query = storage.split_query(path)
    scheme, mark, rest = base.partition("://") if storage.is_remote(path) else ("", "", base)
    parent, name = rest.rstrip("/"), ""
    while parent not in ("", "/"):
        parent, _, name = parent.rpartition("/")
        here = scheme + mark + parent + query if mark else parent or ("/" if path.startswith("/") else ".")
        if mark and not parent:
            break
        if storage.is_folder(here):
            held = storage.list_folder(here)
            close = difflib.get_close_matches(name, held, n=1)
            if close:
                return UserError(
                    f"{option}={path} does not exist", f"did you mean {storage.join(here, close[0])}?"
                )
            some = ", ".join(held[:5]) + (", …" if len(held) > 5 else "") if held else "nothing"
            return UserError(
                f"{option}={path} does not exist",
                f"the nearest folder that exists is {here}, which holds {some}",
            )
    return UserError(
        f"{option}={path} does not exist", "check the bucket's name and that this machine may list it"
    )
