"""The data that candidates are trained and scored on: the embedded Fashion-MNIST subset, or a prepared folder."""

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
    """Images uint8 (N, H, W, C), H = W, C = 3 or 1 for grey; labels int64 (N,); mean and std of each channel, in units of 0..1."""

    name: str
    train_images: NDArray[np.uint8]
    train_labels: NDArray[np.int64]
    val_images: NDArray[np.uint8]
    val_labels: NDArray[np.int64]
    classes: tuple[str, ...]
    unreadable: tuple[str, ...] = ()
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    source: str = ""  # one sentence for a report: name, number of images, where validation comes from
    manifest_fingerprint: str = ""
    folder: str = ""  # the prepared folder: loading it lists no source again

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
        """Eight hexadecimal digits that distinguish data of the same name: from the manifest's hashes where there is one.

        Else from the labels and 64 images spread over the training split.
        """
        if self.manifest_fingerprint:
            return self.manifest_fingerprint
        digest = hashlib.sha256(np.ascontiguousarray(self.train_labels).tobytes())
        for index in np.linspace(0, len(self.train_labels) - 1, 64).astype(int):
            digest.update(np.ascontiguousarray(self.train_images[index]).tobytes())
        return digest.hexdigest()[:8]


def load_fashion_mnist() -> ProxyData:
    """1000 + 200 images of each class of Fashion-MNIST (Xiao et al., arXiv:1708.07747), zero-padded to 32 px."""
    with np.load(_FASHION_FILE, allow_pickle=False) as arrays:
        images = [np.pad(arrays[name], ((0, 0), (2, 2), (2, 2)))[..., None] for name in _IMAGE_NAMES]
        labels = [arrays[name].astype(np.int64) for name in _LABEL_NAMES]
    return ProxyData(
        name="fashion-mnist-12k",
        train_images=images[0],
        train_labels=labels[0],
        val_images=images[1],
        val_labels=labels[1],
        classes=FASHION_CLASSES,
        mean=(0.2195,),  # of the padded training pixels
        std=(0.3327,),
        source="fashion-mnist: 10,000 training and 2,000 validation images, embedded, padded to 32 px",
    )


def proxy_data(prepared: Prepared) -> ProxyData:
    """The data of a prepared folder; its images stay mapped from disk."""
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
