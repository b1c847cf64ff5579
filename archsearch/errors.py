"""The two ways a command can fail, each with its exit code."""

import difflib
import re
from collections.abc import Iterable

LONGEST_SENTENCE = 400  # characters of an error's sentence
LONGEST_VALUE = 80  # characters of what was got, inside a sentence
_LONGEST_NAME = 200  # characters of a name that is compared with others
# The password of an address, `scheme://user:password@host`, up to the last @ since one may stand in it unescaped, and of its query, `?password=...`.
_PASSWORD = re.compile(
    r"(?<=://)([^\s:/@]*:)\S+(?=@)|(?<=[?&])((?:\w*pass\w*|pwd|secret|token)=)[^\s&'\"]+", re.IGNORECASE
)


class ArchsearchError(Exception):
    """Base of every error this package raises on purpose: one line of printable characters, at most LONGEST_SENTENCE of them."""

    exit_code = 1

    def __init__(self, sentence: str = "") -> None:
        super().__init__(one_line(sentence))


class UserError(ArchsearchError):
    """Something the user can put right: one sentence saying where, what was got, and what is allowed."""

    exit_code = 2


class RunError(ArchsearchError):
    """A run that could not go on; everything measured before it is kept."""

    exit_code = 1


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """`, did you mean 'hilo'?` when something known is close to `name`, else nothing."""
    close = difflib.get_close_matches(str(name)[:_LONGEST_NAME], list(known), n=1, cutoff=0.5)
    return f", did you mean {close[0]!r}?" if close else ""


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type where it has none; as short as a sentence."""
    return one_line(next(iter(str(error).splitlines()), type(error).__name__))


def shown(value: object) -> str:
    """A value in an error's sentence: as Python writes it, on one line, shortened to LONGEST_VALUE characters."""
    try:
        return one_line(repr(value), LONGEST_VALUE)
    except (ValueError, RecursionError):  # Python writes no number of over 4,300 digits, and no endless nesting
        return "a number of over 4,300 digits" if isinstance(value, int) else f"a {type(value).__name__}"


def without_passwords(text: str) -> str:
    """The text with `***` for every password that stands in an address, such as that of a database: for what is shown or written to a file."""
    return _PASSWORD.sub(lambda match: f"{match[1] or match[2]}***", text)


def one_line(text: str, most: int = LONGEST_SENTENCE) -> str:
    """The text with control characters escaped, without passwords, at most `most` characters: shortened are its longest words, then its middle."""
    signs = (sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in text)
    line = without_passwords("".join(signs))  # before a part of one could be cut off
    if len(line) > most:
        line = " ".join(_shorten(word, LONGEST_VALUE, "...") for word in line.split(" "))
    return _shorten(line, most, " ... ")


def _shorten(text: str, most: int, gap: str) -> str:
    """The text without its middle where it is longer than `most`."""
    if len(text) <= most:
        return text
    end = most // 3
    return text[: most - end - len(gap)] + gap + text[-end:]
