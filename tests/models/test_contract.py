"""Each check of a layer finds the mistake that it is for: a right block with one thing made wrong fails that check, with a sentence that says what."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.own_blocks import CONVNEXT, forgetting

from archsearch.blocks import Shape, load_blocks
from archsearch.models import Finding, check_layer

CHECKS = (
    "fields",
    "check",
    "canonical",
    "out",
    "params",
    "macs",
    "activations",
    "start",
    "training",
    "batch",
    "space",
    "strict",
    "export",
)
NOTES = ("strict", "export")
MAPS = (Shape(32, 6, 6), Shape(32, 5, 7))
_CHECK = 'if self.kernel % 2 == 0:\n            raise LayerError("kernel", f'
_FORWARD = "        return out\n"
_CANONICAL = "    def canonical(self, shape: Shape) -> Block:\n        return {}\n\n    def build("

# Name of the mistake -> the check that finds it, words of its sentence, and what is replaced by what.
MISTAKES: dict[str, tuple[str, str, str, str]] = {
    "no docstring": ("fields", "no docstring", '    """A depthwise convolution and an MLP behind one skip."""\n\n', ""),
    "no doc": ("fields", "ratio has no doc", ', doc="hidden width of the MLP over the width"', ', doc=""'),
    "a choice of another type": ("fields", "ratio is a int, and its choice 4.0", "choice(4, 2, 4,", "choice(4, 2, 4.0,"),
    "a field no space can write": ("fields", "ratio is a tuple", "    ratio: int =", "    ratio: tuple[int, ...] ="),
    "an unknown scale": ("fields", "scale of ratio is 'depth'", "choice(4, 2, 4,", 'choice(4, 2, 4, scale="depth",'),
    "an error of another class": ("check", "raises ValueError", _CHECK, _CHECK.replace("% 2 == 0", "== 3").replace('LayerError("kernel", ', "ValueError(")),
    "an error that names no field": ("check", "names 'side'", _CHECK, _CHECK.replace("% 2 == 0", "== 3").replace('"kernel"', '"side"')),
    "nothing stands": ("check", "refuses all", "self.kernel % 2 == 0", "self.kernel"),
    "a map that is let through": ("out", "on 32 x 5x7: out says", "tokens = ", "x = x[..., : 2 * (x.shape[-1] // 2)]\n        tokens = "),
    "another map": ("out", "out says", _FORWARD, "        return out[:, :, 1:]\n"),
    "no channels_last": ("out", "channels_last", _FORWARD, "        return out.contiguous()\n"),
    "not finite": ("out", "not finite", "out: Tensor = x + ", "out = x / 0 + "),
    "it cannot run": ("out", "raises RuntimeError", "nn.LayerNorm(width)", "nn.LayerNorm(width + 1)"),
    "macs": ("macs", "cost says .* fvcore counts", "self.kernel**2 * width,", "self.kernel * width,"),
    "an operation without a formula": ("macs", "no formula for .*cumsum", "self.mlp(tokens)", "self.mlp(tokens).cumsum(-1)"),
    "norm macs": ("macs", "FlopCounterMode", ", norm_macs=5 * positions * width", ""),
    "activations": ("activations", "cost says .* fvcore counts", ", activations=positions * (hidden + width)", ""),
    "params": ("params", "cost says .* the module has", " + Cost(params=width)", ""),
    "canonical never ends": ("canonical", "is itself", "    def build(", _CANONICAL.format("ConvNextBlock(kernel=self.kernel + 2)")),
    "canonical costs otherwise": ("canonical", "which costs", "    def build(", _CANONICAL.format("ConvNextBlock()")),
    "another start each time": ("start", "other weights in scale", "torch.full((width,), 1e-6)", "torch.full((width,), torch.seed() / 2**64)"),
    "no finite start": ("start", "scale begins", "1e-6", "float('nan')"),
    "no gradient": ("training", "no gradient reaches scale", "(self.scale *", "(self.scale.detach() *"),
    "a parameter that nothing reads": (
        "training",
        "no gradient reaches depthwise.bias",
        "self.depthwise(x)",
        "nn.functional.conv2d(x, self.depthwise.weight, padding=self.depthwise.padding, groups=x.shape[1])",
    ),
    "only eval": ("training", "raises RuntimeError", "x + (", "(x if not self.training else x[:, 1:]) + ("),
    "images that mix": ("batch", "in a batch of two", "out: Tensor = x + ", "out: Tensor = x + x.mean(0, keepdim=True) + "),
    "dropout in eval mode": ("batch", "another output each time", "out: Tensor = x + ", "out = nn.functional.dropout(x) + "),
    "a field with a stage's name": ("space", "width is open", "    ratio: int =", "    width: int = choice(2, 1, 2, doc='?')\n    ratio: int ="),
    "a check that refuses too much": ("strict", "on 32 x 5x7: check refuses it", "self.kernel % 2 == 0", "shape.height % 2"),
    "one number of images": ("export", "raises", "out: Tensor = x + ", "assert len(x) < 4\n        out = x + "),
}  # fmt: skip


@pytest.fixture(autouse=True)
def _forgetting() -> Iterator[None]:
    with forgetting():
        yield


def findings(folder: Path, old: str = "", new: str = "", *, notes: bool = True) -> Iterator[Finding]:
    """What the checks find of ConvNeXt's block with one thing replaced."""
    text = CONVNEXT.read_text()
    assert not old or text.count(old) == 1, f"{text.count(old)} times: {old}"
    file = folder / "own.py"
    file.write_text(text.replace(old, new) if old else text)
    (layer,) = load_blocks(file)
    return check_layer(layer, MAPS, notes=notes)


def test_a_right_block_passes_every_check(tmp_path: Path) -> None:
    found = list(findings(tmp_path))
    assert tuple(finding.check for finding in found) == CHECKS
    assert [finding for finding in found if finding.problem] == []


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_fails_the_check_that_is_for_it(mistake: str, tmp_path: Path) -> None:
    check, words, old, new = MISTAKES[mistake]
    found = next(each for each in findings(tmp_path, old, new, notes=check in NOTES) if each.check == check)
    assert found.result == ("note" if check in NOTES else "failed")
    assert re.search(words, found.problem), found.problem
