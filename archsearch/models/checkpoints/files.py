"""Checkpoint files: read safely, unwrapped to a plain state dict, and replaced as a whole."""

import argparse
import os
import re
import stat
import zipfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from archsearch.errors import UserError, shown
from archsearch.system import replace_file
from archsearch.units import format_bytes, format_names

Weights = Literal["model", "ema"]

# The entries of training checkpoints that hold a state dict, in order of preference; averages of the weights over a training apart.
_WRAPPERS: dict[Weights, tuple[str, ...]] = {
    "model": ("model", "state_dict"),
    "ema": ("state_dict_ema", "model_ema", "ema"),
}
KEYS_SHOWN = 2  # of each kind in an error
_PREFIX = "module."
_MOST_INFLATION = 4  # times a file's own size
_MAX_WRAPPERS = 8  # a limit, since a dict may contain itself


def read_checkpoint(file: str | Path) -> dict[str, Tensor]:
    """The state dict in a `.safetensors` or torch file, on the CPU, without wrappers and `module.` prefixes.

    Torch files are read with `weights_only`: no code in them is run. Raises UserError that names the refused content.
    """
    return read_weights(file)[0]


def read_weights(file: str | Path, weights: Weights = "model") -> tuple[dict[str, Tensor], list[str]]:
    """As `read_checkpoint` and `unwrap`."""
    path = Path(file)
    if not os.path.isfile(path):
        what = "no file" if os.path.lexists(path) else "no such checkpoint file"
        raise UserError(f"{path}: {what}; a checkpoint is a .pth or .safetensors file")
    if path.suffix != ".safetensors":
        return unwrap(_read_torch(path), str(path), weights)
    try:
        return unwrap(load_file(path), str(path), weights)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: not a readable safetensors file: {error}") from error


def _read_torch(path: Path) -> Any:
    """The content of a torch file; tensors, numbers, texts, collections and a training script's arguments are allowed."""
    _refuse_inflating(path)
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged or hostile pickle may raise anything
        refused = re.search(r"GLOBAL ([\w.]+\.[\w.]+)", str(error))
        if refused:  # torch's own message advises to read it unsafely
            raise UserError(
                f"{path}: refused, since reading it would run {refused[1]}; a checkpoint may hold tensors, numbers, texts and collections of them: "
                "if you trust the file, load it once with the code it came with and save only its 'model' entry"
            ) from error
        raise UserError(
            f"{path}: not a readable checkpoint ({type(error).__name__}): damaged, or no file of torch.save"
        ) from error


def _refuse_inflating(path: Path) -> None:
    """Raise UserError for a zip whose entries are together far larger than the file: compressed, or several in one place. torch.save does neither."""
    try:
        with zipfile.ZipFile(path) as archive:
            inflated = sum(entry.file_size for entry in archive.infolist())
    # NotImplementedError: zipfile's, for a version of the format that it does not read.
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile):
        return  # torch says what is wrong with it, or reads its older format
    size = path.stat().st_size
    if inflated > _MOST_INFLATION * size:
        raise UserError(
            f"{path}: refused, since its {format_bytes(size)} unpack to {format_bytes(inflated)}; torch.save does not compress: "
            "load it where it comes from and save it again"
        )


