"""Loss, top-1 and top-5 of weights on the validation images, summed over all processes."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from archsearch.metrics import binomial_standard_error
from archsearch.training.images import Batch
from archsearch.training.processes import Processes

_TOP = 5


@dataclass(frozen=True, kw_only=True)
class Judged:
    """What weights do on so many images: mean cross-entropy, shares of right answers, and the standard error of the first share."""

    images: int
    loss: float
    top1: float
    top5: float

    @property
    def top1_se(self) -> float:
        """Binomial standard error."""
        return binomial_standard_error(self.top1, self.images)


@torch.inference_mode()
def judge(
    networks: Iterable[nn.Module],
    batches: Iterable[Batch],
    processes: Processes,
    dtype: str,
    note: Callable[[str], None],
) -> list[Judged]:
    """Each of the networks on all images, in one pass over them; `note` hears of pictures that cannot be read, which are left out."""
    judged = [network.eval() for network in networks]
    device = processes.device
    sums = torch.zeros(len(judged), 4, dtype=torch.float64 if device.type != "mps" else torch.float32, device=device)
    for images, labels, unread in batches:
        for sentence in unread:
            note(sentence)
        if len(images):
            images = images.to(device, memory_format=torch.channels_last, non_blocking=True)
            labels = labels.to(device, non_blocking=True)
            for row, network in zip(sums, judged, strict=True):
                with torch.autocast(device.type, torch.bfloat16, enabled=dtype == "bfloat16"):
                    logits = network(images)
                row += _count(logits.float(), labels).to(row.dtype)
    return [
        Judged(images=int(number), loss=loss / max(number, 1), top1=first / max(number, 1), top5=five / max(number, 1))
        for number, loss, first, five in processes.total(sums).tolist()
    ]


def _count(logits: Tensor, labels: Tensor) -> Tensor:
    """Number of images, sum of losses, number of right answers, number of labels among the five highest."""
    hits = logits.topk(min(_TOP, logits.shape[1])).indices == labels[:, None]
    loss = F.cross_entropy(logits, labels, reduction="sum")
    return torch.stack((loss.new_tensor(float(len(labels))), loss, hits[:, 0].sum(), hits.sum()))
