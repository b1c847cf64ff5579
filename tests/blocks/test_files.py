"""Layers from outside the package: a file is run once and registered, or is refused in one sentence; installed packages bring theirs by an entry point."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.documents import ROOT
from support.own_blocks import CONVNEXT, forgetting

from archsearch import blocks
from archsearch.blocks import load_blocks, registered_layers
from archsearch.errors import UserError

_CONVNEXT = CONVNEXT.read_text()
_IMPORTS, _CLASS = _CONVNEXT.split("@register\n")


@pytest.fixture(autouse=True)
def _forgetting() -> Iterator[None]:
    with forgetting():
        yield


def write(folder: Path, text: str, name: str = "own.py") -> Path:
    (folder / name).write_text(text)
    return folder / name


def test_a_file_is_run_once_wherever_a_copy_of_it_lies(tmp_path: Path) -> None:
    (layer,) = load_blocks(CONVNEXT)
    assert registered_layers("block")["convnext"] is layer
    assert load_blocks(write(tmp_path, _CONVNEXT)) == (layer,)


def test_a_file_of_the_package_has_its_layers_already() -> None:
    layers = load_blocks(Path(str(blocks.van.__file__)))
    assert {layer.kind for layer in layers} == {"overlapping", "stage-norm", "lka"}


REFUSED: dict[str, tuple[str, str]] = {
    "syntax": ("x = 1\ny = (\n", r"own\.py, line 2: '\(' was never closed"),
    "import": ("import os\n\nimport nothing_there\n", "own.py, line 3: ModuleNotFoundError: No module named 'nothing_there'"),
    "its own exception": ("def f():\n    return 1 / 0\n\nf()\n", "own.py, line 2: ZeroDivisionError"),
    "exit": ("raise SystemExit(3)\n", "own.py, line 1: SystemExit: 3"),
    "nothing": ("x = 1\n", "own.py: registers no layer"),
    "no register": (_IMPORTS + _CLASS, "own.py: registers no layer"),
    "a kind of ours": (
        _CONVNEXT.replace('"convnext"', '"hilo"'),
        r"own\.py, line 27: ConvNextBlock: the block 'hilo' is registered already, by HiLoBlock of archsearch",
    ),
    "the kind of a downsample": (_CONVNEXT.replace('"convnext"', '"merging"'), "the downsample 'merging' is registered already, by Mer"),
    "twice": (f"{_CONVNEXT}\n\n@register\n{_CLASS}", "by ConvNextBlock of .*own.py"),
    "no dataclass": (_CONVNEXT.replace("@dataclass(frozen=True, kw_only=True)\n", ""), "ConvNextBlock: no frozen dataclass"),
    "not frozen": (_CONVNEXT.replace("frozen=True, ", ""), "TypeError: cannot inherit non-frozen"),
    "no layer": (_IMPORTS + "@register\nclass Other:\n    pass\n", "Other: no subclass of Layer"),
    "no class": (_IMPORTS + "register(3)\n", "3: no subclass of Layer"),
    "no kind": (_CONVNEXT.replace('    kind: ClassVar[str] = "convnext"\n', ""), "its kind is None"),
    "a kind that is no name": (_CONVNEXT.replace('"convnext"', '"Conv/Next"'), "its kind is 'Conv/Next'"),
    "a kind that is a key": (_CONVNEXT.replace('"convnext"', '"width"'), "its kind is 'width'"),
    "a kind that is a field": (_CONVNEXT.replace("kind: ClassVar[str]", "kind: str"), "kind is a field"),
    "a role of no block": (_CONVNEXT.replace("    paper:", '    role: ClassVar[str] = "stem"\n    paper:'), "its role is 'stem'"),
    "no cost": (_CONVNEXT.replace("def cost(", "def costs("), "has no method cost"),
    "no build": (_CONVNEXT.replace("def build(", "def builds("), "has no method build"),
    "no default": (_CONVNEXT.replace("    kernel: int = choice", "    size: int\n    kernel: int = choice"), "field size has no default"),
    "not compared": (
        _CONVNEXT.replace("    kernel: int = choice", "    size: int = field(default=1, compare=False)\n    kernel: int = choice").replace(
            "import dataclass", "import dataclass, field"
        ),
        "the field size is left out of comparisons",
    ),
    "no width": (
        _CONVNEXT.replace("Block, ", "Layer, ", 1)
        .replace("(Block)", "(Layer)")
        .replace("    paper:", '    role: ClassVar[str] = "stem"\n    paper:'),
        "has no field width",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_a_file_that_cannot_be_used_is_one_sentence_and_leaves_nothing(case: str, tmp_path: Path) -> None:
    text, words = REFUSED[case]
    before = registered_layers("block")
    with pytest.raises(UserError, match=words):
        load_blocks(write(tmp_path, text))
    assert registered_layers("block") == before
    assert load_blocks(write(tmp_path, _CONVNEXT))


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"own\.py: no such file of blocks"):
        load_blocks(tmp_path / "own.py")
    with pytest.raises(UserError, match=r"own\.toml: no Python file"):
        load_blocks(tmp_path / "own.toml")
    (tmp_path / "own.py").mkdir()
    with pytest.raises(UserError, match="it is a folder"):
        load_blocks(tmp_path / "own.py")


def test_another_text_of_the_same_kind_is_refused_by_both_names(tmp_path: Path) -> None:
    load_blocks(CONVNEXT)
    with pytest.raises(
        UserError, match=r"own.py, .* 'convnext' is registered already, by ConvNextBlock of .*convnext.py"
    ):
        load_blocks(write(tmp_path, f"# changed\n{_CONVNEXT}"))


def _install(folder: Path, package: str, text: str) -> None:
    """A package as an installer leaves it, with an entry point."""
    write(folder, text, f"{package}_blocks.py")
    about = folder / f"{package}-1.2.dist-info"
    about.mkdir()
    write(about, f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.2\n", "METADATA")
    write(about, f"[archsearch.blocks]\n{package} = {package}_blocks\n", "entry_points.txt")


def _run(folder: Path, program: str) -> str:
    """What a program prints beside these packages, on both outputs."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(folder)])}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, env=environment, cwd=folder
    )
    return done.stdout + done.stderr


