"""The same network twice: ours and timm's, as works to be timed in turn or weighed."""

from collections.abc import Callable
from typing import Any, Literal

import timm
import torch
from clock import Work
from torch import Tensor, nn
from torch.nn import functional

from archsearch import build, paper
from archsearch.errors import RunError
from archsearch.models import count_flop_counter

Side = Literal["ours", "timm"]
DTYPES = ("float32", "bfloat16", "amp_bfloat16")

# timm has no PVT v1 (its pvt_v2 is another network), CrossFormer, LIT, LITv2, MSG-Transformer or VAN.
TIMM = {
    "davit_tiny": "davit_tiny",
    "twins_svt_small": "twins_svt_small",
    "twins_pcpvt_small": "twins_pcpvt_small",
    "swin_tiny": "swin_tiny_patch4_window7_224",
}
SAME_WORK = 0.02


def make(side: Side, name: str, image_size: int) -> nn.Module:
    """A network in float32 without stochastic depth, laid out as its own library does."""
    if side == "ours":
        return build(paper(name), image_size=image_size)
    sized: dict[str, Any] = {"img_size": image_size} if name.startswith("swin") else {}  # the others take any size
    return timm.create_model(TIMM[name], drop_path_rate=0.0, **sized)


def check_same_work(name: str, image_size: int) -> tuple[int, int]:
    """MACs of one image without norms, ours and timm's; RunError where they differ by over 2 %."""
    cost = paper(name).cost(image_size)
    ours, theirs = cost.macs - cost.norm_macs, count_flop_counter(make("timm", name, image_size), image_size)
    if abs(ours - theirs) > SAME_WORK * theirs:
        raise RunError(f"{name} at {image_size} px: ours has {ours} MACs, timm's {theirs}; not the same network")
    return ours, theirs


def images(batch_size: int, image_size: int) -> Tensor:
    """Random-normal, (B, 3, H, W), as a data loader has them: not in channels_last memory."""
    return torch.randn(batch_size, 3, image_size, image_size, generator=torch.Generator().manual_seed(0))


def forward_of(model: nn.Module, x: Tensor, dtype: str) -> Work:
    """One forward in eval and inference mode; `bfloat16` turns the model itself into bfloat16."""
    model.eval()
    if dtype == "bfloat16":
        model.bfloat16()
        x = x.bfloat16()

    def forward() -> None:
        with torch.inference_mode(), _autocast(dtype):
            model(x)

    return forward


def training_step_of(model: nn.Module, x: Tensor, dtype: str) -> Work:
    """One step: forward, cross-entropy, backward, AdamW with torch's defaults."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    labels = torch.arange(len(x))

    def step() -> None:
        optimizer.zero_grad()
        with _autocast(dtype):
            loss = functional.cross_entropy(model(x), labels)
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        optimizer.step()

    return step


def _autocast(dtype: str) -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16, enabled=dtype == "amp_bfloat16")


WORKS: dict[str, Callable[[nn.Module, Tensor, str], Work]] = {"forward": forward_of, "train": training_step_of}
