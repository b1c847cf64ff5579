"""What the benchmark scripts share: interleaved timing, robust statistics, the machine's conditions, and files that carry them."""

import argparse
import gc
import json
import math
import multiprocessing
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from archsearch.device import conditions, device_lock, use_cpu
from archsearch.errors import UserError
from archsearch.system import replace_file

Work = Callable[[], object]
Row = dict[str, Any]

CPU = torch.device("cpu")
RESULTS = Path(__file__).resolve().parents[2] / "results" / "benchmarks"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class Spread(NamedTuple):
    """Median of some figures, their interquartile range over it, and how many they are."""

    median: float
    iqr: float
    number: int

    @classmethod
    def of(cls, figures: Sequence[float]) -> "Spread":
        """At least two figures."""
        low, median, high = statistics.quantiles(figures, n=4, method="inclusive")
        return cls(median, (high - low) / median, len(figures))


def geometric_mean(ratios: Sequence[float]) -> float:
    """Of positive ratios."""
    return math.exp(statistics.fmean(map(math.log, ratios)))


def seconds_of(work: Work) -> float:
    """Seconds that `work` takes on the CPU."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def interleaved(works: Sequence[Work], *, seconds: float, at_least: int) -> list[list[float]]:
    """Seconds of each work, run in turn for `seconds` of timing and `at_least` rounds, after one round of warm-up.

    Every other round goes backwards, so that a drift of the machine favours neither side.
    """
    for work in works:
        work()
    times: list[list[float]] = [[] for _ in works]
    spent = 0.0
    with _without_collection():
        while len(times[0]) < at_least or spent < seconds:
            order = range(len(works)) if len(times[0]) % 2 == 0 else reversed(range(len(works)))
            for index in order:
                times[index].append(seconds_of(works[index]))
                spent += times[index][-1]
    return times


@contextmanager
def _without_collection() -> Iterator[None]:
    """No garbage collection inside a timing."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def ratios(numerators: Sequence[float], denominators: Sequence[float]) -> Spread:
    """Of two works timed in turn: the spread of their ratio, pair by pair."""
    return Spread.of([top / bottom for top, bottom in zip(numerators, denominators, strict=True)])


def arguments(description: str, *, add: Callable[[argparse.ArgumentParser], object]) -> argparse.Namespace:
    """The command line of a script: its own options by `add`, and those all have; sets torch's threads."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    add(parser)
    parser.add_argument("--threads", type=int, default=1, help="torch's threads (default 1)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the parquet file")
    parser.add_argument("--smoke", action="store_true", help="a setting of seconds, to see that everything runs")
    options = parser.parse_args()
    try:
        use_cpu(options.threads)
    except UserError as error:
        parser.error(str(error))
    torch.manual_seed(0)
    return options


@contextmanager
def quiet_device() -> Iterator[None]:
    """Nothing of ours beside one timing: the lock that `archsearch bench` holds too, given back in between for others that wait."""
    with device_lock(CPU, exclusive=True):
        yield


def fresh_process(*preloaded: str) -> ProcessPoolExecutor:
    """A process for one call, forked from one that has imported these modules and run nothing: each starts the same, at once."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["archsearch.search.evaluate", *preloaded])
    return ProcessPoolExecutor(1, mp_context=context)


def host_key() -> str:
    """Name of this machine for a file: processor and usable cores."""
    where = conditions(CPU)
    return re.sub(r"[^a-z0-9]+", "-", f"{where['host_cpu']} {where['host_cores']}c".lower()).strip("-")


def command() -> str:
    """The command line, with files of this machine by their names alone: their folders are not a condition of the figure."""
    return " ".join(Path(word).name if Path(word).is_absolute() else word for word in sys.argv)


def write(folder: Path, name: str, rows: Sequence[Row], **facts: Any) -> Path:
    """FOLDER/NAME-HOST.parquet with the rows; conditions, command and `facts` as JSON under `environment` of its metadata."""
    environment: Mapping[str, Any] = {**conditions(CPU), "command": command(), **facts}
    table = pa.Table.from_pylist(list(rows)).replace_schema_metadata({"environment": json.dumps(environment)})
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-{host_key()}.parquet"
    replace_file(path, lambda temporary: pq.write_table(table, temporary))
    print(f"\n{len(rows)} rows: {path}")
    return path
