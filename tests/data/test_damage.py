"""Sources that are damaged, mislabelled or no files at all: nothing is lost in silence, everything is one sentence, nothing hangs."""

import io
import json
import os
import random
import shutil
import signal
import socket
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result
from PIL import Image
from support.image_forms import FORMS, make_pictures, write_folder

from archsearch.cli import main
from archsearch.data import DataRequest, load_data, open_prepared, open_source
from archsearch.errors import UserError

Samples = list[tuple[str, bytes]]
BLOCK = 512


def png(seed: int = 0) -> bytes:
    out = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(out, format="PNG")
    return out.getvalue()


def packed(files: dict[str, bytes], **options: Any) -> bytes:
    """A tar of these files."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", **options) as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return out.getvalue()


def labelled(labels: Sequence[object], prefix: str = "") -> dict[str, bytes]:
    """The files of a shard: images by turns with these labels, text in .cls and everything else in .json."""
    files: dict[str, bytes] = {}
    for number, label in enumerate(labels):
        files[f"{prefix}{number:05}.png"] = png(number)
        if isinstance(label, str):
            files[f"{prefix}{number:05}.cls"] = label.encode()
        else:
            files[f"{prefix}{number:05}.json"] = json.dumps({"label": label}).encode()
    return files


def shards(root: Path, *contents: bytes, split: str = "train") -> Path:
    root.mkdir(exist_ok=True)
    for number, content in enumerate(contents):
        (root / f"{split}-{number:06}.tar").write_bytes(content)
    return root


def table(root: Path, *columns: Any, split: str = "train") -> Path:
    """Parquet shards with these label columns."""
    root.mkdir(exist_ok=True)
    for number, labels in enumerate(columns):
        images = pa.array([png(row) for row in range(len(labels))])
        pq.write_table(pa.table({"image": images, "label": labels}), root / f"{split}-{number:05}.parquet")
    return root


def samples(root: Path) -> Samples:
    """Class and bytes of every image that a source lists."""
    source = open_source(str(root))
    found: Samples = []
    for split in source.splits:
        entries = source.entries(split)
        loaders = source.read(split, np.arange(len(entries.labels)))
        for label, load in zip(entries.labels, loaders, strict=True):
            content = load()
            assert isinstance(content, bytes)
            found.append((source.classes[label] if label >= 0 else "", content))
    return sorted(found)


def list_all(root: Path) -> None:
    source = open_source(str(root))
    for split in source.splits:
        source.entries(split)


def refusal(root: Path) -> str:
    """The one sentence with which these images are refused."""
    with pytest.raises(UserError) as caught:
        list_all(root)
    return str(caught.value)


def says(sentence: str, *words: str) -> bool:
    """Whether it is one short line that holds all these words."""
    return "\n" not in sentence and len(sentence) < 600 and all(word in sentence for word in words)


# Tar files


TEN = ["0", "1"] * 5


def test_a_damaged_tar_is_refused_with_its_place(tmp_path: Path) -> None:
    whole = packed(labelled(TEN))
    damaged = bytearray(whole)
    at = whole.index(b"00004.cls\0")
    damaged[at + 100] ^= 1  # its mode
    end = len(whole.rstrip(b"\0"))
    end += -end % BLOCK
    cases = {
        "one wrong bit": (bytes(damaged), f"byte {at:,}, after member '00004.png'"),
        "cut at a member": (whole[:at], f"byte {at:,}, after member '00004.png': cut there"),
        "cut inside a header": (whole[: at + 300], f"byte {at:,}"),
        "cut inside a member": (whole[: at + BLOCK], "'00004.cls' of 1 bytes is cut"),
        "without its end": (whole[:end], "marker is missing"),
        "with half its end": (whole[: end + BLOCK], "marker is missing"),
        "never written": (whole[:at] + bytes(len(whole) - at), "zeros that were never written"),
        "all zeros": (bytes(len(whole)), "before any member"),
        "two joined": (whole + packed({"x.png": png(), "x.cls": b"0"}), "another archive"),
        "empty": (b"", "byte 0, before any member"),
        "compressed": (b"\x1f\x8b" + random.Random(0).randbytes(5000), "uncompressed"),
    }
    for name, (content, place) in cases.items():
        root = shards(tmp_path / name, whole, content)
        assert says(refusal(root), "train-000001.tar", "not a whole", place)
    assert len(samples(shards(tmp_path / "whole", whole, packed({})))) == 10  # an empty archive is whole


def test_members_that_hold_no_bytes_are_refused_and_long_names_read(tmp_path: Path) -> None:
    def special(kind: bytes) -> bytes:
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w") as tar:
            for name, content in labelled(TEN).items():
                info = tarfile.TarInfo(name)
                info.size = len(content)
                if name == "00007.png":
                    info.type, info.linkname, info.size = kind, "00006.png", 0
                tar.addfile(info, io.BytesIO(content))
        return out.getvalue()

    for kind in (tarfile.LNKTYPE, tarfile.SYMTYPE):
        assert says(
            refusal(shards(tmp_path / f"kind{kind.decode()}", special(kind))), "'00007.png' is a link to '00006.png'"
        )
    for kind in (tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.GNUTYPE_SPARSE):
        assert says(
            refusal(shards(tmp_path / f"kind{kind.decode()}", special(kind))), "'00007.png' is sparse or a special file"
        )
    twice = packed(labelled(TEN))[:-10240] + packed({"00003.png": png()})
    assert says(refusal(shards(tmp_path / "twice", twice)), "00003.png")
    expected = samples(shards(tmp_path / "short", packed(labelled(TEN))))
    for format_ in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        content = packed(labelled(TEN, "a-long-folder-name/" * 9), format=format_)
        assert samples(shards(tmp_path / f"long{format_}", content)) == expected
    header = bytearray(packed(labelled(TEN)))
    header[124:136] = b"\x80" + len(png()).to_bytes(11, "big")  # a size in base 256, as in members over 8 GiB
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header[:BLOCK])
    assert samples(shards(tmp_path / "base256", bytes(header))) == expected


def test_a_tar_of_tars_is_checked_to_its_last_byte(tmp_path: Path) -> None:
    def refusal_of(name: str, members: dict[str, bytes]) -> str:
        (tmp_path / name).mkdir()
        (tmp_path / name / "ILSVRC2012_img_train.tar").write_bytes(packed(members))
        return refusal(tmp_path / name)

    cat = packed({f"cat_{i}.JPEG": png(i) for i in range(3)})
    dog = packed({f"dog_{i}.JPEG": png(i) for i in range(3)})
    damaged = bytearray(dog)
    damaged[dog.index(b"dog_1.JPEG") + 5] ^= 4
    assert says(
        refusal_of("bit", {"cat.tar": cat, "dog.tar": bytes(damaged)}), "in its 'dog.tar'", "after member 'dog_0.JPEG'"
    )
    assert says(refusal_of("cut", {"cat.tar": cat[:BLOCK], "dog.tar": dog}), "in its 'cat.tar'")
    assert says(refusal_of("none", {"cat.tar": cat, "dog.tar": b""}), "in its 'dog.tar'")
    assert says(refusal_of("empty", {"cat.tar": cat, "dog.tar": packed({})}), "'dog.tar' holds no images")
    assert says(refusal_of("other", {"cat.tar": cat, "dog.tgz": dog}), "'dog.tgz' is no tar")


def _headers(content: bytes) -> list[int]:
    """Bytes of a tar outside the contents of images and labels: headers, long names, marker and padding, inner tars' too."""
    places: list[int] = []
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        position = 0
        for info in tar:
            places.extend(range(position, info.offset_data))
            position = info.offset_data + info.size + -info.size % BLOCK
            if info.name.endswith(".tar"):
                inner = content[info.offset_data : info.offset_data + info.size]
                places.extend(info.offset_data + place for place in _headers(inner))
        places.extend(range(position, position + 2 * BLOCK))
    return places


