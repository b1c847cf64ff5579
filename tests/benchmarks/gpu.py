"""Everything that is to be known of a GPU, by one command: most telling first, within the seconds given.

    python tests/benchmarks/gpu.py [--seconds 300] [--section NAME ...] [--smoke]

Every section runs in a process of its own, so that what leaves the device unusable costs one section. A figure is in the
card's file, results/benchmarks/gpu-CARD.parquet, as soon as it is measured; figures of other commits stay there. A section
that would not fit into what is left of the seconds is skipped, one that takes longer is cut short, and both are said. At
the end: tables of this commit's figures, whenever they were measured, and whether the targets are reached.

peaks           matrix products by dtype, copy
compile-cache   fills the compiler's cache on disk with ours and timm's networks, all at once
forward         images/s of the fixed trials and timm's four, bfloat16, eager and compiled
train           training steps by autocast, batch 1,024 at 128 px, and their memory
kernels         single operations against torch's
cuda-tests      the tests marked `cuda`
run             a search with 4 trials, by phase
order           the fixed trials twice in shuffled order, as a run times them
latency         one image
autocast        forward by autocast, eager and compiled
train-compiled  training steps, compiled whole and block by block
"""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import torch
from clock import RESULTS
from gpu_rows import Row, card_file, merged, read_rows, write_rows
from gpu_setting import PRELOADED, Setting
from gpu_tables import NETWORK_COLUMNS, OPERATION_COLUMNS, network_cells, operation_cells, verdicts

from archsearch.device import conditions, device_lock
from archsearch.report import make_console, make_table, show
from archsearch.system import utc_now

CHECKOUT = Path(__file__).resolve().parents[2]
INTERRUPTED = 130
_GRACE_S = 5  # from SIGTERM to SIGKILL


class Section(NamedTuple):
    """What measures it, the seconds without which it is not begun, and whether the device's lock is held meanwhile."""

    module: str
    function: str
    least_s: int
    is_locked: bool = True

    def rows(self, setting: Setting) -> Iterator[Row]:
        """Its rows; imported here, as the process that starts the sections needs none of it."""
        found: Iterator[Row] = getattr(import_module(self.module), self.function)(setting)
        return found


# Seconds are an H100's with 16 cores. A search and the tests take the lock themselves.
SECTIONS = {
    "peaks": Section("gpu_operations", "peaks", 10),
    "compile-cache": Section("gpu_networks", "compile_cache", 80),
    "forward": Section("gpu_networks", "forward", 30),
    "train": Section("gpu_networks", "train", 15),
    "kernels": Section("gpu_operations", "kernels_section", 15),
    "cuda-tests": Section("gpu_runs", "cuda_tests", 20, is_locked=False),
    "run": Section("gpu_runs", "run", 60, is_locked=False),
    "order": Section("gpu_runs", "order", 100),
    "latency": Section("gpu_networks", "latency", 15),
    "autocast": Section("gpu_networks", "autocast", 30),
    "train-compiled": Section("gpu_networks", "train_compiled", 60),
}
SMOKE_LEAST_S = 5


def measure_section(name: str, setting: Setting, connection: Connection) -> None:
    """Send the rows of a section as they come; the body of its process."""
    os.setsid()  # a group of its own, which ends with it
    torch.manual_seed(0)
    section = SECTIONS[name]
    lock = device_lock(setting.device, exclusive=True, on_wait=lambda who: print(f"  {who}", flush=True))
    with lock if section.is_locked else contextlib.nullcontext():
        for row in section.rows(setting):
            connection.send(row)


@dataclass
class Recorder:
    """Keeps every row that arrives, in the card's file too."""

    path: Path
    facts: Row

    def __post_init__(self) -> None:
        self.rows = read_rows(self.path)

    def add(self, row: Row) -> None:
        """The row with its commit, date and conditions; a failure is printed."""
        self.rows = merged([*self.rows, {**row, **self.facts, "date": utc_now()}])
        write_rows(self.path, self.rows)
        if row.get("value") is None:
            words = (row.get(key) for key in ("section", "what", "side", "dtype", "mode", "note"))
            print(f"  {' '.join(word for word in words if word)}", flush=True)

    def of_commit(self) -> list[Row]:
        """This commit's, from this and earlier calls."""
        return [row for row in self.rows if row["commit"] == self.facts["commit"]]


