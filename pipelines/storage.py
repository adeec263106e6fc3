"""File operations that work the same on local paths and on URIs of object stores, such as s3:// and gs://."""

from __future__ import annotations

import errno
import functools
import operator
import os
import tempfile
import uuid
from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from pyarrow import fs

from beit.errors import UserError
from pipelines.schemes import check_scheme, has_known_scheme, scheme_of


@dataclass(frozen=True, slots=True)
class Entry:
    """One file of a listing."""

    name: str
    """Path below the listed folder, with forward slashes. Local names that are not UTF-8 are as
    `os.fsdecode` gives them."""

    size: int
    """In bytes."""

    changed_ns: int
    """Time of the last change, in nanoseconds since 1970; 0 if the storage does not know it."""


class UnwritableError(UserError, OSError):
    """A local folder that cannot be created or written to. Also an `OSError`, for callers that can work
    without the file.
    """


def is_remote(uri: str | Path) -> bool:
    """Whether a path names an object store rather than a local file."""
    return scheme_of(uri) != ""


def resolve(uri: str | Path) -> tuple[fs.FileSystem, str]:
    """Return the file system that a path or URI lives on, and its path there; local paths become absolute.

    Raises:
        UserError: For a scheme that is unknown, or that cannot be opened here.
    """
    if not is_remote(uri):
        return _local(), os.path.abspath(os.path.expanduser(_without_file_scheme(str(uri))))
    check_scheme(uri)
    base, query = split_query(uri)
    host, slash, path = base.partition("://")[2].partition("/")
    root = f"{scheme_of(uri)}://{host}{query if query != '?' else ''}"
    return _file_system(root), f"{host.rpartition('@')[2]}{slash}{path}".rstrip("/")


def _without_file_scheme(path: str) -> str:
    return path[len("file://") :] if path[: len("file://")].lower() == "file://" else path


def absolute(uri: str | Path) -> str:
    """Return a path that means the same to every process, and is written in one way only: local paths from
    the root, URIs with their scheme in lower case; no slash at the end.
    """
    if not is_remote(uri):
        return resolve(uri)[1]
    base, query = split_query(uri)
    return f"{scheme_of(uri)}://{base.partition('://')[2]}{query}"


def name(uri: str | Path) -> str:
    """Return the last name of a path, without a URI's query."""
    return split_query(absolute(uri))[0].rpartition("/")[2]


def parent(uri: str | Path) -> str:
    """Return the absolute path of the folder above. A URI keeps its query; above a bucket there is only the
    bucket.
    """
    base, query = split_query(absolute(uri))
    above = base.rpartition("/")[0]
    return (base if above.endswith(":/") else above or "/") + query


def split_query(uri: str | Path) -> tuple[str, str]:
    """Split a path into the path without slashes at its end, and a URI's query with its question mark. The
    slashes of a scheme are kept.

    The query is what follows the last question mark: names on a bucket may have some too. A # is part of a
    name.
    """
    base, mark, query = str(uri).rpartition("?") if is_remote(uri) and "?" in str(uri) else (str(uri), "", "")
    scheme, slashes, rest = base.partition("://")
    return scheme + slashes + rest.rstrip("/") if slashes else base.rstrip("/"), mark + query


@functools.cache
def _local() -> fs.FileSystem:
    return fs.LocalFileSystem()


@functools.cache
def _file_system(root: str) -> fs.FileSystem:
    # Cached for the process: every new S3 client looks up the bucket's region and opens its own connections.
    try:
        return fs.FileSystem.from_uri(root)[0]
    except (ValueError, NotImplementedError, ImportError) as error:
        raise UserError(
            f"{root} cannot be opened: {error}", "give a local path, s3://bucket/… or gs://bucket/…"
        ) from error


def join(uri: str | Path, *names: str) -> str:
    """Join names to a path; a URI keeps its query at the end.

    A URI gets an empty query, a lone question mark, if names have question marks and would be taken for one.
    """
    base, query = split_query(uri)
    if not query and is_remote(uri) and any("?" in name for name in names):
        query = "?"
    if is_remote(uri) and base.endswith("://"):
        return base + "/".join(names) + query
    return "/".join([base, *names]) + query


