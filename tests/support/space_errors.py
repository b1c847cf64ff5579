"""A wrong space for every error that the page `spaces` explains: what the sentence says -> a call that raises it."""

import tempfile
import tomllib
from collections.abc import Callable
from pathlib import Path

from click.testing import CliRunner

from archsearch.cli import main
from archsearch.errors import UserError
from archsearch.space import Band, InBand, Space, load_space
from archsearch.units import parse_count_range, parse_macs, parse_share

Call = Callable[[], object]

_HUGE = """image_size = 8192
stem = { kind = "patch" }
stages = [{ width = 65536, depth = 1000, block = "mlp", mlp_ratio = 60000 }]
"""
_STAGE = "width = 64\ndepth = 2\n"


def _space(text: str) -> Call:
    return lambda: Space(tomllib.loads(text), "mine.toml")


def _one(stage: str, *, stem: str = 'kind = "patch"', top: str = "image_size = 64", head: str = "") -> Call:
    """A space of one stage of 16x16 positions and width 64."""
    return _space(f"{top}\nstem = {{ {stem} }}\n{head}\n[[stages]]\n{_STAGE}{stage}")


def _two(second: str, *, first: str = 'block = "mlp"', top: str = "image_size = 64") -> Call:
    return _space(f'{top}\nstem = {{ kind = "patch" }}\n[[stages]]\n{_STAGE}{first}\n[[stages]]\n{second}')


def _file(content: bytes) -> Call:
    def load() -> object:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "mine.toml"
            path.write_bytes(content)
            return load_space(path)

    return load


_TAKEN = "from archsearch.blocks import LargeKernel, register\nregister(LargeKernel)\n"


