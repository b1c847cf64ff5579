"""Checkpoints: our own files with the architecture in them, and the papers' official ones: keys, size-dependent tables, loading and saving."""

from archsearch.models.checkpoints.files import read_checkpoint
from archsearch.models.checkpoints.official import (
    CheckpointWarning,
    key_pattern,
    load_official,
    official_keys,
    save_official,
)
from archsearch.models.checkpoints.own import INITIAL, Header, is_own, load, own_blocks, read_header, save

__all__ = [
    "INITIAL",
    "CheckpointWarning",
    "Header",
    "is_own",
    "key_pattern",
    "load",
    "load_official",
    "official_keys",
    "own_blocks",
    "read_checkpoint",
    "read_header",
    "save",
    "save_official",
]