@pytest.mark.slow
def test_an_installed_package_brings_its_layers_when_they_are_first_asked_for(tmp_path: Path) -> None:
    _install(tmp_path, "ours", _CONVNEXT)
    program = (
        "import sys, archsearch.cli\n"
        "from archsearch.blocks import installed_packages, load_blocks, registered_layers\n"
        "print('ours_blocks' in sys.modules)\n"
        "print(load_blocks('ours_blocks.py')[0] is sys.modules['ours_blocks'].ConvNextBlock)\n"
        "print(registered_layers('block')['convnext'].__module__, installed_packages())\n"
    )
    assert _run(tmp_path, program).splitlines() == ["False", "True", "ours_blocks {'ours': '1.2'}"]


@pytest.mark.slow
def test_a_broken_package_is_named_and_stops_nothing(tmp_path: Path) -> None:
    _install(tmp_path, "broken", f"{_CONVNEXT}\nimport nothing_there\n")
    program = (
        "from archsearch import UserError, paper\n"
        "from archsearch.blocks import layer_type\n"
        "print(paper('van_b0').name)\n"
        "try: layer_type('block', 'convnext', 'own.toml')\n"
        "except UserError as error: print(error)\n"
    )
    printed = _run(tmp_path, program)
    assert "van_b0\nown.toml: unknown block 'convnext'" in printed
    assert "BlocksWarning: the blocks of broken 1.2 are missing: broken_blocks: ModuleNotFoundError" in printed
    assert "; the blocks of broken 1.2 are missing (ModuleNotFoundError: No module named 'nothing_there');" in printed
