"""How many training workers a run may have: a fixed number, or as many as the cluster has room for, between
two numbers.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from beit.errors import UserError


@dataclass(frozen=True)
class WorkerRange:
    """The fewest and the most workers; both are the same for a group of fixed size."""

    fewest: int
    most: int

    @property
    def elastic(self) -> bool:
        """Whether the group grows and shrinks with the cluster."""
        return self.most > self.fewest

    def __str__(self) -> str:
        return f"{self.fewest}..{self.most}" if self.elastic else str(self.fewest)

    @classmethod
    def parse(cls, value: int | str, *, option: str = "resources.workers") -> WorkerRange:
        """Parse 2, "2" or "2..8".

        Raises:
            UserError: If it is none of these, allows no worker, or its second number is below the first.
        """
        found = re.fullmatch(r"(\d+)(?:\.\.(\d+))?", str(value).strip())
        if found is None:
            raise UserError(
                f"{option}={value} is no number of workers",
                "set a number such as 2, or a range such as 2..8",
            )
        fewest, most = int(found[1]), int(found[2] or found[1])
        if fewest < 1:
            raise UserError(f"{option}={value} is not positive", "set 1 or more, or leave it out")
        if found[2] and most <= fewest:
            raise UserError(f"{option}={value} does not grow", f"set {fewest}, or a larger second number")
        return cls(fewest, most)


def check_batch(global_batch_size: int, workers: WorkerRange | None) -> None:
    """Check that the global batch can be shared among the workers: equally in a fixed group, and with at
    least one image each in an elastic one. None: the number is not known yet.

    Raises:
        UserError: If not; the message shows the division and the nearest numbers that work.
    """
    if workers is None:
        return
    if workers.elastic and workers.most > global_batch_size:
        raise UserError(
            (
                f"resources.workers={workers} share optim.global_batch_size={global_batch_size}: some would "
                "have no image"
            ),
            f"set --resources.workers {workers.fewest}..{global_batch_size}, or a larger batch",
        )
    count = workers.fewest
    if not workers.elastic and global_batch_size % count:
        down = global_batch_size // count * count
        nearest = f"{down} or {down + count}" if down else str(count)
        raise UserError(
            (
                f"optim.global_batch_size={global_batch_size} / resources.workers={count} = "
                f"{global_batch_size / count:.2f} images each"
            ),
            f"set the global batch to {nearest}, or another number of workers",
        )
