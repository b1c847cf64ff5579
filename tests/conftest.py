"""One thread a process and a temporary folder of our own: tests must not fight over cores, nor wait for a search that holds the device's lock."""

import atexit
import gc
import os
import shutil
import tempfile

import pytest

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported, here and in every process the tests start
_FOLDER = tempfile.mkdtemp(prefix="archsearch-tests-")
os.environ["TMPDIR"] = tempfile.tempdir = os.environ["ARCHSEARCH_LOCK_DIR"] = _FOLDER
os.environ["XDG_CACHE_HOME"] = os.path.join(_FOLDER, "cache")
atexit.register(shutil.rmtree, _FOLDER, ignore_errors=True)


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--whole`: the measured lists in full, which take more than an hour, where the gate takes a part of each."""
    parser.addoption("--whole", action="store_true", help="all papers at full depth and all hybrids, not a part")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """The measured lists in full may take as long as they need."""
    if config.getoption("whole"):
        config.option.timeout = 0


def pytest_collection_finish() -> None:
    """What was imported and collected stays to the end: no garbage collection goes through it again (a tenth of a traced network's time)."""
    gc.collect()
    gc.freeze()
