"""`archsearch train`: what is asked for, made into a training in its folder, and the document at its end."""

import contextlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from archsearch.compiler import cause_of, compiler_problem, is_compile_error
from archsearch.cores import usable_cores
from archsearch.device import device_lock, pick_device
from archsearch.errors import RunError, UserError, first_line, shown
from archsearch.lock import waiting_line
from archsearch.models import Network, Preprocessing, build, save
from archsearch.space import Arch, ImageSize, paper, paper_names, paper_table
from archsearch.system import Progress, Say, ignore
from archsearch.training.folder import EMA_FILE, MODEL_FILE, check_request, read_state, training_lock, write_request
from archsearch.training.images import TrainingImages, open_images
from archsearch.training.init_from import InitialWeights, initialise
from archsearch.training.loop import Loop
from archsearch.training.processes import Processes, joined
from archsearch.training.recipe import ChosenRecipe, choose_recipe
from archsearch.training.steps import Steps
from archsearch.training.teacher import DISTILLATIONS, make_teacher
from archsearch.units import plain_size, sides
from archsearch.version import __version__

IMAGENET_CLASSES, IMAGENET_IMAGES = 1000, 50_000
_MOST_WORKERS, _IMAGES_A_WORKER = 16, 1000

Document = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class TrainRequest:
    """What `archsearch train` was asked for; None stands for the recipe's, the architecture's or the data's own.

    `batch_size` is of a step over all processes together. The fields from `device` on change no number on the same device, and may differ when a training
    goes on.
    """

    what: str
    arch: Arch
    data: str
    out: Path
    recipe: str | None = None
    epochs: int | None = None
    batch_size: int | None = None
    learning_rate: float | None = None
    image_size: ImageSize | None = None
    num_classes: int | None = None
    train_split: str = "train"
    val_split: str | None = None
    init_from: Path | None = None
    teacher: str | None = None
    teacher_weights: Path | None = None
    distillation: str = "soft"
    dtype: str | None = None
    mode: str = "eager"
    seed: int = 0
    device: str = "auto"
    workers: int | None = None
    checkpoint_every: int = 1000
    tensorboard: bool = False


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """A request with everything decided."""

    request: TrainRequest
    arch: Arch
    images: TrainingImages
    chosen: ChosenRecipe
    dtype: str

    @property
    def identity(self) -> dict[str, Any]:
        """What a training in the same folder must share, as plain values."""
        asked = self.request
        teacher = {"name": asked.teacher, "weights": _text(asked.teacher_weights), "distillation": asked.distillation}
        return {
            "arch": self.arch.to_dict(),
            "data": self.images.fingerprint,
            "splits": [asked.train_split, asked.val_split],
            "recipe": asdict(self.chosen.recipe),
            "init_from": _text(asked.init_from),
            "teacher": teacher if asked.teacher else None,
            "dtype": self.dtype,
            "mode": asked.mode,
            "seed": asked.seed,
        }


def train(request: TrainRequest, *, say: Say = ignore, progress: Progress = ignore) -> Document:
    """Train in `request.out`, or go on there, up to the end; gives what was reached beside what is published.

    Raises UserError for what cannot be trained, and for a folder of another training; RunError where a loss is not finite and where memory is too short; after
    Ctrl-C a checkpoint is written and KeyboardInterrupt raised.
    """
    device = pick_device(request.device)
    with joined(device) as processes, _random_numbers_of_before(processes.device):
        say, progress = (say, progress) if processes.is_first else (ignore, ignore)
        plan = _plan(request, processes)
        with contextlib.ExitStack() as stack:
            _enter_folder(plan, processes, stack)
            on_wait = waiting_line(lambda line: progress(0, 1, line))
            held = stack.enter_context(device_lock(processes.device, exclusive=False, on_wait=on_wait))
            loop, copied = _make_loop(plan, processes, say, progress)
            if processes.is_first:
                write_request(plan.request.out, plan.identity)
            loop.step_aside = held.step_aside
            with _compile_errors():
                loop.run()
            if processes.is_first:
                _write_weights(plan, loop.steps)
            return _document(plan, loop, copied)


def _plan(request: TrainRequest, processes: Processes) -> _Plan:
    """Everything decided, and refused where it is impossible."""
    size = sides(request.arch.image_size if request.image_size is None else request.image_size)
    _check_teacher(request)
    chosen = choose_recipe(request.arch, request.recipe)
    images = open_images(request.data, max(size), request.train_split, request.val_split)
    arch = _fit_arch(request, images)
    fitted = chosen.recipe.fitted(
        epochs=request.epochs, batch_size=request.batch_size, learning_rate=request.learning_rate
    )
    _check_batch(fitted.batch_size, len(images.train.labels), processes, is_mixing=fitted.is_mixing)
    if request.mode == "compile" and (problem := compiler_problem(processes.device.type)):
        raise UserError(f"--mode compile: torch.compile cannot run here: {problem}; install it, or use eager")
    dtype = request.dtype or ("bfloat16" if processes.device.type == "cuda" else "float32")
    return _Plan(request=request, arch=arch, images=images, chosen=replace(chosen, recipe=fitted), dtype=dtype)


