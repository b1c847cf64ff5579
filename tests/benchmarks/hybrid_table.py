"""Makes tests/data/hybrid_table.parquet: every hybrid of tests/data/hybrid_table.toml, trained with three rungs, a tenth of them with a second seed, and timed.

Usage: python tests/benchmarks/hybrid_table.py train WORK   (any number of these at once, each on a core of its own: about 6 s a hybrid)
       python tests/benchmarks/hybrid_table.py time WORK    (one, on a quiet core: about 2 s a hybrid)
       python tests/benchmarks/hybrid_table.py write WORK [--out FILE]
       python tests/benchmarks/hybrid_table.py score WORK   (any number at once: training-free scores, into tests/data/TABLE_training_free.parquet)

With `--table hybrid_table_2` the same at a smaller budget: 150 hybrids whose second stage has one block instead of two.

WORK is a folder for what is finished so far; after an interruption the same commands go on. Small copies (32 px, widths 1/4) are trained on the embedded
Fashion-MNIST at batch 32 with the shipped recipe, and scored on the way at each rung; throughput is that of the whole hybrid at 224 px, one thread.
"""

import argparse
import json
import os
import random
import time
import tomllib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from archsearch import build, load_space
from archsearch.device import conditions, use_cpu
from archsearch.proxy import ProxyTask, Training, load_profile, shrink
from archsearch.proxy.training_free import scores
from archsearch.space import Arch, Space
from archsearch.throughput import Protocol, measure

DATA = Path(__file__).resolve().parents[1] / "data"
SPACE, TABLE = DATA / "hybrid_table.toml", DATA / "hybrid_table.parquet"
NUM_SMALLER = 150  # hybrids of the second table
RUNGS = (12, 48, 96)  # steps
SECOND_SEED_SHARE = 0.1
BATCH_SIZE = 2  # of the timing

Params = dict[str, Any]
Hybrids = Sequence[tuple[Params, Arch]]


def every() -> Hybrids:
    """All hybrids of the space in a fixed, shuffled order, so that what is finished early is a sample of all."""
    return _every(load_space(SPACE))


def _every(space: Space) -> list[tuple[Params, Arch]]:
    names = space.parameters()
    found: list[tuple[Params, Arch]] = []
    for index in range(space.size):
        params: Params = {}
        for name, choices in names.items():
            index, place = divmod(index, len(choices))
            params[name] = choices[place]
        found.append((params, space.sample(lambda name, choices, params=params: params[name])))  # type: ignore[misc]  # a default that binds
    random.Random(0).shuffle(found)
    return found


def smaller() -> Hybrids:
    """Hybrids of the second table: the same space with one block less in its second stage, some of them in the same order."""
    document = tomllib.loads(SPACE.read_text())
    document["stages"][1]["depth"] = 1
    return _every(Space(document, "hybrid_table_2"))[:NUM_SMALLER]


TABLES: dict[str, Callable[[], Hybrids]] = {"hybrid_table": every, "hybrid_table_2": smaller}


def claimed(work: Path, names: Sequence[str]) -> Iterator[tuple[int, Path]]:
    """Index and file of each task that no process has finished or begun; a task begun by a process that died is free again."""
    work.mkdir(parents=True, exist_ok=True)
    for index, name in enumerate(names):
        path, claim = work / f"{name}.json", work / f"{name}.claim"
        if path.exists() or (claim.exists() and _is_alive(int(claim.read_text() or 0))):
            continue
        claim.unlink(missing_ok=True)
        try:
            with claim.open("x") as file:
                file.write(str(os.getpid()))
        except FileExistsError:
            continue
        yield index, path
        claim.unlink(missing_ok=True)


def _is_alive(pid: int) -> bool:
    return pid > 0 and Path(f"/proc/{pid}").exists()


def _keep(path: Path, document: dict[str, Any]) -> None:
    temporary = path.with_suffix(f".{os.getpid()}")
    temporary.write_text(json.dumps(document))
    temporary.replace(path)
    print(path.name, document, flush=True)


def train(hybrids: Hybrids, work: Path) -> None:
    """Learning curves: an own, fully annealed training for each rung."""
    second = round(SECOND_SEED_SHARE * len(hybrids))
    tasks = [(index, 0) for index in range(len(hybrids))] + [(index, 1) for index in range(second)]
    task = ProxyTask.resolve(load_profile("fashion-mnist"))
    data, scale, recipe = task.load_data(), task.scale, task.recipe
    for place, path in claimed(work, [f"train-{hybrids[index][1].arch_id}-{seed}" for index, seed in tasks]):
        index, seed = tasks[place]
        params, arch = hybrids[index]
        torch.manual_seed(seed)
        model = build(shrink(arch, scale, len(data.classes)))
        training = Training(model, data, replace(recipe, steps=RUNGS[-1], seed=seed), device="cpu")
        curve = [{**asdict(training.advance(steps)), "steps": steps} for steps in RUNGS]
        _keep(path, {"params": params, "seed": seed, "curve": curve})