@pytest.mark.slow
def test_no_wrong_bit_in_a_tar_loses_a_sample_in_silence(tmp_path: Path) -> None:
    """1,000 single bits in headers (names and sizes in them), long names and markers of five kinds of archives."""
    rng = random.Random(0)
    pictures = make_pictures(3, broken=False)
    tars = tmp_path / "tars"
    FORMS["tars"](tars, pictures)
    archives = [tars / "ILSVRC2012_img_train.tar", tars / "ILSVRC2012_img_val.tar"]
    folders = "a-long-folder-name/" * 9
    for name, options in (("ustar", tarfile.USTAR_FORMAT), ("gnu", tarfile.GNU_FORMAT), ("pax", tarfile.PAX_FORMAT)):
        files = labelled(["0", "1", 0, 1] * 3, "" if name == "ustar" else folders)
        archives.append(next(shards(tmp_path / name, packed(files, format=options)).iterdir()))
    whole = {archive: archive.read_bytes() for archive in archives}
    places = {archive: _headers(content) for archive, content in whole.items()}
    expected = {archive: samples(archive.parent) for archive in archives}
    ends: Counter[str] = Counter()
    for number in range(1000):
        archive = archives[number % len(archives)]
        content = bytearray(whole[archive])
        content[place := rng.choice(places[archive])] ^= 1 << rng.randrange(8)
        archive.write_bytes(content)
        try:
            found = samples(archive.parent)
        except UserError:
            ends["refused"] += 1
        else:
            source = open_source(str(archive.parent))
            said = any(source.entries(split).left_out for split in source.splits)
            assert found == expected[archive] or said, (archive, place)
            ends["read whole" if found == expected[archive] else "left out and said"] += 1
        archive.write_bytes(whole[archive])
    print(dict(ends))  # the figure of a report: pytest -s
    assert ends["refused"] > 900


