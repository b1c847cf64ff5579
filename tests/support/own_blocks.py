"""A file of blocks outside the package, and a registry that forgets what a test registered."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from archsearch.blocks import files, registry

CONVNEXT = Path(__file__).parents[1] / "data" / "convnext.py"
SPACE = """
name = "own"
image_size = 64
num_classes = 10
blocks = ["convnext.py"]
stem = { kind = "patch", patch = { kernel = 4 } }
[[stages]]
width = [32, 64]
depth = [1, 2]
block = ["convnext", "mlp"]
[[stages]]
width = 64
depth = [1, 2]
downsample = "patch"
block = ["convnext", "convnext/mlp"]
convnext = { kernel = 5 }
"""


@contextlib.contextmanager
def forgetting() -> Iterator[None]:
    """What is registered meanwhile is forgotten, as at the end of a process: the registry is otherwise for good."""
    layers, loaded = dict(registry._REGISTRY), dict(files._LOADED)
    try:
        yield
    finally:
        registry._REGISTRY.clear()
        registry._REGISTRY.update(layers)
        files._LOADED.clear()
        files._LOADED.update(loaded)


def write_space(folder: Path, text: str = SPACE, blocks: str | None = None) -> Path:
    """The space as a file, with its file of blocks beside it."""
    (folder / "convnext.py").write_text(blocks or CONVNEXT.read_text())
    (folder / "own.toml").write_text(text)
    return folder / "own.toml"
