"""A clock that stands still until a test sets it."""

import time

import pytest


class Clock:
    """Stands in for `time.monotonic`; `now` is in seconds."""

    now = 1000.0

    def monotonic(self) -> float:
        """As time.monotonic."""
        return self.now


def standing_clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """A clock in place of time.monotonic until the test ends."""
    clock = Clock()
    monkeypatch.setattr(time, "monotonic", clock.monotonic)
    return clock
