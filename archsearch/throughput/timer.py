"""A network made ready for a protocol, and blocks of its passes timed on one device."""

import copy
import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from archsearch.device import seconds_of
from archsearch.errors import UserError
from archsearch.throughput.protocol import Protocol

Forward = Callable[[Tensor], Tensor]
Run = Callable[[int], None]

# Enough that no pass finds its input in a cache it has just warmed itself, few enough to make quickly.
_NUM_INPUTS = 3
# A step costs the same at any rate; at this one weights stay where they were for thousands of steps, and losses finite.
_LEARNING_RATE = 1e-6


@dataclass(frozen=True, kw_only=True)
class WarmUp:
    """What a warm-up took: the first pass by the wall, and the seconds an iteration lasts at its end."""

    iterations: int
    first_s: float
    seconds_each: float


@dataclass(frozen=True, kw_only=True)
class Stopwatch:
    """A network on its device with its inputs, ready to be timed; `run` does so many iterations."""

    run: Run
    protocol: Protocol
    device: torch.device

    @classmethod
    def of(cls, network: nn.Module, inputs: list[Tensor], protocol: Protocol, device: torch.device) -> Self:
        """UserError when a network without parameters, or whose output is no (B, classes), is to be trained."""
        network.to(device)
        make = _train if protocol.task == "train" else _infer
        return cls(run=make(network, inputs, protocol, device), protocol=protocol, device=device)

    def rate(self, iterations: int) -> float:
        """Images per second over one block."""
        return iterations * self.protocol.batch_size / self._seconds(iterations)

    def wake(self) -> int:
        """Run one block of a network warmed up before; the iterations of a block."""
        per_block = self.protocol.iterations_per_block(self._seconds(1))
        self._seconds(per_block)
        return per_block

    def quick_rate(self) -> float:
        """Images per second of a network warmed up before: one block to wake it, then a third of a round."""
        per_block = self.wake()
        return statistics.median(self.rate(per_block) for _ in range(max(2, self.protocol.min_blocks // 3)))

    def warm_up(self) -> WarmUp:
        """Run until the protocol calls it warm."""
        # The first pass compiles, chooses algorithms and allocates: its time is not a warm-up's.
        start = time.perf_counter()
        self._seconds(1)
        first_s = time.perf_counter() - start
        done, spent_s, seconds_each, per_block = 1, 0.0, list[float](), 1
        while not self.protocol.is_warm(done, spent_s, seconds_each):
            seconds = self._seconds(per_block)
            done += per_block
            spent_s += seconds
            seconds_each.append(seconds / per_block)
            per_block = self.protocol.iterations_per_block(seconds_each[-1])
        return WarmUp(iterations=done, first_s=first_s, seconds_each=statistics.median(seconds_each[-5:]))

    def _seconds(self, iterations: int) -> float:
        return seconds_of(lambda: self.run(iterations), self.device)


def make_inputs(protocol: Protocol, device: torch.device) -> list[Tensor]:
    """Random-normal images, (B, 3, H, W) in channels_last: zeros would run faster."""
    generator = torch.Generator(device).manual_seed(0)
    shape = (protocol.batch_size, 3, protocol.image_size, protocol.image_size)
    images = (torch.randn(shape, generator=generator, device=device) for _ in range(_NUM_INPUTS))
    dtype = torch.bfloat16 if protocol.dtype == "bfloat16" else torch.float32
    return [batch.to(dtype).contiguous(memory_format=torch.channels_last) for batch in images]


@contextmanager
def prepared(model: nn.Module, protocol: Protocol) -> Iterator[nn.Module]:
    """The network to time, in eval mode: the model itself, or a copy where timing would change its values.

    Training moves weights and running statistics, and a cast to bfloat16 cannot be undone. Saved values would take the
    same memory as the copy, and an error halfway would leave the caller's model changed. Submodules' training flags come
    back afterwards: some may have been frozen singly.
    """
    flags = [(part, part.training) for part in model.modules()]
    try:
        yield (_own(model, protocol) if _changes(protocol) else model).eval()
    finally:
        # Through train(), not the flags alone: a block may override it to drop what it has cached for eval.
        model.train(flags[0][1])
        for part, training in flags:
            part.training = training


def _changes(protocol: Protocol) -> bool:
    return protocol.task == "train" or protocol.dtype == "bfloat16"


def _own(model: nn.Module, protocol: Protocol) -> nn.Module:
    """A copy in the protocol's number format; integer buffers stay integers."""
    model.train()  # drops what blocks have cached for eval in the old format
    own = copy.deepcopy(model)
    return own.to(torch.bfloat16) if protocol.dtype == "bfloat16" else own


def _compiled(network: nn.Module, protocol: Protocol) -> Forward:
    return torch.compile(network, dynamic=False) if protocol.mode == "compile" else network


def _infer(network: nn.Module, inputs: list[Tensor], protocol: Protocol, device: torch.device) -> Run:
    """Forward passes in inference mode."""
    forward, images = _compiled(network, protocol), itertools.cycle(inputs)
    is_autocast = protocol.dtype == "amp_bfloat16"

    def run(iterations: int) -> None:
        # Here and not around everything: weights moved to the device in inference mode could never be trained again.
        with torch.inference_mode():
            for _ in range(iterations):
                # Entered anew for every pass, as in use: weights are cast every time, not once a block.
                with torch.autocast(device.type, torch.bfloat16, enabled=is_autocast):
                    forward(next(images))

    return run


def _train(network: nn.Module, inputs: list[Tensor], protocol: Protocol, device: torch.device) -> Run:
    """Training steps on random labels: forward, cross-entropy, backward, AdamW, in train mode."""
    weights = [weight for weight in network.parameters() if weight.requires_grad]
    if not weights:
        raise UserError("throughput task: got 'train' for a network that has no parameters to train")
    batches = itertools.cycle(zip(inputs, _labels(network, inputs, device), strict=True))
    network.train()
    forward = _compiled(network, protocol)
    is_autocast = protocol.dtype == "amp_bfloat16"
    # Fused, as the proxy trains: torch's own default walks the weights one by one on a CPU.
    optimizer = torch.optim.AdamW(weights, lr=_LEARNING_RATE, fused=True)

    def run(iterations: int) -> None:
        with torch.enable_grad():
            for _ in range(iterations):
                images, labels = next(batches)
                with torch.autocast(device.type, torch.bfloat16, enabled=is_autocast):
                    loss = F.cross_entropy(forward(images), labels)
                loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)

    return run


def _labels(network: nn.Module, inputs: list[Tensor], device: torch.device) -> list[Tensor]:
    """Random classes for every batch, as many as the network tells apart."""
    with torch.no_grad():
        logits = network(inputs[0])
    if logits.ndim != 2:
        raise UserError(
            f"throughput task: got 'train' for a network whose output is {tuple(logits.shape)}, not (B, classes)"
        )
    generator = torch.Generator(device).manual_seed(0)
    size = (len(inputs[0]),)
    return [torch.randint(logits.shape[1], size, generator=generator, device=device) for _ in inputs]