def _check_teacher(request: TrainRequest) -> None:
    """Raise UserError for an unknown distillation, and for options of a teacher without one."""
    if request.distillation not in DISTILLATIONS:
        raise UserError(f"--distillation: got {shown(request.distillation)}; allowed are {' and '.join(DISTILLATIONS)}")
    if request.teacher is None and (request.teacher_weights is not None or request.distillation != "soft"):
        option = "--distillation" if request.teacher_weights is None else "--teacher-weights"
        raise UserError(f"{option}: has no meaning without --teacher; name one, or leave it out")


def _fit_arch(request: TrainRequest, images: TrainingImages) -> Arch:
    """The architecture for the images' size and classes."""
    arch, found = request.arch, len(images.classes)
    if arch.in_chans != 3:
        raise UserError(f"{request.what}: takes {arch.in_chans} channels; images are trained on in colour, with 3")
    classes = request.num_classes or found
    if classes < found:
        raise UserError(f"--num-classes: got {classes}, and the data have {found} classes; {found} or more are allowed")
    size = arch.image_size if request.image_size is None else request.image_size
    arch.check(size)
    head = replace(arch.head, num_classes=classes)  # type: ignore[call-arg]  # every head has classes
    return replace(arch, image_size=size, head=head)


def _check_batch(batch_size: int, num_images: int, processes: Processes, *, is_mixing: bool) -> None:
    """Raise UserError for a batch that the images or the processes do not make up."""
    if batch_size > num_images:
        raise UserError(
            f"--batch-size: a step takes {batch_size} images, and there are {num_images} to train on; take a smaller one"
        )
    parts = processes.world * (2 if is_mixing else 1)
    if batch_size % parts:
        shared = f"{processes.world} processes share it" if processes.world > 1 else ""
        mixed = "images are mixed in pairs" if is_mixing else ""
        why = " and ".join(filter(None, (shared, mixed)))
        raise UserError(f"--batch-size: got {batch_size}; {why}: multiples of {parts} are allowed")


def _enter_folder(plan: _Plan, processes: Processes, stack: contextlib.ExitStack) -> None:
    """Lock the folder and hold the request against what it holds, in the first process; all raise what that one does."""
    problem = None
    if processes.is_first:
        try:
            stack.enter_context(training_lock(plan.request.out))
            check_request(plan.request.out, plan.identity)
        except UserError as error:
            problem = str(error)
    problem = processes.from_first(problem)
    if problem is not None:
        raise UserError(problem)


def _make_loop(plan: _Plan, processes: Processes, say: Say, progress: Progress) -> tuple[Loop, InitialWeights | None]:
    """The training before its first step, or where its checkpoint left it."""
    asked, size = plan.request, sides(plan.arch.image_size)
    recipe = plan.chosen.recipe
    say(f"recipe {recipe.name}: {plan.chosen.reason} ({plan.chosen.source})")
    say(plan.images.describe())
    for note in plan.images.notes:
        say(f"note: {note}")
    torch.manual_seed(asked.seed)
    network = build(plan.arch, drop_path_rate=recipe.drop_path_rate or 0.0)
    copied = initialise(network, asked.init_from, say=say) if asked.init_from else None
    if copied:
        say(copied.describe())
    teacher = None
    if asked.teacher:
        images = plan.images
        teacher = make_teacher(
            asked.teacher,
            asked.teacher_weights,
            asked.distillation,
            num_classes=plan.arch.num_classes,
            size=size,
            mean=images.mean,
            std=images.std,
            device=processes.device,
        )
    steps = Steps(
        network,
        recipe,
        processes,
        steps_per_epoch=len(plan.images.train.labels) // recipe.batch_size,
        seed=asked.seed,
        dtype=plan.dtype,
        mode=asked.mode,
        teacher=teacher,
    )
    loop = Loop(
        asked.out,
        steps,
        plan.images,
        size=size,
        crop_share=_crop_share(plan),
        dtype=plan.dtype,
        mode=asked.mode,
        workers=_workers(asked.workers, len(plan.images.train.labels), processes),
        checkpoint_every=asked.checkpoint_every,
        tensorboard=asked.tensorboard,
        say=say,
        progress=progress,
    )
    if (state := read_state(asked.out)) is not None:
        loop.restore(state)
    return loop, copied


