"""Choosing a runtime, and giving it a network: written as ONNX for the batch that is timed, loaded, and compared with torch."""

import contextlib
import importlib.util
import tempfile
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from archsearch.data import IMAGE_SUFFIXES, IMAGENET_MEAN, IMAGENET_STD
from archsearch.errors import ArchsearchError, RunError, UserError, first_line
from archsearch.models import Preprocessing
from archsearch.models.export.check import TOLERANCE, compare, to_export
from archsearch.models.export.onnx import export_onnx, quiet_exporter
from archsearch.system import user_path
from archsearch.throughput.backends.contract import Backend
from archsearch.throughput.backends.onnxruntime import OnnxRuntime
from archsearch.throughput.backends.openvino import OpenVino
from archsearch.throughput.backends.tensorrt import TensorRT
from archsearch.throughput.protocol import Precision, Protocol, Runtime
from archsearch.units import ImageSize

_BACKENDS: dict[str, type[Backend]] = {each.name: each for each in (OnnxRuntime, OpenVino, TensorRT)}
_CALIBRATION_IMAGES = 32
# How validation images of ImageNet are mostly prepared.
_PREPROCESSING = Preprocessing(crop_share=0.875, interpolation="bicubic", mean=IMAGENET_MEAN, std=IMAGENET_STD)


def runtime_device(runtime: Runtime, device: str) -> str:
    """The device that a runtime other than torch takes for `auto` or a name. Raises UserError where it, or the runtime, is not there."""
    backend = _BACKENDS[runtime]
    missing = [name for name in backend.packages if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"--runtime: got {runtime!r}, but {' and '.join(missing)} cannot be imported; run pip install 'archsearch[{runtime}]'"
        )
    if device != "auto":
        backend.check_device(device.partition(":")[0])
        return device
    for kind in backend.devices:
        with contextlib.suppress(UserError):
            backend.check_device(kind)
            if kind != "cuda" or torch.cuda.is_available():
                return kind
    raise UserError(
        f"--runtime: got {runtime!r}, which runs on {' and '.join(backend.devices)}, and none of it is here"
    )


def check_precision(runtime: Runtime, precision: Precision, calibration_data: str | None, in_chans: int = 3) -> None:
    """Raise UserError for a number format that the runtime does not have here, for int8 without images, and for images without int8.

    Also where the network does not take the 3 channels that pictures have.
    """
    allowed = _BACKENDS[runtime].precisions
    if precision not in allowed:
        raise UserError(f"--precision: got {precision!r}; with --runtime {runtime} allowed are {', '.join(allowed)}")
    if (precision == "int8") != (calibration_data is not None):
        raise UserError(
            "--calibration-data: only int8 takes the ranges of its numbers from images; leave it out, or give --precision int8"
            if calibration_data
            else "--precision: int8 needs the ranges of its numbers from images; give a folder of them by --calibration-data"
        )
    if calibration_data is not None:
        calibration_files(calibration_data)
        if in_chans != 3:
            raise UserError(
                f"--calibration-data: pictures have 3 channels, and networks here take {in_chans}; use another --precision"
            )


def runtime_facts(protocol: Protocol, device: torch.device) -> dict[str, Any]:
    """Runtime, its version, threads and providers, and the precision: what figures of a runtime belong to."""
    if protocol.runtime == "torch":
        version, threads = str(torch.__version__), torch.get_num_threads() if device.type == "cpu" else None
        return {
            "runtime": "torch",
            "runtime_version": version,
            "runtime_threads": threads,
            "runtime_providers": None,
            "precision": None,
        }
    return {**_BACKENDS[protocol.runtime].facts(device), "precision": protocol.precision}


def load(network: nn.Module, inputs: list[Tensor], protocol: Protocol) -> tuple[Backend, float]:
    """The runtime with the network in eval mode, and the largest difference of its logits from torch's as a share of the largest.

    Raises RunError where the network cannot be exported, the runtime cannot run it, or logits in float32 on a CPU differ by over TOLERANCE.
    """
    backend, copied = _BACKENDS[protocol.runtime](), to_export(network)
    images = [batch.contiguous() for batch in inputs]
    with torch.inference_mode():
        wanted = copied(images[0].cpu().float())
    # OpenVINO converts a file of float32 itself; the others compute in the format of the file.
    if protocol.precision == "float16" and protocol.runtime != "openvino":
        copied, images = copied.half(), [batch.half() for batch in images]
    calibration = calibration_batches(protocol) if protocol.calibration_data else []
    with tempfile.TemporaryDirectory() as folder, runtime_failures(protocol), quiet_exporter():
        file = Path(folder, "network.onnx")
        export_onnx(copied, file, images[0].cpu(), is_dynamic=False)
        backend.prepare(file, images, protocol, calibration)
        difference = compare(backend.logits(), wanted).relative_difference
    limit = TOLERANCE if protocol.precision == "float32" and images[0].device.type == "cpu" else float("inf")
    if not difference <= limit or difference == float("inf"):
        backend.close()
        raise RunError(
            f"throughput: {protocol.runtime} gives other logits than torch, {difference:.2g} of the largest apart (allowed: {limit:g})"
        )
    return backend, difference


@contextlib.contextmanager
def runtime_failures(protocol: Protocol) -> Iterator[None]:
    """The exceptions of a runtime, of which each has its own, as MemoryError where they say so, else as RunError."""
    try:
        yield
    except (ArchsearchError, MemoryError):
        raise
    except Exception as error:
        if "alloc" in str(error).lower():
            raise MemoryError(first_line(error)) from error
        raise RunError(
            f"throughput: {protocol.runtime} cannot run the network: {type(error).__name__}: {first_line(error)}"
        ) from error


def calibration_files(folder: str) -> list[Path]:
    """Image files anywhere below a folder, evenly spread over all in the order of their paths. Raises UserError where there are none."""
    root = user_path(folder)
    found = sorted(path for path in root.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())
    if not found:
        raise UserError(f"--calibration-data: got {folder!r}, in which there are no images; give a folder of pictures")
    count = min(_CALIBRATION_IMAGES, len(found))
    return [found[place * len(found) // count] for place in range(count)]


def calibration_batches(protocol: Protocol) -> list[Tensor]:
    """Batches of the protocol's size, (B, 3, H, W), normalised as ImageNet's, that have every image at least once."""
    assert protocol.calibration_data is not None
    images = _images(protocol.calibration_data, protocol.image_size)
    count = -(-len(images) // protocol.batch_size) * protocol.batch_size
    filled = images.repeat(-(-count // len(images)), 1, 1, 1)[:count]
    return [batch.contiguous() for batch in torch.split(filled, protocol.batch_size)]


@lru_cache(maxsize=4)
def _images(folder: str, image_size: ImageSize) -> Tensor:
    transform = _PREPROCESSING.transform(image_size)
    pictures = []
    for path in calibration_files(folder):
        try:
            with Image.open(path) as picture:
                pictures.append(transform(picture.convert("RGB")))
        except (OSError, ValueError) as error:
            raise UserError(
                f"--calibration-data: {path} cannot be read as a picture ({first_line(error)}); remove it"
            ) from error
    return _PREPROCESSING.normalised(torch.stack([torch.as_tensor(picture) for picture in pictures]))
