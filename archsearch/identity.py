"""The identity of a throughput: on what, and how, it was timed. Only figures of one identity are ranked together.

A part that is not known counts as a value of its own, equal to itself alone: a figure whose driver is unknown (NVML is not installed) is
not ranked with one whose driver is known.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

Identity = dict[str, str | int | None]

RAW_FIGURE = "images/s as timed"
_ID_DIGITS = 12
_SETTINGS = ("device", "dtype", "mode", "batch_size", "image_size")
# Parts that came later: they belong to an identity only where they are given, so that those from before are what they were.
_LATER_SETTINGS = ("image_width", "in_chans")
# Of a figure that another runtime than torch gave.
_RUNTIME = ("runtime", "runtime_version", "precision")
_WORDS = {
    "device_name": "device",
    "batch_size": "batch size",
    "image_size": "image size",
    "image_width": "image width",
    "in_chans": "channels",
    "tf32": "TF32",
    "figure": "ranked figure",
    "runtime_version": "runtime's version",
}


def throughput_identity(row: Mapping[str, Any], conditions: Mapping[str, Any], figure: str) -> Identity:
    """The parts that make two throughputs comparable.

    `row` has the columns of a trial, or the settings of a run; `conditions` are those of `device.conditions`, as stored with a figure;
    `figure` is what is ranked (`ratio_figure`, or RAW_FIGURE for rows of versions that ranked the images/s as timed). Of a CPU the device's
    name is the host CPU's. torch, CUDA and cuDNN count by the first two numbers of their versions, the driver whole. The parts
    `image_width` and `in_chans` are there where an image is not square (`image_size` is then its height) and has not 3 channels, `tf32`
    where float32 matrix products on CUDA may use it, and those of the runtime where it is not torch.
    """
    is_cuda = row.get("device") == "cuda"
    is_torch = conditions.get("runtime") in (None, "torch")
    later = {name: row.get(name) or conditions.get(name) for name in _LATER_SETTINGS}
    return {
        "device_name": conditions.get("device_name") or row.get("device_name"),
        **{name: row.get(name) for name in _SETTINGS},
        **{name: value for name, value in later.items() if value is not None},
        **({"tf32": "allowed"} if is_cuda and conditions.get("tf32_matmul") else {}),
        **({} if is_torch else {name: conditions.get(name) for name in _RUNTIME}),
        "threads": conditions.get("threads"),
        "torch": _two_numbers(conditions.get("torch") or row.get("torch_version")),
        "cuda": _two_numbers(conditions.get("cuda")) if is_cuda else None,
        "cudnn": _cudnn(conditions.get("cudnn")) if is_cuda else None,
        "driver": conditions.get("driver") if is_cuda else None,
        "figure": figure,
    }


def ratio_figure(reference: str | None) -> str:
    """What is ranked: the ratio to the reference model of this name, in images/s by one rate for the whole run."""
    return f"ratio to {reference or 'the reference'}"


def row_identity(row: Mapping[str, Any]) -> Identity:
    """The identity of the throughput in a row of trials.parquet, whichever version wrote it."""
    conditions = row["conditions"] or {}
    if isinstance(conditions, str):
        conditions = json.loads(conditions)
    is_raw = row.get("throughput_raw_img_s") is None
    return throughput_identity(row, conditions, RAW_FIGURE if is_raw else ratio_figure(conditions.get("reference")))


def identity_digest(identity: Identity) -> str:
    """Twelve hexadecimal digits that name an identity: the column `throughput_id`."""
    text = json.dumps(identity, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:_ID_DIGITS]


def with_throughput_ids(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows with their `throughput_id`, computed where an earlier version wrote none; rows without a throughput have none."""
    return [
        row
        if row["throughput_id"] is not None or row["throughput_img_s"] is None
        else {**row, "throughput_id": identity_digest(row_identity(row))}
        for row in rows
    ]


def identity_differences(one: Identity, other: Identity, when: str = "then", other_when: str = "now") -> str:
    """`threads 1 then, 2 now`: the parts that differ."""
    return "; ".join(
        f"{_WORDS.get(name, name)} {_shown(one, name)} {when}, {_shown(other, name)} {other_when}"
        for name in dict.fromkeys([*other, *one])
        if one.get(name) != other.get(name)
    )


def _shown(identity: Identity, name: str) -> str | int:
    """The value of a part; of a later one that is absent, the usual value."""
    usual = {"image_width": identity.get("image_size"), "in_chans": 3, "tf32": "not allowed", "runtime": "torch"}.get(
        name
    )
    value = identity.get(name, usual)
    return "unknown" if value is None else value


def _two_numbers(version: Any) -> str | None:
    """`2.14` of `2.14.1+cpu`."""
    found = re.match(r"\d+(\.\d+)?", str(version))
    return found[0] if found else None


def _cudnn(version: Any) -> str | None:
    """`9.19` of 91900 and `8.9` of 8902: cuDNN gives its version as one number, before version 9 with one digit less."""
    if not isinstance(version, int):
        return _two_numbers(version)
    major = 10_000 if version >= 90_000 else 1_000
    return f"{version // major}.{version % major // 100}"