def unwrap(found: Any, where: str, weights: Weights = "model") -> tuple[dict[str, Tensor], list[str]]:
    """The state dict inside wrappers and behind `module.` prefixes, nested in any order, and sentences that say what was taken.

    Of a model's weights and their average (EMA) those named by `weights` are taken, and the average where there is nothing else. Raises
    UserError where there is no state dict or not the one asked for, and where it holds anything but dense tensors.
    """
    notes: list[str] = []
    is_average = False
    for _ in range(_MAX_WRAPPERS):
        if not isinstance(found, Mapping) or not found:
            break
        if all(isinstance(key, str) and key.startswith(_PREFIX) for key in found):
            found = {key.removeprefix(_PREFIX): value for key, value in found.items()}
            notes.append(f"the prefix {_PREFIX!r} of all keys was taken off")
            continue
        held = {
            kind: next((key for key in keys if isinstance(found.get(key), Mapping)), None)
            for kind, keys in _WRAPPERS.items()
        }
        chosen = held[weights] or held["model"] or held["ema"]
        if chosen is None:
            if weights == "ema" and not is_average:
                raise UserError(f"{where}: no averaged weights; weights='ema' takes {', '.join(_WRAPPERS['ema'])}")
            return _check_tensors(found, where), notes
        if held["ema"]:
            is_average = is_average or chosen == held["ema"]
            beside = (
                f", not those under {held['ema' if chosen == held['model'] else 'model']!r}" if held["model"] else ""
            )
            notes.append(f"the weights under {chosen!r} were taken{beside}")
        found = found[chosen]
    got = "an empty dict" if isinstance(found, Mapping) and not found else f"a {type(found).__name__}"
    raise UserError(f"{where}: {got} where a state dict (parameter names to tensors) is expected")


def _check_tensors(found: Mapping[Any, Any], where: str) -> dict[str, Tensor]:
    """The state dict, if it holds dense tensors by name; UserError names the first other entry."""
    for key, value in found.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise UserError(
                f"{where}: entry {shown(key)} is of type {type(value).__name__}; a state dict holds tensors by name, bare or under 'model' or 'state_dict'"
            )
        if value.layout is not torch.strided or value.is_meta or value.is_quantized:
            raise UserError(
                f"{where}: {key} is not a dense tensor with values ({value.layout}, {value.device}, {value.dtype})"
            )
    return dict(found)


def check_entries(
    given: Mapping[str, Tensor], wanted: Mapping[str, str], where: str, optional: Collection[str] = ()
) -> None:
    """Raise UserError, which begins with `where`, unless `given` holds every wanted key as `describe` says it, and nothing else but `optional`."""
    got = {key: describe(tensor, tensor.shape) for key, tensor in given.items()}
    problems = {
        "missing": [key for key in wanted if key not in got],
        "unexpected": [key for key in got if key not in wanted and key not in optional],
        "misshaped": [
            f"{key} is {got[key]} and should be {wanted[key]}"
            for key in wanted
            if key in got and got[key] != wanted[key]
        ],
    }
    found = [f"{len(keys)} {kind}: {format_names(keys, KEYS_SHOWN)}" for kind, keys in problems.items() if keys]
    if found:
        raise UserError(f"{where}; {'; '.join(found)}")


def describe(tensor: Tensor, shape: Sequence[int]) -> str:
    """`(1000, 512)`, with the kind of number where it is not floating point."""
    kind = "" if tensor.is_floating_point() else "complex " if tensor.is_complex() else "integer "
    return f"{kind}{tuple(shape)}"


def write_checkpoint(
    state: Mapping[str, Tensor], file: str | Path, metadata: Mapping[str, str] = MappingProxyType({})
) -> None:
    """Write a state dict as `.safetensors`, with metadata, or as `.pth` under `model`; the file is replaced as a whole.

    Raises UserError where it cannot be written.
    """
    path = Path(file)
    if path.suffix not in (".safetensors", ".pth"):
        raise UserError(
            f"{path}: a checkpoint is written as .safetensors or .pth, not {path.suffix or 'without a suffix'!r}"
        )

    def write(temporary: Path) -> None:
        temporary.touch()
        usual = stat.S_IMODE(temporary.stat().st_mode)
        try:
            if path.suffix == ".pth":
                torch.save({"model": dict(state)}, temporary)
            else:
                save_file(dict(state), temporary, metadata=dict(metadata) or {"format": "pt"})
        except (RuntimeError, SafetensorError) as error:  # torch.save reports a missing folder as RuntimeError
            raise OSError(str(error)) from error
        temporary.chmod(usual)  # safetensors gives its files to their owner alone

    replace_file(path, write)
