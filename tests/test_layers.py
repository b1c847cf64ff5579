"""The import table of docs/architecture.md: imports go strictly down, siblings never import each other, each library stays in its rooms."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import archsearch

PACKAGE = Path(archsearch.__file__).parent
# Bottom to top; what stands in one set are siblings.
LAYERS = [
    {"errors", "metrics", "version", "identity"},
    {"units", "system"},
    {"lock", "cores"},
    {"compiler", "device", "results", "blocks"},
    {"space", "data"},
    {"models"},
    {"throughput", "proxy", "samplers", "timm", "training"},
    {"search", "report"},
    {"cli"},
]
ONLY_IN = {
    "click": {"cli"},
    "rich": {"cli", "report"},
    "optuna": {"samplers", "search"},
    "fvcore": {"models"},
    "plotly": {"report"},
}
NO_TORCH = {"errors", "metrics", "version", "identity", "units", "system", "lock", "cores", "results"}
TORCH = {"torch", "torchvision", "timm"}
FACES = [
    "blocks",
    "results",
    "space",
    "data",
    "models",
    "throughput",
    "proxy",
    "samplers",
    "training",
    "search",
    "report",
    "cli",
]


def _room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def _imports(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
    return names


def _arrows() -> list[tuple[str, str, str]]:
    """Room, its file, and what that imports."""
    files = [path for path in sorted(PACKAGE.rglob("*.py")) if not _room(path).startswith("__")]
    return [(_room(path), str(path.relative_to(PACKAGE)), name) for path in files for name in sorted(_imports(path))]


def _level(room: str) -> int:
    return next(level for level, rooms in enumerate(LAYERS) if room in rooms)


def test_every_room_has_its_layer() -> None:
    code = {_room(path) for path in PACKAGE.rglob("*.py")} - {"__init__", "__main__"}
    assert code == set().union(*LAYERS)


def test_imports_go_strictly_down() -> None:
    wrong = [
        f"{file} imports {name}"
        for room, file, name in _arrows()
        if name.startswith("archsearch.") and (target := name.split(".")[1]) != room and _level(target) >= _level(room)
    ]
    assert wrong == []


def test_modules_import_each_other_in_one_direction() -> None:
    """Room by room: no circle among modules, whatever their order."""
    modules = {
        ".".join(("archsearch", *path.relative_to(PACKAGE).with_suffix("").parts)) for path in PACKAGE.rglob("*.py")
    }
    graph: dict[str, set[str]] = {}
    for _, file, name in _arrows():
        own = ".".join(("archsearch", *Path(file).with_suffix("").parts))
        target = name if name in modules else name.rpartition(".")[0]
        if target in modules and target != own:
            graph.setdefault(own, set()).add(target)
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, f"circle: {' -> '.join((*path, module))}"
        if module not in done:
            for target in graph.get(module, ()):
                visit(target, (*path, module))
            done.add(module)

    for module in graph:
        visit(module, ())


def test_each_library_stays_in_its_rooms() -> None:
    wrong = []
    for room, file, name in _arrows():
        library = name.split(".")[0]
        if room not in ONLY_IN.get(library, {room}) or (library in TORCH and room in NO_TORCH):
            wrong.append(f"{file} imports {name}")
    assert wrong == []


def test_every_room_has_a_face() -> None:
    """One sentence, and names that exist; in a process of its own, where nothing was imported before."""
    program = (
        f"import importlib\nfor name in {FACES}:\n"
        "    room = importlib.import_module(f'archsearch.{name}')\n"
        "    assert room.__doc__.count('\\n') <= 3 and room.__all__, name\n"
        "    [getattr(room, public) for public in room.__all__]\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "module",
    ["archsearch", "archsearch.cli", "archsearch.results", "archsearch.space", "archsearch.throughput.protocol"],
)
def test_what_starts_at_once_imports_no_torch(module: str) -> None:
    program = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
