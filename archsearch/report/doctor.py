"""`archsearch doctor`: versions, devices, compilers, extras, load and disk of this machine, and what to do about them."""

import importlib.metadata
import os
import platform
import re
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import RenderableType

from archsearch.compiler import compiler_problem
from archsearch.cores import OthersLoad, cpu_name, is_busy, usable_cores
from archsearch.errors import first_line
from archsearch.report.tables import Document, make_table, memory_text, titled, unbroken
from archsearch.units import format_bytes
from archsearch.version import __version__

_PACKAGE = "archsearch"
# What each extra is for; one that has no words here is listed without.
USES = {
    "dev": "the tests of archsearch itself",
    "mlflow": "run --track mlflow",
    "nvml": "clock, driver and throttling of an NVIDIA GPU beside each timing",
    "onnxruntime": "export --format onnx, bench and run --runtime onnxruntime",
    "openvino": "bench and run --runtime openvino",
    "postgresql": "run --storage postgresql://...",
    "ray": "run --ray: workers on a cluster",
    "tensorboard": "train --tensorboard, run --track tensorboard",
    "tensorrt": "bench and run --runtime tensorrt, on an NVIDIA GPU",
    "wandb": "run --track wandb",
}
_NAMED = ("torch", "torchvision", "timm", "optuna", "numpy", "pyarrow")  # in the line of versions
_LITTLE_DISK = 2 * 2**30
_LITTLE_MEMORY = 4 * 2**30
_LOAD_S = 0.6  # the counters of the system tick at 100 Hz


def doctor_document(results_root: Path) -> Document:
    """What there is, and `findings`: each with a level (broken, warning, fine), what it is, and what to do about it (or None).

    Takes a few seconds, most of them to load torch. Nothing is raised for what is broken, and no file is written.
    """
    load, began = OthersLoad(), time.monotonic()
    load.mean_cores()
    torch, problem = _torch()
    document: dict[str, Any] = {
        "archsearch": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": _packages(),
        "torch_problem": problem,
        "cpu": _cpu(torch),
        "gpus": _gpus(torch) if torch else [],
        "mps": bool(torch and torch.backends.mps.is_available()),
        "compile": {device: compiler_problem(device) for device in ("cpu", *(["cuda"] if _has_cuda(torch) else []))},
        "extras": _extras(),
        "memory": _memory(),
        "disk": _disk(results_root),
    }
    time.sleep(max(0.0, _LOAD_S - (time.monotonic() - began)))
    document["other_cores"] = load.mean_cores()
    return document | {"findings": list(_findings(document))}


def _torch() -> tuple[Any, str | None]:
    """The module, or None with what its import raised."""
    try:
        import torch
    except Exception as error:  # a broken installation raises what it likes, and this command is to say so
        return None, f"{type(error).__name__}: {first_line(error)}"
    return torch, None


def _has_cuda(torch: Any) -> bool:
    return bool(torch and torch.cuda.is_available())


