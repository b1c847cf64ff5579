"""The embedded data set, the generated one, and any ImageFolder prepared once: pixels, caching, and what is refused."""

import json
import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageOps

from archsearch.data import DataRequest, ProxyData, load_data, load_fashion_mnist, make_constellation
from archsearch.data.constellation import NUM_ARRANGEMENTS
from archsearch.errors import UserError
from archsearch.system import Progress, ignore

CLOTHING = Path(__file__).resolve().parents[2] / ".." / "shared" / "data" / "clothing-mini"
SIZE = 24


def smooth_picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """A colour picture without fine detail, so that JPEG and resampling differences stay small; no symmetry."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def make_folder(root: Path, per_class: int = 4, classes: tuple[str, ...] = ("cat", "dog")) -> Path:
    """An ImageFolder of small PNGs of odd sizes."""
    for split in ("train", "val"):
        for number, name in enumerate(classes):
            (root / split / name).mkdir(parents=True)
            for i in range(per_class):
                picture = smooth_picture(31 + i, 29, seed=100 * number + i + 1000 * (split == "val"))
                picture.save(root / split / name / f"{i}.png")
    return root


def load(root: Path, cache: Path, progress: Callable[[int, int], None] | None = None, **changes: Any) -> ProxyData:
    settings: dict[str, Any] = {"size": SIZE, "max_train": 1000, "val_split": "val"} | changes
    report: Progress = ignore if progress is None else lambda done, total, text: progress(int(done), int(total))
    return load_data(DataRequest(text=str(root), cache_dir=str(cache), **settings), progress=report)


def centre_square(picture: Image.Image, size: int) -> NDArray[np.uint8]:
    """The oracle: cut the centre square out first, then resize; exact to the pixels that a filter reads past the cut."""
    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    square = picture.crop((left, top, left + side, top + side))
    return np.asarray(square.resize((size, size), Image.Resampling.BICUBIC))


def mean_difference(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> float:
    return float(np.abs(first.astype(int) - second.astype(int)).mean())


# The embedded and the generated set


def test_fashion_mnist_is_balanced_padded_and_normalised_by_its_own_pixels() -> None:
    data = load_fashion_mnist()
    assert data.train_images.shape == (10_000, 32, 32, 1)
    assert data.val_images.shape == (2_000, 32, 32, 1)
    assert np.bincount(data.train_labels).tolist() == [1000] * 10
    assert np.bincount(data.val_labels).tolist() == [200] * 10
    assert data.train_labels[:10].tolist() == list(range(10))
    assert not data.train_images[:, [0, 1, 30, 31]].any()
    assert not data.train_images[:, :, [0, 1, 30, 31]].any()
    assert data.mean[0] == pytest.approx(data.train_images.mean() / 255, abs=1e-4)
    assert data.std[0] == pytest.approx(data.train_images.std() / 255, abs=1e-4)
    train = {image.tobytes() for image in data.train_images}
    assert not any(image.tobytes() in train for image in data.val_images)


def test_constellation_is_deterministic_and_its_bags_share_their_parts() -> None:
    data, again, other = (make_constellation(320, 64, seed=seed) for seed in (3, 3, 4))
    assert np.array_equal(data.train_images, again.train_images)
    assert np.array_equal(data.val_images, again.val_images)
    assert not np.array_equal(data.train_images, other.train_images)
    assert np.bincount(data.train_labels).tolist() == [20] * 16
    assert len(data.classes) == 16
    assert make_constellation(16, 16, size=64).train_images.shape == (16, 64, 64, 3)


def test_constellation_arrangements_look_alike_only_where_they_are_the_same() -> None:
    """Mean absolute contrast by pixel: within a class it agrees, between arrangements of a bag it does not."""
    data = make_constellation(16 * 200, 16)
    grey = data.train_images[..., 0].astype(float)
    spread = np.stack([grey[data.train_labels == label].std(axis=0) for label in range(16)]).reshape(16, -1)
    halves = np.stack([grey[data.train_labels == label][:100].std(axis=0) for label in range(16)]).reshape(16, -1)
    likeness = np.corrcoef(spread, halves)[:16, 16:]
    for label in range(16):
        bag = label // NUM_ARRANGEMENTS * NUM_ARRANGEMENTS
        others = [other for other in range(bag, bag + NUM_ARRANGEMENTS) if other != label]
        assert likeness[label, label] > max(likeness[label, other] for other in others) + 0.1


# Pixels of an ImageFolder


def test_pictures_of_every_kind_become_upright_rgb_squares(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "data", per_class=1)
    folder = root / "train" / "cat"
    (folder / "0.png").unlink()
    picture, tall = smooth_picture(97, 61), smooth_picture(50, 80)
    kinds: dict[str, tuple[Callable[[Path], None], Image.Image]] = {
        "a-png-named.JPEG": (lambda path: picture.save(path, format="PNG"), picture),
        "b-grey.jpg": (lambda path: picture.convert("L").save(path, quality=95), picture.convert("L").convert("RGB")),
        "c-cmyk.jpg": (lambda path: picture.convert("CMYK").save(path, quality=95), picture),
        "d-palette.png": (lambda path: picture.quantize(256).save(path), picture.quantize(256).convert("RGB")),
        "e-alpha.png": (lambda path: picture.convert("RGBA").save(path), picture),
        "f-tall.jpg": (lambda path: tall.save(path, quality=95), tall),
        "g-large.jpg": (lambda path: smooth_picture(970, 610).save(path, quality=95), smooth_picture(970, 610)),
        "h-tiny.png": (lambda path: smooth_picture(5, 7).save(path), smooth_picture(5, 7)),
        "i-16bit.png": (
            lambda path: Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) * 257).save(path),
            picture.convert("L").convert("RGB"),
        ),
    }  # fmt: skip
    for name, (save, _) in kinds.items():
        save(folder / name)
    data = load(root, tmp_path / "cache")
    assert data.unreadable == ()
    for i, (name, (_, expected)) in enumerate(kinds.items()):
        assert mean_difference(data.train_images[i], centre_square(expected, SIZE)) < 3, name


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int) -> None:
    root = make_folder(tmp_path / "data", per_class=1)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = root / "train" / "cat" / "0.png"
    smooth_picture(60, 44).save(path, exif=exif)
    with Image.open(path) as stored:
        expected = ImageOps.exif_transpose(stored).convert("RGB")
    data = load(root, tmp_path / "cache")
    assert mean_difference(data.train_images[0], centre_square(expected, SIZE)) < 1


def test_classes_nested_folders_and_labels(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "data", per_class=2, classes=("b", "a", "c"))
    nested = root / "train" / "a" / "deeper" / "down"
    nested.mkdir(parents=True)
    smooth_picture(30, 30).save(nested / "x.PNG")
    (nested / "loop").symlink_to(root / "train" / "a")
    (root / "train" / "a" / "._0.png").write_bytes(b"resource fork")
    (root / "train" / "a" / "notes.txt").write_text("not a picture")
    (root / "train" / ".hidden").mkdir()
    data = load(root, tmp_path / "cache")
    assert data.classes == ("a", "b", "c")
    assert data.train_labels.tolist() == [0, 0, 0, 1, 1, 2, 2]
    assert data.name == "data"
    assert data.size == SIZE


# Sampling and caching


def test_larger_splits_are_sampled_by_seed(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "data", per_class=12)
    whole = load(root, tmp_path / "cache")
    first = load(root, tmp_path / "cache", max_train=10, max_val=5)
    again = load(root, tmp_path / "elsewhere", max_train=10, max_val=5)
    other = load(root, tmp_path / "cache", max_train=10, max_val=5, seed=1)
    assert (len(first.train_images), len(first.val_images)) == (10, 5)
    assert np.array_equal(first.train_images, again.train_images)
    assert not np.array_equal(first.train_images, other.train_images)
    known = {image.tobytes(): label for image, label in zip(whole.train_images, whole.train_labels, strict=True)}
    assert [known[image.tobytes()] for image in first.train_images] == first.train_labels.tolist()
    assert len({image.tobytes() for image in first.train_images}) == 10


def test_second_load_decodes_nothing(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "data")
    seen: list[tuple[int, int]] = []
    first = load(root, tmp_path / "cache", progress=lambda done, total: seen.append((done, total)))
    assert seen == [(done, 16) for done in range(17)]
    for path in root.rglob("*.png"):  # same size, same time, no longer a picture
        stat = path.stat()
        path.write_bytes(bytes(stat.st_size))
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    seen.clear()
    second = load(root, tmp_path / "cache", progress=lambda done, total: seen.append((done, total)))
    assert seen == []
    assert np.array_equal(first.train_images, second.train_images)
    assert np.array_equal(first.val_labels, second.val_labels)
    assert isinstance(second.train_images, np.memmap)


def test_changed_files_are_decoded_again(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "data")
    before = np.array(load(root, tmp_path / "cache").train_images)
    smooth_picture(40, 40, seed=99).save(root / "train" / "cat" / "0.png")
    after = load(root, tmp_path / "cache").train_images
    assert np.array_equal(before[1:], after[1:])
    assert not np.array_equal(before[0], after[0])


def test_an_interrupted_preparation_goes_on(tmp_path: Path) -> None:
    root, cache = make_folder(tmp_path / "data"), tmp_path / "cache"

    def stop(done: int, _total: int) -> None:
        if done == 12:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        load(root, cache, progress=stop)
    seen: list[int] = []
    data = load(root, cache, progress=lambda done, _total: seen.append(done))
    assert np.array_equal(data.train_images, load(root, tmp_path / "elsewhere").train_images)
    assert seen[-1] == 16
    (folder,) = cache.iterdir()
    assert not list(folder.glob("*.partial"))
    assert not (folder / "journal.jsonl").exists()


def _load_in_process(root: Path, cache: Path) -> int:
    return int(load(root, cache).train_images.sum())


def test_two_processes_at_once_get_the_same_data(tmp_path: Path) -> None:
    root, cache = make_folder(tmp_path / "data"), tmp_path / "cache"
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        sums = pool.starmap(_load_in_process, [(root, cache)] * 2)
    assert sums == [_load_in_process(root, cache)] * 2
    assert len([path for path in cache.iterdir() if path.is_dir()]) == 1


# What cannot be read


def broken_folder(tmp_path: Path) -> Path:
    """Ten training pictures, of which one is cut short and one is not a picture."""
    root = make_folder(tmp_path / "data", per_class=5)
    path = root / "train" / "cat" / "1.jpg"
    smooth_picture(200, 150).save(path, quality=95)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    (root / "train" / "cat" / "1.png").unlink()
    (root / "train" / "dog" / "2.png").write_text("<html>404</html>")
    return root


def test_a_few_broken_pictures_are_left_out_and_named(tmp_path: Path) -> None:
    root = broken_folder(tmp_path)
    for _ in range(2):  # decoded, then from the cache
        data = load(root, tmp_path / "cache", max_unreadable=0.2)
        assert data.train_images.shape == (8, SIZE, SIZE, 3)
        assert data.train_labels.tolist() == [0] * 4 + [1] * 4
        assert [name.split(" ")[0] for name in data.unreadable] == ["train/cat/1.jpg", "train/dog/2.png"]


def test_too_many_broken_pictures_are_refused(tmp_path: Path) -> None:
    root, cache = broken_folder(tmp_path), tmp_path / "cache"
    message = (
        r"data/train: of the first 2 images 1 cannot be read, 'train/cat/1.jpg .*allowed is a share of 0.01 of all 10"
    )
    with pytest.raises(UserError, match=message):
        load(root, cache)
    load(root, cache, max_unreadable=0.2)
    with pytest.raises(UserError, match=r"a share of 0\.1 of all 10"):  # prepared under a laxer limit
        load(root, cache, max_unreadable=0.1)


def test_decompression_bombs_and_dead_links_are_unreadable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_folder(tmp_path / "data")
    smooth_picture(80, 80).save(root / "train" / "cat" / "large.png")
    smooth_picture(200, 200).save(root / "train" / "cat" / "larger.png")
    (root / "train" / "dog" / "dead.png").symlink_to(tmp_path / "nowhere.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 5000)  # a warning above this, an error above twice this
    data = load(root, tmp_path / "cache", max_unreadable=0.5)
    assert [name.split(":")[0] for name in data.unreadable] == [
        "train/cat/large.png (DecompressionBombWarning",
        "train/cat/larger.png (DecompressionBombError",
        "train/dog/dead.png (FileNotFoundError",
    ]


# What is refused


def test_folders_that_are_no_image_folder_are_refused(tmp_path: Path) -> None:
    cache = tmp_path / "cache"

    def refused(root: Path, message: str, **changes: Any) -> None:
        with pytest.raises(UserError, match=message) as caught:
            load(root, cache, **changes)
        assert str(root) in str(caught.value)
        assert "\n" not in str(caught.value)

    refused(tmp_path / "none", "no such folder")
    (tmp_path / "file").write_text("")
    refused(tmp_path / "file", "not a folder")
    root = make_folder(tmp_path / "data")
    refused(root, "split 'validation' is missing; found 'train', 'val'", val_split="validation")
    refused(root, "both 'train'", val_split="train")
    (root / "empty" / "class").mkdir(parents=True)
    (root / "empty" / "loose.png").write_bytes(b"")
    refused(root, "no class folders with images; allowed is <class>/<image>", val_split="empty")
    (root / "single" / "cat").mkdir(parents=True)
    smooth_picture(30, 30).save(root / "single" / "cat" / "0.png")
    refused(root, "only one class folder with images, 'cat'", train_split="single")
    (root / "val" / "zebra").mkdir()
    smooth_picture(30, 30).save(root / "val" / "zebra" / "0.png")
    refused(root, "'zebra' not among the 2 classes")
    assert not cache.exists()


def test_cache_folders_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    root, cache = make_folder(tmp_path / "data"), tmp_path / "cache"
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/\w+: cannot keep prepared images there"):
        load(root, tmp_path / "file")
    load(root, cache)
    folder = next(path for path in cache.iterdir() if path.is_dir())
    assert json.loads((folder / "manifest.json").read_text())["classes"] == ["cat", "dog"]
    images = folder / "train_images.npy"
    images.write_bytes(images.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"prepared images are damaged .* delete this folder"):
        load(root, cache)


def test_photographs(tmp_path: Path) -> None:
    if not CLOTHING.is_dir():
        pytest.skip("shared/data/clothing-mini, a folder of real photographs, is not beside this checkout")
    data = load(CLOTHING, tmp_path / "cache", size=72, max_train=200, max_val=100)
    assert (len(data.train_images), len(data.val_images), len(data.classes)) == (200, 100, 10)
    assert data.unreadable == ()
    paths = sorted((CLOTHING / "val").glob("*/*.jpg"), key=lambda path: (path.parent.name, path.name))
    whole = load(CLOTHING, tmp_path / "cache", size=72, max_train=1)
    assert len(whole.val_images) == len(paths)
    for i in range(0, len(paths), 40):
        with Image.open(paths[i]) as photograph:
            expected = centre_square(ImageOps.exif_transpose(photograph).convert("RGB"), 72)
        assert mean_difference(whole.val_images[i], expected) < 1
