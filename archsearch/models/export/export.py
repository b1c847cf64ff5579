"""One architecture written in one format or all: where to, with which weights, and what is known of what was written."""

import contextlib
import json
import os
import shlex
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from archsearch.blocks import BlockFile, files_of
from archsearch.errors import UserError, shown
from archsearch.models.export.check import Check
from archsearch.models.export.onnx import require_onnx, write_onnx
from archsearch.models.export.own_formats import CONFIG, WEIGHTS, write_safetensors, write_timm, write_toml
from archsearch.models.export.torch_export import write_pt2
from archsearch.models.export.weights import Weighted, weighted
from archsearch.models.network import adapted
from archsearch.models.timm_network import HYBRID
from archsearch.space import Arch, ImageSize
from archsearch.system import Say, ignore
from archsearch.units import format_names, one_size, sides
from archsearch.version import __version__

FILES = {"onnx": "model.onnx", "pt2": "model.pt2", "safetensors": WEIGHTS, "toml": "architecture.toml"}
FOLDERS = ("timm", "all")
FORMATS = ("timm", *FILES, "all")
CARD = "README.md"
_SUFFIXES = {name: f".{name}" for name in FILES}
_BATCHED = ("onnx", "pt2", "all")
_OTHER_SUFFIXES = (*_SUFFIXES.values(), ".pt", ".pth", ".bin", ".ckpt", ".json")
_LOADING = {
    "timm": 'import archsearch.timm, timm; model = timm.create_model("local-dir:{path}", pretrained=True)',
    "onnx": 'import onnxruntime; logits, = onnxruntime.InferenceSession("{path}").run(None, {{"images": images}})',
    "pt2": 'import torch; model = torch.export.load("{path}").module()',
    "safetensors": 'import archsearch; model = archsearch.load("{path}").eval()',
    "toml": "archsearch cost {path}",
}

Document = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class ExportTask:
    """What to write, and where; `batch` is the images of a forward pass, any number for None."""

    arch: Arch
    out: Path
    format: str
    weights: Path | None
    image_size: ImageSize | None
    num_classes: int | None
    in_chans: int | None
    batch: int | None
    force: bool

    @property
    def is_folder(self) -> bool:
        """Whether a folder is written, and not one file."""
        return self.format in FOLDERS

    @property
    def parts(self) -> tuple[str, ...]:
        """The formats that are written."""
        return FORMATS[:-1] if self.format == "all" else (self.format,)


def export_task(
    arch: Arch, out: Path, format: str | None = None, *, batch: int | str | None = None, **options: Any
) -> ExportTask:
    """What `archsearch export` was asked for, checked before anything is built.

    format: by default that of the suffix of `out`, timm's folder where it has none. batch: a number, or `dynamic`. Further options as in ExportTask.
    Raises UserError for an `out` that exists without `force` or has another format's suffix, for options without meaning, and for missing packages.
    """
    name = format or next((name for name, suffix in _SUFFIXES.items() if out.suffix == suffix), "timm")
    if batch is not None and name not in _BATCHED:
        raise UserError(f"--batch: has no meaning for --format {name}, which takes any batch; leave it out")
    if name == "toml" and options.get("weights") is not None:
        raise UserError("--weights: has no meaning for --format toml, which holds an architecture alone; leave it out")
    if name in ("onnx", "all"):
        require_onnx(f"--format {name}")
    number = None if batch in (None, "dynamic") else int(batch)
    task = ExportTask(arch=arch, out=_target(out, name), format=name, batch=number, **options)
    _check_out(task)
    return task


def _target(out: Path, format: str) -> Path:
    """`out` as an absolute path, with the format's suffix where it has none of a file."""
    path = Path(os.path.abspath(os.path.expanduser(out)))
    if not str(path).isprintable():  # safetensors takes UTF-8 alone, and a line that loads the file is printed
        raise UserError(f"{shown(str(out))}: not a name that can be printed; give another one")
    wanted = _SUFFIXES.get(format, "")
    if path.suffix == wanted:
        return path
    if path.suffix in _OTHER_SUFFIXES:
        allowed = f"ends in {wanted}" if wanted else "is a folder, without such an ending"
        raise UserError(f"{out}: ends in {path.suffix}, and what --format {format} writes {allowed}")
    return path.with_name(path.name + wanted)


def _check_out(task: ExportTask) -> None:
    """Raise UserError where nothing can or may be written there."""
    out = task.out
    if not out.parent.is_dir():
        raise UserError(f"{out}: there is no folder {out.parent}; make it first")
    if not os.path.lexists(out):
        return
    if not task.force:
        raise UserError(f"{out}: exists; give another name, or --force to replace it")
    if task.is_folder != (out.is_dir() and not out.is_symlink()):
        what = "a link" if out.is_symlink() else "a folder" if out.is_dir() else "a file"
        raise UserError(
            f"{out}: is {what}, and --format {task.format} writes a {'folder' if task.is_folder else 'file'}"
        )
    if task.is_folder:
        foreign = sorted({entry.name for entry in out.iterdir()} - _replaceable(task))
        if foreign:
            raise UserError(
                f"{out}: holds what no export wrote, {format_names(foreign, 2)}; --force replaces the folder of an export alone"
            )


