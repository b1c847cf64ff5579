"""Networks are exported with any batch: traced, by torch.export, to ONNX and compiled.

The gate takes two networks that have every block between them; `--whole` takes every paper's and 50 hybrids as they are (but for compiling, where each
further block is the same again). ONNX goes through torch.export, so the gate exports one by that alone.
"""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo.testing
from support.networks import MIXED, arch_of, parametrize_names
from torch import Tensor, nn

from archsearch import build

# Of the exporters: deprecations, and sizes of maps that become constants.
pytestmark = pytest.mark.filterwarnings("ignore")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "name" not in metafunc.fixturenames:
        return
    names = MIXED[:1] if metafunc.function is test_exported_it_runs_at_other_batches else MIXED
    quick = MIXED if metafunc.function is test_traced_at_batch_2_it_runs_at_others else ()
    all_short = metafunc.function is test_compiled_for_any_size_it_is_compiled_once
    parametrize_names(metafunc, names, quick, all_short=all_short)


@pytest.fixture(autouse=True)
def quiet_exporter() -> Iterator[None]:
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


def make(name: str, **options: Any) -> tuple[nn.Module, Tensor]:
    """A network in eval mode and eight images."""
    torch.manual_seed(0)
    arch = arch_of(name)
    return build(arch, **options).eval(), torch.randn(8, *arch.image().tensor)


def check(got: Tensor, wanted: Tensor) -> None:
    """The same up to 1e-5 of the largest."""
    assert got.shape == wanted.shape
    assert (got - wanted).abs().max() <= 1e-5 * wanted.abs().max()


def test_traced_at_batch_2_it_runs_at_others(name: str) -> None:
    network, images = make(name)
    with torch.no_grad():
        traced = torch.jit.trace(network, images[:2], check_trace=False)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        for batch in (1, 3):
            check(traced(images[:batch]), network(images[:batch]))


def test_exported_it_runs_at_other_batches(name: str) -> None:
    network, images = make(name)
    with torch.no_grad():
        program = torch.export.export(network, (images[:2],), dynamic_shapes=({0: torch.export.Dim("batch")},))
        exported = program.run_decompositions().module()
        for batch in (1, 3):
            check(exported(images[:batch]), network(images[:batch]))


def test_as_onnx_it_runs_at_other_batches(name: str, tmp_path: Path) -> None:
    network, images = make(name)
    check_onnx(network, images, tmp_path / "network.onnx")


def check_onnx(network: nn.Module, images: Tensor, file: Path) -> None:
    """By the dynamo exporter with a dynamic batch, then in onnxruntime at 1, 3 and 8."""
    onnxruntime = pytest.importorskip("onnxruntime")
    with torch.no_grad():
        program = torch.onnx.export(network, (images[:2],), dynamo=True, dynamic_shapes=({0: "batch"},), verbose=False)
    assert program is not None
    program.save(str(file), external_data=True)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(file), options)
    (given,) = session.get_inputs()
    assert given.shape == ["batch", *images.shape[1:]]
    with torch.inference_mode():
        for batch in (1, 3, 8):
            wanted = network(images[:batch])
            found = session.run(None, {given.name: images[:batch].numpy()})
            for got, each in zip(found, wanted if isinstance(wanted, list) else [wanted], strict=True):
                check(torch.from_numpy(got), each)


def test_compiled_for_any_size_it_is_compiled_once(name: str) -> None:
    network, images = make(name)
    graphs = []

    def backend(graph: Any, examples: Any) -> Any:
        graphs.append([each for each in examples if isinstance(each, torch.SymInt)])
        return graph

    torch._dynamo.reset()
    compiled = torch.compile(network, dynamic=True, backend=backend, fullgraph=True)
    with torch.inference_mode():
        for batch in (2, 3, 5):
            check(compiled(images[:batch]), network(images[:batch]))
    assert [len(symbols) for symbols in graphs] == [1]  # one graph, and of its sizes the batch alone is open


@pytest.mark.slow
def test_the_maps_of_stages_are_exported_too(tmp_path: Path) -> None:
    network, images = make("mixed-b", features_only=True)
    check_onnx(network, images, tmp_path / "network.onnx")


@pytest.mark.slow
def test_a_network_compiles_where_another_kept_its_tables() -> None:
    """The tables that networks keep are none of the compiler's business: it guarded those of all networks in the process."""
    other, images = make("swin_tiny-short")
    network, _ = make("msg_transformer_tiny-short")
    with torch.inference_mode():
        other(images[:1])
        torch._dynamo.reset()
        compiled = torch.compile(network, backend="eager", fullgraph=True)
        check(compiled(images[:1]), network(images[:1]))
        del other
        check(compiled(images[:1]), network(images[:1]))


@pytest.mark.slow
def test_candidates_in_turn_are_compiled_once_each() -> None:
    """Two networks of one architecture share a graph; none is compiled again for further images of its size."""
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounter()
    counts = []
    with torch.inference_mode():
        for name in sorted(2 * MIXED):
            network, images = make(name)
            compiled = torch.compile(network, backend=counter, fullgraph=True, dynamic=False)
            for few in (images[:2], images[2:4]):
                check(compiled(few), network(few))
            counts.append(counter.frame_count)
    assert counts == [1, 1, 2, 2]
