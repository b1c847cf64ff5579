"""ONNX Runtime, on the CPU and on CUDA."""

import importlib
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from archsearch.errors import UserError
from archsearch.models.export.onnx import INPUT, OUTPUT
from archsearch.throughput.backends.contract import Backend
from archsearch.throughput.protocol import Protocol

_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
# What computes nearly all; norms and softmax stay in float32, since their ranges are too wide for eight bits.
_QUANTIZED = ["Conv", "MatMul", "Gemm"]


class OnnxRuntime(Backend):
    """Sessions of one provider, with inputs and outputs bound once: no pass copies them."""

    name, packages, devices = "onnxruntime", ("onnx", "onnxscript", "onnxruntime"), ("cuda", "cpu")

    @classmethod
    def check_device(cls, device: str) -> None:
        """UserError also where the installed package lacks the provider, as that for CPUs lacks CUDA's."""
        super().check_device(device)
        there = importlib.import_module("onnxruntime").get_available_providers()
        if _PROVIDERS[device] not in there:
            raise UserError(
                f"--device: got {device!r}, but onnxruntime has {' and '.join(there)} here, not {_PROVIDERS[device]}; "
                "run pip install onnxruntime-gpu in its place, or use --device cpu"
            )

    @classmethod
    def providers(cls, device: torch.device) -> list[str]:
        """One: what it cannot do is an error, not left to another."""
        return [_PROVIDERS[device.type]]

    def prepare(self, file: Path, inputs: Sequence[Tensor], protocol: Protocol, calibration: Sequence[Tensor]) -> None:
        """As the contract says."""
        onnxruntime: Any = importlib.import_module("onnxruntime")
        if protocol.precision == "int8":
            file = _quantized(file, calibration)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors alone
        options.intra_op_num_threads = torch.get_num_threads()
        options.inter_op_num_threads = 1
        # Between its passes the threads of one session would else wait busily beside the other's, the reference's.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        kind = inputs[0].device.type
        self._session = onnxruntime.InferenceSession(str(file), options, providers=self.providers(inputs[0].device))
        self._bindings = [self._bound(onnxruntime, images, kind) for images in inputs]
        self._turn = itertools.cycle(self._bindings)

    def _bound(self, onnxruntime: Any, images: Tensor, kind: str) -> Any:
        binding = self._session.io_binding()
        binding.bind_ortvalue_input(INPUT, onnxruntime.OrtValue.ortvalue_from_numpy(images.cpu().numpy(), kind))
        binding.bind_output(OUTPUT, kind)
        return binding

    def logits(self) -> Tensor:
        """As the contract says."""
        self._session.run_with_iobinding(self._bindings[0])
        return torch.from_numpy(self._bindings[0].copy_outputs_to_cpu()[0]).float()

    def run(self, iterations: int) -> None:
        """As the contract says; a pass on CUDA is over when it returns."""
        for _ in range(iterations):
            self._session.run_with_iobinding(next(self._turn))

    def close(self) -> None:
        """As the contract says."""
        del self._turn, self._bindings, self._session


def _quantized(file: Path, calibration: Sequence[Tensor]) -> Path:
    """A file beside it with eight-bit weights, by channel, and activations, by the least and most of the calibration images."""
    quantization: Any = importlib.import_module("onnxruntime.quantization")

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]  # the base is loaded here
        def __init__(self) -> None:
            self._left: Iterator[Tensor] = iter(calibration)

        def get_next(self) -> dict[str, Any] | None:
            images = next(self._left, None)
            return None if images is None else {INPUT: images.numpy()}

    made = file.with_name(f"int8-{file.name}")
    quantization.quantize_static(
        str(file),
        str(made),
        Reader(),
        quant_format=quantization.QuantFormat.QDQ,
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
        per_channel=True,
        op_types_to_quantize=_QUANTIZED,
    )
    return made
