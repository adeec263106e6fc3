"""Sources of images. A source lists what a data path holds as units, and each unit can be read by itself. The
data are Parquet shards, image files, tars, or a kind of your own.
"""

from pipelines.sources.base import Manifest, Source, Unit
from pipelines.sources.kinds import FileKind, register_files, register_scheme
from pipelines.sources.opening import open_source

__all__ = ["FileKind", "Manifest", "Source", "Unit", "open_source", "register_files", "register_scheme"]
