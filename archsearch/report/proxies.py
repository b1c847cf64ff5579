"""`archsearch proxies` and `archsearch score`: the shipped profiles of proxies, and training-free scores, as documents and as tables."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from rich.console import Group

from archsearch.proxy import Profile, load_profile, profile_names
from archsearch.proxy.training_free import SCORES, aggregate, scores
from archsearch.report.tables import Document, make_table, text, titled
from archsearch.space import Arch
from archsearch.units import format_count

PROXIES_NOTE = (
    "img are the training images of a candidate; rungs are where it may be stopped, in parts of the last number. What is trained is a copy at these "
    "pixels and widths; MACs, params and img/s of a run are always the full network's. `archsearch proxies NAME` prints a profile's file; change it and "
    "give it to `archsearch run --proxy FILE`. A changed profile has another proxy_id, and scores of two proxy_ids are never compared."
)


def profile_list() -> list[dict[str, Any]]:
    """Every shipped profile as plain values."""
    return [profile_document(load_profile(name)) for name in profile_names()]


def profile_document(profile: Profile) -> dict[str, Any]:
    """One profile as plain values."""
    return {**profile.to_dict(), "train_images": profile.recipe.steps * profile.recipe.batch_size}


def profile_table(profiles: Iterable[Document]) -> Group:
    """One row for each profile."""
    columns = ["proxy", "data", "px", "widths", "steps", "batch", "img", "rungs", "dtype", "what"]
    return titled("Proxies", make_table(columns, map(_profile_row, profiles), left=["proxy", "data", "what"]))


def _profile_row(profile: Document) -> list[str]:
    scale, recipe = profile["profile"], profile["recipe"]
    divisor = scale["width_divisor"]
    return [
        profile["name"],
        "--data" if profile["data"] == "images" else profile["data"],
        str(scale["image_size"]),
        "full" if divisor == 1 else f"1/{divisor}",
        str(recipe["steps"]),
        str(recipe["batch_size"]),
        format_count(profile["train_images"]),
        ",".join(map(str, profile["rungs"])) or "-",
        recipe["dtype"],
        profile["title"],
    ]


FREE_NOTE = (
    "Training-free scores of an untrained copy at 128 px, full widths; more is better. az_nas ranks these architectures among themselves. None of them "
    "is an accuracy, and a run uses none to stop candidates unless --free-rung names it; `archsearch audit` compares how well they order architectures."
)


def score_list(
    archs: Mapping[str, Arch], *, batch_size: int, seed: int, device: str, progress: Callable[[str], None]
) -> list[dict[str, Any]]:
    """One document for each architecture; `progress` is called with the name of each before it is scored."""
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


def score_table(documents: Sequence[Document]) -> Group:
    """One row for each architecture."""
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
