"""What a data path holds: Parquet shards, a folder of image files, or tars, as units that are read on their
own.
"""

from pipelines.sources.base import Manifest, Source, Unit
from pipelines.sources.opening import open_source

__all__ = ["Manifest", "Source", "Unit", "open_source"]
