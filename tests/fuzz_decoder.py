"""Damage image files at random and decode them: `python -m tests.fuzz_decoder [--inputs 10000] [--seed 0]`.

Each input is a small image file with bytes changed, cut off or joined to another file. It is decoded in a
process that is watched: an error other than `UndecodableImage`, an end of the process, more
than 5 seconds or more than the memory that `view.max_pixels` allows are failures. Input i depends only on the
seed and i.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import multiprocessing
import resource
import struct
import sys
import time
import warnings
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
from PIL import Image

from beit.config import ViewConfig
from beit.images.decode import UndecodableImage, decode

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "ICO")
MAX_SECONDS = 5.0
VIEWS = (
    ViewConfig(max_pixels=1_000_000),
    ViewConfig(max_pixels=1_000_000, range="0..4095", channels="0,1,2"),
)
"""Used in turn: the second reads stored values of more than 8 bits, and chosen channels."""

MAX_MIB = 64
"""Memory that decoding may add: 16 bytes for each of a million pixels four times over."""


@dataclass(frozen=True)
class Result:
    """What became of one input."""

    number: int
    format: str
    outcome: str
    seconds: float
    mib: float


@dataclass
class Table:
    """All results, counted by format."""

    outcomes: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    mib: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    failures: list[Result] = field(default_factory=list)

    def add(self, result: Result) -> None:
        """Count a result."""
        self.outcomes[result.format][result.outcome.partition(":")[0]] += 1
        self.seconds[result.format] = max(self.seconds[result.format], result.seconds)
        self.mib[result.format] = max(self.mib[result.format], result.mib)
        late, large = result.seconds > MAX_SECONDS, result.mib > MAX_MIB
        if result.outcome not in ("decoded", "refused") or late or large:
            self.failures.append(result)

    def lines(self) -> list[str]:
        """The table in Markdown."""
        lines = [
            "| format | inputs | decoded | refused | failed | longest (s) | most memory added (MiB) |",
            "| --- | --- | --- | --- | --- | --- | --- |",
        ]
        for name in FORMATS:
            found = self.outcomes[name]
            failed = sum(result.format == name for result in self.failures)
            lines.append(
                f"| {name} | {found.total():,} | {found['decoded']:,} | {found['refused']:,} | {failed} | "
                f"{self.seconds[name]:.2f} | {self.mib[name]:.0f} |"
            )
        return lines


def whole_files() -> dict[str, list[bytes]]:
    """Some files of each format: several modes, compressions, with EXIF data, with several frames."""
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (33, 47, 4), np.uint8))
    colours, grey, palette = image.convert("RGB"), image.convert("L"), image.convert("RGB").quantize(16)
    deep = Image.fromarray(rng.integers(0, 65536, (33, 47)).astype(np.uint16))
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a description"
    files: dict[str, list[bytes]] = {name: [] for name in FORMATS}

    def add(name: str, image: Image.Image, **options: object) -> None:
        buffer = io.BytesIO()
        image.save(buffer, name, **options)
        files[name].append(buffer.getvalue())

    for kind in (colours, grey, image.convert("CMYK")):
        add("JPEG", kind)
    add("JPEG", colours, progressive=True, exif=exif)
    for kind in (colours, grey, palette, image, deep, image.convert("1")):
        add("PNG", kind)
    add("PNG", colours, exif=exif)
    add("PNG", palette, save_all=True, append_images=[palette.rotate(180)])
    for lossless in (True, False):
        add("WEBP", image, lossless=lossless)
        add("WEBP", colours, lossless=lossless, exif=exif)
    add("WEBP", colours, save_all=True, append_images=[colours.rotate(180)])
    add("GIF", palette, save_all=True, append_images=[palette.rotate(180)])
    add("GIF", palette, transparency=0)
    for compression in (None, "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg"):
        for kind in (colours, grey) if compression == "jpeg" else (colours, grey, palette, image, deep):
            add("TIFF", kind, compression=compression, exif=exif)
    add("TIFF", image.convert("1"), compression="group4")
    files["TIFF"].append(_planes(rng))
    add("TIFF", Image.fromarray(rng.normal(size=(33, 47)).astype(np.float32)), compression="tiff_lzw")
    for kind in (colours, grey, palette, image.convert("1"), image):
        add("BMP", kind)
    add("ICO", image, sizes=[(32, 32)])
    add("ICO", image, sizes=[(32, 32)], bitmap_format="bmp")
    return files


def _planes(rng: np.random.Generator) -> bytes:
    """A TIFF of five 16-bit planes, which Pillow does not read."""
    values = rng.integers(0, 4096, (5, 30, 40)).astype("<u2")
    plane = values[0].nbytes
    tags = {
        256: [40],
        257: [30],
        258: [16] * 5,
        259: [1],
        262: [1],
        273: [8 + plane * number for number in range(5)],
        277: [5],
        278: [30],
        279: [plane] * 5,
        284: [2],
        338: [0] * 4,
    }
    start = 8 + values.nbytes
    directory, behind = struct.pack("<H", len(tags)), b""
    for tag, numbers in tags.items():
        place = start + 2 + 12 * len(tags) + 4 + len(behind)
        directory += struct.pack("<HHII", tag, 4, len(numbers), numbers[0] if len(numbers) == 1 else place)
        behind += b"" if len(numbers) == 1 else struct.pack(f"<{len(numbers)}I", *numbers)
    return b"II*\0" + struct.pack("<I", start) + values.tobytes() + directory + bytes(4) + behind


def damaged(files: dict[str, list[bytes]], seed: int, number: int) -> tuple[str, bytes]:
    """Format and bytes of an input."""
    rng = np.random.default_rng([seed, number])
    name = FORMATS[number % len(FORMATS)]
    content = bytearray(files[name][rng.integers(len(files[name]))])
    for _ in range(rng.choice([1, 1, 2, 3])):
        if not content:
            break
        kind = rng.integers(6)
        place = int(rng.integers(len(content)))
        # Most of what a decoder believes is at the beginning.
        early = int(min(place, rng.integers(1, 200)))
        if kind == 0:
            content[place] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            for _ in range(rng.integers(1, 16)):
                content[int(rng.integers(len(content)))] = int(rng.integers(256))
        elif kind == 2:
            del content[place:]
        elif kind == 3:
            del content[early : early + int(rng.integers(1, 16))]
        elif kind == 4:
            number_ = int(rng.choice([0, 1, 255, 640, 900, 65535, 1 << 20, (1 << 31) - 1, (1 << 32) - 1]))
            content[early : early + 4] = struct.pack("<I" if rng.integers(2) else ">I", number_)
        else:
            other = files[FORMATS[rng.integers(len(FORMATS))]]
            tail = other[rng.integers(len(other))]
            content[place:] = tail[int(rng.integers(len(tail))) :]
    # Most PNGs get right checksums again, or damage would never get beyond them.
    return name, _with_checksums(bytes(content)) if name == "PNG" and number // len(FORMATS) % 4 else bytes(
        content
    )


def _with_checksums(content: bytes) -> bytes:
    """A PNG with the checksums that its chunks should have, as far as they can be followed."""
    parts, place = [content[:8]], 8
    while place + 12 <= len(content):
        size = int.from_bytes(content[place : place + 4], "big")
        if place + 12 + size > len(content):
            break
        inside = content[place + 4 : place + 8 + size]
        parts += [content[place : place + 4], inside, zlib.crc32(inside).to_bytes(4, "big")]
        place += 12 + size
    return b"".join(parts) + content[place:]


def _peak_mib() -> float:
    """Most resident memory since `_forget_peak`."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1024
    return 0.0


