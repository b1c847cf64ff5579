"""What preparing images costs and keeps: images a second a core, the same map from every form, the same map after kills.

Takes an ImageFolder with `train` and `val`, copies it as ILSVRC tars, parquet and webdataset shards to a temporary folder,
prepares each, and compares the maps. Decoding to squares is timed on one core in turn with plain Pillow (open, convert,
shorter side bicubic, centre crop), and with torchcodec where that is installed.

    python tests/benchmarks/prepare.py --data shared/data/clothing-mini
"""

import argparse
import hashlib
import importlib
import importlib.util
import io
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from clock import Row, Spread, arguments, interleaved, quiet_device, ratios, write
from numpy.typing import NDArray
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # beside the tests, whose writers of forms these are

from support.image_forms import FORMS, read_folder

from archsearch.data import Policy, Preparation, Prepared, open_source
from archsearch.data.decode import load_square
from archsearch.data.preparation import prepare
from archsearch.data.prepared import IMAGES, hash_file

_COPIES = ("tars", "parquet", "webdataset")
_BLOCK = 64  # images in one timing
_KILLS = 5


def main() -> None:
    """Everything, as a table and a file."""
    options = arguments(__doc__ or "", add=_options)
    contents = _sample(options.data, 2 * _BLOCK if options.smoke else 512)
    rows = _rates(contents, options.size, seconds=1 if options.smoke else options.seconds)
    with tempfile.TemporaryDirectory() as folder:
        rows += _forms(options.data, Path(folder), options.size)
        rows += _kills(options.data, Path(folder), options.size, 1 if options.smoke else _KILLS)
    write(options.out, "prepare", rows, size=options.size, images=len(contents))


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", type=Path, required=True, help="an ImageFolder with the splits train and val")
    parser.add_argument("--size", type=int, default=144)
    parser.add_argument("--seconds", type=float, default=60, help="of timing")


def _sample(root: Path, number: int) -> list[bytes]:
    paths = sorted(path for path in (root / "train").rglob("*") if path.is_file())
    return [path.read_bytes() for path in random.Random(0).sample(paths, min(number, len(paths)))]


# Rates


def _rates(contents: list[bytes], size: int, *, seconds: float) -> list[Row]:
    """Images a second of each way on one core, and ours over each, block by block."""
    ways: dict[str, Callable[[bytes], NDArray[np.uint8]]] = {
        "archsearch": partial(_ours, size=size),
        "pillow": partial(_plain, size=size),
    }
    if importlib.util.find_spec("torchcodec") is not None:
        ways["torchcodec"] = _torchcodec(size)
    blocks = [contents[start : start + _BLOCK] for start in range(0, len(contents) - _BLOCK + 1, _BLOCK)]
    turn = iter(range(10**9))

    def work(way: Callable[[bytes], NDArray[np.uint8]]) -> None:
        # Each round of all ways takes the same block.
        for content in blocks[next(turn) // len(ways) % len(blocks)]:
            way(content)

    with quiet_device():
        times = interleaved([partial(work, way) for way in ways.values()], seconds=seconds, at_least=7)
    ours = np.stack([ways["archsearch"](content) for content in contents]).astype(int)
    rows: list[Row] = []
    for (name, way), each in zip(ways.items(), times, strict=True):
        rate, ratio = Spread.of([_BLOCK / spent for spent in each]), ratios(each, times[0])
        off = float(np.abs(np.stack([way(content) for content in contents]).astype(int) - ours).mean())
        rows.append(
            {
                "what": "rate", "name": name, "images_s": rate.median, "iqr": rate.iqr, "rounds": rate.number,
                "archsearch_over": ratio.median, "mean_difference": off,
            }
        )  # fmt: skip
        print(
            f"{name:<12} {rate.median:8.0f} images/s a core (iqr {rate.iqr:.1%}), ours is {ratio.median:.2f}x;"
            f" pixels differ from ours by {off:.2f} of 255 on average"
        )
    return rows


def _ours(content: bytes, *, size: int) -> NDArray[np.uint8]:
    square = load_square(lambda: content, size)
    assert not isinstance(square, str), square
    return square


def _plain(content: bytes, *, size: int) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(content)) as opened:
        image = opened.convert("RGB")
    scale = size / min(image.size)
    width, height = (max(size, round(side * scale)) for side in image.size)
    resized = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - size) // 2, (height - size) // 2
    return np.asarray(resized.crop((left, top, left + size, top + size)))