def carry_out(name: str, setting: Setting, recorder: Recorder) -> str:
    """Run a section in its process until it ends or its seconds are over; says how it went."""
    context = get_context("forkserver")
    context.set_forkserver_preload(list(PRELOADED))
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=measure_section, args=(name, setting, sender))
    process.start()
    sender.close()
    count = 0
    try:
        while receiver.poll(max(0.0, setting.seconds_left)):
            recorder.add(receiver.recv())
            count += 1
    except EOFError:
        process.join()
        how = "done" if process.exitcode == 0 else f"failed (exit code {process.exitcode}), its error stands above"
    else:
        how = "cut short: the time is over"
    finally:
        _end(process)
    return f"{how}; {count} rows, {time.monotonic() - setting.began:.0f} s"


def _end(process: Any) -> None:
    """End a section's process with all that it started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        process.join(_GRACE_S)
        if process.exitcode is None and number == signal.SIGKILL:
            process.kill()  # before it had a group
            process.join()


def measure_all(names: Sequence[str], options: argparse.Namespace, device_type: str, recorder: Recorder) -> bool:
    """Every section that fits; whether none failed."""
    deadline, is_sound = time.monotonic() + options.seconds - options.spent_s, True
    for name in names:
        left = deadline - time.monotonic()
        least = SMOKE_LEAST_S if options.smoke else SECTIONS[name].least_s
        if left < least:
            print(f"{name}: skipped: it needs {least} s or more, {max(0.0, left):.0f} s are left", flush=True)
            continue
        print(f"{name}:", flush=True)
        how = carry_out(name, Setting(device_type, options.smoke, left), recorder)
        is_sound &= not how.startswith("failed")
        print(f"  {how}", flush=True)
    return is_sound


def commit() -> str:
    """The checkout's, `-dirty` with changes of one's own; `unknown` outside of a repository."""
    command = ["git", "describe", "--always", "--abbrev=7", "--exclude=*", "--dirty"]
    try:
        return subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def report(rows: Sequence[Row]) -> None:
    """The two tables, and every target."""
    console = make_console()
    for columns, cells in ((NETWORK_COLUMNS, network_cells(rows)), (OPERATION_COLUMNS, operation_cells(rows))):
        if cells:
            show(console, make_table(columns, cells, left=("model", "operation", "dtype", "pass", "another way")))
            print()
    for verdict in verdicts(rows):
        print(verdict)


def _options() -> argparse.Namespace:
    began = time.monotonic()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=300, help="for everything together (default 300)")
    parser.add_argument("--section", action="append", choices=SECTIONS, help="only this one; may be given again")
    parser.add_argument("--commit", default=commit(), help="where the files have no repository around them")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the parquet file")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, on the CPU where there is no GPU")
    options = parser.parse_args()
    options.spent_s = time.monotonic() - began
    if not torch.cuda.is_available() and not options.smoke:
        parser.exit(2, "gpu.py: there is no CUDA device here; --smoke runs every section at tiny sizes on the CPU\n")
    return options


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt


def main() -> None:
    """Measure, keep, print."""
    options = _options()
    device_type = "cuda" if torch.cuda.is_available() else "cpu"
    where = conditions(torch.device(device_type))
    del where["date"]
    card = "smoke" if options.smoke else str(where["device_name"])
    facts = {"commit": options.commit, "conditions": json.dumps(where)}
    recorder = Recorder(card_file(options.out, card), facts)
    names = [name for name in SECTIONS if not options.section or name in options.section]
    try:
        code = 0 if measure_all(names, options, device_type, recorder) else 1
    except KeyboardInterrupt:
        print("interrupted", flush=True)
        code = INTERRUPTED
    report(recorder.of_commit())
    print(f"\n{len(recorder.of_commit())} rows of commit {options.commit}: {recorder.path}")
    sys.exit(code)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _interrupt)
    main()