# Labels


def test_unlabelled_images_are_left_out_and_counted(tmp_path: Path) -> None:
    written = {
        "webdataset": shards(tmp_path / "wds", packed(labelled(["0", "1"] * 10 + ["-1"]))),
        "json": shards(tmp_path / "json", packed(labelled([0, 1] * 10 + [-1]))),
        "names": shards(tmp_path / "names", packed(labelled(["cat", "dog"] * 10 + ["-1"]))),
        "parquet": table(tmp_path / "pq", pa.array([0, 1] * 10 + [-1])),
        "floats": table(tmp_path / "floats", pa.array([0.0, 1.0] * 10 + [-1.0])),
    }
    for name, root in written.items():
        done = prepare(root, tmp_path / f"{name}-out")
        assert done.exit_code == 0, done.output
        assert "1 unlabelled" in done.stdout
        folder = open_prepared(tmp_path / f"{name}-out")
        assert folder.manifest["unlabelled"] == {"train": 1}
        assert folder.classes == (("cat", "dog") if name == "names" else ("0", "1"))
        assert Counter([*folder.labels["train"], *folder.labels["val"]]) == {0: 10, 1: 10}, name
        assert "1 unlabelled" in load_data(DataRequest(text=str(tmp_path / f"{name}-out"), size=16)).source
    alone = table(tmp_path / "alone", pa.array([-1] * 20))
    assert "20 unlabelled" in prepare(alone, tmp_path / "out").stderr


@pytest.mark.parametrize(
    ("label", "words"),
    [
        (999_999_999, "sample '00020' has label 999999999, and there are 21 images"),
        (10**30, "there are 21 images"),
        ("9" * 5000, "digits"),
        (-2, "-2"),
        (0.5, "0.5"),
        (float("nan"), "nan"),
        (float("inf"), "inf"),
        (True, "True"),
        ([0, 1], "[0, 1]"),
        ({"id": 1}, "{'id': 1}"),
        (None, "no label"),
        ("", "''"),
        ("cat", "a name"),
        ("a\nb", r"a\nb"),
    ],
)
def test_a_wrong_label_is_named_with_its_sample(tmp_path: Path, label: object, words: str) -> None:
    assert says(
        refusal(shards(tmp_path / "set", packed(labelled([*TEN, *TEN, label])))), "train-000000.tar", "'00020'", words
    )


def test_a_label_nested_without_end_is_refused(tmp_path: Path) -> None:
    files = {**labelled(TEN), "x.png": png(), "x.json": b"[" * 100_000 + b"]" * 100_000}
    assert says(refusal(shards(tmp_path / "set", packed(files))), "'x'")


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (pa.array([0, 1] * 5 + [100_000_000]), "row 10 has label 100000000"),
        (pa.array([0.0, 1.0] * 5 + [float("nan")]), "row 10 has label nan"),
        (pa.array([0.0, 1.0] * 5 + [1.5]), "row 10 has label 1.5"),
        (pa.array([0, 1] * 5 + [None]), "row 10 has label None"),
        (pa.array([[0], [1]] * 5), "row 0 has label [0]"),
        (pa.array([True, False] * 5), "row 0 has label True"),
        (pa.array([b"\xff", b"a"] * 5), r"row 0 has label b'\xff'"),
        (pa.array([2**63, 0], pa.uint64()), "row 0 has label 9223372036854775808"),
        (pa.array([1, 2], pa.timestamp("ns")), "label"),
    ],
)
def test_a_wrong_label_in_parquet_is_named_with_its_row(tmp_path: Path, labels: pa.Array, words: str) -> None:
    assert says(refusal(table(tmp_path / "set", labels)), "train-00000.parquet", words)


