"""Starting processes that Ctrl-C does not reach."""

import contextlib
import signal
import sys
from collections.abc import Iterator
from multiprocessing import resource_tracker


@contextlib.contextmanager
def without_interrupts() -> Iterator[None]:
    """A process started meanwhile never gets the Ctrl-C that a terminal sends to a whole group; ours only comes later."""
    if sys.platform == "win32":
        yield
        return
    # Started here, since on its own start it would lift the block.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
