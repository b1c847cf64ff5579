"""A network that was written to a file, compared with the network itself, and the file written whole or not at all."""

import contextlib
import copy
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from archsearch.errors import RunError, UserError
from archsearch.units import ImageSize, sides

# Of the largest logit of all that were compared: float32 sums in another order differ by 1e-7 to 1e-5 of it.
TOLERANCE = 1e-4
NUM_IMAGES = 64
# Of a file for any batch: it was traced with two images, and one that took over the number would fail at each other one.
_BATCHES = (1, 2, 3, 8, 18, 32)


@dataclass(frozen=True, kw_only=True)
class Check:
    """How a file's logits agree with the network's: largest difference as a share of the largest logit, images compared, images of equal top-1.

    Top-1 is equal too where torch's logits of the two classes lie within TOLERANCE of each other, as a share of the largest logit.
    """

    relative_difference: float
    images: int
    equal_top1: int


def compare(got: Tensor, wanted: Tensor) -> Check:
    """Logits of a file with those of the network, both (B, classes); numbers that are not finite differ without limit.

    Raises RunError where the network's own are not.
    """
    if not wanted.isfinite().all():
        raise RunError(
            "the network's own logits are not finite numbers: its training diverged, or its weights are damaged"
        )
    largest = float(wanted.abs().max())
    apart = float((got - wanted).abs().max())
    tie = TOLERANCE * largest
    chosen = wanted.gather(1, got.argmax(1, keepdim=True)).squeeze(1)
    return Check(
        relative_difference=0.0 if apart == 0 else apart / largest if largest and apart < torch.inf else torch.inf,
        images=len(wanted),
        equal_top1=int((wanted.amax(1) - chosen <= tie).sum()),
    )


def check_file(
    what: str, run: Callable[[Tensor], Tensor], network: nn.Module, images: Tensor, batch: int | None
) -> Check:
    """Compare `run`, which gives a file's logits, with the network on all images: in batches of `batch`, or for None in batches of several sizes.

    Raises RunError where they differ by more than TOLERANCE, where a top-1 differs, and where the file does not run at a batch size; `what` is its format.
    """
    parts = torch.split(images, list(_BATCHES) if batch is None else batch)
    with torch.inference_mode():
        wanted = torch.cat([network(part) for part in parts])
    found = []
    for part in parts:
        try:
            found.append(run(part))
        except Exception as error:  # each runtime has its own
            raise RunError(f"export: the {what} file does not run at batch size {len(part)}: {error}") from error
    check = compare(torch.cat(found), wanted)
    if not check.relative_difference <= TOLERANCE or check.equal_top1 < check.images:
        raise RunError(
            f"export: the {what} file gives other logits than the network, {check.relative_difference:.2g} of the largest apart "
            f"(allowed: {TOLERANCE:g}), and the same top-1 on {check.equal_top1} of {check.images} images; nothing was written"
        )
    return check


def example(images: Tensor, batch: int | None) -> Tensor:
    """The images that an exporter traces with; a copy, since files hold their example with all the memory behind it."""
    return images[: batch or 2].clone()


def check_images(image_size: ImageSize, in_chans: int, batch: int | None) -> Tensor:
    """Random-normal images, (N, C, H, W), always the same: NUM_IMAGES, or more where these do not fill the last batch."""
    each = batch or NUM_IMAGES
    number = -(-NUM_IMAGES // each) * each
    return torch.randn(number, in_chans, *sides(image_size), generator=torch.Generator().manual_seed(0))


def to_export(network: nn.Module) -> nn.Module:
    """A copy in eval mode and float32 on the CPU, without gradients: the network keeps its training flags, its device, and the tables of its blocks."""
    copied = copy.deepcopy(network).cpu().float().eval()
    return copied.requires_grad_(False)


@contextlib.contextmanager
def new_file(file: Path) -> Iterator[Path]:
    """A path to write to, of a file that takes the place of `file` at the end; after any error nothing is left of it, and `file` is as it was.

    Raises UserError where the folder cannot be written to.
    """
    try:
        with tempfile.TemporaryDirectory(dir=file.parent, prefix=f".{file.name}.") as folder:
            written = Path(folder, file.name)
            yield written
            os.replace(written, file)
    except OSError as error:
        raise UserError(
            f"{file}: cannot be written ({error.strerror or error}); give a file in a folder that exists, is writable and has room"
        ) from error
