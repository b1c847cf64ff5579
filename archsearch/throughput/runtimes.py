"""Two runtimes over the same architectures: the work of `archsearch bench --runtime A --against-runtime B`."""

from typing import Any

from archsearch.errors import UserError
from archsearch.metrics import kendall_tau
from archsearch.system import Say, ignore
from archsearch.throughput.bench import BenchTask, Document, bench_document

# Options that one runtime has and the other may not.
_TORCH_OPTIONS, _OTHER_OPTIONS = ("dtype", "mode"), ("precision", "calibration_data")


def runtime_options(runtime: str, against: str, options: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Options of `bench_task` for each of two runtimes: those that only one of them has are for that one.

    Raises UserError for a runtime against itself, and for options that exclude a comparison.
    """
    if runtime == against:
        raise UserError(f"--against-runtime: got {against!r}, which is --runtime; give another one")
    for name, is_given in (("--sweep", options.get("sweep") is not None), ("--train", options.get("train"))):
        if is_given:
            raise UserError(f"{name}: two runtimes are compared by forward passes at one batch size; leave it out")

    def of(each: str, other: str) -> dict[str, Any]:
        absent = _OTHER_OPTIONS if each == "torch" else _TORCH_OPTIONS
        is_others = "torch" in (each, other)  # else neither has it, and bench_task says so
        return {name: None if name in absent and is_others else value for name, value in options.items()} | {
            "runtime": each
        }

    return of(runtime, against), of(against, runtime)


def against_runtime_document(task: BenchTask, against: BenchTask, say: Say = ignore) -> Document:
    """The documents of both in `runtimes`, one after the other, and Kendall's tau between their orders by the ratio to the reference in each runtime.

    The tau is over architectures that were measured in both, and None for fewer than two, and after Ctrl-C, which ends it early.
    """
    documents = [bench_document(task, say)]
    if not documents[0]["interrupted"]:
        documents.append(bench_document(against, say))
    ratios = [
        {result["asked"]: result["ratio_to_reference"] for result in document["results"] if not result["error"]}
        for document in documents
    ]
    both = [name for name in ratios[0] if name in ratios[-1]]
    interrupted = any(document["interrupted"] for document in documents)
    has_tau = len(both) > 1 and not interrupted
    return {
        "runtimes": documents,
        "compared": len(both),
        "kendall_tau": kendall_tau(*([found[name] for name in both] for found in ratios)) if has_tau else None,
        "interrupted": interrupted,
        "measured": sum(document["measured"] for document in documents),
        "asked": task.num_measurements + against.num_measurements,
    }
