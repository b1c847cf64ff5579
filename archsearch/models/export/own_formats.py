"""The formats that need archsearch to be loaded: timm's folder, our safetensors file, the architecture as TOML."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from archsearch.errors import RunError
from archsearch.models.checkpoints import load, save
from archsearch.models.export.check import Check, check_file, check_images
from archsearch.models.export.onnx import quiet_exporter
from archsearch.models.network import Network
from archsearch.models.timm_models import register_timm_models
from archsearch.models.timm_network import HYBRID, create_timm_network, timm_config
from archsearch.space import Arch, arch_toml, load_space

CONFIG, WEIGHTS = "config.json", "model.safetensors"  # the names that timm looks for
_IMAGES = 8  # the same code runs on the same numbers: fewer than where another runtime does


def write_timm(network: Network, folder: Path, *, provenance: Mapping[str, Any]) -> Check:
    """Write `config.json` and `model.safetensors` into a folder, which timm and, the second alone, `archsearch.load` read.

    The folder is loaded by `timm.create_model` and compared with the network first. Raises RunError where the logits differ.
    """
    import timm  # here: it takes seconds to import
    from timm.models._hub import save_config_for_hf

    save(network, folder / WEIGHTS, provenance=provenance)
    with quiet_exporter():
        options: dict[str, Any] = {"arch": network.arch.to_dict(), "img_size": network.size}
        config: Any = folder / CONFIG  # timm says text, and before 1.0.31 wants a path
        save_config_for_hf(_timm_model(network, provenance), config, model_args=options)
        register_timm_models()
        loaded = timm.create_model(f"local-dir:{folder.resolve()}", pretrained=True)
    return _checked("timm", loaded, network)


def _timm_model(network: Network, provenance: Mapping[str, Any]) -> Any:
    """The network as timm's model, for its configuration."""
    config = timm_config(network.arch, network.size, provenance)
    return create_timm_network(
        HYBRID,
        network.arch,
        pretrained_cfg=config,
        num_classes=network.num_classes,
        in_chans=network.arch.in_chans,
        img_size=network.size,
    )


def write_safetensors(network: Network, file: Path, *, provenance: Mapping[str, Any]) -> Check:
    """Write our own checkpoint, which `archsearch.load` reads. Raises RunError where the logits differ."""
    save(network, file, provenance=provenance)
    return _checked("safetensors", load(file), network)


def _checked(what: str, loaded: nn.Module, network: Network) -> Check:
    """The loaded network compared with the one that was written."""
    images = check_images(network.size, network.arch.in_chans, None)[:_IMAGES]
    return check_file(what, torch.inference_mode()(loaded.eval()), network, images, _IMAGES)


def write_toml(arch: Arch, file: Path, blocks: Sequence[str] = ()) -> None:
    """Write the architecture as a space of size one; `blocks` are the files of its own blocks. Raises RunError where it is read as another one."""
    file.write_text(arch_toml(arch, blocks), encoding="utf-8")
    found = load_space(file).arch()
    if found.arch_id != arch.arch_id:
        raise RunError(f"export: the TOML file is read as {found.arch_id}, not {arch.arch_id}; nothing was written")
