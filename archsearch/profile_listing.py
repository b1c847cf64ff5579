"""What `archsearch proxies` prints: the house's profiles, how small their copies are and how long they train."""

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from rich.console import Group

from archsearch.proxy.profiles import Proxy, load_profile, proxy_names
from archsearch.tables import make_table, titled
from archsearch.units import format_count

PROXIES_NOTE = (
    "img are the training images of a candidate; rungs are where it may be stopped, in parts of the last number. What is trained is a copy at these "
    "pixels and widths; MACs, params and img/s of a run are always the full network's. `archsearch proxies NAME` prints a profile's file, to be "
    "changed and given to `archsearch run --proxy FILE`; a changed one has another proxy_id, and scores of two proxy_ids are never compared."
)


def proxy_list() -> list[dict[str, Any]]:
    """Every profile of the house as plain values."""
    return [document(load_profile(name)) for name in proxy_names()]


def document(proxy: Proxy) -> dict[str, Any]:
    """One profile as plain values."""
    return {**asdict(proxy), "train_images": proxy.recipe.steps * proxy.recipe.batch_size}


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
