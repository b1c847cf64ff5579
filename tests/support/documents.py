"""README and the pages of the documentation as tests read them: code blocks, commands, links."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = ROOT / "archsearch" / "docs"
DOCUMENTS = {
    "README": ROOT / "README.md",
    **{path.stem: path for path in sorted(PAGES.glob("*.md"))},
}


def text_of(name: str) -> str:
    """README, or a page by its name."""
    return DOCUMENTS[name].read_text(encoding="utf-8")


def code_blocks(name: str, language: str) -> list[str]:
    """The fenced blocks of a language."""
    return re.findall(rf"^```{re.escape(language)}\n(.*?)^```", text_of(name), re.DOTALL | re.MULTILINE)


def commands(name: str) -> Iterator[list[str]]:
    """The words of every command in a block of `sh`, and of every archsearch command inside a sentence."""
    lines = [line for block in code_blocks(name, "sh") for line in block.splitlines()]
    lines += [span.replace("\n", " ") for span in re.findall(r"`(archsearch [^`]+)`", text_of(name))]
    for line in lines:
        for part in line.split("&&"):
            words = shlex.split(part, comments=True)
            if words:
                yield words


def links(name: str) -> list[str]:
    """Targets of the links to other files, with what follows a `#`."""
    return [target for target in re.findall(r"\]\(([^)\s]+)\)", text_of(name)) if "://" not in target]


def anchors(path: Path) -> set[str]:
    """What a link may write behind a `#` for a file, as Git hosts name headings."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def printed_lines(code: str) -> list[str]:
    """What the comments behind a block's calls of `print` say is printed."""
    return re.findall(r"^print\(.*\)  # (.*)$", code, re.MULTILINE)
