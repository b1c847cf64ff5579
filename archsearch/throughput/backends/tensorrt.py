"""TensorRT, on CUDA. Written by its documentation and not yet run on a GPU: no figure here was measured with it."""

import importlib
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from archsearch.errors import RunError
from archsearch.models.export.onnx import INPUT, OUTPUT
from archsearch.throughput.backends.contract import Backend
from archsearch.throughput.protocol import Protocol


class TensorRT(Backend):
    """An engine built for the file; it computes in the file's number format, but for float32 products in TF32."""

    name, packages, devices = "tensorrt", ("onnx", "onnxscript", "tensorrt"), ("cuda",)
    precisions = ("float32", "float16")

    @classmethod
    def providers(cls, device: torch.device) -> list[str]:
        """It has no parts."""
        return ["TensorRT"]

    def prepare(self, file: Path, inputs: Sequence[Tensor], protocol: Protocol, calibration: Sequence[Tensor]) -> None:
        """As the contract says; building the engine takes minutes."""
        tensorrt: Any = importlib.import_module("tensorrt")
        logger = tensorrt.Logger(tensorrt.Logger.ERROR)
        builder = tensorrt.Builder(logger)
        network = builder.create_network(1 << int(tensorrt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        parser = tensorrt.OnnxParser(network, logger)
        if not parser.parse(file.read_bytes()):
            raise RunError(f"throughput: TensorRT cannot read the network: {parser.get_error(0).desc()}")
        plan = builder.build_serialized_network(network, builder.create_builder_config())
        if plan is None:
            raise RunError("throughput: TensorRT cannot build an engine of the network; its lines above say why")
        self._runtime = tensorrt.Runtime(logger)  # must outlive the engine
        self._engine = self._runtime.deserialize_cuda_engine(plan)
        self._context = self._engine.create_execution_context()
        self._inputs, self._turn = inputs, itertools.cycle(inputs)
        shape = tuple(self._engine.get_tensor_shape(OUTPUT))
        self._output = torch.empty(shape, dtype=inputs[0].dtype, device=inputs[0].device)

    def logits(self) -> Tensor:
        """As the contract says."""
        self._pass(self._inputs[0])
        return self._output.float().cpu()

    def run(self, iterations: int) -> None:
        """As the contract says: the passes are in torch's stream when it returns."""
        for _ in range(iterations):
            self._pass(next(self._turn))

    def _pass(self, images: Tensor) -> None:
        self._context.set_tensor_address(INPUT, images.data_ptr())
        self._context.set_tensor_address(OUTPUT, self._output.data_ptr())
        if not self._context.execute_async_v3(torch.cuda.current_stream().cuda_stream):
            raise RunError("throughput: TensorRT could not start a forward pass")

    def close(self) -> None:
        """As the contract says."""
        del self._context, self._engine, self._runtime, self._output, self._inputs, self._turn
