"""The token cache: visual tokens of the views of K epochs, computed once (`beit tokenizer encode`), read by
pretraining.

    cache.json                       what the tokens were made from
    epoch-00000/part-00000.parquet   16 neighbouring units, a row group each, in the unit's row order
    extra/NAME.npy                   tokens of views that are in no epoch, such as those of an evaluation

A part appears under its name only when complete, so what is there need not be computed again.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from beit.config import ViewConfig
from beit.errors import UserError
from beit.plain import to_dict
from pipelines import storage
from pipelines.parts.store import PartStore

FORMAT = 1

PART_UNITS = 16
"""Units of a part. A function of nothing: a unit's tokens are found by its number alone."""

CACHE_FILE = "cache.json"
EXTRA_FOLDER = "extra"

# Normalisation happens on the device, after the views: any values go with the same tokens.
_NOT_OF_VIEWS = ("mean", "std")

# Fields that came later, with what they were before: left out while they are that, so older caches match.
_LATER_FIELDS = {"range": "auto", "channels": None}

# As the user would set them; digests by the option that names what was digested.
_OPTIONS = {
    "data": "data.train (digest)",
    "patch_px": "model.image_size",
    "token_px": "tokenizer.image_size",
    "tokenizer": "tokenizer (digest)",
}


@dataclass(frozen=True, kw_only=True)
class CacheDescription:
    """What the tokens of a cache were made from."""

    format: int = FORMAT

    data: str
    """Digest of the manifest."""

    units: int
    """Units of the manifest."""

    seed: int
    view: dict[str, Any]
    """What `view_fields` keeps of the view configuration."""

    patch_px: int
    """Side of the patch view, in pixels: a smaller token view is made from it."""

    token_px: int
    """Side of the token view, in pixels."""

    tokenizer: str
    """Digest of the tokenizer's weights."""

    vocab_size: int

    precision: str
    """Arithmetic of the tokenizer."""

    epochs: int
    """Epochs whose views are tokenised, from 0 on."""

    @property
    def name(self) -> str:
        """For the folder of a cache among others: whatever differs has another one."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:12]


def view_fields(view: ViewConfig) -> dict[str, Any]:
    """What of a view configuration the tokens depend on, as plain JSON types."""
    fields: dict[str, Any] = json.loads(json.dumps(to_dict(view)))
    return {
        name: value
        for name, value in fields.items()
        if name not in _NOT_OF_VIEWS and not (name in _LATER_FIELDS and value == _LATER_FIELDS[name])
    }


@dataclass(frozen=True)
class TokenCache(PartStore[CacheDescription]):
    """A cache by its place and its description: small, and nothing is held open."""

    description_files: ClassVar[tuple[str, ...]] = (CACHE_FILE,)
    what: ClassVar[str] = f"{CACHE_FILE} of an earlier encoding"
    mismatch: ClassVar[str] = "does not match"
    remedy: ClassVar[str] = (
        "use the same data and options, or encode into another folder by beit tokenizer encode --out FOLDER"
    )
    format: ClassVar[int | None] = FORMAT
    other_format: ClassVar[str] = "encode again into another folder, by beit tokenizer encode --out FOLDER"
    option_names: ClassVar[Mapping[str, str]] = _OPTIONS

    @classmethod
    def open(cls, path: str, *, option: str = "data.tokens") -> TokenCache:
        """Read the description of a cache.

        Args:
            path: Folder or bucket URI.
            option: What the user calls it.

        Raises:
            UserError: If there is none, or one of another version.
        """
        path = storage.absolute(path)
        file = storage.join(path, CACHE_FILE)
        if not storage.exists(file):
            raise UserError(
                f"{option}={path} is no token cache: there is no {file}",
                f"write one by beit tokenizer encode --out {path}",
            )
        content = json.loads(storage.read_text(file))
        cls.check_format(content, path, option=option)
        return cls(path, CacheDescription(**content))

    @classmethod
    def create(cls, path: str, description: CacheDescription, *, option: str) -> TokenCache:
        """Begin a cache, or go on with one that was begun with the same description.

        Raises:
            UserError: If there is another one, or anything else.
        """
        cache = cls(storage.absolute(path), description)
        cache.begin(option=option)
        return cache

    @property
    def epochs(self) -> int:
        """Epochs of views that it holds; then they repeat."""
        return self.description.epochs

    @property
    def parts(self) -> int:
        """Files of all epochs."""
        return self.epochs * self.parts_of_epoch

    @property
    def parts_of_epoch(self) -> int:
        """Files of an epoch."""
        return -(-self.description.units // PART_UNITS)

    def place(self, part: int) -> tuple[int, range]:
        """Epoch and units of a part; parts are numbered through over all epochs."""
        epoch, number = divmod(part, self.parts_of_epoch)
        return epoch, range(number * PART_UNITS, min((number + 1) * PART_UNITS, self.description.units))

    def name(self, part: int) -> str:
        """Path of a part below the folder."""
        epoch, number = divmod(part, self.parts_of_epoch)
        return f"epoch-{epoch:05d}/part-{number:05d}.parquet"

    def read(self, epoch: int, unit: int, rows: NDArray[np.int64]) -> NDArray[np.int16]:
        """Tokens of rows of a unit, int16 [n, N]; of any epoch, since views repeat after `epochs`."""
        number, group = divmod(unit, PART_UNITS)
        with self.open_input(epoch % self.epochs * self.parts_of_epoch + number) as file:
            column = (
                pq.ParquetFile(file, pre_buffer=True)
                .read_row_group(group, columns=["tokens"])
                .column("tokens")
            )
        tokens: NDArray[np.int16] = column.combine_chunks().flatten().to_numpy().reshape(len(column), -1)
        return tokens[rows]

    def write_part(self, part: int, tokens: Sequence[NDArray[np.int16]]) -> None:
        """Write a part.

        Args:
            part: Its number.
            tokens: int16 [n, N] for each of its units.
        """
        kind = pa.list_(pa.int16(), tokens[0].shape[1])
        schema = pa.schema({"tokens": kind})
        with (
            self.open_output(part) as file,
            pq.ParquetWriter(file, schema, compression="zstd", use_dictionary=False) as writer,
        ):
            for unit in tokens:
                column = pa.FixedSizeListArray.from_arrays(pa.array(unit.reshape(-1)), type=kind)
                writer.write_table(
                    pa.Table.from_arrays([column], schema=schema), row_group_size=max(1, len(unit))
                )

    def extra_tokens(self, name: str) -> NDArray[np.int16] | None:
        """Tokens of other views of the same data by the same tokenizer, as `write_extra` left them; None if
        there are none.
        """
        file = storage.join(self.path, EXTRA_FOLDER, f"{name}.npy")
        if not storage.exists(file):
            return None
        tokens: NDArray[np.int16] = np.load(io.BytesIO(storage.read_bytes(file)))
        return tokens

    def write_extra(self, name: str, tokens: NDArray[np.int16]) -> None:
        """Keep tokens int16 [n, N] of views that are no part of an epoch."""
        content = io.BytesIO()
        np.save(content, tokens)
        storage.write_bytes(storage.join(self.path, EXTRA_FOLDER, f"{name}.npy"), content.getvalue())
