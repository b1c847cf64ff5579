"""timm's networks as the subjects of an audit: the carried table of published figures, and their scores, stored one by one."""

import csv
import importlib.util
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import torch
from torch import nn

from archsearch.blocks import module_spectral_capacity
from archsearch.device import conditions
from archsearch.errors import UserError
from archsearch.models import build
from archsearch.proxy.audit.store import FREE_FILE, AuditStore, read_json
from archsearch.proxy.training.determinism import own_random_numbers
from archsearch.proxy.training_free.blocks import find_blocks
from archsearch.proxy.training_free.scores import draw_batches, network_scores
from archsearch.space import Band, paper, paper_space
from archsearch.system import Progress, Say, replace_file
from archsearch.units import format_seconds

IMAGE_SIZE = 224  # of the published figures, and of the scores
BATCH_SIZE, SEED, _CLASSES = 4, 0, 1000
_MILLION, _BILLION = 10**6, 10**9

Scores = dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Network:
    """A network with its published figures; `top1_in1k` is the best of its checkpoints that were trained on ImageNet-1k alone, None without any.

    `family` is timm's module, or the paper; `mixer` is `attention` (in every stage), `mixed`, `convolution`, or `paper`. Figures are of one image of 224 px.
    """

    name: str
    family: str
    mixer: str
    top1_in1k: float | None
    top1_any: float
    macs: int
    activations: int
    params: int

    @property
    def top1(self) -> float:
        """Percent of ImageNet's validation images; with other data only where there is no checkpoint without."""
        return self.top1_any if self.top1_in1k is None else self.top1_in1k


def timm_networks(band: Band) -> list[Network]:
    """The hierarchical mixers of timm whose published multiply-adds are in the band."""
    file = resources.files("archsearch") / "proxy" / "shipped" / "timm" / "networks.csv"
    networks = [_network(row) for row in csv.DictReader(file.read_text(encoding="utf-8").splitlines())]
    return [network for network in networks if band.low <= network.macs <= band.high]


def _network(row: Mapping[str, str]) -> Network:
    return Network(
        name=row["architecture"],
        family=row["family"],
        mixer=row["mixer"],
        top1_in1k=float(row["top1_in1k"]) if row["top1_in1k"] else None,
        top1_any=float(row["top1_any"]),
        macs=round(float(row["gmacs"]) * _BILLION),
        activations=round(float(row["macts_m"]) * _MILLION),
        params=round(float(row["params_m"]) * _MILLION),
    )


def paper_networks(names: Sequence[str]) -> list[Network]:
    """The papers' models with their papers' top-1; those without are left out."""
    published = {name: paper_space(name).paper.get("top1") for name in names}
    return [_paper_network(name, float(top1)) for name, top1 in published.items() if top1 is not None]


def _paper_network(name: str, top1: float) -> Network:
    cost = paper(name).cost(IMAGE_SIZE)
    return Network(
        name=name,
        family=name,
        mixer="paper",
        top1_in1k=top1,
        top1_any=top1,
        macs=cost.macs,
        activations=cost.activations,
        params=cost.params,
    )


def require_timm() -> None:
    """Raises UserError where timm is not installed."""
    if importlib.util.find_spec("timm") is None:
        raise UserError("--timm: the package timm is not installed; `pip install timm` installs it")


def score_all(
    networks: Sequence[Network], store: AuditStore, device: torch.device, *, say: Say, progress: Progress
) -> dict[str, Scores]:
    """The scores of each network by name, each stored as soon as it is there; of those stored before, from the folder.

    Another process on the same folder waits. A network that the installed timm does not know is told and left out.
    """
    path = store.folder / FREE_FILE
    with store.locked("training_free"):
        stored = read_json(path)
        known: dict[str, Any] = stored if isinstance(stored, dict) else {}
        missing = [network for network in networks if _key(network, device) not in known]
        for number, network in enumerate(missing):
            progress(number, len(missing), network.name)
            build_network = _builder(network)
            if build_network is None:
                say(f"{network.name}: unknown to the installed timm, and left out")
                continue
            start = time.perf_counter()
            found = _scores(build_network, device)
            seconds = time.perf_counter() - start
            known[_key(network, device)] = {"scores": found, "seconds": seconds, "conditions": conditions(device)}
            text = json.dumps(known)
            replace_file(path, lambda temporary, text=text: temporary.write_text(text, encoding="utf-8"))  # type: ignore[misc]  # a default that binds
            say(f"[{number + 1}/{len(missing)}] {network.name}: {format_seconds(seconds)}")
    entries = {network.name: known.get(_key(network, device)) for network in networks}
    return {name: {**entry["scores"], "seconds": entry["seconds"]} for name, entry in entries.items() if entry}


def _key(network: Network, device: torch.device) -> str:
    """Everything that the scores depend on, but for versions of the packages."""
    source = "archsearch" if network.mixer == "paper" else "timm"
    return f"{source}:{network.name} {IMAGE_SIZE}px batch{BATCH_SIZE} seed{SEED} {device.type}"


def _builder(network: Network) -> Callable[[], nn.Module] | None:
    """Makes the network with its own initialisation; None where timm does not know it."""
    if network.mixer == "paper":
        return lambda: build(network.name, image_size=IMAGE_SIZE)
    import timm  # here: it takes seconds to import

    return (lambda: timm.create_model(network.name)) if timm.is_model(network.name) else None


def _scores(build_network: Callable[[], nn.Module], device: torch.device) -> Scores:
    """The training-free scores of a network at full width, and its spectral capacity; the caller's random state does not change."""
    with own_random_numbers(device):
        torch.manual_seed(SEED)
        network = build_network()
        image = (3, IMAGE_SIZE, IMAGE_SIZE)
        batches = draw_batches(image, _CLASSES, batch_size=BATCH_SIZE, seed=SEED, device=device)
        network.to(device)
        blocks = find_blocks(network, batches.images[0, :1])
        found = network_scores(network, blocks.names, batches, blocks.channel_dims)
    return {"nsc": module_spectral_capacity(network), **found}