def _forget_peak() -> float:
    """Begin to measure the peak anew; returns the memory in use."""
    Path("/proc/self/clear_refs").write_text("5")
    return _peak_mib()


def _decode_all(pipe: Connection, seed: int, first: int, last: int) -> None:
    """Decode inputs in a process that may end at any of them."""
    warnings.simplefilter("ignore")
    resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
    files = whole_files()
    for number in range(first, last):
        name, content = damaged(files, seed, number)
        pipe.send((number, name))
        before, start = _forget_peak(), time.perf_counter()
        try:
            decode(content, VIEWS[number // len(FORMATS) % len(VIEWS)])
            outcome = "decoded"
        except UndecodableImage:
            outcome = "refused"
        except BaseException as error:
            outcome = f"error: {type(error).__name__}: {error}"
        pipe.send(Result(number, name, outcome, time.perf_counter() - start, _peak_mib() - before))


def fuzz(inputs: int, seed: int) -> Iterator[Result]:
    """Yield what becomes of each input."""
    context = multiprocessing.get_context("fork")
    number = 0
    while number < inputs:
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_decode_all, args=(theirs, seed, number, inputs))
        process.start()
        theirs.close()
        name = FORMATS[number % len(FORMATS)]
        while number < inputs:
            try:
                # A moment more, so that a slow input is told from a hanging one.
                message = ours.recv() if ours.poll(2 * MAX_SECONDS) else None
            except EOFError:
                process.join()
                yield Result(number, name, f"ended: exit code {process.exitcode}", 0.0, 0.0)
                number += 1
                break
            if message is None:
                process.kill()
                yield Result(number, name, "hung", 2 * MAX_SECONDS, 0.0)
                number += 1
                break
            if isinstance(message, Result):
                yield message
                number += 1
            else:
                number, name = message
        process.join()


def main() -> int:
    """Print the table; returns 1 if anything failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--inputs", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    table, start = Table(), time.perf_counter()
    for result in fuzz(options.inputs, options.seed):
        table.add(result)
    print("\n".join(table.lines()))
    print(f"{options.inputs:,} inputs of seed {options.seed} in {time.perf_counter() - start:.0f} s")
    for result in table.failures[:50]:
        print("failed:", dataclasses.asdict(result))
    return int(bool(table.failures))


if __name__ == "__main__":
    sys.exit(main())
