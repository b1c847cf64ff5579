"""What `archsearch proxies` prints: the house's profiles, how small their copies are and how long they train."""

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from rich.console import Group

from archsearch.proxy.profiles import Profile, load_profile, profile_names
from archsearch.proxy.training_free import SCORES, aggregate, scores
from archsearch.report.tables import make_table, text, titled
from archsearch.space.arch import Arch
from archsearch.units import format_count

PROXIES_NOTE = (
    "img are the training images of a candidate; rungs are where it may be stopped, in parts of the last number. What is trained is a copy at these "
    "pixels and widths; MACs, params and img/s of a run are always the full network's. `archsearch proxies NAME` prints a profile's file, to be "
    "changed and given to `archsearch run --proxy FILE`; a changed one has another proxy_id, and scores of two proxy_ids are never compared."
)


def proxy_list() -> list[dict[str, Any]]:
    """Every profile of the house as plain values."""
    return [document(load_profile(name)) for name in profile_names()]


def document(profile: Profile) -> dict[str, Any]:
    """One profile as plain values."""
    return {**profile.to_dict(), "train_images": profile.recipe.steps * profile.recipe.batch_size}


def proxy_table(proxies: Iterable[dict[str, Any]]) -> Group:
    """A row each."""
    columns = ["proxy", "data", "px", "widths", "steps", "batch", "img", "rungs", "dtype", "what"]
    return titled("Proxies", make_table(columns, map(_cells, proxies), left=["proxy", "data", "what"]))


def _cells(proxy: dict[str, Any]) -> list[str]:
    profile, recipe = proxy["profile"], proxy["recipe"]
    divisor = profile["width_divisor"]
    return [
        proxy["name"],
        "--data" if proxy["data"] == "images" else proxy["data"],
        str(profile["image_size"]),
        "full" if divisor == 1 else f"1/{divisor}",
        str(recipe["steps"]),
        str(recipe["batch_size"]),
        format_count(proxy["train_images"]),
        ",".join(map(str, proxy["rungs"])) or "-",
        recipe["dtype"],
        proxy["title"],
    ]


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
