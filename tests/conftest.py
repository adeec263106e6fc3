"""Fixtures that several test files share."""

import os
import shutil
from collections.abc import Callable, Iterator
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
def ray_cluster() -> Iterator[None]:
    """A private Ray of two CPUs for the whole session. Jobs that a test runs in this process join it."""
    import ray

    from pipelines.cluster.session import start_private

    with pytest.MonkeyPatch.context() as patch:
        # Most of a small job's time goes into processes that import torch. Those that read stay for the
        # next job; Ray would keep two.
        patch.setenv("RAY_num_workers_soft_limit", "6")
        # A training of few steps need not wait two seconds until Ray Train sees that it has ended.
        patch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
        with start_private(num_cpus=2):
            yield
    assert not ray.is_initialized()


@pytest.fixture(scope="session")
def mlflow_file(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], None]:
    """Put an empty MLflow store where MLflow would create one, which takes it a second."""
    from mlflow import MlflowClient

    store = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowClient(f"sqlite:///{store}").search_experiments()

    def copy(file: Path) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(store, file)

    return copy
