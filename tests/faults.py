"""Break a running training in every way that a cluster does, and see what is left: `python -m tests.faults`.

Each fault strikes the run of `tests/pipelines/training/counting_run.py` behind its second checkpoint. Its
weights are the counts of the samples that it was trained on, so they witness what the ledger says. A run
that ended is resumed to its end. The table goes to the terminal, and with `--write` into
docs/log/reliability.md.

    python -m tests.faults [NAME …] [--write]
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pipelines.runs import checkpoints

HERE = Path(__file__).resolve().parent
PROGRAM = HERE / "pipelines" / "training" / "counting_run.py"
PAGE = HERE.parent / "docs" / "log" / "reliability.md"
BEGIN, END = "<!-- table of python -m tests.faults -->", "<!-- end of the table -->"

SLOW = 0.5
"""Seconds that a step takes at least: a fault is to strike while the run trains."""
PATIENCE = 400


@dataclass
class Run:
    """A counting run in a folder of its own."""

    out: Path
    shards: Path
    tokenizer: Path
    environment: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None
    starts: int = 0

    def start(self, *options: str) -> subprocess.Popen[bytes]:
        """Start the program; what it prints goes into a file."""
        self.starts += 1
        command = [sys.executable, str(PROGRAM), *map(str, (self.shards, self.tokenizer, self.out))]
        command += ["--workers", "1", "--slow", str(SLOW), *options]
        log = open(self.log(self.starts), "wb")  # noqa: SIM115 (the process keeps it)
        return subprocess.Popen(
            command,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **self.environment},
            preexec_fn=lambda: signal.signal(
                signal.SIGINT, signal.SIG_DFL
            ),  # Shells ignore it in the background.
        )

    def log(self, start: int) -> Path:
        """What the program printed at its nth start."""
        return self.out / f"printed-{start}.txt"

    def wait_for_checkpoint(self, step: int) -> Path:
        """Wait until a checkpoint is complete; returns its folder."""
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until:
            for folder in (self.out / "run").glob(f"attempt-*/step-{step:08d}*"):
                if checkpoints.is_complete(str(folder)):
                    return folder
            if self.process is not None and self.process.poll() is not None:
                break
            time.sleep(0.1)
        raise RuntimeError(f"no checkpoint of step {step}: {self.log(self.starts).read_text()[-1500:]}")

    def processes(self, pattern: str) -> list[int]:
        """Find the driver's children, and theirs, whose command line has a pattern."""
        assert self.process is not None
        parents, names = {}, {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                    names[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                except (OSError, ValueError):
                    continue
        found = []
        for number, name in names.items():
            above = number
            while above in parents and above != self.process.pid:
                above = parents[above]
            if above == self.process.pid and re.search(pattern, name):
                found.append(number)
        return found

    def end(self) -> None:
        """Kill what is left of the run."""
        if self.process is not None and self.process.poll() is None:
            for number in [*self.processes(""), self.process.pid]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(number, signal.SIGKILL)

    def kill(self, pattern: str) -> None:
        """Kill one of the run's processes."""
        until = time.monotonic() + 60
        while time.monotonic() < until:
            if found := self.processes(pattern):
                os.kill(found[0], signal.SIGKILL)
                return
            time.sleep(0.1)
        raise RuntimeError(f"no process of the run is called {pattern}")


@dataclass(frozen=True)
class Fault:
    """One way to break a run."""

    name: str
    strike: Callable[[Run], None]
    """Strikes the running run, or the ended one."""

    after_end: bool = False
    """Strikes after SIGTERM has ended the run, before it is resumed."""

    before: Callable[[Run], None] = lambda run: None
    """Is done before the start."""

    mend: Callable[[Run], None] = lambda run: None
    """Takes the cause away before the run is resumed."""


def _process(pattern: str) -> Callable[[Run], None]:
    return lambda run: run.kill(pattern)


def _signal(*numbers: signal.Signals) -> Callable[[Run], None]:
    def strike(run: Run) -> None:
        assert run.process is not None
        for number in numbers:
            os.kill(run.process.pid, number)
            time.sleep(0.5)

    return strike


def _newest(run: Run) -> Path:
    found = checkpoints.latest_checkpoint(str(run.out / "run"))
    assert found is not None
    return Path(found)


def _flip(name: str) -> Callable[[Run], None]:
    def strike(run: Run) -> None:
        path = _newest(run) / name
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 16
        path.write_bytes(content)

    return strike


def _cut(name: str) -> Callable[[Run], None]:
    def strike(run: Run) -> None:
        path = _newest(run) / name
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    return strike


def _second_driver(run: Run) -> None:
    """A second driver must be refused at once, and the first must not notice."""
    second = run.start("--resume")
    code = second.wait(timeout=120)
    said = run.log(run.starts).read_text()
    if code != 2 or "has a driver already" not in said:
        raise RuntimeError(f"the second driver was not refused: exit {code}, {said[-500:]}")


def _tear(run: Run) -> None:
    with open(run.out / "run" / "metrics.jsonl", "a") as file:
        file.write('{"step": 9, "images": 216, "ti')


def _shard(run: Run) -> Path:
    return run.shards / "train-1.parquet"


def _keep_shard(run: Run) -> None:
    shutil.copy(_shard(run), run.out / "shard")


def _bring_shard_back(run: Run) -> None:
    shutil.copy2(run.out / "shard", _shard(run))


def _small_disk(run: Run) -> None:
    (run.out / "run").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(run.out / "run")], check=True)