def _with_blocks(text: str, paths: str = '["own.py"]') -> object:
    """A space beside a file of blocks with this text."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "own.py").write_text(text)
        (Path(folder) / "mine.toml").write_text(f"blocks = {paths}\n")
        return load_space(Path(folder) / "mine.toml")


def _command(*arguments: str) -> Call:
    """A command that ends with exit code 2 and one sentence."""

    def run() -> None:
        result = CliRunner().invoke(main, list(arguments))
        assert result.exit_code == 2
        raise UserError(result.output)

    return run


def _class_token(block: str) -> Call:
    return _one(f'{block}\npositions = "learned"\nlearned = {{ class_token = true }}')


# By heading of the page: a sentence's words may stand under two headings.
CALLS: dict[str, dict[str, Call]] = {
    "The file and its keys": {
        "no such space file": lambda: load_space("absent.toml"),
        "neither a .toml file nor a shipped space": lambda: load_space("davit_tinny"),
        "not valid TOML": _file(b"[stem\nkind="),
        "cannot be read": _file(b"\xff\xfe\x00"),
        "unknown key": _one('block = "mlp"\ndeepth = 3'),
        "is missing": _space('stem = { kind = "patch" }\n[[stages]]\nwidth = 64\nblock = "mlp"'),
        "must be a table": _one('block = "hilo"\nhilo = 2'),
        "must be a list of tables": _space('stages = []\nstem = { kind = "patch" }'),
        "is no name": _one('block = "mlp"', top='name = "../mine"'),
        "texts, finite numbers, lists and tables": _one('block = "mlp"', top="paper = { published = 2023-01-01 }"),
        "unknown block": _one('block = "hillo"'),
        "no choice of this stage": _one('block = "mlp"\nlka = { kernel = 21 }'),
        "no block of this stage has": _one('block = "mlp"\nhead_dim = 32'),
        "names a block twice": _one('block = "lsa/lsa"'),
        "no such file of blocks": _one('block = "own"', top='blocks = ["absent.py"]'),
        "no Python file": _one('block = "own"', top='blocks = ["own.txt"]'),
        "have the same name": lambda: _with_blocks("", paths='["own.py", "./own.py"]'),
        ".py, line": lambda: _with_blocks("1 / 0"),
        "registers no layer": lambda: _with_blocks("x = 1"),
        "is registered already": lambda: _with_blocks(_TAKEN),
    },
    "Values": {
        "is empty": _one("block = []"),
        "stands twice": _one('block = "mlp"\nmlp_ratio = [4, 4.0]'),
        "or [height, width]": _one('block = "mlp"', top="image_size = [64, 64, 64]"),
        "a list is not allowed here": _one('block = "mlp"', top="num_classes = [10, 100]"),
        "is not a whole number": _one('block = "hilo"\nhilo = { window = "wide" }'),
        "is out of range": _one('block = "mlp"\nmlp_ratio = -1'),
        "choices; at most": _one(f'block = "mlp"\nmlp_ratio = {list(range(1, 1003))}'),
        "settings at its inputs": _one(
            f'block = "hilo"\nmlp_ratio = {list(range(1, 400))}\nhilo = {{ alpha = {[index / 400 for index in range(400)]} }}'
        ),
        "the most expensive choice has": lambda: InBand(
            Space(tomllib.loads(_HUGE), "mine.toml"), Band.around(10**9, 0.05)
        ),
        "is not positive": _space('stem = { kind = "patch" }\n[[stages]]\nwidth = 64\ndepth = 0\nblock = "mlp"'),
        "is neither": _one('block = "mlp"', stem='kind = "patch", patch = { init = "zero" }'),
    },
    "Layers that do not fit their map": {
        "is larger than the map": _one('block = "hilo"\nhilo = { window = [4, 18] }'),
        "does not divide the width": _one('block = "hilo"\nhead_dim = 48'),
        "leaves no hidden channel": _one('block = "mlp"\nmlp_ratio = 0'),
        "none of the layer's own choices": _one('block = "msg"', top="image_size = 16"),
        "is not a positive side": _one('block = "hilo"\nhilo = { window = 0 }'),
        "is not a positive distance": _one('block = "lda"\nlda = { interval = 0 }'),
        "is not a share": _one('block = "hilo"\nhilo = { alpha = 2 }'),
        "is not between 1 and the short side": _one('block = "gsa"\ngsa = { reduction = 0 }'),
        "must be odd and positive": _one('block = "lka"\nlka = { kernel = 22, dilation = 3 }'),
        "do not tile a map": _one('block = "msg/msa"\nmsg = { window = 5 }\nmsa = { bias = false }'),
        "is no side of a messenger's window": _one('block = "msg"\nmsg = { window = 1 }'),
        "is not a positive number": _one('block = "msg"\nmsg = { window = 4, shuffle = 0 }'),
        "needs a width divisible by": _space(
            'image_size = 64\nstem = { kind = "patch" }\n[[stages]]\nwidth = 72\ndepth = 1\nblock = "msg"\n'
            "msg = { window = 4, shuffle = 4, head_dim = 8 }"
        ),
        "is below 16": _space(
            'stem = { kind = "patch" }\n[[stages]]\nwidth = 8\ndepth = 1\nblock = "sda"\nhead_dim = 8'
        ),
        "is not a multiple of": _space(
            'stem = { kind = "cross-scale", cross-scale = { num_kernels = 4 } }\n[[stages]]\nwidth = 66\ndepth = 1\nblock = "mlp"'
        ),
        "larger than the padded image": _one('block = "mlp"', stem='kind = "patch", patch = { kernel = 99 }'),
        "smaller than the stem's stride": _one('block = "mlp"', stem='kind = "patch", patch = { kernel = 2 }'),
        "must be positive and": _one('block = "mlp"', stem='kind = "cross-scale", cross-scale = { stride = 3 }'),
        "does not divide by the stem's stride": _one(
            'block = "mlp"', stem='kind = "cross-scale"', top="image_size = 62"
        ),
        "cannot be halved": _two(f'{_STAGE}block = "mlp"\ndownsample = "patch"', top="image_size = 4"),
        "even sides": _two(f'{_STAGE}block = "mlp"\ndownsample = "cross-scale"', top="image_size = 60"),
        "works on a map alone": _one('block = "msg/hilo"\nmsg = { window = 4 }'),
        "tokens arrive": _class_token('block = "msg"\nmsg = { window = 4 }'),
        "no room for the token": _class_token('block = "sra"\nsra = { reduction = 2 }'),
        "has no place for the tokens": _class_token('block = "mlp"\nmlp = { conv = true }'),
        "has no relative position": _class_token('block = "msa"\nmsa = { bias = true }'),
        "takes the table as it is": _one(
            'block = "mlp"\npositions = "learned"\nlearned = { side = 3, unresized = 256 }'
        ),
        "reads one token": _one('block = "mlp"', head='head = { kind = "token" }'),
    },
    "Budgets, `--fix` and single architectures": {
        "is not a budget": lambda: parse_macs("4.5 gigaflops a second"),
        "did you mean 4.5G": lambda: parse_macs("4.5"),
        "is not a share": lambda: parse_share("120%"),
        "is not a range": lambda: parse_count_range("20M"),
        "no architecture has": _command("space", "--budget", "900GFLOPs"),
        "no parameter": _command("space", "--fix", "stages.2.blok=hilo"),
        "is not among its choices": _command("space", "--fix", "stages.2.block=swin"),
        "takes one value": _command("space", "--fix", "stages.2.block=hilo", "--fix", "stages.2.block=lka"),
        "an architecture fixes every value": _command("cost", "hybrid"),
    },
}