def _workers(given: int | None, num_images: int, processes: Processes) -> int:
    """Processes that decode: one a core that is left, fewer for few images, since starting them takes time."""
    if given is not None:
        return given
    return min((usable_cores() or 1) // processes.world, _MOST_WORKERS, num_images // _IMAGES_A_WORKER)


def _crop_share(plan: _Plan) -> float:
    """The share of the picture's side that evaluation crops, as in the evaluation of the recipe's model."""
    table = paper_table(plan.chosen.model).get("eval", {}) if plan.chosen.model else {}
    return float(table.get("crop_share", 0.875))


def _preprocessing(plan: _Plan) -> Preprocessing:
    """What evaluation makes of a picture in this training."""
    images = plan.images
    return Preprocessing(crop_share=_crop_share(plan), interpolation="bicubic", mean=images.mean, std=images.std)


def _write_weights(plan: _Plan, steps: Steps) -> None:
    """The trained weights and their average, as checkpoints of ours."""
    recipe = plan.chosen.recipe
    about = {
        "recipe": recipe.name,
        "recipe_values": asdict(recipe),
        "data": plan.images.name,
        "data_fingerprint": plan.images.fingerprint,
        "preprocessing": asdict(_preprocessing(plan)),
        "epochs": recipe.epochs + recipe.cooldown_epochs,
        "seed": plan.request.seed,
        "init_from": _text(plan.request.init_from),
        "version": __version__,
    }
    words = f"trained on {plan.images.name} for {about['epochs']} epochs by the recipe {recipe.name}"
    for file, network, kind in (
        (MODEL_FILE, steps.network, words),
        (EMA_FILE, steps.average.module, f"average of the weights (EMA) of a network {words}"),
    ):
        assert isinstance(network, Network)
        save(network, plan.request.out / file, provenance={"weights": kind, **about})


def _document(plan: _Plan, loop: Loop, copied: InitialWeights | None) -> Document:
    """What was reached, what it was reached with, and what the paper published, apart from each other."""
    asked, recipe, last = plan.request, plan.chosen.recipe, loop.rows[-1]
    return {
        "is_first": loop.processes.is_first,
        "what": asked.what,
        "arch_id": plan.arch.arch_id,
        "out": str(asked.out),
        "image_size": plain_size(plan.arch.image_size),
        "num_classes": plan.arch.num_classes,
        "data": {"name": plan.images.name, "fingerprint": plan.images.fingerprint, "words": plan.images.describe()},
        "recipe": {
            **asdict(recipe),
            "reason": plan.chosen.reason,
            "source": plan.chosen.source,
            "model": plan.chosen.model,
        },
        "epochs": recipe.epochs + recipe.cooldown_epochs,
        "raw": {key: last[key] for key in ("top1", "top1_se", "top5", "val_loss")},
        "ema": {key: last[f"ema_{key}"] for key in ("top1", "top1_se", "top5", "val_loss")},
        "val_images": last["val_images"],
        "published": _published(plan, last["val_images"]),
        "init_from": _copied_document(copied),
        "unreadable": sorted(loop.unreadable),
        "conditions": loop.conditions,
        "export": ["export", asked.what, f"{asked.out}/export", "--weights", f"{asked.out}/{EMA_FILE}"],
    }


def _copied_document(copied: InitialWeights | None) -> Document | None:
    if copied is None:
        return None
    return {
        **asdict(copied),
        "copied_params": copied.copied_params,
        "params": copied.params,
        "words": copied.describe(),
    }


def _published(plan: _Plan, val_images: int) -> Document | None:
    """The paper's own figures where this is its model, and why they cannot be compared; None for other architectures."""
    name, recipe = plan.request.arch.name, plan.chosen.recipe
    if name not in paper_names():
        return None
    table, total = paper_table(name), choose_recipe(paper(name)).recipe
    reasons = []
    if (plan.arch.num_classes, val_images) != (IMAGENET_CLASSES, IMAGENET_IMAGES):
        reasons.append(f"this is {plan.images.name}, not ImageNet-1K")
    if plan.arch.image_size != paper(name).image_size:
        reasons.append(f"at {plan.arch.image_size} px, not {paper(name).image_size}")
    if (here := recipe.epochs + recipe.cooldown_epochs) < (there := total.epochs + total.cooldown_epochs):
        reasons.append(f"after {here} epochs, not {there}")
    return {**{key: table.get(key) for key in ("top1", "top5", "source")}, "not_compared": ", ".join(reasons) or None}


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)


@contextlib.contextmanager
def _compile_errors() -> Iterator[None]:
    """A failure of torch.compile as one sentence."""
    try:
        yield
    except Exception as error:
        if is_compile_error(error):
            raise RunError(
                f"--mode compile: torch.compile failed: {first_line(cause_of(error))}; use --mode eager"
            ) from error
        raise


@contextlib.contextmanager
def _random_numbers_of_before(device: torch.device) -> Iterator[None]:
    """The caller's random states come back at the end."""
    numpy_state = np.random.get_state()  # timm draws from the global generator
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        try:
            yield
        finally:
            np.random.set_state(numpy_state)  # as above
