"""One update of the weights after a batch; on CUDA recorded once and replayed, where a step is little but the launches of its kernels."""

import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

from archsearch.proxy.training.gradients import Gradients
from archsearch.proxy.training.recipe import Recipe

# Pixels of a batch up to which its step is replayed. On an H100 a step of 32 images of 32 px took 17-40 ms, for launches alone, one of 1,024
# images of 128 px (eight times this limit) 120 ms or more of work, behind which launches hide.
_REPLAYED_PIXELS = 2**21
_STEPS_BEFORE = 3  # make the optimizer's state, choose algorithms, and find the parts that fit into memory

Work = Callable[[], None]
Record = Callable[[Work], Work]


class Step:
    """Updates a model by gradients, clipping and AdamW at the recipe's rate; `losses` has each step's, on the device.

    `record` makes of the work on a batch what replays it; by default a CUDA graph where that pays, else nothing is recorded.
    """

    def __init__(self, model: nn.Module, recipe: Recipe, device: torch.device, record: Record | None = None) -> None:
        from timm.optim import param_groups_weight_decay  # type: ignore[attr-defined]  # public, but without __all__; late: timm is slow to import

        self.model, self.recipe, self.device = model, recipe, device
        is_cuda = device.type == "cuda"
        # On CUDA the rate is a tensor, in a recording and out of it, so that both compute the same numbers.
        rate = torch.zeros((), device=device) if is_cuda else recipe.learning_rate
        groups = param_groups_weight_decay(model, recipe.weight_decay)
        self._optimizer = torch.optim.AdamW(groups, lr=rate, fused=True, capturable=is_cuda)
        self.gradients = Gradients(model, recipe, device)
        self.losses = torch.zeros(recipe.steps, device=device)
        is_small = recipe.batch_size * recipe.image_size**2 <= _REPLAYED_PIXELS
        self._record = record or (_record_graph if is_cuda and is_small else None)
        self._recorded: RecordedStep | None = None
        self._num_done = 0

    def run(self, number: int, images: Tensor, labels: Tensor) -> None:
        """Step `number`, from 0, on a batch (B, 3, H, W) with labels (B,)."""
        if self._record is not None and self._num_done == _STEPS_BEFORE:
            self._try_to_record(self._record, images, labels)
        self._num_done += 1
        if self._recorded is not None:
            self._recorded.run(number, images, labels)
            return
        self.set_rate(number)
        self.losses[number] = self.gradients.add(images, labels)
        self.update()

    def set_rate(self, number: int) -> None:
        """The learning rate of a step, for the next update."""
        rate = self.recipe.learning_rate_at(number)
        for group in self._optimizer.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)  # the number goes along with the launch: no wait
            else:
                group["lr"] = rate

    def update(self) -> None:
        """Move the weights by their gradients, which are None afterwards."""
        nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip)
        self._optimizer.step()
        self._optimizer.zero_grad()

    def _try_to_record(self, record: Record, images: Tensor, labels: Tensor) -> None:
        """Replay from now on; where recording fails, steps stay as they are, and a warning says why."""
        try:
            self._recorded = RecordedStep(self, images, labels, record)
        except RuntimeError as error:  # recording computes nothing, so weights and averages are as before
            self.model.zero_grad()
            warnings.warn(
                f"training steps are launched one by one: no CUDA graph could be made ({error})", stacklevel=2
            )


class RecordedStep:
    """A step whose batch lies in buffers of its own, so that the work on it can be recorded once and replayed for every batch.

    `record` gives back what does the work it is given again; the same numbers come out as of `Step`.
    """

    def __init__(self, step: Step, images: Tensor, labels: Tensor, record: Record) -> None:
        self._step = step
        self._images, self._labels = torch.empty_like(images), torch.empty_like(labels)
        self._loss = torch.zeros((), device=images.device)
        self._replay = record(self._work)

    def run(self, number: int, images: Tensor, labels: Tensor) -> None:
        """As `Step.run`, on a batch of the same shape."""
        self._images.copy_(images)
        self._labels.copy_(labels)
        self._step.set_rate(number)
        self._replay()
        self._step.losses[number] = self._loss

    def _work(self) -> None:
        self._loss.copy_(self._step.gradients.in_parts(self._images, self._labels))
        self._step.update()


def _record_graph(work: Work) -> Work:
    """The work as a CUDA graph; its dropout goes on from the device's random state, as without one."""
    graph = torch.cuda.CUDAGraph()
    # Only this thread is watched: the loader's copies the next batch meanwhile.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        work()
    replay: Work = graph.replay
    return replay
