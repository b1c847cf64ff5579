from .blocks.cost import Cost
from .errors import ArchsearchError, RunError, UserError
from .models.checkpoints import CheckpointWarning, load, load_official, read_checkpoint, save, save_official
from .models.network import build
from .samplers.known_cost import KnownCostSampler
from .search.load import Run, load_run
from .space.arch import Arch
from .space.papers import paper
from .space.shipped import paper_names
from .space.space import Space, load_space
from .version import __version__

__all__ = [
    "Arch",
    "ArchsearchError",
    "CheckpointWarning",
    "Cost",
    "KnownCostSampler",
    "Run",
    "RunError",
    "Space",
    "UserError",
    "__version__",
    "build",
    "load",
    "load_official",
    "load_run",
    "load_space",
    "paper",
    "paper_names",
    "read_checkpoint",
    "save",
    "save_official",
]
