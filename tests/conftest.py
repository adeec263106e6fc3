"""Fixtures that several test files share."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

# The machine's cores are shared with Ray's processes, which set their own number.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """A folder with real images in Parquet shards; tests that need one are skipped where it is absent."""
    folder = Path(os.environ.get("BEIT_TEST_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(
            f"no real images at {folder}; set BEIT_TEST_DATA to a folder with imagenet-sample/ and "
            "tiny-imagenet/"
        )
    return folder


@pytest.fixture(scope="session")
def ray_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A private Ray of two CPUs for the whole session: own folder, no dashboard port that others
    could meet.
    """
    import ray

    from pipelines.cluster.session import start_private

    with start_private(num_cpus=2, folder=tmp_path_factory.mktemp("ray")):
        yield
    assert not ray.is_initialized()
