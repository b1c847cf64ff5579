"""ONNX and pt2 files of networks: checked, whole or not there, loaded where archsearch is not, and the network left as it was."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support.networks import MIXED, arch_of, parametrize_names
from support.shaken import shaken
from torch import Tensor, nn

from archsearch import build
from archsearch.errors import ArchsearchError, RunError, UserError
from archsearch.models.export.check import Check, compare
from archsearch.models.export.onnx import OPSET, write_onnx
from archsearch.models.export.torch_export import write_pt2

Writer = Callable[..., Check]
WRITERS = {"onnx": write_onnx, "pt2": write_pt2}
pytestmark = pytest.mark.filterwarnings("ignore")  # of the exporters


@pytest.fixture(params=WRITERS)
def kind(request: pytest.FixtureRequest) -> str:
    if request.param == "onnx":
        pytest.importorskip("onnxscript")
        pytest.importorskip("onnxruntime")
    return str(request.param)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "name" in metafunc.fixturenames:
        parametrize_names(metafunc, MIXED, ())


class Small(nn.Module):
    """Two layers with what an exporter could get wrong: a norm with running statistics, and dropout."""

    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.conv, self.norm, self.drop = nn.Conv2d(3, 8, 4, stride=4), nn.BatchNorm2d(8), nn.Dropout(0.5)
        self.fc = nn.Linear(8, classes)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, classes)."""
        logits: Tensor = self.fc(self.drop(self.norm(self.conv(x))).mean((2, 3)))
        return logits


class OfTwo(Small):
    """A network that counts on two images, as a traced file may without a word."""

    def forward(self, x: Tensor) -> Tensor:
        """Each image with half the mean of the first two."""
        return super().forward(x) + super().forward(x[:2]).mean(0) * (0.5 if len(x) == 2 else 0.25)


def small(factory: type[nn.Module] = Small) -> nn.Module:
    torch.manual_seed(0)
    return factory()


def written(kind: str, network: nn.Module, folder: Path, batch: int | None = None) -> Check:
    return WRITERS[kind](network, folder / f"x.{kind}", image_size=16, in_chans=3, batch=batch)


def logits_of(file: Path, images: Tensor) -> Tensor:
    """By the runtime of the file."""
    if file.suffix == ".pt2":
        with torch.no_grad():
            out: Tensor = torch.export.load(file).module()(images)
        return out
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])


def test_every_network_is_written_and_runs_at_any_batch(name: str, kind: str, tmp_path: Path) -> None:
    arch = arch_of(name)
    network = shaken(arch)
    file = tmp_path / f"x.{kind}"
    check = WRITERS[kind](network, file, image_size=arch.image_size, in_chans=arch.in_chans, batch=None)
    assert (check.images, check.equal_top1) == (64, 64)
    assert check.relative_difference <= 1e-5
    params = 4 * arch.cost().params
    assert params < file.stat().st_size < 1.3 * params + 4e6  # tables of positions and windows come on top


def test_a_file_has_the_logits_of_the_network_in_eval_mode(kind: str, tmp_path: Path) -> None:
    network = small().train()
    check = written(kind, network, tmp_path)
    assert network.training
    assert check.relative_difference < 1e-5
    images = torch.randn(7, 3, 16, 16)
    torch.testing.assert_close(logits_of(tmp_path / f"x.{kind}", images), network.eval()(images).detach())
    assert [path.name for path in tmp_path.iterdir()] == [f"x.{kind}"]