def _torchcodec(size: int) -> Callable[[bytes], NDArray[np.uint8]]:
    """Decoded by torchcodec, resized by torchvision."""
    import torch
    from torchvision.transforms.v2 import functional as transforms

    decoders = importlib.import_module("torchcodec.decoders")  # no dependency of ours

    def way(content: bytes) -> NDArray[np.uint8]:
        picture = decoders.decode_image(torch.frombuffer(bytearray(content), dtype=torch.uint8), mode="RGB")
        small = transforms.resize(picture, [size], interpolation=transforms.InterpolationMode.BICUBIC, antialias=True)
        square: NDArray[np.uint8] = transforms.center_crop(small, [size, size]).permute(1, 2, 0).numpy()
        return square

    return way


# Forms and kills


def _prepared(text: Path, out: Path, size: int) -> Prepared:
    return prepare(Preparation(source=open_source(str(text)), policy=Policy(), size=size), out)[0]


def _hash(folder: Path) -> str:
    """Of both maps."""
    return hashlib.sha256("".join(hash_file(folder / name) for name in IMAGES.values()).encode()).hexdigest()


def _forms(data: Path, folder: Path, size: int) -> list[Row]:
    """Prepares the folder and its copies, and compares the maps."""
    pictures = read_folder(data)
    rows: list[Row] = []
    for name in ("folder", *_COPIES):
        text = data
        if name in _COPIES:
            text = folder / name
            FORMS[name](text, pictures)
        start = time.perf_counter()
        prepared = _prepared(text, folder / f"out-{name}", size)
        spent = time.perf_counter() - start
        number = sum(len(labels) for labels in prepared.labels.values())
        rows.append({"what": "form", "name": name, "images_s": number / spent, "sha256": _hash(prepared.folder)})
        rows[-1]["identical"] = rows[-1]["sha256"] == rows[0]["sha256"]
        print(f"{name:<12} {number} images in {spent:.1f} s, maps {rows[-1]['sha256'][:16]}")
    print("all forms give the same maps:", all(row["identical"] for row in rows))
    return rows


def _kills(data: Path, folder: Path, size: int, number: int) -> list[Row]:
    """Kills a preparation at random times after it began to decode, lets it end, and compares the maps."""
    rng, rows = random.Random(0), []
    whole = _hash(folder / "out-folder")
    start = time.perf_counter()
    _prepared(data, folder / "timed", size)
    expected = time.perf_counter() - start
    for kill in range(number):
        # After so many journal lines, and at a random point of the next few hundred images.
        out, after, delay = folder / f"killed-{kill}", kill, rng.uniform(0, expected / 10)
        journal = out / "journal.jsonl"
        child = _start(data, out, size)
        while _lines(journal) < after and child.poll() is None:
            time.sleep(0.002)
        time.sleep(delay)
        midway = child.poll() is None
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
        lines = _lines(journal)
        assert _start(data, out, size).wait() == 0
        rows.append({"what": "kill", "name": f"kill {kill + 1}", "journal_lines": lines, "midway": midway})
        rows[-1] |= {"sha256": _hash(out), "identical": _hash(out) == whole}
        print(f"killed {'midway' if midway else 'too late'}, {lines} journal lines: same maps: {rows[-1]['identical']}")
    return rows


def _lines(journal: Path) -> int:
    """Of a journal that may not be there."""
    try:
        return journal.read_bytes().count(b"\n")
    except FileNotFoundError:
        return 0


def _start(data: Path, out: Path, size: int) -> "subprocess.Popen[bytes]":
    words = [sys.executable, "-m", "archsearch", "prepare", str(data), str(out), "--size", str(size)]
    return subprocess.Popen(words, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
