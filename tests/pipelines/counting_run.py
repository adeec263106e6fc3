"""A training whose weights are the counts of the samples it was trained on: an independent witness of the ledger.

    python counting_run.py SHARDS TOKENIZER OUT --workers N [--crash STEP …] [--die STEP] [--resume]

Run as a program, because some tests kill it. `--crash` kills worker 1 (0 if alone) once at each of these steps, `--die` kills the driver.
"""

import argparse
import dataclasses
import functools
import os
import zlib
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from beit.config import MaskConfig, TokenizerConfig, ViewConfig
from beit.objective import Objective
from pipelines import job
from pipelines.config import DataConfig, JobConfig, OutputConfig, ResourceConfig
from pipelines.samples import SampleConfig, make_samples
from pipelines.sources import open_source

SEED, EPOCHS, BATCH = 5, 3, 24
SAMPLES = SampleConfig(seed=SEED, view=ViewConfig(), patch_px=32, token_px=32, mask=MaskConfig(), grid=4)
COLUMNS = ("patch_view", "mask", "tokens")


def digest(*arrays):
    """A number for the content of a sample."""
    return functools.reduce(lambda value, array: zlib.crc32(np.ascontiguousarray(array).tobytes(), value), arrays, 0)


def expected_digests(source, tokenizer):
    """What every sample of every epoch must be, by (epoch, unit, row): drawn here, without Ray, in another order."""
    expected = {}
    for epoch in reversed(range(EPOCHS)):
        for unit, count in enumerate(source.manifest.rows.tolist()):
            rows = np.arange(count)[::-1]
            keys = {"epoch": np.full(count, epoch), "unit": np.full(count, unit), "row": rows}
            batch = make_samples({"image": source.manifest.unit(unit).read(rows)["image"], **keys}, config=SAMPLES)
            batch["tokens"] = tokenizer.encode(torch.from_numpy(batch["patch_view"]).permute(0, 3, 1, 2)).to(torch.int16).numpy()
            for i, row in enumerate(rows.tolist()):
                expected[epoch, unit, row] = digest(*(batch[name][i] for name in COLUMNS))
    return expected


class Counting(Objective):
    columns = ("patch_view", "mask", "tokens", "epoch", "unit", "row")

    def __init__(self, rows, crashes, die, out, driver):
        super().__init__()
        self.starts, self.total = np.cumsum(rows) - rows, int(rows.sum())
        self.crashes, self.die, self.out, self.driver = crashes, die, out, driver
        self.weights = nn.Parameter(torch.zeros(1))
        self.counts = torch.zeros(EPOCHS * self.total, dtype=torch.int64)
        self.digests = torch.zeros(EPOCHS * self.total, dtype=torch.int64)

    def weight(self, batch):
        return float(len(batch["row"]))

    def forward(self, batch):
        index = batch["epoch"] * self.total + torch.from_numpy(self.starts)[batch["unit"]] + batch["row"]
        new = torch.zeros(2, *self.counts.shape, dtype=torch.int64)
        new[0, index] = 1
        new[1, index] = torch.tensor([digest(*(batch[name][i].numpy() for name in COLUMNS)) for i in range(len(index))])
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
        rank, workers = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        marker = Path(self.out, f"crashed-{step}")
        if step in self.crashes and rank == workers - 1 and not marker.exists():
            marker.touch()
            os.kill(os.getpid(), 9)
        if step == self.die and rank == 0:
            os.kill(self.driver, 9)

    def metrics(self, sums, weight):
        return {}

    def save(self, folder):
        np.savez(folder / "counts.npz", counts=self.counts.numpy(), digests=self.digests.numpy())

    def load(self, folder):
        with np.load(folder / "counts.npz") as saved:
            self.counts, self.digests = torch.from_numpy(saved["counts"]), torch.from_numpy(saved["digests"])


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("shards"), parser.add_argument("tokenizer"), parser.add_argument("out")
    parser.add_argument("--workers", type=int, required=True), parser.add_argument("--crash", type=int, nargs="*", default=[])
    parser.add_argument("--die", type=int), parser.add_argument("--resume", action="store_true")
    args = parser.parse_args()
    source = open_source(args.shards)
    config = JobConfig(
        epochs=EPOCHS,
        seed=SEED,
        data=DataConfig(train=args.shards, max_bad=0.2),
        resources=ResourceConfig(workers=args.workers, cpus=2),
        output=OutputConfig(root=args.out, name="run", checkpoint_steps=4, mlflow=False, log_seconds=1.0),
    )
    job.BLOCKS_PER_ROUND = 8  # several rounds in a run as small as this
    training = job.Training(
        job="counting",
        config=config,
        preset="counting",
        source=source,
        samples=SAMPLES,
        tokenizer=TokenizerConfig(path=args.tokenizer),
        make_objective=functools.partial(Counting, source.manifest.rows.astype(np.int64), args.crash, args.die, args.out, os.getpid()),
        global_batch_size=BATCH,
        total_steps=config.total_steps(source.manifest.total, BATCH),
        clip_norm=None,
        inputs={"data.train": source.manifest.digest},
        shown=[],
    )
    _, result = job.run_job(training, resume=f"{args.out}/run" if args.resume else None, debug=False, say=print)
    print(dataclasses.asdict(result))


if __name__ == "__main__":
    import cloudpickle

    cloudpickle.register_pickle_by_value(__import__("__main__"))
    main()