def lies_in(uri: str | Path, folder: str | Path) -> bool:
    """Whether `uri` is `folder` itself or lies below it."""
    if not (has_known_scheme(uri) and has_known_scheme(folder)):
        return False  # One of them names data that are not files.
    (system, path), (other, above) = resolve(uri), resolve(folder)
    return system == other and (path + "/").startswith(above.rstrip("/") + "/")


def exists(uri: str | Path) -> bool:
    """Whether there is a file or a folder."""
    system, path = resolve(uri)
    return bool(system.get_file_info(path).type != fs.FileType.NotFound)


def is_folder(uri: str | Path) -> bool:
    """Whether there is a folder (on object stores: anything below the path)."""
    system, path = resolve(uri)
    return bool(system.get_file_info(path).type == fs.FileType.Directory)


def entry(uri: str | Path) -> Entry | None:
    """Return the listing's entry of one file; None if there is no such file."""
    system, path = resolve(uri)
    info = system.get_file_info(path)
    return (
        Entry(path.rpartition("/")[2], info.size, info.mtime_ns or 0)
        if info.type == fs.FileType.File
        else None
    )


class Skipped(NamedTuple):
    """What a listing leaves out."""

    name: str
    """As in `Entry`."""

    reason: str
    """`HIDDEN`, or what it is instead of a file, in the singular."""


HIDDEN = "name that begins with a dot"
LEADS_NOWHERE = "link that leads nowhere"
ANNEXED = "link of git-annex whose content is not here (`git annex get` brings it)"
CIRCLE = "link to a folder that holds it"
NO_FILE = "pipe, socket or device"

_NOWHERE = (errno.ENOENT, errno.ELOOP, errno.ENOTDIR, errno.ENAMETOOLONG)


def list_files(
    uri: str | Path, *, recursive: bool = True, skipped: list[Skipped] | None = None
) -> list[Entry]:
    """List the files below a folder, sorted by name. Names that start with a dot are left out, links to
    folders are followed.

    Args:
        uri: The folder.
        recursive: Whether to go into the folders in it.
        skipped: Takes what is left out.
    """
    skipped = [] if skipped is None else skipped
    system, path = resolve(uri)
    if not is_remote(uri):
        return sorted(_walk(path, "", recursive, frozenset(), skipped), key=operator.attrgetter("name"))
    found = system.get_file_info(fs.FileSelector(path, recursive=recursive, allow_not_found=True))
    visible = []
    for info in found:
        if info.type == fs.FileType.File:
            name = info.path[len(path) :].lstrip("/")
            if name.startswith(".") or "/." in name:
                skipped.append(Skipped(name, HIDDEN))
            else:
                visible.append(Entry(name, info.size, info.mtime_ns or 0))
    return sorted(visible, key=operator.attrgetter("name"))


def _walk(
    folder: str, prefix: str, recursive: bool, above: frozenset[tuple[int, int]], skipped: list[Skipped]
) -> Iterator[Entry]:
    status = os.stat(folder)
    identity = (status.st_dev, status.st_ino)
    if identity in above:  # It would never end.
        skipped.append(Skipped(prefix[:-1], CIRCLE))
        return
    with os.scandir(folder) as entries:
        for item in entries:
            name = prefix + item.name
            if item.name.startswith("."):
                skipped.append(Skipped(name, HIDDEN))
            elif item.is_symlink() and (reason := _broken_link(item.path)) is not None:
                skipped.append(Skipped(name, reason))
            elif item.is_dir():
                if recursive:
                    yield from _walk(item.path, f"{name}/", recursive, above | {identity}, skipped)
            elif item.is_file():
                found = item.stat()
                yield Entry(name, found.st_size, found.st_mtime_ns)
            else:
                skipped.append(Skipped(name, NO_FILE))


def _broken_link(path: str) -> str | None:
    """Say what is wrong with a link; None for one that leads somewhere."""
    try:
        os.stat(path)
    except OSError as error:
        if error.errno not in _NOWHERE:
            raise
        return ANNEXED if ".git/annex/objects/" in os.readlink(path) else LEADS_NOWHERE
    return None