def test_shards_of_another_schema_are_refused(tmp_path: Path) -> None:
    root = table(tmp_path / "set", pa.array([0, 1]))
    other = pa.table({"img": pa.array([png()]), "labels": pa.array([0])})
    pq.write_table(other, root / "train-00001.parquet")
    assert says(refusal(root), "train-00001.parquet", "column 'image' is missing, found 'img', 'labels'")
    pq.write_table(pa.table({"image": pa.array([png()]), "label": pa.array(["0"])}), root / "train-00001.parquet")
    assert says(refusal(root), "train-00001.parquet", "column 'label' is string; needed is int64")


def test_shards_that_are_not_there_are_said(tmp_path: Path) -> None:
    root = shards(tmp_path / "set", packed(labelled(TEN * 2)))
    (root / "train-000000.tar").rename(root / "train-00003-of-00294.tar")
    assert "left out of split train: 293 of 294 shards, which are not there" in prepare(root, tmp_path / "out").stdout


def test_samples_that_do_not_add_up_are_refused_or_said(tmp_path: Path) -> None:
    whole = labelled(TEN)
    cases = {
        "two images": ({"x.png": png(), "x.jpg": png(), "x.cls": b"0"}, "sample 'x' has 2 images"),
        "no image": ({"x.cls": b"0", "x.txt": b"a cat"}, "sample 'x' has 0 images"),
        "twice": ({"x.png": png(), "x.PNG": png(), "x.cls": b"0"}, "two files of the ending"),
        "apart": ({"x.png": png(), "y.png": png(), "x.cls": b"0", "y.cls": b"0"}, "sample 'x' has no label"),
    }
    for name, (files, words) in cases.items():
        assert says(refusal(shards(tmp_path / name, packed({**whole, **files}))), "train-000000.tar", words)
    root = shards(tmp_path / "said", packed({**whole, "README": b"", "._00001.png": b"x", "z.txt": b"no picture"}))
    assert len(samples(root)) == 10
    done = prepare(root, tmp_path / "out", "--val-share", "20%")
    assert "left out of split train: 2 files of no sample ('README', '._00001.png')" in done.stdout
    assert "left out of split train: 1 samples without an image ('z')" in done.stdout


def test_tars_beside_shards_are_not_passed_over(tmp_path: Path) -> None:
    root = shards(tmp_path / "set", packed(labelled(TEN)))
    (root / "._train-000000.tar").write_bytes(b"of macOS")
    assert len(samples(root)) == 10
    (root / "train-000001.tar.gz").write_bytes(b"")
    assert says(refusal(root), "'train-000001.tar.gz' beside webdataset shards")
    # Numbers of two digits, as timm/imagenet-1k-wds has them, and nothing but numbers, as img2dataset writes.
    few = shards(tmp_path / "few", packed(labelled(TEN)))
    (few / "validation-00.tar").write_bytes(packed(labelled(TEN)))
    assert open_source(str(few)).splits == ("train", "validation")
    bare = tmp_path / "bare"
    bare.mkdir()
    for number in range(2):
        (bare / f"{number:05}.tar").write_bytes(packed(labelled(TEN)))
    assert len(samples(bare)) == 20


def test_labels_of_validation_must_be_those_of_training(tmp_path: Path) -> None:
    for name, labels, words in (
        ("more", ["0", "1", "2"], "has label 2, none of the 2 classes"),
        ("kind", ["cat", "0"], "has label 'cat', none of the 2 classes"),
    ):
        shards(tmp_path / name, packed(labelled(TEN)))
        assert says(
            refusal(shards(tmp_path / name, packed(labelled(labels)), split="val")), "val-000000.tar: sample", words
        )
    shards(tmp_path / "names", packed(labelled(["cat", "dog"] * 5)))
    assert says(
        refusal(shards(tmp_path / "names", packed(labelled([1])), split="val")), "has label 1, none of the 2 classes"
    )


