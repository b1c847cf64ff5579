"""Top-1 and top-5 accuracy of a network on a folder of validation images, with the preprocessing of a paper's own evaluation."""

import contextlib
import copy
import io
import math
import os
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from archsearch.cores import usable_cores
from archsearch.data import IMAGE_SUFFIXES, folders_in, read_image, read_split, unreadable_reason
from archsearch.device import is_out_of_memory
from archsearch.errors import RunError, UserError
from archsearch.metrics import binomial_standard_error
from archsearch.models.validation.preprocessing import Preprocessing
from archsearch.space import ImageSize
from archsearch.system import without_interrupts
from archsearch.units import DType, sides

_VAL_FOLDERS = ("val", "validation")
_MAX_WORKERS = 16
# A worker takes about 5 s to start; in that time this process decodes about as many pictures.
_IMAGES_A_WORKER = 1000
_TOP = 5
_SIGNAL_S = 1.0  # in which the signal of a child's death has come

# uint8 images (B, 3, H, W), labels (B,), and the unreadable pictures of the batch, each with the reason.
Batch = tuple[Tensor, Tensor, list[str]]

_WORKER_DIED = "a decoding process died, probably for lack of (shared) memory; take fewer workers, or 0 to decode in the main process"


@dataclass(frozen=True, kw_only=True)
class ValidationSet:
    """Images below `root` in order of class and path; labels index `classes`, which are sorted by name as in torchvision's ImageFolder."""

    root: Path
    classes: tuple[str, ...]
    paths: tuple[str, ...]  # relative to root
    labels: tuple[int, ...]

    @classmethod
    def find(cls, folder: Path) -> Self:
        """The images in the class folders of `folder`, or of `val` or `validation` in it; a class folder without images keeps its label.

        Raises UserError when there is no folder or no image in any class.
        """
        if not folder.is_dir():
            what = "not a folder" if folder.exists() else "no such folder"
            raise UserError(f"{folder}: {what}; give the folder that holds one folder of images for each class")
        root = next((folder / name for name in _VAL_FOLDERS if (folder / name).is_dir()), folder)
        try:
            split = read_split(root, ".", tuple(folders_in(root)))
            loose = sum(entry.is_file() and Path(entry).suffix.lower() in IMAGE_SUFFIXES for entry in os.scandir(root))
        except OSError as error:
            raise UserError(
                f"{root}: {error.filename} cannot be read ({error.strerror}); every folder must be readable"
            ) from error
        if loose and not split.classes:
            raise UserError(
                f"{root}: {loose} images but no class folders; sort them into CLASS/IMAGE, for ImageNet n01440764/ILSVRC2012_val_00000293.JPEG and so on "
                "(torchvision.datasets.ImageNet(folder, split='val') does it from the downloaded archives)"
            )
        if not split.files:
            raise UserError(f"{root}: no class folders with images; needed is CLASS/IMAGE")
        paths, labels = zip(*((file.path, file.label) for file in split.files), strict=True)
        return cls(root=root, classes=split.classes, paths=paths, labels=labels)


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """The result of a pass over a validation folder, so far; shares and standard errors are fractions of the images judged, NaN before the first.

    `images`: number of images judged, of `total` in the folder. `unreadable`: the other ones seen, with the reason. `seconds`: time since the start.
    """

    images: int = 0
    top1_correct: int = 0
    top5_correct: int = 0
    total: int
    num_classes: int
    unreadable: tuple[str, ...] = ()
    seconds: float = 0.0

    @property
    def top1(self) -> float:
        """Share of images whose class has the highest logit."""
        return self.top1_correct / self.images if self.images else math.nan

    @property
    def top5(self) -> float:
        """Share of images whose class is among the five highest logits."""
        return self.top5_correct / self.images if self.images else math.nan

    @property
    def top1_se(self) -> float:
        """Binomial standard error of `top1`, for these images as a random sample."""
        return binomial_standard_error(self.top1, self.images)

    @property
    def top5_se(self) -> float:
        """Binomial standard error of `top5`."""
        return binomial_standard_error(self.top5, self.images)

    @property
    def complete(self) -> bool:
        """Whether every image of the folder was judged."""
        return self.images == self.total

    @property
    def images_s(self) -> float:
        """Images per second of the whole pass, start of the workers and decoding included."""
        return self.images / self.seconds if self.seconds else math.nan

    def describe(self) -> str:
        """`12800 of 50000 images, 431 img/s, top-1 81.23`."""
        done = self.images + len(self.unreadable)
        return f"{done} of {self.total} images, {self.images_s:.0f} img/s, top-1 {100 * self.top1:.2f}"


