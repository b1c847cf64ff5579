"""Official checkpoints of the papers' models: their keys, files, size-dependent tables, loading and saving."""

from archsearch.models.checkpoints.files import read_checkpoint
from archsearch.models.checkpoints.official import (
    CheckpointWarning,
    key_pattern,
    load_official,
    official_keys,
    save_official,
)

__all__ = ["CheckpointWarning", "key_pattern", "load_official", "official_keys", "read_checkpoint", "save_official"]