def test_a_validation_split_without_a_class_is_refused(tmp_path: Path) -> None:
    pictures = make_pictures(4, broken=False)
    pictures["val"].pop("n03000684")
    write_folder(tmp_path / "folder", pictures)
    shards(tmp_path / "wds", packed(labelled(TEN)))
    shards(tmp_path / "wds", packed(labelled(["1"])), split="val")
    for name, missing in (("folder", "n03000684"), ("wds", "'0'")):
        done = prepare(tmp_path / name, tmp_path / "out", "--val-split", "val")
        assert (done.exit_code, missing in done.stderr, "'val' has no images" in done.stderr) == (2, True, True)


# What is no file


def test_links_pipes_and_devices_hang_nothing(tmp_path: Path) -> None:
    root = tmp_path / "set"
    write_folder(root, make_pictures(12, broken=False))
    cat = root / "train" / "n01440764"
    os.mkfifo(cat / "pipe.png")
    (cat / "zero.png").symlink_to("/dev/zero")
    (cat / "self.png").symlink_to("self.png")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "s"))
        os.rename(tmp_path / "s", cat / "socket.png")
        done = prepare(root, tmp_path / "out", "--max-unreadable", "20%")
    assert done.exit_code == 0, done.output
    left_out = open_prepared(tmp_path / "out").unreadable
    names = [name.split(" ")[0].rpartition("/")[2] for name in (*left_out["train"], *left_out["val"])]
    assert sorted(names) == ["pipe.png", "self.png", "socket.png", "zero.png"]
    (root / "train" / "gone").symlink_to(tmp_path / "not-mounted")
    assert says(refusal(root), "train/gone", "not-mounted", "which is not there")
    (root / "train" / "gone").unlink()
    (root / "train" / "itself").symlink_to("itself")
    assert says(refusal(root), "train/itself")
    for name in ("train-000.tar", "train-000.parquet"):
        folder = tmp_path / name.replace(".", "-")
        folder.mkdir()
        os.mkfifo(folder / name)
        assert says(refusal(folder), name, "not a regular file")
    assert prepare("~nobody-here/images", tmp_path / "other").exit_code == 2
    assert prepare("x" * 5000, tmp_path / "other").exit_code == 2


def test_what_lies_beside_the_images_is_hidden_or_said(tmp_path: Path) -> None:
    root = tmp_path / "set"
    write_folder(root, make_pictures(12, broken=False))
    cat = root / "train" / "n01440764"
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    for name in ("moving.GIF", "moving.WebP", "moving.png"):
        frames[0].save(cat / name, save_all=True, append_images=frames[1:], lossless=True)
    files = [".DS_Store", "Thumbs.db", "photo.jfif", "._photo.jpg", "@eaDir/x.jpg/THUMB_M.jpg", ".thumbnails/x.png"]
    for path in [*(cat / name for name in files), root / "train" / "__MACOSX" / "x.jpg", root / "train" / "loose.png"]:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"no image")
    (root / "train" / "heic").mkdir()
    done = prepare(root, tmp_path / "out", "--val-split", "val")
    assert "train: 1 images in no class folder" in done.stdout
    assert "train: 1 class folders without images ('heic')" in done.stdout
    assert "train: 2 files of endings that are no image's ('.db', '.jfif')" in done.stdout
    folder = open_prepared(tmp_path / "out")
    assert folder.classes == ("n01440764", "n02102040", "n03000684")
    assert np.bincount(folder.labels["train"]).tolist() == [15, 12, 12]
    assert folder.unreadable["train"] == ()
    from_red = np.abs(folder.images["train"].astype(int) - (255, 0, 0)).max(axis=(1, 2, 3))
    assert (from_red <= 1).sum() == 3  # the first frame of each


def test_greys_deeper_than_16_bits_are_no_white_squares(tmp_path: Path) -> None:
    root = tmp_path / "set"
    write_folder(root, make_pictures(12, broken=False))
    deep = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    (root / "train" / "n01440764" / "a.pgm").write_bytes(b"P5 8 8 65535\n" + deep.astype(">u2").tobytes())
    Image.fromarray(deep.astype(np.float32)).save(root / "train" / "n01440764" / "b.tif")
    prepare(root, tmp_path / "out", "--max-unreadable", "5%", "--val-split", "val", "--size", "8")
    folder = open_prepared(tmp_path / "out")
    assert [name.split(" ")[0] for name in folder.unreadable["train"]] == ["train/n01440764/b.tif"]
    assert np.array_equal(folder.images["train"][0, ..., 0], deep >> 8)


