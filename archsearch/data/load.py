"""Loading of the data that candidates are trained and scored on: embedded, generated, prepared, or prepared now."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from archsearch.data.constellation import make_constellation
from archsearch.data.dataset import ProxyData, load_fashion_mnist, proxy_data
from archsearch.data.preparation import Preparation, prepare_in_cache
from archsearch.data.prepared import is_prepared, open_prepared
from archsearch.data.sources.detect import open_source
from archsearch.data.subset import DEFAULT_VAL_SHARE, Policy
from archsearch.errors import UserError
from archsearch.system import Progress, Say, ignore, user_path

EMBEDDED = ("fashion-mnist", "constellation")
_CONSTELLATION = (10_000, 2_000)
_CONSTELLATION_GRID = 32  # its sizes are multiples of this


@dataclass(frozen=True, kw_only=True)
class DataRequest:
    """Which data, at least how many pixels, at most how many images; without `val_split` validation is held out of train.

    Of a prepared folder only `size` and `max_unreadable` count: the rest was decided when it was prepared.
    """

    text: str
    size: int
    max_train: int | None = None
    max_val: int | None = None
    train_split: str = "train"
    val_split: str | None = None
    val_share: float = DEFAULT_VAL_SHARE
    max_unreadable: float = 0.01
    seed: int = 0
    cache_dir: str = ""

    def to_dict(self) -> dict[str, Any]:
        """The fields, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> "DataRequest":
        """The inverse of `to_dict`; keys of other versions are ignored."""
        known = {field.name for field in fields(cls)}
        return cls(**{key: value for key, value in document.items() if key in known})


def load_data(request: DataRequest, *, say: Say = ignore, progress: Progress = ignore) -> ProxyData:
    """The requested data, prepared in the cache where it must be. Raises UserError where it is missing, of no known form, too small, or too damaged."""
    if request.text == "fashion-mnist":
        return load_fashion_mnist()
    if request.text == "constellation":
        return load_constellation(request.size, request.seed)
    folder = user_path(request.text)
    if is_prepared(folder):
        prepared = open_prepared(folder.absolute())
        if prepared.size < request.size:
            raise UserError(
                f"{folder}: prepared at {prepared.size} px, at least {request.size} px are needed; prepare the images"
                f" again with --size {request.size}, or take a proxy for smaller images"
            )
        return proxy_data(prepared)
    if not request.cache_dir:
        raise UserError(f"{request.text}: needs a folder to keep prepared images in; none is set")
    task = Preparation(
        source=open_source(request.text, request.train_split, request.val_split),
        policy=Policy(
            train_split=request.train_split,
            val_split=request.val_split,
            max_train=request.max_train,
            max_val=request.max_val,
            val_share=request.val_share,
            seed=request.seed,
        ),
        size=request.size,
        max_unreadable=request.max_unreadable,
    )
    return proxy_data(prepare_in_cache(task, Path(request.cache_dir), say=say, progress=progress))


def load_constellation(size: int, seed: int = 0) -> ProxyData:
    """10,000 + 2,000 generated images at `size` px, rounded up to a multiple of 32; number and size are in the name."""
    pixels = -(-size // _CONSTELLATION_GRID) * _CONSTELLATION_GRID
    data = make_constellation(*_CONSTELLATION, size=pixels, seed=seed)
    mark = "" if pixels == _CONSTELLATION_GRID else f"-{pixels}px"
    return replace(
        data,
        name=f"constellation-{sum(_CONSTELLATION) // 1000}k{mark}",
        source=f"constellation: {_CONSTELLATION[0]:,} training and {_CONSTELLATION[1]:,} validation images, generated"
        f" at {pixels} px",
    )
