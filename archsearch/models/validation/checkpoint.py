"""`archsearch evaluate`: the accuracy of a paper's checkpoint on a validation folder, beside the published one."""

import re
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from archsearch.device import conditions, device_lock, pick_device
from archsearch.errors import RunError, UserError
from archsearch.lock import waiting_line
from archsearch.models.checkpoints import CheckpointWarning, load_official
from archsearch.models.validation.accuracy import Accuracy, ValidationSet, default_batch_size, default_workers, validate
from archsearch.models.validation.preprocessing import Preprocessing
from archsearch.space import paper, paper_space
from archsearch.system import Progress, Say, ignore
from archsearch.units import DType, format_names, sides

IMAGENET_CLASSES, IMAGENET_IMAGES = 1000, 50_000
_WNID = re.compile(r"n\d{8}")

Document = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class EvaluateTask:
    """A checkpoint to evaluate, the images, and the settings."""

    name: str
    checkpoint: Path
    images: ValidationSet
    image_size: tuple[int, int]
    device: torch.device
    dtype: DType
    batch_size: int
    workers: int


def evaluate_task(
    name: str,
    checkpoint: Path,
    data: Path,
    *,
    resolution: tuple[int, int] | None,
    device: str,
    dtype: str,
    batch_size: int | None,
    workers: int | None,
) -> EvaluateTask:
    """The task, checked before anything is loaded; None stands for defaults.

    Raises UserError for an unknown paper, a size that it cannot take, a missing device, a missing file, and a folder without class folders of images.
    """
    arch = paper(name)
    image_size = resolution or sides(arch.image_size)
    try:
        arch.check(image_size)
    except UserError as error:
        raise UserError(f"{name} at {image_size[0]}x{image_size[1]} px: {error}") from error
    target = pick_device(device)
    if not checkpoint.is_file():
        what = "not a file" if checkpoint.exists() else "no such file"
        raise UserError(f"{checkpoint}: {what}; give the checkpoint (.pth or .safetensors) of {name}")
    images = ValidationSet.find(data)
    return EvaluateTask(
        name=name,
        checkpoint=checkpoint,
        images=images,
        image_size=image_size,
        device=target,
        dtype=cast(DType, dtype),
        batch_size=batch_size or default_batch_size(target),
        workers=default_workers(len(images.paths)) if workers is None else workers,
    )


def evaluate_document(task: EvaluateTask, *, say: Say = ignore, progress: Progress = ignore) -> Document:
    """The accuracy with everything it depends on; after Ctrl-C that of the images seen until then. Notes also go to `say`."""
    preprocessing = Preprocessing.from_paper(task.name)
    notes: list[str] = []
    model = _load(task, notes)
    strange = [name for name in task.images.classes if not _WNID.fullmatch(name)]
    if strange and len(task.images.classes) == IMAGENET_CLASSES:
        notes.append(
            f"the class folders are not named by ImageNet's identifiers (n01440764), for example {strange[0]!r}; labels are their places in the sorted names"
        )
    for note in notes:
        say(f"note: {note}")
    found, interrupted = _validate(task, model, preprocessing, progress)
    return {
        "name": task.name,
        "checkpoint": str(task.checkpoint),
        "data": str(task.images.root),
        "image_size": list(task.image_size),
        **asdict(found),
        **{key: getattr(found, key) for key in ("complete", "top1", "top1_se", "top5", "top5_se", "images_s")},
        "interrupted": interrupted,
        "published": _published(task.name),
        "difference": difference(task, found),
        "preprocessing": {
            **asdict(preprocessing),
            "resized": list(preprocessing.resized(task.image_size)),
            "words": preprocessing.describe(task.image_size),
        },
        "dtype": task.dtype,
        "batch_size": task.batch_size,
        "workers": task.workers,
        "conditions": conditions(task.device),
        "notes": notes,
    }


def _load(task: EvaluateTask, notes: list[str]) -> nn.Module:
    """The paper's model with the checkpoint's weights; its CheckpointWarnings are added to the notes."""
    own = task.image_size == sides(paper(task.name).image_size)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", CheckpointWarning)
        model = load_official(task.name, task.checkpoint, image_size=None if own else task.image_size)
    for warning in caught:
        if issubclass(warning.category, CheckpointWarning):
            notes.append(str(warning.message))
        else:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    return model


def _validate(
    task: EvaluateTask, model: nn.Module, preprocessing: Preprocessing, progress: Progress
) -> tuple[Accuracy, bool]:
    """The accuracy, and whether Ctrl-C ended the pass before its end."""
    so_far: list[Accuracy] = []
    progress(0, len(task.images.paths), "waiting for the first images")
    on_wait = waiting_line(partial(progress, 0, len(task.images.paths)))
    with device_lock(task.device, exclusive=False, on_wait=on_wait):

        def report(found: Accuracy) -> None:
            so_far[:] = [found]
            progress(found.images + len(found.unreadable), found.total, found.describe())

        try:
            found = validate(
                model,
                task.images,
                preprocessing,
                image_size=task.image_size,
                device=task.device,
                dtype=task.dtype,
                batch_size=task.batch_size,
                workers=task.workers,
                progress=report,
            )
        except KeyboardInterrupt:
            if not so_far:
                raise
            return so_far[0], True
    return found, False


def _published(name: str) -> Document:
    """The paper's own figures in percent, None where it gives none, and their source."""
    table = paper_space(name).paper
    return {key: table.get(key) for key in ("top1", "top5", "resolution", "source")}


def difference(task: EvaluateTask, found: Accuracy) -> Document:
    """Measured minus published accuracy, in points, None without a comparison; `reason` says why there is none."""
    published = _published(task.name)
    reason = None
    if not found.complete:
        reason = "not all images were judged"
    elif (found.num_classes, found.total) != (IMAGENET_CLASSES, IMAGENET_IMAGES):
        reason = (
            f"this is not the validation set of ImageNet-1K ({IMAGENET_CLASSES} classes, {IMAGENET_IMAGES} images), "
            f"but {found.num_classes} classes with {found.total} images"
        )
    elif task.image_size != sides(paper(task.name).image_size):
        reason = f"the published figure is for {paper(task.name).image_size} px"
    points: Document = {
        key: None if reason or published[key] is None else 100 * getattr(found, key) - published[key]
        for key in ("top1", "top5")
    }
    return {**points, "reason": reason}


def check_complete(document: Document) -> None:
    """Raise RunError when images could not be read: the figure is not that of the whole folder."""
    unreadable = document["unreadable"]
    if unreadable:
        raise RunError(
            f"{document['data']}: {len(unreadable)} of {document['total']} images cannot be read, so the accuracy is partial: "
            f"{format_names(unreadable, separator='; ')}"
        )


def interrupted_sentence(document: Mapping[str, Any]) -> str:
    """The sentence after Ctrl-C: how many images were judged."""
    return f"interrupted: {document['images']} of {document['total']} images were judged, so the accuracy is partial"
