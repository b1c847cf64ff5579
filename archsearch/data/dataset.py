"""What a candidate is trained and scored on: the embedded Fashion-MNIST subset, or images prepared once."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from archsearch.data.prepared import Prepared

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
FASHION_CLASSES = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
_FASHION_FILE = Path(__file__).parent / "assets" / "fashion_mnist_12k.npz"
_IMAGE_NAMES = ("train_images", "val_images")
_LABEL_NAMES = ("train_labels", "val_labels")


@dataclass(frozen=True, eq=False)
class ProxyData:
    """Images uint8 (N, H, W, C), H = W, C = 3 or 1 for grey; labels int64 (N,); mean and std of 0..1 by channel."""

    name: str
    train_images: NDArray[np.uint8]
    train_labels: NDArray[np.int64]
    val_images: NDArray[np.uint8]
    val_labels: NDArray[np.int64]
    classes: tuple[str, ...]
    unreadable: tuple[str, ...] = ()
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    source: str = ""  # one sentence for a report: what it is, how many images, where validation comes from
    manifest_fingerprint: str = ""
    folder: str = ""  # where it lies prepared: loading that lists no source again

    def __post_init__(self) -> None:
        for images, labels in ((self.train_images, self.train_labels), (self.val_images, self.val_labels)):
            assert images.dtype == np.uint8
            assert images.shape == (len(labels), self.size, self.size, len(self.mean))
        assert len(self.mean) == len(self.std)

    @property
    def size(self) -> int:
        """Stored height and width in pixels."""
        return int(self.train_images.shape[1])

    @property
    def fingerprint(self) -> str:
        """Eight hexadecimal digits that tell data of one name apart: of the manifest's hashes where there is one."""
        return self.manifest_fingerprint or _digest(self)


def load_fashion_mnist() -> ProxyData:
    """1000 + 200 images of each class of Fashion-MNIST (Xiao et al., arXiv:1708.07747), zero-padded to 32 px."""
    with np.load(_FASHION_FILE, allow_pickle=False) as arrays:
        images = [np.pad(arrays[name], ((0, 0), (2, 2), (2, 2)))[..., None] for name in _IMAGE_NAMES]
        labels = [arrays[name].astype(np.int64) for name in _LABEL_NAMES]
    # Mean and deviation of the padded training pixels.
    return ProxyData(
        "fashion-mnist-12k",
        images[0],
        labels[0],
        images[1],
        labels[1],
        FASHION_CLASSES,
        (),
        (0.2195,),
        (0.3327,),
        source="fashion-mnist: 10,000 training and 2,000 validation images, embedded, padded to 32 px",
    )


def proxy_data(prepared: Prepared) -> ProxyData:
    """What a prepared folder holds, mapped."""
    return ProxyData(
        name=prepared.name,
        train_images=prepared.images["train"],
        train_labels=prepared.labels["train"],
        val_images=prepared.images["val"],
        val_labels=prepared.labels["val"],
        classes=prepared.classes,
        unreadable=prepared.unreadable["train"] + prepared.unreadable["val"],
        source=prepared.describe(),
        manifest_fingerprint=prepared.fingerprint,
        folder=str(prepared.folder),
    )


def _digest(data: ProxyData) -> str:
    """Of the labels and of 64 images spread over the training split."""
    digest = hashlib.sha256(np.ascontiguousarray(data.train_labels).tobytes())
    for index in np.linspace(0, len(data.train_labels) - 1, 64).astype(int):
        digest.update(np.ascontiguousarray(data.train_images[index]).tobytes())
    return digest.hexdigest()[:8]