def test_the_network_is_left_as_it_was(kind: str, tmp_path: Path) -> None:
    network = small().to(torch.bfloat16).train()
    network.get_submodule("norm").eval()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    flags = [part.training for part in network.modules()]
    written(kind, network, tmp_path)
    assert [part.training for part in network.modules()] == flags
    assert all(parameter.requires_grad for parameter in network.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_a_batch_that_is_fixed_is_the_only_one(kind: str, tmp_path: Path) -> None:
    network = small().eval()
    check = written(kind, network, tmp_path, batch=24)
    assert check.images == 72  # full batches
    images = torch.randn(24, 3, 16, 16)
    torch.testing.assert_close(logits_of(tmp_path / f"x.{kind}", images), network(images).detach())
    with pytest.raises(Exception, match=r"(?i)dim|shape|guard"):
        logits_of(tmp_path / f"x.{kind}", images[:3])


def test_a_file_that_differs_is_refused_and_nothing_is_left(kind: str, tmp_path: Path) -> None:
    """The branch on the number of images is taken once, when it is traced; or the exporter refuses it."""
    file = tmp_path / f"x.{kind}"
    file.write_text("an earlier file")
    with pytest.raises(RunError, match="export"):
        written(kind, small(OfTwo), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [file.name]
    assert file.read_text() == "an earlier file"


def test_a_folder_that_is_absent_is_said(kind: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be written"):
        written(kind, small(), tmp_path / "absent")


def test_a_file_for_onnx_says_its_opset_and_names(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    written("onnx", small(), tmp_path)
    model = onnx.load(tmp_path / "x.onnx")
    assert {each.version for each in model.opset_import if each.domain == ""} == {OPSET}
    assert [each.name for each in model.graph.input] == ["images"]
    assert [each.name for each in model.graph.output] == ["logits"]
    sizes = model.graph.input[0].type.tensor_type.shape.dim
    assert [size.dim_param or size.dim_value for size in sizes] == ["batch", 3, 16, 16]


def test_without_the_extra_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = __import__("importlib.util").util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "onnxruntime" else find(name))
    with pytest.raises(UserError, match=r"archsearch\[onnxruntime\]"):
        written("onnx", small(), tmp_path)


@pytest.mark.slow
def test_a_pt2_file_runs_where_archsearch_is_not(tmp_path: Path) -> None:
    """In a process that cannot import us."""
    network = build(arch_of("swin_tiny-short")).eval()
    file = tmp_path / "x.pt2"
    write_pt2(network, file, image_size=224, in_chans=3, batch=None)
    images = torch.randn(3, 3, 224, 224)
    torch.save(images, tmp_path / "images.pt")
    program = (
        "import sys, torch\n"
        "sys.modules['archsearch'] = None\n"
        f"images = torch.load({str(tmp_path / 'images.pt')!r}, weights_only=True)\n"
        f"with torch.no_grad(): torch.save(torch.export.load({str(file)!r}).module()(images), {str(tmp_path / 'logits.pt')!r})\n"
        "try: import archsearch\n"
        "except ImportError: pass\n"
        "else: sys.exit('archsearch is here')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    with torch.no_grad():
        wanted = network(images)
    torch.testing.assert_close(torch.load(tmp_path / "logits.pt", weights_only=True), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("got", "difference", "equal"),
    [
        ([[1.0, 2.0], [3.0, 0.0]], 0.0, 2),
        ([[1.0, 2.0], [3.0, 0.3]], 0.1, 2),
        ([[2.0, 1.0], [3.0, 0.0]], 1 / 3, 1),
        ([[1.0, 2.0], [float("nan"), 0.0]], float("inf"), 1),
    ],
)
def test_a_difference_is_a_share_of_the_largest_logit(got: list[list[float]], difference: float, equal: int) -> None:
    check = compare(torch.tensor(got), torch.tensor([[1.0, 2.0], [3.0, 0.0]]))
    assert check.relative_difference == pytest.approx(difference)
    if difference < 1:
        assert check.equal_top1 == equal


def test_a_tie_within_the_tolerance_is_no_other_top_1() -> None:
    wanted = torch.tensor([[10.0, 9.9995, 0.0]])
    assert compare(torch.tensor([[9.9994, 9.9995, 0.0]]), wanted).equal_top1 == 1  # 0.0005 apart, allowed is 0.001
    assert compare(torch.tensor([[9.9, 9.95, 0.0]]), torch.tensor([[10.0, 9.95, 0.0]])).equal_top1 == 0


def test_a_network_without_finite_logits_cannot_be_compared(tmp_path: Path) -> None:
    network = small()
    with torch.no_grad():
        network.get_parameter("fc.bias")[0] = torch.inf
    with pytest.raises(RunError, match="own logits are not finite"):
        write_pt2(network, tmp_path / "x.pt2", image_size=16, in_chans=3, batch=None)
    assert list(tmp_path.iterdir()) == []


def test_our_errors_are_sentences(tmp_path: Path) -> None:
    class Refuses(Small):
        def forward(self, x: Tensor) -> Tensor:
            raise NotImplementedError("no such operator")

    with pytest.raises(ArchsearchError) as caught:
        write_pt2(Refuses(), tmp_path / "x.pt2", image_size=16, in_chans=3, batch=None)
    assert "\n" not in str(caught.value)