# Prepared folders


def prepare(source: object, out: Path, *words: str) -> Result:
    size = () if "--size" in words else ("--size", "16")
    return CliRunner().invoke(main, ["prepare", str(source), str(out), *size, *words])


def rewrite(path: Path, change: Callable[[Any], object]) -> None:
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def test_damaged_prepared_folders_are_one_sentence(tmp_path: Path) -> None:
    write_folder(tmp_path / "set", make_pictures(12, broken=False))
    out = tmp_path / "out"
    prepare(tmp_path / "set", out)
    manifest = json.loads((out / "manifest.json").read_text())
    labels = np.load(out / "train_labels.npy")

    def save(name: str, array: Any) -> Callable[[], object]:
        return lambda: np.save(out / name, array, allow_pickle=True)

    def pipe() -> None:
        (out / "classes.json").unlink()
        os.mkfifo(out / "classes.json")

    changes: dict[str, Callable[[], object]] = {
        "empty images": lambda: (out / "train_images.npy").write_bytes(b""),
        "empty labels": lambda: (out / "val_labels.npy").write_bytes(b""),
        "cut images": lambda: os.truncate(out / "val_images.npy", 500),
        "objects": save("train_labels.npy", np.array([{}], dtype=object)),
        "floats": save("train_labels.npy", labels.astype(float)),
        "other labels": save("train_labels.npy", labels[::-1]),
        "longer labels": save("train_labels.npy", np.append(labels, 0)),
        "labels out of range": save("train_labels.npy", labels + 7),
        "other shape": save("val_images.npy", np.zeros((3, 16, 16, 1), np.uint8)),
        "an archive": lambda: (out / "val_images.npy").write_bytes(b"PK\3\4" + bytes(500)),
        "half copied": lambda: (out / "val_labels.npy").unlink(),
        "a pipe": pipe,
        "other classes": lambda: (out / "classes.json").write_text('["a"]'),
        "deep classes": lambda: (out / "classes.json").write_text("[" * 100_000),
        "no files": lambda: rewrite(out / "manifest.json", lambda manifest: manifest.pop("files")),
        "size as text": lambda: rewrite(out / "manifest.json", lambda manifest: manifest.update(size="16")),
        "no source": lambda: rewrite(out / "manifest.json", lambda manifest: manifest.update(source=[])),
        "unlabelled": lambda: rewrite(out / "manifest.json", lambda manifest: manifest.update(unlabelled="3")),
        "later version": lambda: rewrite(out / "manifest.json", lambda manifest: manifest.update(version=99)),
    }
    whole = {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}
    for name, change in changes.items():
        change()
        with pytest.raises(UserError) as caught:
            load_data(DataRequest(text=str(out), size=16))
        assert "\n" not in str(caught.value), name
        assert str(out) in str(caught.value), name
        assert CliRunner().invoke(main, ["prepare", "--check", str(out)]).exit_code in (1, 2), name
        assert prepare(tmp_path / "set", out).exit_code == 2, name
        for path in out.iterdir():
            path.unlink()
        for file, content in whole.items():
            (out / file).write_bytes(content)
    (out / "manifest.json").rename(tmp_path / "manifest.json")
    assert says(refusal(out), "without their manifest.json")
    (tmp_path / "manifest.json").rename(out / "manifest.json")
    assert manifest == json.loads((out / "manifest.json").read_text())
    assert len(load_data(DataRequest(text=str(out), size=16)).train_labels) == len(labels)


def test_a_damaged_journal_is_one_sentence(tmp_path: Path) -> None:
    write_folder(tmp_path / "set", make_pictures(12, broken=False))
    prepare(tmp_path / "set", tmp_path / "whole")
    request = json.loads((tmp_path / "whole" / "manifest.json").read_text())["request"]
    for number, (journal, begun) in enumerate(
        [
            ('{"images": 5', request),
            ("\0" * 50, request),
            ('{"images": 5000, "unreadable": []}', request),
            ('{"images": 5, "unreadable": [["train", 99999, "x"]]}', request),
            ('{"images": 5, "unreadable": []}', request),  # and no partial files
            ("", []),
        ]
    ):
        out = tmp_path / f"out{number}"
        out.mkdir()
        (out / "journal.jsonl").write_text(journal + "\n")
        (out / "request.json").write_text(json.dumps(begun))
        done = prepare(tmp_path / "set", out)
        assert (done.exit_code, "damaged" in done.stderr) == (2, True), (journal, done.stderr)


