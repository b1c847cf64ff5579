from .arch import Arch, ImageSize, Placed
from .block_files import register_files, stored_block_files
from .budget import (
    Band,
    Bounds,
    Change,
    InBand,
    Params,
    Score,
    Scored,
    cached_in_band,
    draw,
    extremes,
    find_params,
    mutate,
    params_in_space,
    propose,
    repair,
    single_changes,
)
from .grammar import format_value
from .papers import REFERENCE, choose_papers, paper, paper_space, reference_arch
from .shipped import paper_names, paper_table, spaces_folder
from .space import Space, load_space
from .spectral import layer_spectral_capacity, spectral_capacity
from .stages import Stage
from .toml_text import arch_toml

__all__ = [
    "REFERENCE",
    "Arch",
    "Band",
    "Bounds",
    "Change",
    "ImageSize",
    "InBand",
    "Params",
    "Placed",
    "Score",
    "Scored",
    "Space",
    "Stage",
    "arch_toml",
    "cached_in_band",
    "choose_papers",
    "draw",
    "extremes",
    "find_params",
    "format_value",
    "layer_spectral_capacity",
    "load_space",
    "mutate",
    "paper",
    "paper_names",
    "paper_space",
    "paper_table",
    "params_in_space",
    "propose",
    "reference_arch",
    "register_files",
    "repair",
    "single_changes",
    "spaces_folder",
    "spectral_capacity",
    "stored_block_files",
]
