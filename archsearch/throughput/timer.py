"""Preparing a network for a protocol, and timing blocks of its iterations on one device."""

import copy
import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from archsearch.compiler import with_own_code
from archsearch.device import device_seconds
from archsearch.errors import UserError
from archsearch.system import ignore
from archsearch.throughput.backends.load import load
from archsearch.throughput.protocol import Protocol
from archsearch.units import sides

Forward = Callable[[Tensor], Tensor]
Run = Callable[[int], None]

# Enough that no pass finds its input still in a cache, few enough to make quickly.
_NUM_INPUTS = 3
# A step costs the same at any learning rate; at this one weights hardly change in thousands of steps, and losses stay finite.
_LEARNING_RATE = 1e-6


@dataclass(frozen=True, kw_only=True)
class WarmUp:
    """A finished warm-up: its iterations, wall-clock seconds of the first, and seconds an iteration takes at its end."""

    iterations: int
    first_s: float
    seconds_each: float


class Timer:
    """A network on its device with its inputs, or in its runtime, ready to be timed; `run(n)` does n iterations, `close()` frees what the runtime took.

    UserError when a network without parameters, or whose output is not (B, classes), is to be trained; RunError where the runtime cannot run it.
    """

    def __init__(self, network: nn.Module, inputs: list[Tensor], protocol: Protocol, device: torch.device) -> None:
        self.protocol, self.device = protocol, device
        self.difference: float | None = None  # of a runtime's logits from torch's, as a share of the largest
        if protocol.runtime != "torch":
            backend, self.difference = load(network, inputs, protocol)
            self.run: Run = backend.run
            self.close: Callable[[], object] = backend.close
            return
        network.to(device)
        make_run = _training_steps if protocol.task == "train" else _forward_passes
        self.run, self.close = make_run(network, inputs, protocol, device), ignore

    def rate(self, iterations: int) -> float:
        """Images per second over one block."""
        return iterations * self.protocol.batch_size / self._seconds(iterations)

    def rewarm(self) -> int:
        """Run one block of a network warmed up earlier; the number of iterations in a block."""
        per_block = self.protocol.iterations_per_block(self._seconds(1))
        if per_block > 1:  # or the iteration just run was the block
            self._seconds(per_block)
        return per_block

    def quick_rate(self) -> float:
        """Images per second of a network warmed up earlier: the median over a third of a round, after one block of warm-up."""
        per_block = self.rewarm()
        return statistics.median(self.rate(per_block) for _ in range(max(2, self.protocol.min_blocks // 3)))

    def warm_up(self) -> WarmUp:
        """Run until the protocol's conditions for the end of a warm-up are met."""
        # The first iteration compiles, chooses algorithms and allocates: it is timed apart.
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
        return device_seconds(lambda: self.run(iterations), self.device)


def make_inputs(protocol: Protocol, device: torch.device) -> list[Tensor]:
    """Three batches of random-normal images, (B, C, H, W) in channels_last: zeros would run faster."""
    generator = torch.Generator(device).manual_seed(0)
    shape = (protocol.batch_size, protocol.in_chans, *sides(protocol.image_size))
    images = (torch.randn(shape, generator=generator, device=device) for _ in range(_NUM_INPUTS))
    dtype = torch.bfloat16 if protocol.dtype == "bfloat16" else torch.float32
    return [batch.to(dtype).contiguous(memory_format=torch.channels_last) for batch in images]


@contextmanager
def prepared(model: nn.Module, protocol: Protocol) -> Iterator[nn.Module]:
    """The network to time, in eval mode: the model itself, or a copy where timing would change its values.

    Training changes weights and running statistics, and a cast to bfloat16 cannot be undone. Saved values would take the
    same memory as the copy, and an error halfway would leave the caller's model changed. Afterwards the training flag of
    every submodule is restored: some may have been frozen one by one.
    """
    flags = [(part, part.training) for part in model.modules()]
    network = model
    try:
        if protocol.task == "train" or protocol.dtype == "bfloat16":
            model.train()  # drops what blocks have cached for eval in the old format
            network = copy.deepcopy(model)
        if protocol.dtype == "bfloat16":
            network.to(torch.bfloat16)  # integer buffers stay integers
        yield network.eval()
    finally:
        # Through train(), not the flags alone: a block may override it to drop what it has cached for eval.
        model.train(flags[0][1])
        for part, training in flags:
            part.training = training


def compiled(network: nn.Module, protocol: Protocol, **options: Any) -> Forward:
    """The network as it is timed; `options` are further ones of torch.compile."""
    if not protocol.is_compiled:
        return network

    def forward(images: Tensor) -> Tensor:
        output: Tensor = network(images)
        return output

    own = with_own_code(forward)
    if protocol.mode == "compile":
        return torch.compile(own, dynamic=False, **options)
    graphs = torch.compile(own, dynamic=False, mode=protocol.mode, **options)

    def next_step(images: Tensor) -> Tensor:
        # The output of the pass before may be overwritten: without this a pass that finds it alive is recorded anew.
        torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        return graphs(images)

    return next_step


def _forward_passes(network: nn.Module, inputs: list[Tensor], protocol: Protocol, device: torch.device) -> Run:
    """Forward passes in inference mode."""
    forward, images = compiled(network, protocol), itertools.cycle(inputs)
    is_autocast = protocol.dtype == "amp_bfloat16"

    def run(iterations: int) -> None:
        # Only here: weights moved to the device in inference mode could never be trained again.
        with torch.inference_mode():
            for _ in range(iterations):
                # Entered again for every pass, as in normal use: weights are cast every time, not once a block.
                with torch.autocast(device.type, torch.bfloat16, enabled=is_autocast):
                    forward(next(images))

    return run


def _training_steps(network: nn.Module, inputs: list[Tensor], protocol: Protocol, device: torch.device) -> Run:
    """Training steps on random labels: forward, cross-entropy, backward, AdamW, in train mode."""
    weights = [weight for weight in network.parameters() if weight.requires_grad]
    if not weights:
        raise UserError("throughput task: got 'train' for a network that has no parameters to train")
    batches = itertools.cycle(zip(inputs, _labels(network, inputs, device), strict=True))
    network.train()
    forward = compiled(network, protocol)
    is_autocast = protocol.dtype == "amp_bfloat16"
    # Fused, as the proxy trains: torch's default updates the weights one by one on a CPU.
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
    """Random labels for every batch, of as many classes as the network has."""
    with torch.no_grad():
        logits = network(inputs[0])
    if logits.ndim != 2:
        shape = tuple(logits.shape)
        raise UserError(f"throughput task: got 'train' for a network whose output is {shape}, not (B, classes)")
    generator = torch.Generator(device).manual_seed(0)
    size, num_classes = (len(inputs[0]),), logits.shape[1]
    return [torch.randint(num_classes, size, generator=generator, device=device) for _ in inputs]