def time_all(hybrids: Hybrids, work: Path) -> None:
    """Throughput of every hybrid, each against the cheapest of them, which is timed between its blocks."""
    device = torch.device("cpu")
    reference = build(min((arch for _, arch in hybrids), key=lambda arch: arch.cost().macs))
    protocol = replace(
        Protocol.for_device(device, batch_size=BATCH_SIZE), warmup_s=0.1, min_blocks=5, max_s=0.4, block_s=0.03
    )
    for index, path in claimed(work, [f"time-{arch.arch_id}" for _, arch in hybrids]):
        figures = measure(build(hybrids[index][1]), protocol, device, reference=reference)
        _keep(
            path,
            {
                "throughput_img_s": figures.throughput_img_s,
                "throughput_iqr": figures.throughput_iqr,
                "throughput_ratio": figures.ratio_to_reference,
                "reference_img_s": figures.reference_img_s,
            },
        )


def score(hybrids: Hybrids, work: Path, out: Path) -> None:
    """Training-free scores of every hybrid, one row each with the seconds they took; the file is written by the process that finds all done."""
    for index, path in claimed(work, [f"score-{arch.arch_id}" for _, arch in hybrids]):
        start = time.perf_counter()
        found = scores(hybrids[index][1])
        _keep(path, {**found, "seconds": time.perf_counter() - start})
    paths = [work / f"score-{arch.arch_id}.json" for _, arch in hybrids]
    if all(path.exists() for path in paths):
        rows = [{**params, **json.loads(path.read_text())} for (params, _), path in zip(hybrids, paths, strict=True)]
        pq.write_table(pa.Table.from_pylist(rows), out, compression="zstd")


def write(hybrids: Hybrids, work: Path, out: Path) -> None:
    """One row for each hybrid, seed and rung; costs and throughput repeated in each. Names that a hybrid lacks are null."""
    rows = []
    names = dict.fromkeys(name for params, _ in hybrids for name in params)
    for params, arch in hybrids:
        cost, timed = arch.cost(), json.loads((work / f"time-{arch.arch_id}.json").read_text())
        for path in sorted(work.glob(f"train-{arch.arch_id}-*.json")):
            found = json.loads(path.read_text())
            for point in found["curve"]:
                rows.append(
                    {
                        **names,
                        **params,
                        "arch_id": arch.arch_id,
                        "macs": cost.macs,
                        "params": cost.params,
                        **{key: timed[key] for key in ("throughput_img_s", "throughput_iqr", "throughput_ratio")},
                        "seed": found["seed"],
                        "steps": point["steps"],
                        "train_images": point["train_images"],
                        "score": point["score"],
                        "standard_error": point["standard_error"],
                        "train_loss": point["train_loss"],
                        "train_s": point["train_s"] + point["eval_s"],
                    }
                )
    environment = {
        **conditions(torch.device("cpu")),
        "threads": 1,
        "batch_size": BATCH_SIZE,
        "proxy_id": ProxyTask.resolve(load_profile("fashion-mnist"), steps=RUNGS[-1]).proxy_id,
    }
    table = pa.Table.from_pylist(rows).replace_schema_metadata({"environment": json.dumps(environment)})
    pq.write_table(table, out, compression="zstd")
    print(f"{len(rows)} rows of {len({row['arch_id'] for row in rows})} hybrids: {out}, {out.stat().st_size} bytes")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=("train", "time", "write", "score"))
    parser.add_argument("work", type=Path)
    parser.add_argument("--table", choices=list(TABLES), default="hybrid_table")
    parser.add_argument("--out", type=Path, help="default: tests/data/TABLE.parquet, TABLE_training_free.parquet")
    options = parser.parse_args()
    use_cpu(1, None)
    hybrids = TABLES[options.table]()
    if options.task == "train":
        train(hybrids, options.work)
    elif options.task == "time":
        time_all(hybrids, options.work)
    elif options.task == "score":
        score(hybrids, options.work, options.out or DATA / f"{options.table}_training_free.parquet")
    else:
        write(hybrids, options.work, options.out or DATA / f"{options.table}.parquet")


if __name__ == "__main__":
    main()
