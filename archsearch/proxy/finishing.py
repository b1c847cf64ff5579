"""The files of a finished folder under their final names, and the manifest."""

import datetime
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from numpy.typing import NDArray

from archsearch.proxy.drawing import Draw
from archsearch.proxy.prepared import CLASSES, FORMAT, IMAGES, LABELS, MANIFEST, UNREADABLE, VERSION, sha256_of
from archsearch.proxy.writing import Unfinished, Unreadable, check_space, sync, write_header, write_json
from archsearch.system import replace_file
from archsearch.version import __version__

_WNID = re.compile(r"^n\d{8}$")
_IMAGENET_NOTE = (
    "These images come, or seem to come, from ImageNet, whose terms of access allow research and education only"
    " and forbid passing the images on: do not publish or share this folder."
)


def finish(folder: Path, about: Mapping[str, Any], drawn: Draw, unreadable: Unreadable) -> None:
    """The files under their final names, and last the manifest: it makes the folder a prepared one."""
    counts, noted = {}, {}
    unfinished = Unfinished(folder)
    for name, each in drawn.outputs().items():
        kept = np.array([row for row in range(len(each.labels)) if row not in unreadable[name]], dtype=np.int64)
        noted[name] = [f"{each.names[row]} ({unreadable[name][row]})" for row in sorted(unreadable[name])]
        if unfinished.partial(name).exists():  # else it was finished before a kill
            _settle(unfinished.partial(name), folder / IMAGES[name], kept, len(each.labels))
        np.save(folder / LABELS[name], each.labels[kept])
        counts[name] = np.bincount(each.labels[kept], minlength=len(drawn.classes)).tolist()
    write_json(folder / CLASSES, drawn.classes)
    write_json(folder / UNREADABLE, noted)
    names = (*IMAGES.values(), *LABELS.values(), CLASSES, UNREADABLE)
    files = {name: {"bytes": (folder / name).stat().st_size, "sha256": sha256_of(folder / name)} for name in names}
    manifest = {
        "format": FORMAT,
        "version": VERSION,
        **about,
        "counts": counts,
        "classes": drawn.classes,
        "unreadable": {name: len(each) for name, each in noted.items()},
        "files": files,
        "versions": {"archsearch": __version__, "pillow": PIL.__version__, "numpy": np.__version__},
        "licence": _IMAGENET_NOTE if _looks_like_imagenet(about["source"], drawn.classes) else None,
        "created_at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    replace_file(folder / MANIFEST, lambda path: write_json(path, manifest))


def _settle(partial: Path, final: Path, kept: NDArray[np.int64], num_rows: int) -> None:
    """Renames, or copies what is not unreadable; the folder keeps the partial file until the copy is whole."""
    if len(kept) == num_rows:
        os.replace(partial, final)
        return
    images = np.load(partial, mmap_mode="r", allow_pickle=False)
    check_space(final.parent, len(kept) * images[0].nbytes)

    def copy(path: Path) -> None:
        with open(path, "wb") as file:
            write_header(file, len(kept), images.shape[1])
            for row in kept:
                file.write(images[row].tobytes())
            sync(file)

    replace_file(final, copy)
    partial.unlink()


def _looks_like_imagenet(source: Mapping[str, str], classes: Sequence[str]) -> bool:
    named = re.search("imagenet|ilsvrc", f"{source['kind']} {source['path']}".lower())
    return named is not None or all(_WNID.match(name) for name in classes) or "tench, Tinca tinca" in classes
