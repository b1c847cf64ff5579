"""The papers' own parameter names for our modules, and the deterministic weights under which the reference logits were made.

Convention `crc32-pcg64 v1`: every floating tensor is a standard normal draw from PCG64(crc32(official key)), cast to float32, scaled by its shape and name.
"""

import re
import zlib

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

_RULES: dict[str, list[tuple[str, str]]] = {
    "davit": [
        (r"^stem\.(proj|norm)", r"patch_embeds.0.\1"),
        (r"^stages\.(\d)\.downsample", r"patch_embeds.{0-1}"),
        (r"^stages\.(\d)\.blocks\.(\d+)\.cpe([12])", r"main_blocks.{0-1}.{1-1//2}.{1-1%2}.cpe.{2-1}.proj"),
        (r"^stages\.(\d)\.blocks\.(\d+)", r"main_blocks.{0-1}.{1-1//2}.{1-1%2}"),
        (r"^head\.norm", "norms"),
    ],
    "crossformer": [
        (r"^stem", "patch_embed"),
        (r"^stages\.(\d)\.downsample", r"layers.{0-2}.downsample"),
        (r"^stages\.(\d)\.blocks\.(\d+)", r"layers.{0-1}.blocks.{1-1}"),
        (r"^head\.norm", "norm"),
    ],
    "van": [
        (r"^stem", "patch_embed1"),
        (r"^stages\.(\d)\.downsample", r"patch_embed{0}"),
        (r"^stages\.(\d)\.stage-norm", r"norm{0}"),
        (r"^stages\.(\d)\.blocks\.(\d+)\.mlp\.dwconv", r"block{0}.{1-1}.mlp.dwconv.dwconv"),
        (r"^stages\.(\d)\.blocks\.(\d+)", r"block{0}.{1-1}"),
        (r"^head\.norm", "norm4"),
    ],
    "twins": [
        (r"^stem", "patch_embeds.0"),
        (r"^stages\.(\d)\.downsample", r"patch_embeds.{0-1}"),
        (r"^stages\.(\d)\.peg\.proj", r"pos_block.{0-1}.proj.0"),
        (r"^stages\.(\d)\.blocks\.(\d+)", r"blocks.{0-1}.{1-1}"),
        (r"^head\.norm", "norm"),
    ],
    "lit": [
        (r"^stem", "patch_embed"),
        (r"^stages\.(\d)\.downsample", r"layers.{0-2}.downsample"),
        (r"^stages\.(\d)\.blocks\.(\d+)\.mlp\.dwconv", r"layers.{0-1}.blocks.{1-1}.mlp.dwconv.dwconv"),
        (r"^stages\.(\d)\.blocks\.(\d+)", r"layers.{0-1}.blocks.{1-1}"),
        (r"^head\.norm", "norm"),
    ],
}
_NUMBER = re.compile(r"\{(\d)(?:-(\d))?((?://|%)2)?\}")


def official_key(model: str, key: str) -> str:
    """The official state-dict key of one of ours; stages and blocks count from 1 here and from 0 there."""
    family = next(name for name in _RULES if model.startswith(name))
    for pattern, template in _RULES[family]:
        match = re.search(pattern, key)
        if match:
            return _fill_numbers(template, match) + key[match.end() :]
    return re.sub(r"^head\.fc", "head", key)


def _fill_numbers(template: str, match: re.Match[str]) -> str:
    """`{0-1}` is the first group less 1; `//2` and `%2` then take pair and place in the pair."""

    def number(spec: re.Match[str]) -> str:
        value = int(match[int(spec[1]) + 1]) - int(spec[2] or 0)
        return str(value // 2 if spec[3] == "//2" else value % 2 if spec[3] == "%2" else value)

    return _NUMBER.sub(number, match.expand(re.sub(r"\\(?!\d)", r"\\\\", template)) if "\\" in template else template)


def official_tensor(key: str, shape: tuple[int, ...]) -> Tensor:
    """The convention's values for an official key."""
    values = _normal(key, shape)
    last = key.rsplit(".", 1)[-1]
    if last == "running_var":
        values = np.float32(1) + np.float32(0.1) * np.abs(values)
    elif len(shape) <= 1:
        values = np.float32(1) + np.float32(0.1) * values if last == "weight" else np.float32(0.1) * values
    else:
        values = values / np.float32(np.sqrt(np.prod(shape[1:])))
    return torch.from_numpy(values)


def official_input(height: int, width: int) -> Tensor:
    """The convention's image."""
    return torch.from_numpy(_normal(f"input-1x3x{height}x{width}", (1, 3, height, width)))


def _normal(name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    generator = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode())))
    return generator.standard_normal(int(np.prod(shape))).astype(np.float32).reshape(shape)


def fill_official(model: nn.Module, name: str) -> None:
    """Give a model the convention's weights; 1x1 convolutions that are Linear here have the same values in another shape."""
    state = model.state_dict()
    for key, tensor in state.items():
        if tensor.is_floating_point():
            state[key] = official_tensor(official_key(name, key), tuple(tensor.shape))
    model.load_state_dict(state)
