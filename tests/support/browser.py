"""A real browser for tests: the Chromium that is installed here, driven by playwright; tests are skipped, with the reason, where one is missing."""

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

READY = "html[data-ready]"


def executable() -> str:
    """The browser's file; skips the test where there is none."""
    found = shutil.which("chromium") or shutil.which("google-chrome")
    if not found:
        pytest.skip("no Chromium is installed here (chromium, google-chrome)")
    return found


@contextmanager
def started() -> Iterator[Any]:
    """A browser without a window."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with sync_api.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=executable(), args=["--no-sandbox"])
        yield browser
        browser.close()


@dataclass
class Opened:
    """A page that was opened, with what it wrote to the console and asked of the network."""

    page: Any
    messages: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    @property
    def leaks(self) -> list[str]:
        """Requests beside that for the file itself."""
        own = self.page.url.partition("#")[0]
        return [url for url in self.requests if url != own and not url.startswith(("data:", "blob:"))]

    def until(self, expression: str, argument: object = None) -> None:
        """Wait until a function of the page gives true; playwright's own way evaluates a text inside the page, which the page forbids."""
        deadline = time.monotonic() + 30
        while not self.page.evaluate(expression, argument):
            assert time.monotonic() < deadline, expression
            self.page.wait_for_timeout(20)

    def row_texts(self) -> list[list[str]]:
        """The cells of the rows of the table that are in view."""
        texts: list[list[str]] = self.page.eval_on_selector_all(
            ".trials tbody tr[data-index]", "rows => rows.map(row => [...row.cells].map(cell => cell.textContent))"
        )
        return texts


@contextmanager
def opened(browser: Any, path: Path, **options: Any) -> Iterator[Opened]:
    """The page of a file once it is drawn; `options` are those of a browser's context."""
    context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, "accept_downloads": True, **options})
    shown = Opened(context.new_page())
    context.on("request", lambda request: shown.requests.append(request.url))
    shown.page.on("console", lambda message: shown.messages.append(f"{message.type}: {message.text}"))
    shown.page.on("pageerror", lambda error: shown.messages.append(str(error)))
    shown.page.goto(path.resolve().as_uri())
    shown.page.wait_for_selector(READY, state="attached", timeout=120_000)
    try:
        yield shown
    finally:
        context.close()
