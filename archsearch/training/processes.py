"""The processes of a training: this one alone, or those that torchrun has started, each with its part of every batch."""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from archsearch.errors import RunError

_PATIENCE = timedelta(hours=6)  # one process may wait for the others while a device is measured on


@dataclass(frozen=True, kw_only=True)
class Processes:
    """The number of this process among all, `rank` of `world`, and its device."""

    rank: int
    world: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        """Whether this is the one that writes and speaks."""
        return self.rank == 0

    def wrap(self, network: nn.Module) -> nn.Module:
        """The network with gradients that are the mean over all processes."""
        if self.world == 1:
            return network
        return nn.parallel.DistributedDataParallel(
            network, device_ids=[self.device.index] if self.device.type == "cuda" else None
        )

    def total(self, values: Tensor) -> Tensor:
        """The sum over all processes, in place."""
        if self.world > 1:
            dist.all_reduce(values)
        return values

    def mean(self, value: Tensor) -> Tensor:
        """The mean over all processes of a tensor on the CPU, as a new one."""
        if self.world == 1:
            return value.clone()
        return self.total(value.to(self.device, copy=True)).cpu() / self.world

    def any(self, is_so: bool) -> bool:
        """Whether it is so in any process; all ask at the same place."""
        return bool(self.total(torch.tensor(float(is_so), device=self.device)).item()) if self.world > 1 else is_so

    def share_buffers(self, network: nn.Module) -> None:
        """Give all processes the first one's buffers, such as the statistics of BatchNorm: they are the ones that are written."""
        for buffer in network.buffers() if self.world > 1 else ():
            whole = buffer.contiguous()
            dist.broadcast(whole, 0)
            buffer.copy_(whole)

    def union(self, texts: set[str]) -> list[str]:
        """The texts of all processes, sorted."""
        found: list[Any] = [texts]
        if self.world > 1:
            found = [None] * self.world
            dist.all_gather_object(found, texts)
        return sorted(set().union(*found))

    def from_first(self, value: Any) -> Any:
        """The first process's value, a plain one, in all."""
        values = [value]
        if self.world > 1:
            dist.broadcast_object_list(values, device=self.device)
        return values[0]


@contextlib.contextmanager
def joined(device: torch.device) -> Iterator[Processes]:
    """The processes of torchrun (its variables RANK, WORLD_SIZE and LOCAL_RANK), joined meanwhile; without it this one alone."""
    world = int(os.environ.get("WORLD_SIZE", 1)) if "LOCAL_RANK" in os.environ else 1
    if world == 1:
        yield Processes(rank=0, world=1, device=device)
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    try:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=_PATIENCE)
    except (RuntimeError, ValueError) as error:
        raise RunError(f"the {world} processes of torchrun did not find each other: {error}") from error
    try:
        yield Processes(rank=dist.get_rank(), world=world, device=device)
    finally:
        dist.destroy_process_group()
