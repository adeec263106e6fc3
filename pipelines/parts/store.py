"""A store of parts: a folder of files that are written one by one, each under its name only when complete.

A JSON file in the folder describes what the parts are made from. A job that was stopped and is started again
with the same description writes what is missing; with another description it is refused.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from beit.errors import UserError
from pipelines import storage
from pipelines.runs.run_folder import flatten

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Description = TypeVar("Description", bound="DataclassInstance")


@dataclass(frozen=True)
class PartStore(ABC, Generic[Description]):
    """A store by its place and its description: small, and nothing is held open."""

    path: str
    """Folder or bucket URI, absolute."""

    description: Description
    """What the parts are made from."""

    description_files: ClassVar[tuple[str, ...]]
    """Names that the description may have; a new store has the first of them."""

    may_precede: ClassVar[frozenset[str]] = frozenset()
    """Files that may lie in the folder before the description does."""

    what: ClassVar[str]
    """Words for a folder that cannot become a store: "… is not empty and holds no …"."""

    mismatch: ClassVar[str]
    """Words for a store with another description: "… holds other …"."""

    remedy: ClassVar[str] = "give another folder, or the same options"
    """What to do in that case."""

    format: ClassVar[int | None] = None
    """Version of the files, which the description has in its field `format`. None: it has no such field."""

    other_format: ClassVar[str] = "give another folder"
    """Remedy for a store of another version."""

    option_names: ClassVar[Mapping[str, str]] = {}
    """Names of the description's fields in messages, where they differ."""

    @property
    @abstractmethod
    def parts(self) -> int:
        """Number of parts of a complete store."""

    @abstractmethod
    def name(self, part: int) -> str:
        """Path of a part below the folder."""

    def begin(self, *, option: str = "out") -> None:
        """Write the description, or compare it with the one that is there.

        Args:
            option: What the user calls the folder.

        Raises:
            UserError: If the folder holds parts of another description, or anything else.
        """
        for name in self.description_files:
            if storage.exists(file := storage.join(self.path, name)):
                there = json.loads(storage.read_text(file))
                self.check_format(there, self.path, option=option)
                self._refuse_other(there, plain(self.description), option)
                return
        self.check_folder(self.path, option=option)
        self.write_description(self.description_files[0])

    @classmethod
    def check_format(cls, there: Mapping[str, Any], path: str, *, option: str) -> None:
        """Refuse a store of another version: what else its description says may mean something else.

        Args:
            there: The content of its description's file.
            path: The store's folder.
            option: What the user calls the folder.

        Raises:
            UserError: Naming both versions.
        """
        if cls.format is not None and (found := there.get("format")) != cls.format:
            raise UserError(
                f"{option}={path} has the format {found}, and this version reads {cls.format}",
                cls.other_format,
            )

    @classmethod
    def check_folder(cls, path: str, *, option: str = "out") -> None:
        """Refuse a folder that holds anything else; hidden files do not count.

        Raises:
            UserError: Naming what it holds.
        """
        names = [name for name in storage.list_folder(path) if not name.startswith(".")]
        if not set(cls.description_files) & set(names) and set(names) - cls.may_precede:
            raise UserError(
                f"{option}={path} is not empty and holds no {cls.what}: {', '.join(names[:3])}",
                "give a new folder",
            )

    def check(self, expected: Description, *, option: str) -> None:
        """Refuse a store whose parts are made from anything else than expected.

        Raises:
            UserError: Naming the first fields that differ, with both values.
        """
        self._refuse_other(plain(self.description), plain(expected), option)

    def _refuse_other(self, there: Mapping[str, Any], here: Mapping[str, Any], option: str) -> None:
        before, now = flatten(there), flatten(here)
        if differing := [
            f"{self.option_names.get(name, name)} is {before.get(name)} there and {value} here"
            for name, value in now.items()
            if before.get(name) != value
        ]:
            raise UserError(f"{option}={self.path} {self.mismatch}: {'; '.join(differing[:3])}", self.remedy)

    def write_description(self, name: str) -> None:
        """Write the description into a file of the folder."""
        storage.write_text(
            storage.join(self.path, name), json.dumps(plain(self.description), indent=1) + "\n"
        )

    def missing(self) -> list[int]:
        """List the numbers of the missing parts."""
        there = {entry.name for entry in storage.list_files(self.path)}
        return [part for part in range(self.parts) if self.name(part) not in there]

    def open_output(self, part: int) -> AbstractContextManager[Any]:
        """Open the file of a part to write. It appears under its name when it is complete."""
        return storage.open_output(storage.join(self.path, self.name(part)))

    def open_input(self, part: int) -> AbstractContextManager[Any]:
        """Open the file of a part to read."""
        return storage.open_input(storage.join(self.path, self.name(part)))


def plain(description: DataclassInstance) -> dict[str, Any]:
    """Return a description as its JSON file would give it back: lists in place of tuples."""
    fields: dict[str, Any] = json.loads(json.dumps(asdict(description)))
    return fields