def list_folder(uri: str | Path) -> list[str]:
    """List the names of files and folders directly in a folder, sorted."""
    system, path = resolve(uri)
    found = system.get_file_info(fs.FileSelector(path, allow_not_found=True))
    return sorted(info.base_name for info in found)


def open_input(uri: str | Path) -> AbstractContextManager[Any]:
    """Open a binary file for reading, with random access."""
    system, path = resolve(uri)
    file: AbstractContextManager[Any] = system.open_input_file(path)
    return file


def read_bytes(uri: str | Path) -> bytes:
    """Read a whole file."""
    if not is_remote(uri):
        return Path(resolve(uri)[1]).read_bytes()
    with open_input(uri) as file:
        return bytes(file.read())


def read_text(uri: str | Path) -> str:
    """Read a whole UTF-8 file."""
    return read_bytes(uri).decode()


@contextmanager
def open_output(uri: str | Path) -> Iterator[Any]:
    """Open a binary file for writing. It appears under its name only when complete; its folders are created.

    A local file is written next to its final place and then renamed. An object store shows an object when its
    upload ends; an upload that an exception interrupts is removed again.

    Raises:
        UserError: If the local folder cannot be created or written to.
    """
    system, path = resolve(uri)
    if is_remote(uri):
        file = system.open_output_stream(path)
        try:
            yield file
        except BaseException:
            # An upload can only be ended by closing it, which publishes what was written.
            file.close()
            system.delete_file(path)
            raise
        file.close()
        return
    folder = os.path.dirname(path)
    unfinished = f"{folder}/.{os.path.basename(path)}.{uuid.uuid4().hex[:8]}"
    try:
        os.makedirs(folder, exist_ok=True)
        local = open(unfinished, "wb")  # noqa: SIM115 (closed below: what the caller raises is none of this error)
    except OSError as error:
        raise UnwritableError(
            f"{folder} cannot be made or written: {error.strerror}", "give another folder"
        ) from error
    try:
        with local:
            yield local
            local.flush()
            os.fsync(local.fileno())  # Else the name could outlive the content when the machine stops.
        os.replace(unfinished, path)
    finally:
        if os.path.exists(unfinished):
            os.unlink(unfinished)


def write_bytes(uri: str | Path, content: bytes) -> None:
    """Write a file in one step: a reader sees the old content or the new, never a part."""
    with open_output(uri) as file:
        file.write(content)


def write_new(uri: str | Path, content: str) -> bool:
    """Write a UTF-8 file that does not exist yet; returns whether it did not. Of several processes only one
    succeeds, but on object stores, where one that comes a moment later may too.
    """
    if is_remote(uri):
        if exists(uri):
            return False
        write_text(uri, content)
        return True
    path = resolve(uri)[1]
    beside = f"{os.path.dirname(path)}/.{os.path.basename(path)}.{uuid.uuid4().hex[:8]}"
    write_text(beside, content)
    try:
        os.link(beside, path)
    except FileExistsError:
        return False
    except OSError:  # A file system without links: the content then comes a moment after the name.
        try:
            with open(path, "x") as file:
                file.write(content)
        except FileExistsError:
            return False
    finally:
        os.unlink(beside)
    return True


def write_text(uri: str | Path, content: str) -> None:
    """Write a UTF-8 file in one step."""
    write_bytes(uri, content.encode())


def delete_file(uri: str | Path) -> None:
    """Delete a file that exists."""
    system, path = resolve(uri)
    system.delete_file(path)


def delete_folder(uri: str | Path) -> None:
    """Delete a folder that exists, with everything in it."""
    system, path = resolve(uri)
    system.delete_dir(path)


@contextmanager
def local_copy(uri: str | Path, names: Collection[str] | None = None) -> Iterator[Path]:
    """Provide a folder locally: the folder itself, or a copy of a folder on a bucket while the context lasts.

    Args:
        uri: The folder.
        names: The files that are needed. None: all files.
    """
    if not is_remote(uri):
        yield Path(resolve(uri)[1])
        return
    with tempfile.TemporaryDirectory() as folder:
        for found in list_files(uri, recursive=False):
            if names is None or found.name in names:
                Path(folder, found.name).write_bytes(read_bytes(join(uri, found.name)))
        yield Path(folder)
