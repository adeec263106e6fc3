"""`beit data scenes OUT`: render the built-in scenes into Parquet shards."""

from __future__ import annotations

from pipelines.command_line.options import parse
from pipelines.scenes.shards import ScenesConfig, write_scenes


def command(arguments: list[str], debug: bool) -> None:
    """`beit data scenes OUT`."""
    config = parse(arguments, ScenesConfig, command="data scenes OUT", positional=("out",))
    shards = write_scenes(
        config.out,
        images=config.images,
        seed=config.seed,
        image_size=config.image_size,
        first=config.first,
        split=config.split,
    )
    print(f"{config.images:,} scenes of {config.image_size} px in {len(shards)} shard(s): {config.out}")
