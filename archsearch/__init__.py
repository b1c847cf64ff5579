"""Hardware-aware architecture search over hybrid vision backbones.

Public names are imported when they are first used, so that `import archsearch` costs nothing and `archsearch --help` never loads torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

from archsearch.version import __version__

if TYPE_CHECKING:
    from archsearch.blocks.cost import Cost
    from archsearch.errors import ArchsearchError, RunError, UserError
    from archsearch.models.build import build
    from archsearch.models.checkpoints import CheckpointWarning, load_official, read_checkpoint, save_official
    from archsearch.space.arch import Arch
    from archsearch.space.papers import paper, paper_names
    from archsearch.space.space import Space, load_space

_HOMES = {
    "Arch": "space.arch",
    "ArchsearchError": "errors",
    "CheckpointWarning": "models.checkpoints",
    "Cost": "blocks.cost",
    "RunError": "errors",
    "Space": "space.space",
    "UserError": "errors",
    "build": "models.build",
    "load_official": "models.checkpoints",
    "load_space": "space.space",
    "paper": "space.papers",
    "paper_names": "space.papers",
    "read_checkpoint": "models.checkpoints",
    "save_official": "models.checkpoints",
}

__all__ = [
    "Arch",
    "ArchsearchError",
    "CheckpointWarning",
    "Cost",
    "RunError",
    "Space",
    "UserError",
    "__version__",
    "build",
    "load_official",
    "load_space",
    "paper",
    "paper_names",
    "read_checkpoint",
    "save_official",
]


def __getattr__(name: str) -> Any:
    """Import a public name from the module it lives in."""
    if name not in _HOMES:
        raise AttributeError(f"module 'archsearch' has no attribute {name!r}")
    return getattr(importlib.import_module(f"archsearch.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
