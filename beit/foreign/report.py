"""Report what happened to every tensor when weights were converted to another format."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field


@dataclass
class KeyReport:
    """Names of tensors before and after a conversion.

    Every tensor that was read is in exactly one of `same`, `renamed`, `split` and `dropped`. If any tensor is
    missing or unexpected, nothing is written.
    """

    same: list[str] = field(default_factory=list)
    """Names that did not change."""
    renamed: dict[str, str] = field(default_factory=dict)
    """Old name and new name; tensors that were joined have the same new name."""
    split: dict[str, list[str]] = field(default_factory=dict)
    """Old name, and the names of the tensors that it was split into."""
    dropped: dict[str, str] = field(default_factory=dict)
    """Names, and why they were left out."""
    added: dict[str, str] = field(default_factory=dict)
    """Names of tensors that were not read from the file, and what they are."""
    missing: list[str] = field(default_factory=list)
    """Names that the model needs and the file lacks."""
    unexpected: list[str] = field(default_factory=list)
    """Names in the file that are no part of the model."""

    @property
    def read(self) -> int:
        """Number of tensors read."""
        return len(self.same) + len(self.renamed) + len(self.split) + len(self.dropped)

    @property
    def written(self) -> int:
        """Number of tensors written."""
        return (
            len(self.same)
            + len(set(self.renamed.values()))
            + sum(map(len, self.split.values()))
            + len(self.added)
        )

    def lines(self) -> Iterator[str]:
        """Return the report as lines of text."""
        yield f"{self.read} tensors read, {self.written} written"
        yield f"  as they are  {len(self.same)}"
        joined = [new for new, count in Counter(self.renamed.values()).items() if count > 1]
        plain = {old: new for old, new in self.renamed.items() if new not in joined}
        yield f"  renamed      {len(plain)}" + _first(f"{old} -> {new}" for old, new in plain.items())
        if joined:
            sources = [old for old, new in self.renamed.items() if new == joined[0]]
            yield (
                f"  joined       {len(self.renamed) - len(plain)} into {len(joined)}, such as "
                f"{', '.join(sources)} -> {joined[0]}"
            )
        if self.split:
            old, new = next(iter(self.split.items()))
            yield (
                f"  split        {len(self.split)} into {sum(map(len, self.split.values()))}, such as "
                f"{old} -> {new[0]}, …"
            )
        for label, names in (("dropped", self.dropped), ("added", self.added)):
            for why, count in Counter(names.values()).items():
                example = next(name for name, given in names.items() if given == why)
                yield f"  {label:<12} {count}{', such as' if count > 1 else ':'} {example} ({why})"
        yield f"  missing      {len(self.missing)}"
        yield f"  unexpected   {len(self.unexpected)}"


def _first(examples: Iterator[str]) -> str:
    example = next(examples, None)
    return "" if example is None else f", such as {example}"
