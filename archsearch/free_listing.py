"""What `archsearch score` prints: training-free scores of architectures, and what they are not."""

import time
from collections.abc import Callable, Mapping
from typing import Any

from rich.console import Group

from archsearch.proxy.training_free import SCORES, aggregate, scores
from archsearch.space.arch import Arch
from archsearch.tables import make_table, text, titled
from archsearch.units import format_count

FREE_NOTE = (
    "Training-free scores of an untrained copy at 128 px, full widths; more is better. az_nas ranks these architectures among themselves. None of them "
    "is an accuracy, and none judges candidates unless a run is told so; `archsearch audit` says how well they order architectures beside a proxy."
)


def score_list(
    archs: Mapping[str, Arch], *, batch_size: int, seed: int, device: str, progress: Callable[[str], None]
) -> list[dict[str, Any]]:
    """One document an architecture; `progress` is told the name of each before it is at work."""
    documents: list[dict[str, Any]] = []
    for name, arch in archs.items():
        progress(name)
        start = time.perf_counter()
        found = scores(arch, batch_size=batch_size, seed=seed, device=device)
        documents.append({"name": name, "arch_id": arch.arch_id, **found, "seconds": time.perf_counter() - start})
    if len(documents) > 1:
        for document, value in zip(documents, aggregate(documents), strict=True):
            document["az_nas"] = float(value)
    return documents


def score_table(documents: list[dict[str, Any]]) -> Group:
    """A row an architecture."""
    names = [name for name in SCORES if name not in ("params", "macs")]
    columns = ["architecture", "params", "MACs", *names, "az_nas", "seconds"]
    rows = [
        [
            document["name"],
            format_count(int(document["params"])),
            format_count(int(document["macs"])),
            *(text(document[name], ".3f") for name in names),
            text(document.get("az_nas"), ".2f"),
            text(document["seconds"], ".1f"),
        ]
        for document in documents
    ]
    return titled("Training-free scores", make_table(columns, rows, left=["architecture"]))
