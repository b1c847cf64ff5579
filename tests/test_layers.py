"""DESIGN.md's table of layers: imports only go down."""

import ast
from pathlib import Path

import archsearch

PACKAGE = Path(archsearch.__file__).parent
LAYERS = [
    {"cost", "ranks", "pareto", "units", "errors", "files", "interrupts"},
    {"blocks", "plan", "grammar", "stages", "arch", "features", "model"},
    {
        "space",
        "budget",
        "checkpoints",
        "trace",
        "throughput",
        "protocol",
        "stopwatch",
        "telemetry",
        "machine",
        "proxy",
        "calibration",
        "training_free",
    },
    {"evaluate", "settings", "results", "config", "certainty", "audit"},
    {"storage", "study", "samplers", "rungs", "rows"},
    {"engine"},
    {
        "report",
        "report_tables",
        "tables",
        "listings",
        "space_listing",
        "live",
        "lookup",
        "benching",
        "bench_tables",
        "calibrating",
        "agreement",
        "predicting",
        "running",
        "recount",
        "validation",
        "evaluating",
        "preprocessing",
        "preparing",
        "profile_listing",
        "free_listing",
        "auditing",
        "audit_tables",
        "audit_progress",
    },
    {"cli"},
]
ORDER_WITHIN_1 = ["blocks", "plan", "grammar", "stages", "arch", "features", "model"]
ONLY_IN = {"optuna": {"storage", "study", "samplers"}, "fvcore": {"trace"}, "click": {"cli"}}
NO_TORCH = LAYERS[0] | {"results"}


def _module(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def _imports(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
    return names


def _level(module: str) -> int:
    return next(level for level, modules in enumerate(LAYERS) if module in modules)


def _files() -> list[Path]:
    return [path for path in sorted(PACKAGE.rglob("*.py")) if _module(path) not in ("__init__", "__main__")]


def test_every_module_has_its_layer() -> None:
    modules = {_module(path) for path in _files()}
    assert modules == set().union(*LAYERS)


def test_imports_only_go_down() -> None:
    wrong = []
    for path in _files():
        own = _module(path)
        for name in _imports(path):
            if not name.startswith("archsearch."):
                continue
            target = name.split(".")[1]
            if target == "__version__":
                continue
            down = _level(target) < _level(own) or target == own
            beside = _level(target) == _level(own) and (
                _level(own) != 1 or ORDER_WITHIN_1.index(target) <= ORDER_WITHIN_1.index(own)
            )
            if not (down or beside):
                wrong.append(f"{path.relative_to(PACKAGE)} imports {name}")
    assert wrong == []


def test_each_library_is_known_only_where_it_belongs() -> None:
    wrong = []
    for path in _files():
        for name in _imports(path):
            library = name.split(".")[0]
            if library in ONLY_IN and _module(path) not in ONLY_IN[library]:
                wrong.append(f"{path.relative_to(PACKAGE)} imports {name}")
            if library in ("torch", "torchvision", "timm") and _module(path) in NO_TORCH:
                wrong.append(f"{path.relative_to(PACKAGE)} imports {name}")
    assert wrong == []
