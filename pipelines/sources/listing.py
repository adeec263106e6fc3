"""The files that a path names: a folder, one file, or a glob."""

from __future__ import annotations

import difflib
import re
from collections import Counter
from dataclasses import dataclass, field

from beit.errors import UserError
from pipelines import schemes, storage
from pipelines.sources.endings import IMAGE_ENDINGS
from pipelines.sources.passed_over import HIDDEN, PassedOver, hidden_part
from pipelines.storage import Entry


@dataclass(frozen=True)
class Listing:
    """The files that a path names, sorted."""

    root: str
    """Folder that the names are relative to: an absolute path or a URI."""

    entries: list[Entry]

    passed_over: PassedOver = field(default_factory=dict)
    """What was found besides, counted by reason."""

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
    return _visible(path)


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
    listing = _visible(
        root,
        re.compile(_translate(rest), re.DOTALL),
        recursive="/" in rest or "**" in rest,
        underscores=any(part.startswith("_") for part in parts[fixed:]),
    )
    if not listing.entries:
        found = storage.list_files(root, recursive="/" in rest or "**" in rest)
        held = ", ".join(entry.name for entry in found[:5]) or "no files"
        raise UserError(
            f"{option}={pattern} matches nothing", f"{root} holds {held}{', …' if len(found) > 5 else ''}"
        )
    return listing


def _visible(
    root: str, pattern: re.Pattern[str] | None = None, *, recursive: bool = True, underscores: bool = False
) -> Listing:
    """List the files of a folder, and count what is passed over.

    Args:
        root: The folder.
        pattern: What the whole path of a file below the folder must match. None: anything.
        recursive: Whether to go into the folders in it.
        underscores: The pattern asks for names that begin with an underscore: these are not passed over.
    """
    skipped: list[storage.Skipped] = []
    found = storage.list_files(root, recursive=recursive, skipped=skipped)
    if pattern is not None:
        found = [entry for entry in found if pattern.fullmatch(entry.name)]
        skipped = [item for item in skipped if pattern.fullmatch(item.name)]
    counts = Counter(reason for _, reason in skipped if reason != storage.HIDDEN)
    # A hidden folder counts once: what is in it is not looked at.
    hidden = {hidden_part(name) for name, reason in skipped if reason == storage.HIDDEN}
    entries = []
    for entry in found:
        if underscores or (part := hidden_part(entry.name, IMAGE_ENDINGS)) is None:
            entries.append(entry)
        else:
            hidden.add(part)
    if hidden:
        counts[HIDDEN] = len(hidden)
    return Listing(storage.absolute(root), entries, counts)


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
