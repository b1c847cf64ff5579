"""Tests of every form of a data set: the same images give the same bytes, in the same order, with the same labels."""

import io
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageOps
from support.image_forms import CLASSES, FORMS, VAL_SPLITS, Pictures, make_pictures, write_folder, write_parquet

from archsearch.data import Policy, Preparation, Prepared, open_source
from archsearch.data.preparation import prepare
from archsearch.data.prepared import IMAGES, LABELS
from archsearch.errors import UserError

SIZE = 24
TIMM_FORMS = ("hfds", "hfids")
WITH_VAL = [*VAL_SPLITS, "hfds"]


@pytest.fixture(scope="session")
def pictures() -> Pictures:
    return make_pictures()


@pytest.fixture(scope="session")
def source_text(tmp_path_factory: pytest.TempPathFactory, pictures: Pictures) -> Callable[[str], str]:
    """The path or name of the pictures in a form, which is written on first use."""
    root = tmp_path_factory.mktemp("forms")

    def write(form: str) -> str:
        kind = "parquet" if form == "hfds" else form
        if not (root / kind).exists():
            FORMS[kind](root / kind, pictures)
        return f"hfds/{root / kind}" if form == "hfds" else str(root / kind)

    return write


def prepared(text: str, out: Path, val_split: str | None = None, **policy: object) -> Prepared:
    task = Preparation(
        source=open_source(text, "train", val_split),
        policy=Policy(val_split=val_split, **policy),  # type: ignore[arg-type]  # a dict of settings has no single type
        size=SIZE,
        max_unreadable=0.1,
    )
    return prepare(task, out)[0]


def file_bytes(folder: Prepared) -> list[bytes]:
    return [(folder.folder / name).read_bytes() for name in (*IMAGES.values(), *LABELS.values())]


def oracle(content: bytes) -> NDArray[np.int64]:
    """Upright, the centre square cut out, then resized."""
    with Image.open(io.BytesIO(content)) as image:
        picture = ImageOps.exif_transpose(image).convert("RGB")
    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    square = picture.crop((left, top, left + side, top + side)).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    return np.asarray(square).astype(np.int64)


@pytest.mark.parametrize("form", [*FORMS, pytest.param("hfds", marks=pytest.mark.slow)])
def test_every_form_lists_and_reads_its_images(
    form: str, source_text: Callable[[str], str], pictures: Pictures
) -> None:
    if form == "hfds":
        pytest.importorskip("datasets")
    source = open_source(source_text(form))
    entries = source.entries("train")
    assert source.classes == (("0", "1", "2") if form == "webdataset" else CLASSES)
    assert "train" in source.splits
    assert np.bincount(entries.labels).tolist() == [12] * 3
    order = entries.sorted_indices()
    assert np.sort(order).tolist() == list(range(36))
    # Reading some, in storage order, gives the bytes that were written, under the label they were written with.
    some = np.sort(order[::5])
    loaded = [load() for load in source.read("train", some)]
    expected = [content for name in sorted(pictures["train"]) for _, content in sorted(pictures["train"][name].items())]
    position = {index: place for place, index in enumerate(order.tolist())}
    assert loaded == [expected[position[index]] for index in some.tolist()]
    assert source.stamp(["train"]) == open_source(source_text(form)).stamp(["train"])
    with pytest.raises(UserError, match="nowhere"):
        source.check_split("nowhere")


@pytest.mark.parametrize("form", [*FORMS, pytest.param("hfds", marks=pytest.mark.slow)])
def test_every_form_gives_the_same_bytes(
    form: str, source_text: Callable[[str], str], pictures: Pictures, tmp_path: Path
) -> None:
    if form == "hfds":
        pytest.importorskip("datasets")
    held = prepared(source_text(form), tmp_path / "held", per_class=6, seed=3)
    again = prepared(source_text("folder"), tmp_path / "again", per_class=6, seed=3)
    assert file_bytes(held) == file_bytes(again)
    assert held.fingerprint == again.fingerprint
    if form not in WITH_VAL:
        return
    val_split = VAL_SPLITS.get(form, "validation")
    whole = prepared(source_text(form), tmp_path / "whole", val_split)
    expected = [content for name in CLASSES for _, content in sorted(pictures["val"][name].items())]
    assert whole.labels["val"].tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    for image, content in zip(whole.images["val"], expected, strict=True):
        assert np.abs(image - oracle(content)).mean() < 6
    assert whole.labels["train"].tolist() == [0] * 12 + [1] * 11 + [2] * 12
    assert len(whole.unreadable["train"]) == 1
    assert whole.unreadable["val"] == ()


