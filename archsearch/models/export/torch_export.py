"""`.pt2` files: programs of torch.export, which run wherever torch is, without archsearch."""

from pathlib import Path

import torch
from torch import nn

from archsearch.errors import ArchsearchError, RunError, first_line
from archsearch.models.export.check import Check, check_file, check_images, example, new_file, to_export
from archsearch.models.export.onnx import quiet_exporter
from archsearch.units import ImageSize


def write_pt2(network: nn.Module, file: Path, *, image_size: ImageSize, in_chans: int, batch: int | None) -> Check:
    """Write a network, (B, C, H, W) -> (B, classes), in float32, for images of one size and `batch` of them, any number for None.

    The program is loaded from the file, decomposed into core operators, and compared with the network first. Raises RunError where the network cannot be
    exported or decomposed, or the logits differ.
    """
    network = to_export(network)
    images = check_images(image_size, in_chans, batch)
    shapes = None if batch else ({0: torch.export.Dim("batch")},)
    with new_file(file) as written:
        try:
            with torch.no_grad(), quiet_exporter():
                program = torch.export.export(network, (example(images, batch),), dynamic_shapes=shapes)
                torch.export.save(program, written)
                loaded = torch.export.load(written).run_decompositions().module()
        except (OSError, ArchsearchError):
            raise
        except Exception as error:  # the exporter has many, and none in common
            raise RunError(f"export: torch.export fails: {type(error).__name__}: {first_line(error)}") from error
        with torch.inference_mode():
            return check_file("pt2", loaded, network, images, batch)
