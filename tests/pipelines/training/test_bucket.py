"""A run whose images and whose folder lie in a bucket, of a server that stands in for S3: trained in two
parts, with its report.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from moto.server import ThreadedMotoServer
from pyarrow import fs

from pipelines import storage
from pipelines.runs import checkpoints
from pipelines.runs.metrics import read_metrics
from pipelines.scenes.shards import write_scenes
from pipelines.stream.ledger import Ledger

IMAGES, BATCH, EPOCHS = 96, 16, 2


@pytest.fixture
def bucket(monkeypatch):
    """Maps a path in the bucket to its URI."""
    keys = {
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    for name, value in keys.items():
        monkeypatch.setenv(name, value)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    place = "endpoint_override={}:{}&scheme=http&region=us-east-1".format(*server.get_host_and_port())
    try:
        fs.FileSystem.from_uri(f"s3://bucket?{place}&allow_bucket_creation=true")[0].create_dir("bucket")
        yield lambda path: f"s3://bucket/{path}?{place}"
    finally:
        server.stop()


def pretrain(*options):
    """`beit pretrain`; returns what it prints."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI")
    }
    command = [sys.executable, "-m", "pipelines.pretrain", *map(str, options)]
    done = subprocess.run(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=800,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_run_from_a_bucket_into_a_bucket_stops_goes_on_and_is_whole(bucket, tmp_path):
    write_scenes(str(tmp_path / "scenes"), images=IMAGES, seed=0, image_size=64)
    for file in (path for path in (tmp_path / "scenes").rglob("*") if path.is_file()):
        storage.write_bytes(bucket(f"images/{file.relative_to(tmp_path / 'scenes')}"), file.read_bytes())
    run = bucket("runs/run")
    data = [
        "--data.train",
        bucket("images"),
        "--epochs",
        EPOCHS,
        "--optim.global-batch-size",
        BATCH,
        "--optim.warmup-steps",
        2,
    ]
    output = [
        "--output.root",
        bucket("runs"),
        "--output.name",
        "run",
        "--output.no-mlflow",
        "--evaluation.images",
        0,
    ]
    steps = EPOCHS * IMAGES // BATCH
    pretrain("quickstart", *data, *output, "--stop-at", steps // 2, "--resources.cpus", 2)
    assert checkpoints.step_of(checkpoints.latest_checkpoint(run)) == steps // 2

    told = pretrain("--resume", run, "--stop-at", "None")
    assert f"resumed: continuing from step {steps // 2}" in told
    checkpoint = checkpoints.latest_checkpoint(run)
    ledger = Ledger.from_bytes(storage.read_bytes(storage.join(checkpoint, "ledger.npz")))
    # A ledger refuses a sample that is entered twice.
    assert (checkpoints.step_of(checkpoint), ledger.settled, ledger.complete) == (
        steps,
        EPOCHS * IMAGES,
        EPOCHS,
    )
    assert read_metrics(run)[-1]["step"] == steps
    assert "<html" in storage.read_text(storage.join(run, "report", "index.html"))
    assert not Path("s3:").exists(), "nothing takes the bucket for a folder"