def validate(
    model: nn.Module,
    images: ValidationSet | str | Path,
    preprocessing: Preprocessing,
    *,
    image_size: ImageSize = 224,
    device: torch.device | str = "cpu",
    dtype: DType = "float32",
    batch_size: int | None = None,
    workers: int | None = None,
    progress: Callable[[Accuracy], None] | None = None,
) -> Accuracy:
    """Accuracy of a network (B, 3, H, W) -> (B, classes) on images in class folders; its logits are in the order of the sorted folder names.

    The model is moved to `device` and put into eval mode; with dtype bfloat16 a copy of it is evaluated, all in bfloat16; amp_bfloat16 is autocast.
    image_size: side or (height, width) in pixels. workers: decoding processes, 0 decodes in this one. Defaults: `default_batch_size`, `default_workers`.
    progress: called with the accuracy so far after every batch. Unreadable images are named in the result. Raises UserError when there are no images, or
    another number of classes than the model's; RunError when memory does not suffice or logits are not finite.
    """
    device, size = torch.device(device), sides(image_size)
    found = images if isinstance(images, ValidationSet) else ValidationSet.find(Path(images))
    # Twice: torch raises a worker's death in the main thread wherever that is, so also on its way out of the inner one.
    with _explain_failures(device), _explain_failures(device):
        judge = _Judge(model, preprocessing, device, dtype)
        num_classes = judge.num_classes(size)
        if num_classes != len(found.classes):
            raise UserError(
                f"{found.root}: {len(found.classes)} class folders, but the model has {num_classes} classes; the two must be equal"
            )
        batches = _load_batches(
            _Pictures(found, preprocessing.transform(size)),
            batch_size=batch_size or default_batch_size(device),
            workers=default_workers(len(found.paths)) if workers is None else workers,
            device=device,
        )
        accuracy = Accuracy(total=len(found.paths), num_classes=num_classes)
        start = time.perf_counter()
        for batch in batches:
            accuracy = replace(judge.judge(batch, accuracy), seconds=time.perf_counter() - start)
            if progress:
                progress(accuracy)
    return accuracy


def default_batch_size(device: torch.device) -> int:
    """Images in a forward pass: 16 on cpu, 128 on cuda, 32 on mps."""
    return {"cpu": 16, "cuda": 128, "mps": 32}[device.type]


