"""The folder of a training: its lock, what was asked for, the checkpoint it goes on from, and its table of epochs."""

import contextlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from archsearch.errors import RunError, UserError, first_line, shown
from archsearch.results import LOCK_FILE, write_parquet
from archsearch.system import flocked, open_regular, replace_file

REQUEST_FILE, STATE_FILE, METRICS_FILE = "training.json", "checkpoint.pt", "metrics.parquet"
MODEL_FILE, EMA_FILE = "model.safetensors", "model_ema.safetensors"
_FORMAT = 1  # raised when a checkpoint of before cannot be read
_MOST_DIFFERENCES = 3
_PATIENCE_S = 0.5
_KEPT = "the last checkpoint is kept"


@contextlib.contextmanager
def training_lock(folder: Path) -> Iterator[None]:
    """Make the folder and lock it against a second process; the lock ends with this one, however that ends. Raises UserError where another has it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror}); choose a folder of your own") from error
    try:
        with flocked(descriptor, wait=False, patience_s=_PATIENCE_S) as is_locked:
            if not is_locked:
                raise UserError(
                    f"{folder}: another archsearch trains in this folder; wait for it, or choose another folder"
                )
            yield
    finally:
        os.close(descriptor)


def write_request(folder: Path, request: Mapping[str, Any]) -> None:
    """Write down what is asked for."""
    text = json.dumps({"format": _FORMAT, "request": request}, indent=2, allow_nan=False) + "\n"
    replace_file(folder / REQUEST_FILE, lambda path: path.write_text(text, encoding="utf-8"))


def check_request(folder: Path, request: Mapping[str, Any]) -> None:
    """Raise UserError where the folder is of something else, or of another training, and say what differs."""
    path = folder / REQUEST_FILE
    if not path.exists():
        if strange := sorted(name for name in os.listdir(folder) if name != LOCK_FILE and not name.startswith(".")):
            raise UserError(f"{folder}: holds {shown(strange[0])} and no training; choose a new folder")
        return
    try:
        with open_regular(path) as file:
            document = json.load(file)
        number, before = int(document["format"]), dict(document["request"])
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise UserError(f"{path}: damaged ({first_line(error)}); choose a new folder") from error
    if number != _FORMAT:
        raise UserError(f"{folder}: a training of format {number}, this is {_FORMAT}; choose a new folder")
    changed = differences(before, json.loads(json.dumps(request)))
    if changed:
        more = f" and {len(changed) - _MOST_DIFFERENCES} more" if len(changed) > _MOST_DIFFERENCES else ""
        raise UserError(
            f"{folder}: holds another training: {'; '.join(changed[:_MOST_DIFFERENCES])}{more}; give its command again to go on, or choose a new folder"
        )


def differences(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[str]:
    """What two requests differ in, in words: `epochs is 3 there and 5 here`."""
    found = []
    for key in sorted(before.keys() | now.keys()):
        old, new = before.get(key), now.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            found += differences(old, new, f"{prefix}{key}.")
        elif old != new:
            found.append(f"{prefix}{key} is {shown(old)} there and {shown(new)} here")
    return found


def write_state(folder: Path, state: Mapping[str, Any]) -> None:
    """Replace the checkpoint as a whole. Raises UserError where it cannot be written."""

    def write(temporary: Path) -> None:
        try:
            torch.save(dict(state), temporary)
        except RuntimeError as error:  # how torch.save reports a full disk
            raise OSError(str(error)) from error

    replace_file(folder / STATE_FILE, write, kept=_KEPT)


def read_state(folder: Path) -> dict[str, Any] | None:
    """The checkpoint, on the CPU; None where there is none yet. Nothing in it is run. Raises RunError where it is damaged."""
    path = folder / STATE_FILE
    if not path.exists():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file may raise anything
        raise RunError(
            f"{path}: damaged ({type(error).__name__}); delete it, and the same command begins at the first epoch"
        ) from error
    return state


def write_metrics(folder: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """The table of epochs, replaced as a whole."""
    table = pa.Table.from_pylist([dict(row) for row in rows])
    replace_file(folder / METRICS_FILE, lambda path: write_parquet(table, path), kept=_KEPT)