def _requirements() -> Iterator[tuple[str, str | None]]:
    """Name of each requirement of the package, with the extra that it belongs to; none where the package runs without being installed."""
    try:
        texts = importlib.metadata.requires(_PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        return
    for text in texts:
        name, extra = re.match(r"[\w.-]+", text), re.search(r"extra\s*==\s*['\"]([\w.-]+)['\"]", text)
        if name:
            yield name[0], extra[1] if extra else None


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _packages() -> dict[str, str | None]:
    """Versions of what archsearch cannot do without; None for what is missing."""
    names = [name for name, extra in _requirements() if extra is None] or list(_NAMED)
    return {name: _version(name) for name in sorted(names)}


def _extras() -> list[Document]:
    """Each extra: its packages with their versions, whether all are there, and what it is for."""
    found: dict[str, dict[str, str | None]] = {}
    for name, extra in _requirements():
        if extra is not None:
            found.setdefault(extra, {})[name] = _version(name)
    return [
        {
            "extra": extra,
            "is_there": all(packages.values()),
            "packages": packages,
            "missing": [name for name, version in packages.items() if version is None],
            "enables": USES.get(extra),
            "install": f"pip install '{_PACKAGE}[{extra}]'",
        }
        for extra, packages in sorted(found.items())
    ]


def _cpu(torch: Any) -> Document:
    return {
        "name": cpu_name(),
        "cores": usable_cores(),
        "all_cores": os.cpu_count(),
        "threads": torch.get_num_threads() if torch else None,
        "instructions": torch.backends.cpu.get_cpu_capability() if torch else None,
    }


def _gpus(torch: Any) -> list[dict[str, Any]]:
    from archsearch.device import find_nvidia_gpu  # loads torch

    documents = []
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        properties, gpu = torch.cuda.get_device_properties(index), find_nvidia_gpu(torch.device("cuda", index))
        documents.append(
            {
                "name": properties.name,
                "memory": properties.total_memory,
                "free": torch.cuda.mem_get_info(index)[0],
                "capability": f"{properties.major}.{properties.minor}",
                "cuda": torch.version.cuda,
                "driver": str(gpu.nvml.nvmlSystemGetDriverVersion()) if gpu else None,
            }
        )
    return documents


def _memory() -> Document:
    """Bytes of the machine's memory, and those that can be had now; None where the system does not tell."""
    found: dict[str, int] = {}
    path = Path("/proc/meminfo")
    if path.exists():
        for name, _, rest in (line.partition(":") for line in path.read_text().splitlines()):
            found[name] = int(rest.split()[0]) * 1024
    return {"total": found.get("MemTotal"), "available": found.get("MemAvailable")}


def _disk(results_root: Path) -> Document:
    """The folder that results go to, whether it can be written, and the free bytes there."""
    folder = results_root if results_root.is_dir() else Path()
    return {
        "folder": str(results_root.absolute()),
        "is_there": results_root.is_dir(),
        "is_writable": os.access(folder, os.W_OK),
        "free": shutil.disk_usage(folder).free,
    }


def _finding(level: str, what: str, advice: str | None = None) -> Document:
    return {"level": level, "what": what, "advice": advice}


def _findings(document: Document) -> Iterator[Document]:
    """What works, what does not, and what to do, the worst first."""
    found = [*_package_findings(document), *_device_findings(document), *_place_findings(document)]
    order = ("broken", "warning", "fine")
    yield from sorted(found, key=lambda each: order.index(each["level"]))


def _package_findings(document: Document) -> Iterator[Document]:
    missing = [name for name, version in document["packages"].items() if version is None]
    if missing:
        yield _finding("broken", f"packages are missing: {', '.join(missing)}", f"pip install {' '.join(missing)}")
    if document["torch_problem"]:
        yield _finding(
            "broken", f"torch cannot be loaded ({document['torch_problem']})", "install torch again: pytorch.org"
        )
    elif not missing:
        yield _finding("fine", "search, cost, sample, export and report work here")
    for device, problem in document["compile"].items():
        if problem:
            yield _finding(
                "warning",
                f"torch.compile does not work on {device}: {problem}",
                "install it, or time with --mode eager",
            )
        else:
            yield _finding("fine", f"torch.compile has what it needs on {device}")


def _device_findings(document: Document) -> Iterator[Document]:
    gpus, names = document["gpus"], {each["extra"]: each["is_there"] for each in document["extras"]}
    if gpus:
        yield _finding("fine", f"{len(gpus)} GPU{'s' * (len(gpus) > 1)} for timing and training")
        if not names.get("nvml", True):
            advice = f"pip install '{_PACKAGE}[nvml]'"
            yield _finding(
                "warning", "clock and throttling of the GPU are not recorded: the extra nvml is absent", advice
            )
    elif document["mps"]:
        yield _finding("fine", "the GPU of this Mac, as mps")
    elif shutil.which("nvidia-smi") and not document["torch_problem"]:
        advice = "install a build of torch for CUDA that fits the driver: pytorch.org"
        yield _finding("warning", "there is an NVIDIA driver, but torch finds no GPU", advice)
    else:
        yield _finding("fine", "no GPU: everything runs on the CPU, trainings of ImageNet would take too long")


def _place_findings(document: Document) -> Iterator[Document]:
    disk, memory, cpu = document["disk"], document["memory"], document["cpu"]
    if not disk["is_writable"]:
        yield _finding("broken", f"{disk['folder']} cannot be written", "change to a folder of your own")
    if disk["free"] < _LITTLE_DISK:
        yield _finding(
            "warning", f"only {format_bytes(disk['free'])} are free for {disk['folder']}", "free some, or use --output"
        )
    if memory["available"] is not None and memory["available"] < _LITTLE_MEMORY:
        left = format_bytes(memory["available"])
        yield _finding(
            "warning",
            f"only {left} of memory are free",
            "end what is not needed; fewer --workers, a smaller --batch-size",
        )
    others, threads = document["other_cores"], cpu["threads"] or 1
    if others is None:
        yield _finding(
            "warning",
            "this system does not tell what else is at work",
            "see to it that the machine is quiet before you time",
        )
    elif is_busy(others, cpu["cores"] or 1, threads):
        advice = "wait until it is quiet" + (", or use --threads 1" if threads > 1 else "")
        yield _finding(
            "warning",
            f"other work uses {others:.1f} of {cpu['cores']} cores: timing on the CPU is not sensible now",
            advice,
        )
    else:
        yield _finding("fine", "the machine is quiet enough to time on the CPU")


def is_broken(document: Document) -> bool:
    """Whether something essential does not work."""
    return any(each["level"] == "broken" for each in document["findings"])


def doctor_parts(document: Document) -> Iterator[RenderableType]:
    """The document as tables, its findings last."""
    packages = document["packages"]
    versions = [f"{name} {packages[name] or 'missing'}" for name in _NAMED if name in packages]
    yield f"archsearch {document['archsearch']}, Python {document['python']} ({sys.executable})\n{', '.join(versions)}\n{document['platform']}"
    yield titled("Machine", make_table(["part", "what"], list(_machine_rows(document)), left=["part", "what"]))
    extras = [each for each in document["extras"] if each["extra"] != "dev"]
    if extras:
        rows = [[each["extra"], "there" if each["is_there"] else "absent", each["enables"] or ""] for each in extras]
        yield titled("Extras", make_table(["extra", "state", "enables"], rows, left=["extra", "state", "enables"]))
    absent = [each["install"] for each in extras if not each["is_there"]]
    if absent:
        yield unbroken("\n".join(["To install what is absent:", *absent]))
    yield "\n".join(_finding_lines(document))


def _machine_rows(document: Document) -> Iterator[list[str]]:
    cpu, memory, disk = document["cpu"], document["memory"], document["disk"]
    cores = (
        f"{cpu['cores']} of {cpu['all_cores']} cores" if cpu["cores"] != cpu["all_cores"] else f"{cpu['cores']} cores"
    )
    threads = f"torch uses {cpu['threads']}" if cpu["threads"] else None
    yield [
        "CPU",
        ", ".join(filter(None, [cpu["name"], cores, threads, cpu["instructions"]])),
    ]
    for each in document["gpus"]:
        driver = f", driver {each['driver']}" if each["driver"] else ""
        sizes = f"{memory_text(each['memory'])}, {memory_text(each['free'])} free"
        yield ["GPU", f"{each['name']}, {sizes}, capability {each['capability']}, CUDA {each['cuda']}{driver}"]
    if not document["gpus"]:
        yield ["GPU", "Apple silicon (mps)" if document["mps"] else "none that torch can use"]
    yield ["memory", f"{memory_text(memory['total'])}, {memory_text(memory['available'])} free"]
    yield [
        "load",
        "not known"
        if document["other_cores"] is None
        else f"{document['other_cores']:.1f} cores used by others just now",
    ]
    there = "" if disk["is_there"] else " (made by the first run)"
    yield ["results", f"{disk['folder']}{there}, {format_bytes(disk['free'])} free"]


def _finding_lines(document: Document) -> Iterator[str]:
    """One line for each finding, and the verdict."""
    words = {"broken": "Broken", "warning": "Mind", "fine": "Works"}
    for each in document["findings"]:
        yield f"{words[each['level']]}: {each['what']}." + (f" To do: {each['advice']}." if each["advice"] else "")
    counts = [sum(each["level"] == level for each in document["findings"]) for level in ("broken", "warning")]
    if counts[0]:
        yield f"Verdict: archsearch cannot work here yet; {counts[0]} thing{'s' * (counts[0] > 1)} to repair."
    elif counts[1]:
        yield f"Verdict: archsearch works here; {counts[1]} thing{'s' * (counts[1] > 1)} to mind."
    else:
        yield "Verdict: archsearch works here."