def _fill_disk(run: Run) -> None:
    with open(run.out / "run" / "filler", "wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))


def _free_disk(run: Run) -> None:
    subprocess.run(["mount", "-o", "remount,size=100m", str(run.out / "run")], check=True)
    (run.out / "run" / "filler").unlink()


FAULTS = [
    Fault("worker killed", _process("ray::RayTrainWorker|ray::TrainWorker")),
    Fault("task of the stream killed", _process("ray::(ReadSlots|MapBatches|Map|ReadRange|Read)")),
    Fault("tokenizer killed", _process("MapWorker")),
    Fault("dispatcher killed", _process("ray::Dispatcher")),
    Fault("recorder killed", _process("ray::Recorder")),
    Fault("coordinator of the stream killed", _process("ray::SplitCoordinator|ray::.*Coordinator")),
    Fault("controller killed", _process("ray::TrainController")),
    Fault("raylet killed", _process("raylet/raylet ")),
    Fault("GCS killed", _process("gcs_server")),
    Fault("driver killed", _signal(signal.SIGKILL)),
    Fault("SIGTERM", _signal(signal.SIGTERM)),
    Fault("Ctrl-C", _signal(signal.SIGINT)),
    Fault("Ctrl-C twice", _signal(signal.SIGINT, signal.SIGINT)),
    Fault("second driver", _second_driver),
    Fault("metrics torn", _tear),
    Fault("disk full", _fill_disk, before=_small_disk, mend=_free_disk),
    Fault("shard deleted", lambda run: _shard(run).unlink(), before=_keep_shard, mend=_bring_shard_back),
    Fault(
        "shard cut off",
        lambda run: os.truncate(_shard(run), 1000),
        before=_keep_shard,
        mend=_bring_shard_back,
    ),
    *(
        Fault(f"checkpoint: bytes of {name} flipped", _flip(name), after_end=True)
        for name in ("counts.npz", "optimizer.safetensors", "ledger.npz", "progress.json")
    ),
    *(
        Fault(f"checkpoint: {name} cut off", _cut(name), after_end=True)
        for name in ("counts.npz", "optimizer.safetensors", "ledger.npz", "progress.json")
    ),
]


@dataclass(frozen=True)
class Row:
    """What a fault did."""

    fault: str
    code: str
    """Exit code of the run that was struck, and of the resumed one."""
    said: str
    traceback: bool
    exact: str
    seconds: float

    def cells(self) -> list[str]:
        """The row of the table."""
        return [
            self.fault,
            self.code,
            self.said.replace("|", "\\|"),
            "yes" if self.traceback else "no",
            self.exact,
            f"{self.seconds:.0f}",
        ]


def strike(fault: Fault, run: Run) -> Row:
    """Break a run, resume it where it ended, and count its samples."""
    program = _program()
    run.out.mkdir()
    program.write_shards(run.shards)
    program.write_tokenizer(run.tokenizer)
    fault.before(run)
    began = time.monotonic()
    run.process = run.start()
    run.wait_for_checkpoint(8)
    if fault.after_end:
        run.process.terminate()
        run.process.wait(PATIENCE)
    fault.strike(run)
    codes = [run.process.wait(PATIENCE)]
    first = run.log(1).read_text()
    if codes[0] != 0:
        fault.mend(run)
        resumed = run.start("--resume")
        codes.append(resumed.wait(PATIENCE))
    printed = [run.log(number).read_text() for number in range(1, run.starts + 1)]
    try:
        program.assert_exactly_once(run.shards, run.tokenizer, run.out, missing=3 * 186 % 24)
        exact = "every sample once"
    except (AssertionError, TypeError, OSError) as error:
        exact = f"no: {str(error).partition(chr(10))[0][:200]}"
    told = printed[-1] if fault.after_end else first
    return Row(
        fault=fault.name,
        code=", ".join(map(str, codes)),
        said=_told(told, str(run.out.parent)),
        traceback=any("Traceback (most recent call last)" in text for text in printed),
        exact=exact,
        seconds=time.monotonic() - began,
    )


def _told(text: str, work: str) -> str:
    """The lines that tell the user what happened."""
    words = ("error: ", "failed: ", "warning: ", "stopped; ", "started again", "Ctrl-C: ", "SIGTERM: ")
    lines = [line for line in text.splitlines() if line.startswith(words)]
    return " / ".join(dict.fromkeys(lines)).replace(work, "…") or "-"


def _program():
    spec = importlib.util.spec_from_file_location("counting_run", PROGRAM)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def table(rows: list[Row]) -> Iterator[str]:
    """The rows in Markdown."""
    titles = ["fault", "exit codes", "what was said", "traceback", "samples", "seconds"]
    yield f"| {' | '.join(titles)} |"
    yield f"|{' --- |' * len(titles)}"
    for row in rows:
        yield f"| {' | '.join(row.cells())} |"


def main() -> None:
    """Strike with the named faults, or with all."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", help="beginnings of faults' names; none: all faults")
    parser.add_argument("--write", action="store_true", help=f"write the table into {PAGE.name}")
    given = parser.parse_args()
    chosen = [
        fault
        for fault in FAULTS
        if not given.names or any(fault.name.startswith(name) for name in given.names)
    ]
    rows = []
    for fault in chosen:
        with tempfile.TemporaryDirectory(prefix="beit-fault-") as work:
            run = Run(Path(work, "out"), Path(work, "shards"), Path(work, "tokenizer"))
            try:
                row = strike(fault, run)
            except (RuntimeError, subprocess.SubprocessError, OSError) as error:
                row = Row(fault.name, "-", f"the fault could not be tried: {error}", False, "-", 0.0)
            run.end()
            subprocess.run(["umount", "-q", f"{work}/out/run"], check=False, stderr=subprocess.DEVNULL)
        rows.append(row)
        print(json.dumps(row.__dict__), flush=True)
    print("\n".join(table(rows)))
    if given.write:
        text = PAGE.read_text()
        before, after = text[: text.index(BEGIN)], text[text.index(END) :]
        machine = f"{os.cpu_count()} cores, {platform.machine()}, {time.strftime('%-d %B %Y')}"
        PAGE.write_text(f"{before}{BEGIN}\n\n{machine}\n\n" + "\n".join(table(rows)) + f"\n\n{after}")
    bad = [row for row in rows if row.traceback or row.exact != "every sample once"]
    if bad:
        sys.exit(f"{len(bad)} of {len(rows)} faults cost samples or showed a traceback")


if __name__ == "__main__":
    main()
