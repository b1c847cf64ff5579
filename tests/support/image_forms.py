"""A small set of pictures, some of them unusual, written in every form of a data set."""

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from scipy.io import savemat

Pictures = dict[str, dict[str, dict[str, bytes]]]  # split, class, file name
CLASSES = ("n01440764", "n02102040", "n03000684")
_DEVKIT = "ILSVRC2012_devkit_t12/data"


def make_pictures(per_class: int = 12, *, broken: bool = True, classes: tuple[str, ...] = CLASSES) -> Pictures:
    """JPEGs of odd sizes: grey, CMYK, turned by EXIF, PNG under another name, and one cut short."""
    pictures: Pictures = {"train": {}, "val": {}}
    for s, split in enumerate(pictures):
        for c, name in enumerate(classes):
            files = pictures[split][name] = {}
            for i in range(per_class if split == "train" else 3):
                picture = _picture(1000 * s + 100 * c + i)
                # 9 before 10 by value, after it as text: forms must not differ in that.
                files[f"{name}_{i + 5}.JPEG" if split == "train" else f"val_{i * 3 + c:04}.JPEG"] = _encoded(picture, i)
    if broken:
        first = next(iter(pictures["train"][classes[1]]))
        content = pictures["train"][classes[1]][first]
        pictures["train"][classes[1]][first] = content[: len(content) // 2]
    return pictures


def _picture(seed: int) -> Image.Image:
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
    return coarse.resize((int(rng.integers(33, 150)), int(rng.integers(33, 150))), Image.Resampling.BICUBIC)


def _encoded(picture: Image.Image, kind: int) -> bytes:
    out = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    match kind % 5:
        case 1:
            picture.convert("L").save(out, format="JPEG")
        case 2:
            picture.convert("CMYK").save(out, format="JPEG")
        case 3:
            picture.save(out, format="JPEG", exif=exif)
        case 4:
            picture.save(out, format="PNG")
        case _:
            picture.save(out, format="JPEG")
    return out.getvalue()


def read_folder(root: Path) -> Pictures:
    """An ImageFolder's files."""
    pictures: Pictures = {}
    for path in sorted(path for path in root.rglob("*/*/*") if path.is_file()):
        split, name, file = path.relative_to(root).parts
        pictures.setdefault(split, {}).setdefault(name, {})[file] = path.read_bytes()
    return pictures


def write_folder(root: Path, pictures: Pictures) -> None:
    for split, name, file, content in _each(pictures):
        path = root / split / name / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def write_flat(root: Path, pictures: Pictures) -> None:
    """A folder of classes, the training split alone."""
    for _, name, file, content in _each({"train": pictures["train"]}):
        path = root / name / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def write_tars(root: Path, pictures: Pictures) -> None:
    """As ILSVRC2012 was published: a tar of tars, validation images by number, a devkit with their classes."""
    root.mkdir(parents=True)
    with tarfile.open(root / "ILSVRC2012_img_train.tar", "w") as train:
        for name in reversed(list(pictures["train"])):
            inner = io.BytesIO()
            with tarfile.open(fileobj=inner, mode="w") as tar:
                for file, content in reversed(pictures["train"][name].items()):
                    _add(tar, file, content)
            _add(train, f"{name}.tar", inner.getvalue())
    val = sorted((file, name, content) for _, name, file, content in _each({"val": pictures["val"]}))
    with tarfile.open(root / "ILSVRC2012_img_val.tar", "w") as tar:
        for file, _, content in reversed(val):
            _add(tar, file, content)
    numbers = {name: number for number, name in enumerate(sorted(pictures["train"], reverse=True), start=1)}
    rows = [(number, name, "words", "gloss", 0) for name, number in numbers.items()]
    rows.append((len(rows) + 1, "n99999999", "above them", "gloss", len(rows)))
    fields = ("ILSVRC2012_ID", "WNID", "words", "gloss", "num_children")
    meta = io.BytesIO()
    savemat(meta, {"synsets": np.array(rows, dtype=[(field, object) for field in fields])})
    with tarfile.open(root / "ILSVRC2012_devkit_t12.tar.gz", "w:gz") as tar:
        _add(tar, f"{_DEVKIT}/meta.mat", meta.getvalue())
        truth = "".join(f"{numbers[name]}\n" for _, name, _ in val)
        _add(tar, f"{_DEVKIT}/ILSVRC2012_validation_ground_truth.txt", truth.encode())


def write_parquet(root: Path, pictures: Pictures) -> None:
    """As Hugging Face does: shards in no order of classes, paths with the class at their end."""
    classes = sorted(pictures["train"])
    features = {"image": {"_type": "Image"}, "label": {"names": classes, "_type": "ClassLabel"}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    (root / "data").mkdir(parents=True)
    for split, hub_split in (("train", "train"), ("val", "validation")):
        rows = _shuffled([each for each in _each(pictures) if each[0] == split])
        for shard in range(2):
            part = rows[shard::2]
            images = [
                {"bytes": content, "path": f"{Path(file).stem}_{name}.JPEG" if name in CLASSES else file}
                for _, name, file, content in part
            ]
            labels = pa.array([classes.index(name) for _, name, _, _ in part], pa.int64())
            table = pa.table({"image": pa.array(images, kind), "label": labels}).replace_schema_metadata(metadata)
            pq.write_table(table, root / "data" / f"{hub_split}-{shard:05}-of-00002.parquet", row_group_size=7)


def write_webdataset(root: Path, pictures: Pictures) -> None:
    """Shards with a `.cls` beside each image, or with a `.json`."""
    classes = sorted(pictures["train"])
    root.mkdir(parents=True)
    for split in pictures:
        rows = _shuffled([each for each in _each(pictures) if each[0] == split])
        for shard in range(2):
            with tarfile.open(root / f"pictures-{split}-{shard:06}.tar", "w") as tar:
                for _, name, file, content in rows[shard::2]:
                    stem, label = Path(file).stem, classes.index(name)
                    if shard:
                        _add(tar, f"{stem}.json", json.dumps({"label": label, "width": 1}).encode())
                    _add(tar, f"{stem}.jpg", content)
                    if not shard:
                        _add(tar, f"{stem}.cls", str(label).encode())


FORMS: dict[str, Callable[[Path, Pictures], None]] = {
    "folder": write_folder,
    "flat": write_flat,
    "tars": write_tars,
    "parquet": write_parquet,
    "webdataset": write_webdataset,
}
VAL_SPLITS = {"folder": "val", "tars": "val", "parquet": "validation", "webdataset": "val"}


def _each(pictures: Pictures) -> list[tuple[str, str, str, bytes]]:
    return [
        (split, name, file, content)
        for split, classes in pictures.items()
        for name, files in classes.items()
        for file, content in files.items()
    ]


def _shuffled(rows: list[tuple[str, str, str, bytes]]) -> list[tuple[str, str, str, bytes]]:
    return [rows[i] for i in np.random.default_rng(0).permutation(len(rows))]


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))