def _replaceable(task: ExportTask) -> set[str]:
    """The names of files in a folder that an export may write anew: none where the folder's configuration is not that of an export."""
    try:
        config = json.loads((task.out / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return set()
    if not isinstance(config, dict) or config.get("architecture") != HYBRID:
        return set()
    blocks = files_of({type(placed.layer) for placed in task.arch.layers()})
    return {CONFIG, CARD, *FILES.values(), *(file.name for file in blocks)}


def export_document(task: ExportTask, card: Callable[[Document], str], say: Say = ignore) -> Document:
    """Write what the task says, whole or not at all, and say what was written; `card` makes the README of a folder from that.

    Raises UserError for weights that do not fit and a folder that cannot be written to, RunError where what was written gives other logits.
    """
    options: dict[str, Any] = {
        "image_size": task.image_size,
        "num_classes": task.num_classes,
        "in_chans": task.in_chans,
    }
    found = None if task.format == "toml" else weighted(task.arch, task.weights, **options)
    arch = adapted(task.arch, **options) if found is None else found.network.arch
    size = (task.image_size or arch.image_size) if found is None else found.network.size
    arch = replace(arch, image_size=one_size(*sides(size)))
    blocks = files_of({type(placed.layer) for placed in arch.layers()})
    document = _document(task, arch, found, blocks)
    with _taking_place(task) as inside:
        for file in blocks if task.is_folder else ():
            (inside / file.name).write_text(file.text, encoding="utf-8")
        for name in task.parts:
            say(f"writing {name}")
            path = inside / FILES[name] if task.is_folder and name in FILES else inside
            start = time.monotonic()
            check = _write(
                name, path, arch, found, task.batch, [file.name if task.is_folder else file.path for file in blocks]
            )
            document["files"].append(_file_document(name, task, path, check, time.monotonic() - start))
        if task.is_folder:
            (inside / CARD).write_text(card(document), encoding="utf-8")
    return document


def _write(
    name: str, path: Path, arch: Arch, found: Weighted | None, batch: int | None, blocks: Sequence[str]
) -> Check | None:
    """Write one format to a path; `blocks` are the paths of files of its own blocks."""
    if name == "toml" or found is None:
        write_toml(arch, path, blocks)
        return None
    if name in ("timm", "safetensors"):
        write = write_timm if name == "timm" else write_safetensors
        return write(found.network, path, provenance=found.provenance)
    write_file = write_onnx if name == "onnx" else write_pt2
    return write_file(found.network, path, image_size=arch.image_size, in_chans=arch.in_chans, batch=batch)


def _document(task: ExportTask, arch: Arch, found: Weighted | None, blocks: Sequence[BlockFile]) -> Document:
    """What is exported, before anything is written."""
    cost = arch.cost()
    return {
        "name": arch.name,
        "arch_id": arch.arch_id,
        "description": arch.describe(),
        "image_size": arch.image_size,
        "in_chans": arch.in_chans,
        "num_classes": found.network.num_classes if found else arch.num_classes,
        "macs": cost.macs,
        "params": cost.params,
        "activations": cost.activations,
        "weights": dict(found.provenance) if found else None,
        "weights_kind": found.kind if found else None,
        "notes": list(found.notes) if found else [],
        "blocks": [file.name for file in blocks],
        "format": task.format,
        "batch": task.batch or "dynamic",
        "out": str(task.out),
        "versions": {"archsearch": __version__, "torch": torch.__version__, "timm": version("timm")},
        "files": [],
    }


def _file_document(name: str, task: ExportTask, path: Path, check: Check | None, seconds: float) -> Document:
    """What was written of one format, and how it is loaded."""
    final = task.out / path.name if task.is_folder and name in FILES else task.out
    written = [path / CONFIG, path / WEIGHTS] if path.is_dir() else [path]
    return {
        "format": name,
        "path": str(final),
        "bytes": sum(file.stat().st_size for file in written),
        "seconds": seconds,
        **(asdict(check) if check else {}),
        "load": _LOADING[name].format(path=shlex.quote(str(final)) if name == "toml" else final),
    }


@contextlib.contextmanager
def _taking_place(task: ExportTask) -> Iterator[Path]:
    """A new folder, or the path of a file to write, that takes the place of `task.out` at the end; after any error nothing is left of it.

    Raises UserError where that is impossible.
    """
    out = task.out
    try:
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as folder:
            inside = Path(folder, out.name)
            if task.is_folder:
                inside.mkdir()
            yield inside
            _check_out(task)  # again: hours may have passed
            _swap(inside, out, Path(folder, "before"))
    except OSError as error:
        raise UserError(
            f"{out}: cannot be written ({error.strerror or error}); give a name in a folder that is writable and has room"
        ) from error


def _swap(new: Path, out: Path, before: Path) -> None:
    """Rename `new` to `out`; a folder that is there goes to `before`, and comes back where the renaming fails."""
    if not out.is_dir():
        os.replace(new, out)
        return
    os.replace(out, before)
    try:
        os.replace(new, out)
    except OSError:
        os.replace(before, out)
        raise
