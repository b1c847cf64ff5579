"""The papers' models built and counted anew: their tables' MACs and parameters by arithmetic against fvcore and the tensors themselves."""

import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress

from archsearch.device import usable_cores
from archsearch.errors import RunError
from archsearch.model import build_unfilled
from archsearch.space.papers import paper, paper_names
from archsearch.system import without_interrupts
from archsearch.trace import count_fvcore

_MOST_PROCESSES = 4  # the largest model (van_b6) takes 2.3 GiB while it is counted


def recount(name: str) -> dict[str, Any]:
    """Build one paper's model and count it: `macs_fvcore` and `params_built` beside the exact costs, and whether both agree."""
    arch = paper(name)
    model = build_unfilled(arch)
    zeros = {key: torch.zeros_like(tensor, device="cpu") for key, tensor in model.state_dict().items()}
    model.load_state_dict(zeros, assign=True)
    cost = arch.cost()
    found = {
        "macs_fvcore": count_fvcore(model, arch.image_size),
        "params_built": sum(parameter.numel() for parameter in model.parameters()),
    }
    return {**found, "is_equal": (cost.macs, cost.params) == (found["macs_fvcore"], found["params_built"])}


def recount_all(names: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """`recount` for each name in processes of their own, in the order in which they finish; the dearest begin first.

    Raises RunError when a process is killed, which a machine short of memory does.
    """
    dearest_first = sorted(names, key=lambda name: -paper(name).cost().macs)
    processes = min(usable_cores() or 1, _MOST_PROCESSES, len(names))
    context = multiprocessing.get_context("spawn")
    with without_interrupts():  # they are started by what is submitted
        pool = ProcessPoolExecutor(processes, mp_context=context, initializer=torch.set_num_threads, initargs=(1,))
        tasks = {pool.submit(recount, name): name for name in dearest_first}
    try:
        for task in as_completed(tasks):
            yield tasks[task], task.result()
    except BrokenProcessPool as error:
        raise RunError(
            f"a process that counted models was killed; each takes up to 2.3 GiB, and {processes} run at once"
        ) from error
    except BaseException:
        for process in multiprocessing.active_children():
            process.kill()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def recount_with_progress(console: Console) -> dict[str, dict[str, Any]]:
    """Every shipped model counted anew, with a bar on a terminal."""
    names = paper_names()
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task("counting models", total=len(names))
        found: dict[str, dict[str, Any]] = {}
        for name, check in recount_all(names):
            found[name] = check
            progress.update(bar, advance=1, description=f"counted {name}")
    return found
