"""The bar of a command on a terminal, and its lines where there is none."""

import io

import pytest
from rich.console import Console
from support.clock import Clock, standing_clock

from archsearch.cli.progress import progress_display, status_display


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = standing_clock(monkeypatch)
    clock.now = 0.0
    return clock


def terminal() -> Console:
    return Console(file=io.StringIO(), width=100, force_terminal=True, color_system=None, markup=False)


def printed(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_terminal_shows_count_text_and_the_time_left_by_this_sessions_work(clock: Clock) -> None:
    console = terminal()
    with progress_display(console) as display:
        assert "/" not in printed(console)  # nothing before the first report
        display.progress(10, 20, "starting")
        clock.now = 60.0
        display.progress(12, 20, "timed [hilo] 64")
        display.say("a line that stays")
        clock.now = 61.0
    shown = printed(console)
    assert "12/20" in shown
    assert "timed [hilo] 64" in shown  # no markup
    assert "0:00:0" in shown  # elapsed
    assert "about 4m00s left" in shown  # two of this session in a minute, eight to go
    assert "a line that stays\n" in shown.replace("\r", "")
    assert shown.endswith("\x1b[2K")  # the bar is gone


def test_without_a_terminal_there_is_a_line_every_half_minute(clock: Clock) -> None:
    console = Console(file=io.StringIO(), width=100)
    with progress_display(console) as display:
        display.progress(10, 20, "starting")
        for now, done in ((10.0, 11), (40.0, 12), (50.0, 13), (75.0, 15)):
            clock.now = now
            display.progress(done, 20, f"step {done}")
        display.say("a line")
    assert printed(console).splitlines() == [
        "12/20, step 12, 40s, about 2m40s left",
        "15/20, step 15, 1m15s, about 1m15s left",
        "a line",
    ]


def test_another_total_begins_another_bar(clock: Clock) -> None:
    console = Console(file=io.StringIO(), width=100)
    with progress_display(console) as display:
        display.progress(0, 4, "training images")
        clock.now = 40.0
        display.progress(4, 4, "training images")
        display.progress(0, 2, "validation images")
        clock.now = 80.0
        display.progress(1, 2, "validation images")
    assert printed(console).splitlines() == [
        "4/4, training images, 40s, about 0s left",
        "1/2, validation images, 40s, about 40s left",
    ]


def test_a_status_is_one_changing_line_or_a_line_for_each_change() -> None:
    console = terminal()
    with status_display(console) as say:
        say("van_b0: timing [1]")
    assert "van_b0: timing [1]" in printed(console)
    plain = Console(file=io.StringIO(), width=100)
    with status_display(plain) as say:
        for line in ("one", "one", "two"):
            say(line)
    assert printed(plain).splitlines() == ["one", "two"]
