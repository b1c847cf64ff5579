"""The identity of a throughput: which figures may be ranked together."""

import json
from typing import Any

import pytest

from archsearch.identity import identity_differences, identity_digest, row_identity, with_throughput_ids

ROW: dict[str, Any] = {
    "device": "cuda",
    "dtype": "float32",
    "mode": "eager",
    "batch_size": 128,
    "image_size": 224,
    "device_name": "NVIDIA H100 80GB HBM3",
    "torch_version": "2.11.0+cu130",
    "throughput_img_s": 2834.0,
    "throughput_raw_img_s": 2835.0,
    "throughput_id": None,
}
CONDITIONS = {
    "device_name": "NVIDIA H100 80GB HBM3",
    "torch": "2.11.0+cu130",
    "cuda": "13.0",
    "cudnn": 91900,
    "driver": "580.95.05",
    "threads": 16,
    "host_cpu": "AMD EPYC 9654",
    "python": "3.12.3",
    "date": "2026-01-02T03:04:05+00:00",
    "reference": "van_b0",
}


def row(conditions: dict[str, Any] | None = None, **columns: Any) -> dict[str, Any]:
    return {**ROW, **columns, "conditions": json.dumps({**CONDITIONS, **(conditions or {})})}


def digest(conditions: dict[str, Any] | None = None, **columns: Any) -> str:
    return identity_digest(row_identity(row(conditions, **columns)))


@pytest.mark.parametrize(
    ("conditions", "columns", "words"),
    [
        ({"device_name": "NVIDIA A100"}, {}, "device NVIDIA H100 80GB HBM3 then, NVIDIA A100 now"),
        ({"threads": 2}, {}, "threads 16 then, 2 now"),
        ({"torch": "2.12.0"}, {}, "torch 2.11 then, 2.12 now"),
        ({"cuda": "12.8"}, {}, "cuda 13.0 then, 12.8 now"),
        ({"cudnn": 92000}, {}, "cudnn 9.19 then, 9.20 now"),
        ({"cudnn": 8902}, {}, "cudnn 9.19 then, 8.9 now"),
        ({"driver": None}, {}, "driver 580.95.05 then, unknown now"),
        ({"reference": "van_b1"}, {}, "ranked figure ratio to van_b0 then, ratio to van_b1 now"),
        ({}, {"throughput_raw_img_s": None}, "ranked figure ratio to van_b0 then, images/s as timed now"),
        ({}, {"dtype": "bfloat16"}, "dtype float32 then, bfloat16 now"),
        ({}, {"mode": "compile"}, "mode eager then, compile now"),
        ({}, {"batch_size": 64}, "batch size 128 then, 64 now"),
        ({}, {"image_size": 384}, "image size 224 then, 384 now"),
        ({"image_width": 320}, {}, "image width 224 then, 320 now"),
        ({"in_chans": 4}, {}, "channels 3 then, 4 now"),
    ],
)
def test_every_part_makes_another_identity_and_is_named(
    conditions: dict[str, Any], columns: dict[str, Any], words: str
) -> None:
    other = row(conditions, **columns)
    assert identity_differences(row_identity(row()), row_identity(other)) == words
    assert digest(conditions, **columns) != digest()


@pytest.mark.parametrize(
    "conditions",
    [
        {"torch": "2.11.1+cu130"},
        {"cudnn": 91901},
        {"cuda": "13.0.1"},
        {"date": "later", "python": "3.13", "sm_clock_mhz": "1980", "again": {"date": "later"}},
        {"host_cpu": "Intel Xeon"},  # it does not compute
    ],
)
def test_what_does_not_count(conditions: dict[str, Any]) -> None:
    assert digest(conditions) == digest()


def test_a_cpus_identity_is_its_processor_and_knows_no_gpu() -> None:
    cpu = {"device": "cpu", "device_name": "AMD EPYC"}
    conditions = {"device_name": "AMD EPYC", "cuda": None, "cudnn": None, "driver": None}
    assert digest(conditions, **cpu) != digest({**conditions, "device_name": "Intel Xeon"}, **cpu)
    assert digest(conditions, **cpu) == digest({**conditions, "driver": "580"}, **cpu)


def test_rows_of_an_earlier_version_get_their_identity_and_ones_without_a_timing_none() -> None:
    old = {**row(), "throughput_raw_img_s": None}
    bare = {**old, "conditions": None}
    named, bare_named, kept, none = with_throughput_ids(
        [old, bare, {**old, "throughput_id": "abc"}, {**old, "throughput_img_s": None}]
    )
    assert named["throughput_id"] == identity_digest(row_identity(old))
    assert row_identity(bare) == {**row_identity(old), "threads": None, "cuda": None, "cudnn": None, "driver": None}
    assert bare_named["throughput_id"] not in (None, named["throughput_id"])
    assert (kept["throughput_id"], none["throughput_id"]) == ("abc", None)
