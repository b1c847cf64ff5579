"""The wheel works where there is no checkout: spaces and embedded data are inside."""

import json
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)],
        check=True,
        capture_output=True,
    )
    return next(folder.glob("*.whl"))


def test_wheel_carries_spaces_data_documentation_and_licences(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert "archsearch/spaces/hybrid.toml" in names
    assert {f"archsearch/spaces/papers/{path.name}" for path in (ROOT / "spaces" / "papers").glob("*.toml")} <= names
    assert {f"archsearch/docs/{path.name}" for path in (ROOT / "archsearch" / "docs").glob("*.md")} <= names
    assert "archsearch/data/assets/fashion_mnist_12k.npz" in names
    recipes = ROOT / "archsearch" / "training" / "recipes"
    assert {f"archsearch/training/recipes/{path.name}" for path in recipes.glob("*.toml")} <= names
    page = ROOT / "archsearch" / "report" / "page"
    assert {
        f"archsearch/report/page/{path.name}" for path in page.iterdir() if path.suffix in (".html", ".css", ".js")
    } <= names
    assert "archsearch/data/assets/FASHION_MNIST_LICENSE" in names
    assert {f"archsearch/proxy/shipped/timm/{name}" for name in ("networks.csv", "LICENSE", "SOURCE.md")} <= names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert not any(name.startswith(("tests/", "results/")) for name in names)


def test_wheel_installed_in_an_empty_environment_runs_from_another_folder(wheel: Path, tmp_path: Path) -> None:
    """The environment is new and holds the wheel alone; its dependencies are seen through a .pth file instead of being downloaded again."""
    environment = tmp_path / "venv"
    venv.create(environment, with_pip=False)
    packages = next((environment / "lib").glob("python*")) / "site-packages"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(packages)
    dependencies = [path for path in sys.path if path.endswith("site-packages")]
    (packages / "dependencies.pth").write_text("\n".join(dependencies))
    python = str(environment / "bin" / "python")
    where = subprocess.run(
        [python, "-c", "import archsearch; print(archsearch.__file__)"],
        cwd=tmp_path,
        check=True,
        capture_output=True,
        text=True,
    )
    assert where.stdout.startswith(str(packages))
    program = (
        "import json, archsearch, archsearch.data.dataset as data;"
        "cost = archsearch.paper('davit_tiny').cost();"
        "print(json.dumps([cost.macs, len(archsearch.paper_names()), len(data.load_fashion_mnist().train_labels)]))"
    )
    shown = subprocess.run([python, "-c", program], cwd=tmp_path, check=True, capture_output=True, text=True)
    assert json.loads(shown.stdout) == [4540244736, 39, 10000]
    command = [python, "-m", "archsearch", "sample", "-n", "1", "--seed", "0", "--budget", "4.5GFLOPs", "--json"]
    sampled = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True)
    assert 4.275e9 <= json.loads(sampled.stdout)[0]["macs"] <= 4.725e9