def test_pickles_beside_tars_are_not_read(source_text: Callable[[str], str], tmp_path: Path) -> None:
    root = tmp_path / "tars"
    FORMS["tars"](root, make_pictures(2, broken=False))

    class Trap:
        def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
            return Path.touch, (tmp_path / "sprung",)  # type: ignore[return-value]  # a function of its own argument types, called by pickle

    (root / "_tars_tarinfos.pickle").write_bytes(pickle.dumps(Trap()))
    open_source(str(root)).entries("val")
    assert not (tmp_path / "sprung").exists()


def test_labels_may_be_names_but_not_missing(tmp_path: Path) -> None:
    import tarfile

    def shard(path: Path, members: dict[str, bytes]) -> str:
        path.parent.mkdir()
        with tarfile.open(path, "w") as tar:
            for name, content in members.items():
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
        return str(path.parent)

    named = shard(
        tmp_path / "named" / "x-000.tar", {"a.jpg": b"", "a.cls": b"dog", "b.png": b"", "b.json": b'{"label": "cat"}'}
    )
    source = open_source(named)
    assert source.classes == ("cat", "dog")
    assert source.entries("train").labels.tolist() == [1, 0]
    bare = shard(tmp_path / "bare" / "x-000.tar", {"a.jpg": b"", "a.txt": b"a dog"})
    with pytest.raises(UserError, match="sample 'a' has no label; found 'jpg', 'txt'"):
        open_source(bare)
    (tmp_path / "bare" / "x-000.tar").write_bytes(b"no tar" * 1000)
    with pytest.raises(UserError, match="not a whole, uncompressed tar file"):
        open_source(bare)


def test_an_unknown_form_is_refused_with_what_was_found(tmp_path: Path, pictures: Pictures) -> None:
    (tmp_path / "notes.txt").write_text("no pictures")
    cases = {
        str(tmp_path): r"none of the known forms; found 'notes.txt', allowed are an ImageFolder",
        str(tmp_path / "nowhere"): "no such folder; allowed are",
        str(tmp_path / "notes.txt"): "not a folder",
        "tfds/mnist": "pip install tensorflow-datasets",
        "torch/cifar10/somewhere": "pickles",
        "torch/mnist/nowhere": "allowed is torch/NAME/FOLDER",
        "hfds/": "no data set is named",
    }
    for text, message in cases.items():
        with pytest.raises(UserError, match=message) as caught:
            open_source(text).entries("train")
        assert "\n" not in str(caught.value)
    write_parquet(tmp_path / "hub", pictures)
    with pytest.raises(UserError, match="split 'learn' is missing; found 'train', 'validation'"):
        open_source(str(tmp_path / "hub"), "learn")
    next((tmp_path / "hub" / "data").glob("train-00000*")).write_bytes(b"PAR1")
    with pytest.raises(UserError, match="not a whole parquet file"):
        open_source(str(tmp_path / "hub"))


def test_ilsvrc_without_its_devkit_still_trains(tmp_path: Path) -> None:
    FORMS["tars"](tmp_path / "tars", make_pictures(4, broken=False))
    (tmp_path / "tars" / "ILSVRC2012_devkit_t12.tar.gz").unlink()
    folder = prepared(str(tmp_path / "tars"), tmp_path / "out", val_share=0.25)
    assert (len(folder.labels["train"]), len(folder.labels["val"])) == (9, 3)
    assert "forbid passing the images on" in folder.manifest["licence"]
    with pytest.raises(UserError, match=r"'val' needs ILSVRC2012_devkit_t12.tar.gz"):
        prepared(str(tmp_path / "tars"), tmp_path / "other", "val")


@pytest.mark.slow
def test_streams_of_decoded_pictures(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    pictures = make_pictures(4, broken=False)
    write_parquet(tmp_path / "hub", pictures)
    write_folder(tmp_path / "folder", pictures)
    streamed = prepared(f"hfids/{tmp_path / 'hub'}", tmp_path / "out", "validation")
    folder = prepared(str(tmp_path / "folder"), tmp_path / "other", "val")
    # A stream has no names to sort by: its order is its own.
    assert streamed.labels["train"].tolist() == folder.labels["train"].tolist()
    known = folder.images["train"].astype(int)
    for image in streamed.images["train"].astype(int):
        assert np.abs(known - image).mean(axis=(1, 2, 3)).min() < 6
