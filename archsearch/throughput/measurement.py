"""The conditions under which a run measures throughput: the part of its settings that says how candidates are timed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self, cast

import torch

from archsearch.compiler import compiler_problem
from archsearch.device import allow_tf32, check_cpu, pick_device, use_cpu
from archsearch.errors import UserError
from archsearch.system import Say, ignore, user_path
from archsearch.throughput.backends.load import check_precision, runtime_device
from archsearch.throughput.protocol import Mode, Precision, Protocol, Runtime, Task
from archsearch.units import DType, ImageSize, sides, stored_size

DEFAULT_BATCH_SIZE = {"cpu": 2, "cuda": 128, "mps": 32}


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """Device type, number format, mode, images a batch, their size in pixels and channels, threads and logical cores; None leaves these two as they are.

    `runtime` runs the networks; one other than torch in `precision`, for int8 with the images of a folder.
    """

    device: str
    batch_size: int
    image_size: ImageSize = 224
    in_chans: int = 3
    dtype: DType = "float32"
    mode: Mode = "eager"
    threads: int | None = None
    cpus: tuple[int, ...] | None = None
    runtime: Runtime = "torch"
    precision: Precision | None = None
    calibration_data: str | None = None

    @classmethod
    def resolve(
        cls,
        *,
        device: str = "auto",
        dtype: str | None = None,
        mode: str | None = None,
        batch_size: int | None = None,
        image_size: ImageSize = 224,
        in_chans: int = 3,
        threads: int | None = None,
        cpus: Sequence[int] | None = None,
        runtime: Runtime = "torch",
        precision: Precision | None = None,
        calibration_data: str | None = None,
        is_elsewhere: bool = False,
        say: Say = ignore,
    ) -> Self:
        """Options resolved on this machine; `is_elsewhere`: for another one, without a look at the devices and the compiler here.

        Number format, mode and batch size depend on the device by default.

        Says so where compiling is the default and the compiler cannot run: the mode is then eager. Raises UserError where it was asked
        for, for an absent device or runtime, for options that the runtime does not have, and for absent threads and cores: now, instead of in a
        worker, in every trial.
        """
        _check_runtime_options(runtime, dtype, mode, precision, calibration_data)
        if runtime != "torch":
            if is_elsewhere:
                raise UserError(
                    f"--runtime: got {runtime!r}, but workers of a Ray cluster time in torch; leave one of them out"
                )
            precision = precision or "float32"
            check_precision(runtime, precision, calibration_data, in_chans)
            device, dtype, mode = runtime_device(runtime, device), "float32", "eager"
        kind = device if is_elsewhere else pick_device(device).type
        if not is_elsewhere:
            check_cpu(threads, cpus)
        return cls(
            device=kind,
            batch_size=batch_size or DEFAULT_BATCH_SIZE[kind],
            image_size=image_size,
            in_chans=in_chans,
            dtype=cast(DType, dtype or ("bfloat16" if kind == "cuda" else "float32")),
            mode=_usable_mode(mode, kind, say, is_elsewhere=is_elsewhere),
            threads=threads,
            cpus=None if cpus is None else tuple(sorted(cpus)),
            runtime=runtime,
            precision=precision,
            calibration_data=calibration_data and str(user_path(calibration_data).absolute()),
        )

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> Self:
        """From a run's settings, as `to_dict` wrote them beside others; runs of earlier versions lack threads and cores."""
        cpus = settings.get("cpus")
        return cls(
            device=settings["device"],
            batch_size=settings["batch_size"],
            image_size=stored_size(settings),
            in_chans=settings.get("in_chans", 3),
            dtype=settings["dtype"],
            mode=settings["mode"],
            threads=settings.get("threads"),
            cpus=None if cpus is None else tuple(cpus),
            runtime=settings.get("runtime", "torch"),
            precision=settings.get("precision"),
            calibration_data=settings.get("calibration_data"),
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, in the order in which runs have always stored them; those of `unusual_images` where they are."""
        return {
            "device": self.device,
            "dtype": self.dtype,
            "mode": self.mode,
            "batch_size": self.batch_size,
            "image_size": sides(self.image_size)[0],
            **self.unusual_images,
            "threads": self.threads,
            "cpus": None if self.cpus is None else list(self.cpus),
            # Runs of versions in which "bfloat16" meant autocast lack this key, which gives them another identity.
            "weights_dtype": self.dtype if self.dtype == "bfloat16" else None,
            **self.other_runtime,
        }

    @property
    def other_runtime(self) -> dict[str, str | None]:
        """Runtime, precision and calibration images of a runtime other than torch, which runs began with."""
        if self.runtime == "torch":
            return {}
        return {"runtime": self.runtime, "precision": self.precision, "calibration_data": self.calibration_data}

    @property
    def unusual_images(self) -> dict[str, int]:
        """What else tells these images from the square ones of three channels that runs began with: `image_width` in pixels, `in_chans`."""
        height, width = sides(self.image_size)
        channels = {"in_chans": self.in_chans} if self.in_chans != 3 else {}
        return ({"image_width": width} if width != height else {}) | channels

    @property
    def torch_device(self) -> torch.device:
        """The device as PyTorch takes it."""
        return torch.device(self.device)

    def protocol(
        self, *, image_size: ImageSize | None = None, in_chans: int | None = None, task: Task = "forward"
    ) -> Protocol:
        """The protocol for these conditions; size in pixels and channels of the images are the run's by default."""
        return Protocol.for_device(
            self.torch_device,
            batch_size=self.batch_size,
            image_size=self.image_size if image_size is None else image_size,
            in_chans=self.in_chans if in_chans is None else in_chans,
            dtype=self.dtype,
            mode=self.mode,
            task=task,
            runtime=self.runtime,
            precision=self.precision,
            calibration_data=self.calibration_data,
        )

    def use_device(self) -> None:
        """Limit this process to the threads and cores, and on CUDA allow TF32 for what stays float32. UserError where cores are absent."""
        use_cpu(self.threads, self.cpus)
        if self.device == "cuda":
            allow_tf32()

    @property
    def is_compiled(self) -> bool:
        """Whether candidates are timed compiled."""
        return self.mode != "eager"

    @property
    def num_threads(self) -> int:
        """Threads that PyTorch computes with once `use_cpu` was called."""
        current = torch.get_num_threads()
        return self.threads or (current if self.cpus is None else min(current, len(self.cpus)))


def _check_runtime_options(
    runtime: Runtime, dtype: str | None, mode: str | None, precision: str | None, calibration_data: str | None
) -> None:
    """Raise UserError for options of torch with another runtime, and the other way round."""
    if runtime == "torch":
        wrong = {
            "--precision": (precision, "--dtype"),
            "--calibration-data": (calibration_data, "a --runtime with int8"),
        }
    else:
        wrong = {"--dtype": (dtype, "--precision"), "--mode": (mode, "--runtime torch")}
    for option, (value, instead) in wrong.items():
        if value is not None:
            raise UserError(f"{option}: got {value!r}, which --runtime {runtime} does not have; use {instead}")


def _usable_mode(asked: str | None, device: str, say: Say, *, is_elsewhere: bool) -> Mode:
    """The mode asked for, or the device's own; eager where that one needs a compiler which cannot run here."""
    if asked == "reduce-overhead" and device != "cuda":
        raise UserError(
            f"--mode: got 'reduce-overhead', which captures CUDA graphs, but the device is {device}; use 'compile' or 'eager'"
        )
    mode = cast(Mode, asked or ("compile" if device == "cuda" else "eager"))
    problem = None if mode == "eager" or is_elsewhere else compiler_problem(device)
    if problem is None:
        return mode
    if asked is not None:
        raise UserError(
            f"--mode: got {asked!r}, but torch.compile cannot run here: {problem}; install it, or use 'eager'"
        )
    say(
        f"networks are timed eager, not compiled as they would be deployed: torch.compile cannot run here, since {problem}"
    )
    return "eager"
