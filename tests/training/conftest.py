"""Images to train on: made ones, and real photographs where they are beside this checkout."""

from pathlib import Path

import pytest
from support.trainings import CLOTHING, tiny_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def photographs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of real photographs: with --whole all 1,435 + 370, else 8 + 2 of each of the ten classes."""
    if not CLOTHING.is_dir():
        pytest.skip("needs ../shared/data/clothing-mini, which is not beside this checkout")
    if request.config.getoption("whole"):
        return CLOTHING.resolve()
    root = tmp_path_factory.mktemp("photographs")
    for split, number in (("train", 8), ("val", 2)):
        for name in sorted(path.name for path in (CLOTHING / split).iterdir()):
            (root / split / name).mkdir(parents=True)
            for image in sorted((CLOTHING / split / name).iterdir())[:number]:
                (root / split / name / image.name).symlink_to(image.resolve())
    return root
