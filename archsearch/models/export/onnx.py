"""ONNX files: torch's exporter on top of torch.export, checked in onnxruntime.

One file is for one size of images: maps of a size that is open fail in the exporter for windows.
"""

import importlib.util
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from archsearch.errors import ArchsearchError, RunError, UserError, first_line
from archsearch.models.export.check import Check, check_file, check_images, example, new_file, to_export
from archsearch.units import ImageSize

# The first that the exporter was written for; a newer one only shuts out older runtimes.
OPSET = 18
INPUT, OUTPUT = "images", "logits"
_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


def write_onnx(network: nn.Module, file: Path, *, image_size: ImageSize, in_chans: int, batch: int | None) -> Check:
    """Write a network, (B, C, H, W) -> (B, classes), in float32, for images of one size and `batch` of them, any number for None.

    The file is compared with the network in onnxruntime on the CPU first. Raises UserError without the extra, RunError where the network cannot be
    exported or the file's logits differ.
    """
    require_onnx()
    network = to_export(network)
    images = check_images(image_size, in_chans, batch)
    with new_file(file) as written:
        export_onnx(network, written, example(images, batch), is_dynamic=batch is None)
        return check_file("ONNX", _onnxruntime(written), network, images, batch)


def require_onnx(who: str = "--format onnx") -> None:
    """Raise UserError where what writes and runs ONNX files is not installed; `who` needs it."""
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"{who}: needs {' and '.join(missing)}; run pip install 'archsearch[onnxruntime]'")


def export_onnx(network: nn.Module, file: Path, images: Tensor, *, is_dynamic: bool) -> None:
    """Write a network in eval mode by torch's exporter for so many images, or with `is_dynamic` for any number; RunError where it fails."""
    shapes = ({0: "batch"},) if is_dynamic else None
    try:
        with torch.no_grad(), quiet_exporter():
            program = torch.onnx.export(
                network,
                (images,),
                dynamo=True,
                dynamic_shapes=shapes,
                opset_version=OPSET,
                input_names=[INPUT],
                output_names=[OUTPUT],
                verbose=False,
            )
            assert program is not None
            program.save(str(file), external_data=False)
    except (OSError, ArchsearchError):
        raise
    except Exception as error:  # the exporter has many, and none in common
        raise RunError(f"export: torch.onnx.export fails: {type(error).__name__}: {first_line(error)}") from error


@contextmanager
def quiet_exporter() -> Iterator[None]:
    """Without the exporter's warnings and lines of progress, which say nothing of the network."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _onnxruntime(file: Path) -> Callable[[Tensor], Tensor]:
    """The file's logits, by onnxruntime on the CPU with as many threads as torch has."""
    onnxruntime: Any = importlib.import_module("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(os.fspath(file), options, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run([OUTPUT], {INPUT: images.numpy()})[0])
