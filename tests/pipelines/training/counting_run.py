"""A training whose weights are the counts of the samples it was trained on: an independent witness of the
ledger.

    python counting_run.py SHARDS TOKENIZER OUT --workers N [--streams K] [--crash STEP …] [--die STEP]
    [--hold STEP:WORKERS …] [--slow SECONDS] [--resume]

Run as a program, because some tests kill it. `--crash` kills the last worker once at each of these steps,
`--die` kills the driver, and `--hold` lets a group of so many workers wait at a step, the first time that it
comes there, until it is ended. `--slow` makes every step take so many seconds.
"""

import argparse
import dataclasses
import functools
import io
import os
import time
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.distributed as dist
from PIL import Image
from torch import nn

from beit.config import MaskConfig, OptimConfig, TokenizerConfig, ViewConfig
from beit.objectives.base import Objective
from beit.tokenizer.config import DvaeConfig
from beit.tokenizer.dvae import Dvae, initialise
from beit.tokenizer.frozen import save_tokenizer
from beit.tokenizer.registry import load_tokenizer
from pipelines.command_line.run import run_program
from pipelines.config.data import DataConfig
from pipelines.config.jobs import JobConfig, OutputConfig
from pipelines.config.resources import ResourceConfig
from pipelines.runs import checkpoints
from pipelines.sources import open_source
from pipelines.stream.ledger import Ledger
from pipelines.stream.samples import SampleConfig, make_samples
from pipelines.training import fit
from pipelines.training.frame import train
from pipelines.training.training import Training

SEED, EPOCHS, BATCH = 5, 3, 24
SAMPLES = SampleConfig(seed=SEED, view=ViewConfig(), patch_px=32, token_px=32, mask=MaskConfig(), grid=4)
COLUMNS = ("patch_view", "mask", "tokens")
BAD = {(1, 3), (4, 0)}  # (unit, row) of images that cannot be decoded