# Anything at all


@contextmanager
def within_ten_seconds() -> Iterator[None]:
    """TimeoutError where it takes longer."""

    def hang(number: int, frame: FrameType | None) -> NoReturn:
        raise TimeoutError("more than ten seconds")

    before = signal.signal(signal.SIGALRM, hang)
    signal.alarm(10)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def changed(rng: random.Random, content: bytes) -> bytes:
    """A file's content, damaged in one of many ways."""
    place, length = rng.randrange(len(content) or 1), rng.choice((1, BLOCK, 20_000))
    flipped = bytearray(content)
    for _ in range(rng.choice((1, 10)) if content else 0):
        flipped[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    ways = {
        "bits": bytes(flipped),
        "cut": content[:place],
        "longer": content + rng.randbytes(length),
        "zeros": content[:place] + bytes(len(content[place : place + length])) + content[place + length :],
        "insert": content[:place] + rng.randbytes(length) + content[place:],
        "delete": content[:place] + content[place + length :],
        "empty": b"",
        "page": b"<html>404</html>",
        "deep": b"[" * 100_000,
        "pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
    }
    return ways[rng.choice(list(ways))]


def replaced(rng: random.Random, path: Path) -> None:
    """Put something else in place of a file: nothing, another kind of file, another name, or two of it."""
    name = rng.choice(("\udcff", "a b", "new\nline", "[red]", "ü", "-x", "..png", "n" * 200)) + path.suffix
    ways: list[Callable[[], object]] = [
        lambda: None,
        lambda: os.mkfifo(path),
        path.mkdir,
        lambda: path.symlink_to("nowhere"),
        lambda: path.symlink_to(path.name),
        lambda: path.with_name(name).write_bytes(content),
        lambda: (path.write_bytes(content), path.with_name("copy-" + path.name).write_bytes(content)),
    ]
    content = path.read_bytes()
    path.unlink()
    rng.choice(ways)()


@pytest.mark.slow
def test_two_hundred_damaged_sources_end_in_a_sentence(tmp_path: Path) -> None:
    """Every form of a source, and prepared folders, damaged up to three times: no traceback, no hang, no image lost in silence."""
    rng = random.Random(0)
    pictures = make_pictures(12, broken=False)
    forms = [*FORMS, "prepared"]
    for form in FORMS:
        FORMS[form](tmp_path / form, pictures)
    assert prepare(tmp_path / "folder", tmp_path / "prepared").exit_code == 0
    ends: Counter[str] = Counter()
    for number in range(200):
        form = forms[number % len(forms)]
        root, out = tmp_path / f"{number}", tmp_path / f"{number}-out"
        shutil.copytree(tmp_path / form, root)
        in_place = rng.random() < 0.6
        for _ in range(rng.choice((1, 1, 2, 3))):
            path = rng.choice(sorted(path for path in root.rglob("*") if path.is_file()))
            if in_place:
                path.write_bytes(changed(rng, path.read_bytes()))
            else:
                replaced(rng, path)
        words = [str(root), str(out), "--size", "16", "--max-unreadable", rng.choice(("1%", "50%"))]
        with within_ten_seconds():
            result = CliRunner().invoke(main, ["prepare", *(["--check", str(root)] if form == "prepared" else words)])
        assert result.exit_code in (0, 1, 2), (number, form, result.output)
        assert "unexpected" not in result.output, (number, form, result.output)
        ends[f"{form}: exit code {result.exit_code}"] += 1
        if result.exit_code == 0 and in_place and form != "prepared":
            folder = open_prepared(out)
            kept = sum(len(folder.labels[split]) + len(folder.unreadable[split]) for split in folder.labels)
            assert kept + folder.unlabelled == 36 or folder.left_out, (number, form, result.output)
        shutil.rmtree(root)
    print(dict(sorted(ends.items())))
    assert sum(count for end, count in ends.items() if end.endswith("0")) > 20
