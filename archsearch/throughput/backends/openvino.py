"""OpenVINO, on the CPU."""

import contextlib
import importlib
import io
import itertools
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from archsearch.models.export.onnx import INPUT
from archsearch.throughput.backends.contract import Backend
from archsearch.throughput.protocol import Protocol


class OpenVino(Backend):
    """A compiled model with one stream of requests, which reads the inputs where they are."""

    name, packages, devices = "openvino", ("onnx", "onnxscript", "nncf", "openvino"), ("cpu",)

    @classmethod
    def facts(cls, device: torch.device) -> dict[str, Any]:
        """As the contract says; the first import is the one without telemetry."""
        _import("openvino")
        return super().facts(device)

    @classmethod
    def providers(cls, device: torch.device) -> list[str]:
        """Its name of the device."""
        return ["CPU"]

    def prepare(self, file: Path, inputs: Sequence[Tensor], protocol: Protocol, calibration: Sequence[Tensor]) -> None:
        """As the contract says. A runtime's own choice of number format, bfloat16 on some CPUs, is overruled."""
        openvino = _import("openvino")
        core = openvino.Core()
        model = core.read_model(str(file))
        if protocol.precision == "int8":
            model = _quantized(model, calibration)
        settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "INFERENCE_PRECISION_HINT": "f16" if protocol.precision == "float16" else "f32",
        }
        self._compiled = core.compile_model(model, "CPU", settings)
        self._request = self._compiled.create_infer_request()
        self._inputs = [images.numpy() for images in inputs]
        self._turn = itertools.cycle(self._inputs)

    def logits(self) -> Tensor:
        """As the contract says."""
        return torch.from_numpy(self._request.infer({INPUT: self._inputs[0]})[0].copy()).float()

    def run(self, iterations: int) -> None:
        """As the contract says."""
        for _ in range(iterations):
            self._request.infer({INPUT: next(self._turn)}, share_inputs=True, share_outputs=True)

    def close(self) -> None:
        """As the contract says."""
        del self._request, self._compiled, self._inputs, self._turn


def _quantized(model: Any, calibration: Sequence[Tensor]) -> Any:
    """The model with eight-bit weights and activations, by NNCF, OpenVINO's own quantisation, at its defaults."""
    with contextlib.redirect_stdout(io.StringIO()):  # its progress bars would stand in a JSON document
        nncf = _import("nncf")
        data = nncf.Dataset([images.numpy() for images in calibration])
        return nncf.quantize(model, data, subset_size=len(calibration))


def _import(name: str) -> Any:
    """A package without OpenVINO's telemetry, which would write to the home folder and tell its makers what is run: they go without where it is missing."""
    before = sys.modules.get("openvino_telemetry")
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # so Python marks what cannot be imported
    try:
        package = importlib.import_module(name)
    finally:
        del sys.modules["openvino_telemetry"]
        if before is not None:
            sys.modules["openvino_telemetry"] = before
    logging.getLogger("nncf").setLevel(logging.ERROR)
    return package