def write_shards(folder):
    """Two shards of three units of 31 rows, two of them broken."""
    rng = np.random.default_rng(0)
    Path(folder).mkdir(exist_ok=True)
    for shard in range(2):
        rows = []
        for index in range(93):
            buffer = io.BytesIO()
            Image.fromarray(rng.integers(0, 256, (40, 40, 3), np.uint8)).save(buffer, "PNG")
            bad = (shard * 3 + index // 31, index % 31) in BAD
            rows.append(
                {
                    "bytes": buffer.getvalue()[:50] if bad else buffer.getvalue(),
                    "path": f"{shard}-{index}.png",
                }
            )
        pq.write_table(pa.table({"image": rows}), Path(folder, f"train-{shard}.parquet"), row_group_size=31)


def write_tokenizer(folder):
    """A very small tokenizer with random weights."""
    dvae = Dvae(DvaeConfig(vocab_size=64, encoder_width=8, decoder_width=8, blocks=1, bottleneck=8))
    initialise(dvae, torch.Generator().manual_seed(0))
    Path(folder).mkdir(exist_ok=True)
    save_tokenizer(folder, dvae, image_size=32, training={}, figures={})


def assert_exactly_once(shards, tokenizer, out, *, missing):
    """The last checkpoint's weights know every sample once, but for the `missing` last ones, and each is what
    its key says.
    """
    checkpoint = Path(checkpoints.latest_checkpoint(str(out / "run")))
    source = open_source(str(shards))
    with np.load(checkpoint / "counts.npz") as saved:
        counts, digests = saved["counts"], saved["digests"]
    assert counts.max() == 1
    assert np.count_nonzero(counts == 0) == missing
    keys = [
        (e, u, r) for e in range(EPOCHS) for u, rows in enumerate(source.manifest.rows) for r in range(rows)
    ]
    expected = expected_digests(source, load_tokenizer(str(tokenizer)))
    different = [
        key
        for key, count, found in zip(keys, counts, digests, strict=True)
        if count and found != expected[key]
    ]
    assert not different, f"{len(different)} samples are not what their key says, the first: {different[0]}"
    ledger = Ledger.from_bytes((checkpoint / "ledger.npz").read_bytes())
    assert ledger.settled == counts.sum()
    assert set(ledger.quarantine) == BAD
    listed = (out / "run" / "quarantine.csv").read_text()
    assert listed.count("\n") == 1 + len(BAD)
    assert "train-1.parquet, row group 1, row 0" in listed


def digest(*arrays):
    """A number for the content of a sample."""
    return functools.reduce(
        lambda value, array: zlib.crc32(np.ascontiguousarray(array).tobytes(), value), arrays, 0
    )


def expected_digests(source, tokenizer):
    """What every sample of every epoch must be, by (epoch, unit, row): drawn here, without Ray, in another
    order.
    """
    expected = {}
    for epoch in reversed(range(EPOCHS)):
        for unit, count in enumerate(source.manifest.rows.tolist()):
            rows = np.arange(count)[::-1]
            keys = {"epoch": np.full(count, epoch), "unit": np.full(count, unit), "row": rows}
            batch = make_samples(
                {"image": source.manifest.unit(unit).read(rows)["image"], **keys}, config=SAMPLES
            )
            batch["tokens"] = (
                tokenizer.encode(torch.from_numpy(batch["patch_view"]).permute(0, 3, 1, 2))
                .to(torch.int16)
                .numpy()
            )
            for i, row in enumerate(rows.tolist()):
                expected[epoch, unit, row] = digest(*(batch[name][i] for name in COLUMNS))
    return expected


class Counting(Objective):
    columns = ("patch_view", "mask", "tokens", "epoch", "unit", "row")

    def __init__(self, rows, crashes, die, holds, slow, out, driver):
        super().__init__()
        self.starts, self.total = np.cumsum(rows) - rows, int(rows.sum())
        self.crashes, self.die, self.holds, self.out, self.driver = crashes, die, holds, out, driver
        self.slow = slow
        self.weights = nn.Parameter(torch.zeros(1))
        self.counts = torch.zeros(EPOCHS * self.total, dtype=torch.int64)
        self.digests = torch.zeros(EPOCHS * self.total, dtype=torch.int64)

    def weight(self, batch):
        return float(len(batch["row"]))

    def forward(self, batch):
        index = batch["epoch"] * self.total + torch.from_numpy(self.starts)[batch["unit"]] + batch["row"]
        new = torch.zeros(2, *self.counts.shape, dtype=torch.int64)
        new[0, index] = 1
        new[1, index] = torch.tensor(
            [digest(*(batch[name][i].numpy() for name in COLUMNS)) for i in range(len(index))]
        )
        if dist.is_initialized() and dist.get_world_size() > 1:
            dist.all_reduce(new)
        self.counts += new[0]
        self.digests[new[0] > 0] = new[1][new[0] > 0]
        return {"loss": self.weights.sum() * 0}

    def optimizer(self):
        return torch.optim.AdamW([self.weights], fused=True)

    def learning_rate(self, step):
        return 0.0

    def finish_step(self, step):
        time.sleep(self.slow)
        rank, workers = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        marker = Path(self.out, f"crashed-{step}")
        if step in self.crashes and rank == workers - 1 and not marker.exists():
            marker.touch()
            os.kill(os.getpid(), 9)
        if step == self.die and rank == 0:
            os.kill(self.driver, 9)
        held = Path(self.out, f"held-{step}-{workers}")
        if f"{step}:{workers}" in self.holds and not held.exists():
            held.touch()
            while True:
                time.sleep(1)

    def metrics(self, sums, weight):
        return {}

    def save(self, folder):
        np.savez(folder / "counts.npz", counts=self.counts.numpy(), digests=self.digests.numpy())

    def load(self, folder):
        with np.load(folder / "counts.npz") as saved:
            self.counts, self.digests = torch.from_numpy(saved["counts"]), torch.from_numpy(saved["digests"])


def main(arguments, debug):
    parser = argparse.ArgumentParser()
    parser.add_argument("shards"), parser.add_argument("tokenizer"), parser.add_argument("out")
    parser.add_argument("--workers", required=True), parser.add_argument("--streams", type=int, default=1)
    parser.add_argument("--crash", type=int, nargs="*", default=[]), parser.add_argument("--die", type=int)
    parser.add_argument("--hold", nargs="*", default=[]), parser.add_argument("--resume", action="store_true")
    parser.add_argument("--slow", type=float, default=0.0)
    args = parser.parse_args(arguments)
    source = open_source(args.shards)
    config = JobConfig(
        epochs=EPOCHS,
        seed=SEED,
        data=DataConfig(train=args.shards, max_bad=0.2),
        # As many cores as each stream wants; that they are shared makes it slower, not other.
        resources=ResourceConfig(
            workers=args.workers, streams=args.streams, cpus=2 if args.streams == 1 else 3 * args.streams
        ),
        output=OutputConfig(root=args.out, name="run", checkpoint_steps=4, mlflow=False, log_seconds=1.0),
    )
    fit.BLOCKS_PER_ROUND = 8  # several rounds in a run as small as this
    training = Training(
        job="counting",
        config=config,
        preset="counting",
        source=source,
        samples=SAMPLES,
        tokenizer=TokenizerConfig(path=args.tokenizer),
        make_objective=functools.partial(
            Counting,
            source.manifest.rows.astype(np.int64),
            args.crash,
            args.die,
            args.hold,
            args.slow,
            args.out,
            os.getpid(),
        ),
        optim=OptimConfig(global_batch_size=BATCH, clip_norm=None),
        total_steps=config.total_steps(source.manifest.total, BATCH),
        inputs={"data.train": source.manifest.digest},
        shown=[],
    )
    _, result = train(training, resume=f"{args.out}/run" if args.resume else None, debug=False, say=print)
    print(dataclasses.asdict(result))


if __name__ == "__main__":
    import cloudpickle

    cloudpickle.register_pickle_by_value(__import__("__main__"))
    run_program(main)
