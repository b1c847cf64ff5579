"""Distillation: a trained network whose answers a training follows beside the labels."""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from archsearch.errors import UserError, did_you_mean, first_line, shown
from archsearch.models import TIMM, Preprocessing, is_own, load, load_official, read_checkpoint, read_header
from archsearch.space import paper, paper_names
from archsearch.units import sides

DISTILLATIONS = ("soft", "hard")
SHARE = 0.5  # of the loss; DeiT's
_TEMPERATURE = 1.0  # DeiT's

Normalisation = tuple[tuple[float, ...], tuple[float, ...]]  # mean and standard deviation of each channel


class Teacher:
    """A frozen network in eval mode and how its answers count: `soft` by their shares of all classes, `hard` by the class that is highest.

    Images come normalised for the student; where the teacher wants another mean and deviation, they are normalised again.
    """

    def __init__(self, network: nn.Module, kind: str, renormalise: tuple[Tensor, Tensor] | None) -> None:
        self.network, self.kind, self._renormalise = network.eval().requires_grad_(False), kind, renormalise

    def loss(self, images: Tensor, logits: Tensor) -> Tensor:
        """The distance of the student's logits (B, classes) from the teacher's answers on these images."""
        with torch.no_grad():
            if self._renormalise is not None:
                scale, shift = self._renormalise
                images = images * scale + shift
            answers: Tensor = self.network(images).float()
        if self.kind == "hard":
            return F.cross_entropy(logits, answers.argmax(1))
        targets = F.log_softmax(answers / _TEMPERATURE, dim=1)
        return F.kl_div(
            F.log_softmax(logits / _TEMPERATURE, dim=1), targets, reduction="batchmean", log_target=True
        ) * (_TEMPERATURE**2)


def make_teacher(
    name: str,
    weights: Path | None,
    kind: str,
    *,
    num_classes: int,
    size: tuple[int, int],
    mean: tuple[float, ...],
    std: tuple[float, ...],
    device: torch.device,
) -> Teacher:
    """The teacher of that name on its device, tried on one blank image.

    `name`: a paper's model with its checkpoint, a checkpoint file of archsearch, or `timm:NAME`, with timm's own weights where none are given. Raises
    UserError for another name, where weights are missing or do not fit, and for a network that does not take these images or has other classes.
    """
    network = _load(name, weights, size, num_classes)
    renormalise = _renormalise(_normalisation(name, network), (mean, std), device)
    network = network.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub lacks this form
    teacher = Teacher(network, kind, renormalise)
    try:
        with torch.inference_mode():
            shape = tuple(teacher.network(torch.zeros(1, 3, *size, device=device)).shape)
    except (RuntimeError, AssertionError, UserError) as error:
        raise UserError(
            f"--teacher {name}: cannot take images of {size[0]}x{size[1]} px: {first_line(error)}"
        ) from error
    if shape != (1, num_classes):
        raise UserError(
            f"--teacher {name}: gives {shape[-1]} classes, and the data have {num_classes}; the two must be equal"
        )
    return teacher


def _load(name: str, weights: Path | None, size: tuple[int, int], num_classes: int) -> nn.Module:
    """The network with its weights, on the CPU."""
    if name.startswith(TIMM):
        return _load_timm(name, weights, num_classes)
    if name in paper_names():
        if weights is None:
            raise UserError(
                f"--teacher {name}: needs --teacher-weights, its official checkpoint; an untrained network teaches nothing"
            )
        return load_official(name, weights, image_size=None if size == sides(paper(name).image_size) else size)
    if Path(name).is_file():
        if not is_own(name) or weights is not None:
            raise UserError(
                f"--teacher {name}: a file must be a checkpoint of archsearch, and takes no --teacher-weights"
            )
        return load(name)
    raise UserError(
        f"--teacher: no paper's model and no file {shown(name)}{did_you_mean(name, paper_names())}; allowed are these, and {TIMM}NAME"
    )


def _load_timm(name: str, weights: Path | None, num_classes: int) -> nn.Module:
    """A model of timm, with its published weights or those of a file."""
    import timm  # here: it takes seconds to import

    model = name.removeprefix(TIMM)
    if not timm.is_model(model.partition(".")[0]):
        raise UserError(f"--teacher: timm has no model {shown(model)}{did_you_mean(model, timm.list_models())}")
    if weights is None:
        try:
            return timm.create_model(model, pretrained=True)
        except Exception as error:  # a download fails in many ways
            raise UserError(
                f"--teacher {name}: timm's weights cannot be had ({first_line(error)}); give a file by --teacher-weights"
            ) from error
    try:
        network = timm.create_model(model, num_classes=num_classes)
    except RuntimeError as error:  # of a name with a tag, such as resnet18.a1_in1k, that timm does not have
        raise UserError(f"--teacher {name}: timm cannot make it: {first_line(error)}") from error
    try:
        network.load_state_dict(read_checkpoint(weights))
    except RuntimeError as error:
        raise UserError(f"--teacher-weights {weights}: not the weights of {name}: {first_line(error)}") from error
    return network


def _normalisation(name: str, network: nn.Module) -> Normalisation | None:
    """That of the images a teacher was trained on: of timm's configuration, a paper's evaluation, or what a training wrote beside the weights; else None."""
    if name.startswith(TIMM):
        stated = getattr(network, "pretrained_cfg", None) or {}
        return (tuple(stated["mean"]), tuple(stated["std"])) if {"mean", "std"} <= stated.keys() else None
    if name in paper_names():
        found = Preprocessing.of_weights(name, {})
    else:
        header = read_header(name)
        found = Preprocessing.of_weights(header.arch.name, header.provenance)
    return (found.mean, found.std) if found else None


def _renormalise(
    wanted: Normalisation | None, given: Normalisation, device: torch.device
) -> tuple[Tensor, Tensor] | None:
    """Scale and shift, (1, 3, 1, 1) each, from the student's normalisation to the teacher's; None where they are equal, or the teacher's is unknown."""
    if wanted in (None, given):
        return None
    own, theirs = (torch.tensor([values]).view(2, 1, 3, 1, 1).to(device) for values in (given, wanted))
    return own[1] / theirs[1], (own[0] - theirs[0]) / theirs[1]