def default_workers(num_images: int) -> int:
    """Number of decoding processes: one a core, 16 at most, and one for each 1000 images at most, since starting them takes time."""
    return min(usable_cores() or 1, _MAX_WORKERS, num_images // _IMAGES_A_WORKER)


@contextlib.contextmanager
def _explain_failures(device: torch.device) -> Iterator[None]:
    """Lack of memory and a dead worker become a RunError of one sentence."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            raise RunError(f"out of memory on {device.type}; take a smaller batch") from error
        if str(error).startswith("DataLoader worker"):
            raise RunError(_WORKER_DIED) from error
        raise
    except (ConnectionError, EOFError) as error:  # it died while it sent a batch
        with contextlib.suppress(RuntimeError):
            time.sleep(_SIGNAL_S)  # the signal of its death is raised here, and not where nothing catches it
        raise RunError(_WORKER_DIED) from error


class _Judge:
    """A network on its device, which counts its correct answers."""

    def __init__(self, model: nn.Module, preprocessing: Preprocessing, device: torch.device, dtype: DType) -> None:
        if dtype == "bfloat16":
            model = copy.deepcopy(model).to(torch.bfloat16)  # the cast loses digits of the caller's weights
        self._model = model.to(device=device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]  # torch's stub lacks this form
        self._preprocessing, self._device, self._dtype = preprocessing, device, dtype

    def num_classes(self, size: tuple[int, int]) -> int:
        """Number of logits, found on a blank image before any picture is decoded."""
        return self._logits(torch.zeros(1, 3, *size, dtype=torch.uint8)).shape[1]

    def judge(self, batch: Batch, found: Accuracy) -> Accuracy:
        """`found` with the results of another batch added."""
        images, labels, unreadable = batch
        found = replace(found, unreadable=(*found.unreadable, *unreadable))
        if not len(images):
            return found
        logits = self._logits(images)
        hits = logits.topk(min(_TOP, logits.shape[1])).indices == labels.to(logits.device)[:, None]
        wild = ~logits.isfinite().all(1)
        counts = torch.stack((hits[:, 0].sum(), hits.sum(), wild.sum())).tolist()  # one synchronisation with the device
        if counts[2]:
            raise RunError(f"{counts[2]} of {len(images)} images have logits that are not finite in {self._dtype}")
        return replace(
            found,
            images=found.images + len(images),
            top1_correct=found.top1_correct + counts[0],
            top5_correct=found.top5_correct + counts[1],
        )

    @torch.inference_mode()
    def _logits(self, images: Tensor) -> Tensor:
        inputs = self._preprocessing.normalised(images.to(self._device, non_blocking=True))
        if self._dtype == "bfloat16":
            inputs = inputs.to(torch.bfloat16)
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._dtype == "amp_bfloat16"):
            logits: Tensor = self._model(inputs)
        return logits


class _Pictures(Dataset[tuple[Tensor | None, int, str]]):
    """Transformed pictures with their labels; for one that cannot be read None and the reason."""

    def __init__(self, images: ValidationSet, transform: Callable[[Image.Image], Tensor]) -> None:
        self._images, self._transform = images, transform

    def __len__(self) -> int:
        return len(self._images.paths)

    def __getitem__(self, index: int) -> tuple[Tensor | None, int, str]:
        path = self._images.paths[index]
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # odd metadata in readable pictures does not matter
                # As torchvision's ImageFolder reads it: EXIF is ignored, greys are repeated, transparency is dropped.
                with Image.open(io.BytesIO(read_image(self._images.root / path))) as image:
                    picture = image.convert("RGB")
            return self._transform(picture), self._images.labels[index], ""
        except Exception as error:  # on broken bytes Pillow raises nearly every kind of error; the user gets its name
            return None, 0, f"{path} ({unreadable_reason(error)})"


def _collate(items: list[tuple[Tensor | None, int, str]]) -> Batch:
    good = [(image, label) for image, label, _ in items if image is not None]
    images = torch.stack([image for image, _ in good]) if good else torch.empty(0, 3, 1, 1, dtype=torch.uint8)
    return images, torch.tensor([label for _, label in good]), [reason for *_, reason in items if reason]


def _load_batches(pictures: _Pictures, *, batch_size: int, workers: int, device: torch.device) -> Iterator[Batch]:
    """The pictures in order, batch by batch."""
    # Workers are spawned: a fork of a process that uses CUDA or has threads may hang.
    loader: DataLoader[Any] = DataLoader(
        pictures,
        batch_size=batch_size,
        num_workers=workers,
        collate_fn=_collate,
        pin_memory=device.type == "cuda",
        multiprocessing_context="spawn" if workers else None,
    )
    with without_interrupts():
        batches = iter(loader)
    yield from batches
