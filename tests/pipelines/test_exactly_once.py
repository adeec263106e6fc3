"""Every sample of every epoch exactly once, whatever dies in between. Counted by weights, not by the ledger itself."""

import importlib.util
import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from beit.tokenizer.dvae import Dvae, DvaeConfig, initialise
from beit.tokenizer.frozen import save_tokenizer
from beit.tokenizer.registry import load_tokenizer
from pipelines import runs
from pipelines.ledger import Ledger
from pipelines.sources import open_source

PROGRAM = Path(__file__).with_name("counting_run.py")
BAD = {(1, 3), (4, 0)}  # (unit, row) of images that cannot be decoded


def load_program():
    spec = importlib.util.spec_from_file_location("counting_run", PROGRAM)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Two shards of three units of 31 rows, two of them broken."""
    rng = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("shards")
    for shard in range(2):
        rows = []
        for index in range(93):
            buffer = io.BytesIO()
            Image.fromarray(rng.integers(0, 256, (40, 40, 3), np.uint8)).save(buffer, "PNG")
            bad = (shard * 3 + index // 31, index % 31) in BAD
            rows.append({"bytes": buffer.getvalue()[:50] if bad else buffer.getvalue(), "path": f"{shard}-{index}.png"})
        pq.write_table(pa.table({"image": rows}), folder / f"train-{shard}.parquet", row_group_size=31)
    return str(folder)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """A very small tokenizer with random weights."""
    dvae = Dvae(DvaeConfig(vocab_size=64, encoder_width=8, decoder_width=8, blocks=1, bottleneck=8))
    initialise(dvae, torch.Generator().manual_seed(0))
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(folder, dvae, image_size=32, training={}, figures={})
    return str(folder)


def run(shards, tokenizer, out, *options):
    command = [sys.executable, str(PROGRAM), shards, tokenizer, str(out), *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)


def assert_exactly_once(shards, tokenizer, out, *, missing):
    checkpoint = Path(runs.latest_checkpoint(str(out / "run")))
    program, source = load_program(), open_source(shards)
    with np.load(checkpoint / "counts.npz") as saved:
        counts, digests = saved["counts"], saved["digests"]
    assert counts.max() == 1
    assert np.count_nonzero(counts == 0) == missing
    keys = [(e, u, r) for e in range(program.EPOCHS) for u, rows in enumerate(source.manifest.rows) for r in range(rows)]
    expected = program.expected_digests(source, load_tokenizer(tokenizer))
    different = [key for key, count, found in zip(keys, counts, digests, strict=True) if count and found != expected[key]]
    assert not different, f"{len(different)} samples are not what their key says, the first: {different[0]}"
    ledger = Ledger.from_bytes((checkpoint / "ledger.npz").read_bytes())
    assert ledger.settled == counts.sum()
    assert set(ledger.quarantine) == BAD
    listed = (out / "run" / "quarantine.csv").read_text()
    assert listed.count("\n") == 1 + len(BAD)
    assert "train-1.parquet, row group 1, row 0" in listed


@pytest.mark.slow
def test_two_workers_one_killed_before_the_first_checkpoint_and_once_more_later(shards, tokenizer, tmp_path):
    done = run(shards, tokenizer, tmp_path, "--workers", "2", "--crash", "2", "13")
    assert done.returncode == 0, done.stdout + done.stderr
    assert {path.name for path in tmp_path.glob("crashed-*")} == {"crashed-2", "crashed-13"}
    assert_exactly_once(shards, tokenizer, tmp_path, missing=3 * 186 % 24)


@pytest.mark.slow
def test_the_driver_is_killed_and_the_run_goes_on_with_another_number_of_workers(shards, tokenizer, tmp_path):
    killed = run(shards, tokenizer, tmp_path, "--workers", "2", "--die", "10")
    assert killed.returncode == -9, killed.stdout + killed.stderr
    done = run(shards, tokenizer, tmp_path, "--workers", "1", "--resume")
    assert done.returncode == 0, done.stdout + done.stderr
    assert_exactly_once(shards, tokenizer, tmp_path, missing=3 * 186 % 24)
