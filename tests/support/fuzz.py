"""Seeded damage for inputs, and what is wrong with the answer to one: a traceback, another exit code, a hang, a sentence too long.

`mutated_bytes` and `mutated_text` damage a file, `mutated_document` what is written in it, `damaged_toml` all of that;
`fault_of_call` and `fault_of_command` try it.
"""

import contextlib
import copy
import json
import random
import resource
import signal
import time
import tomllib
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from click.testing import CliRunner

from archsearch.cli import main
from archsearch.errors import LONGEST_SENTENCE, ArchsearchError

SECONDS = 10.0
_MEMORY = 4 * 2**30  # bytes that an input may make us take
_EXIT_CODES = (0, 1, 2)

# Values that a person, a script or an attacker may write where another one is meant.
ODD_VALUES: list[Any] = [
    *(0, -1, 1, 2, 3, 7, 100, 4096, 65_537, 999_999_999, 2**31, 2**63, 10**400, -(10**30)),
    *(0.0, -0.5, 0.25, 1.5, 1e-300, 1e300, float("inf"), float("nan"), True, False),
    *("", " ", "x", "none", "../../up", "a/b", "a" * 5000, "\x1b[31mred", "two\nlines", "\u202eback", "nän", "4"),
    *([], [[]], [1, 1], [1, "a"], list(range(1, 2000)), {}, {"kind": "patch"}, {"a": {"b": 1}}),
]
_NUMBERS = (
    *(
        0,
        1,
        2,
        3,
        4,
        5,
        7,
        8,
        12,
        14,
        15,
        16,
        17,
        28,
        31,
        32,
        33,
        48,
        49,
        56,
        64,
        65,
        96,
        97,
        100,
        112,
        128,
        192,
        224,
        225,
        256,
    ),
    *(257, 320, 384, 448, 512, 768, 1000, 1001, 1024, 2048, 4096, 4097, 8192, 8193, 32_768, 65_536, 65_537),
)
_SHARES = (0.0, 1e-9, 0.1, 0.25, 0.5, 0.9, 0.999, 1.0, 1.5, 4.0, 7.3, 100.0, 999.0, 65_536.0, 1e9)


class HangError(BaseException):
    """Something took longer than allowed; no `except Exception` catches it."""


@contextlib.contextmanager
def limits(seconds: float = SECONDS) -> Iterator[None]:
    """Raise HangError after so many seconds of this process's work, or three times as many of waiting (as on a busy machine), and MemoryError
    beyond 4 GiB more than now. In the main thread, POSIX only.
    """

    def stop(*_: object) -> None:
        raise HangError(f"took over {seconds:g} s")

    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    data = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmData"))
    resource.setrlimit(resource.RLIMIT_DATA, (int(data.split()[1]) * 1024 + _MEMORY, hard))
    before = [signal.signal(number, stop) for number in (signal.SIGPROF, signal.SIGALRM)]
    start = time.process_time()
    signal.setitimer(signal.ITIMER_PROF, seconds)
    signal.setitimer(signal.ITIMER_REAL, 3 * seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in zip((signal.SIGPROF, signal.SIGALRM), before, strict=True):
            signal.signal(number, handler)
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
    if time.process_time() - start > seconds:  # inside native code, where no signal is heard
        raise HangError(f"took {time.process_time() - start:.1f} s")


def fault_of_call(call: Callable[[], object], seconds: float = SECONDS) -> str | None:
    """What is wrong with a call, which may return or raise an ArchsearchError with one good sentence; None where all is well."""
    try:
        with limits(seconds):
            call()
    except ArchsearchError as error:
        return fault_of_sentence(str(error))
    except HangError as error:
        return f"hang: {error}"
    except Exception as error:
        return f"{type(error).__name__}: {error!s:.200}\n{''.join(traceback.format_tb(error.__traceback__)[-3:])}"
    return None


def fault_of_command(arguments: Sequence[str], text: str | bytes | None = None, seconds: float = SECONDS) -> str | None:
    """What is wrong with a command, run in this process with `text` on stdin; None where it ends with 0, 1 or 2 and a good sentence."""
    try:
        with limits(seconds):
            result = CliRunner().invoke(main, ["--debug", *arguments], input=text)
    except HangError as error:
        return f"hang: {error}"
    if result.exception and not isinstance(result.exception, SystemExit):
        return f"{type(result.exception).__name__}: {result.exception!s:.200}"
    if result.exit_code not in _EXIT_CODES or "error: unexpected" in result.stderr:
        return f"exit code {result.exit_code}: {result.stderr[-2000:]}"
    strange = {sign for sign in result.output if not sign.isprintable() and sign not in "\n\t"}
    if strange:
        return f"prints {sorted(strange)!r}"
    last = result.stderr.strip().rpartition("\n")[2]
    if last.lower().startswith("error: "):
        return fault_of_sentence(last[len("error: ") :])
    return f"exit code 2 without a sentence: {last}" if result.exit_code == 2 else None


def fault_of_sentence(sentence: str) -> str | None:
    """What is wrong with an error's sentence: nothing said, more than one line, unprintable or too long."""
    if not sentence.strip():
        return "says nothing"
    if not sentence.isprintable():
        return f"unprintable: {sentence!r:.200}"
    return None if len(sentence) <= LONGEST_SENTENCE else f"{len(sentence)} characters: {sentence:.200}"


# Damage


def mutated_bytes(content: bytes, rng: random.Random) -> bytes:
    """The bytes with one to three of: a bit turned, a piece cut out, doubled, replaced by noise or zeros, or the end cut off."""
    data = bytearray(content)
    for _ in range(rng.randint(1, 3)):
        place = rng.randrange(len(data) + 1)
        end = min(len(data), place + rng.choice((1, 2, 8, 64, 512)))
        match rng.choice(("bit", "cut", "double", "noise", "zeros", "end", "insert")):
            case "bit" if place < len(data):
                data[place] ^= 1 << rng.randrange(8)
            case "cut":
                del data[place:end]
            case "double":
                data[place:place] = data[place:end]
            case "noise":
                data[place:end] = rng.randbytes(end - place)
            case "zeros":
                data[place:end] = bytes(end - place)
            case "end":
                del data[place:]
            case _:
                data[place:place] = rng.choice((b"\xef\xbb\xbf", b"\xff\xfe", b"\0", b"\r\n", b"\x1b[2J", b"9" * 5000))
    return bytes(data)


def mutated_text(text: str, rng: random.Random) -> str:
    """The text with one to three of: a piece cut out, doubled or moved, a number replaced, a sign put in."""
    for _ in range(rng.randint(1, 3)):
        place = rng.randrange(len(text) + 1)
        end = min(len(text), place + rng.choice((1, 2, 5, 20)))
        piece, rest = text[place:end], text[:place] + text[end:]
        match rng.choice(("cut", "double", "move", "insert", "number")):
            case "cut":
                text = rest
            case "double":
                text = text[:end] + piece + text[end:]
            case "move":
                to = rng.randrange(len(rest) + 1)
                text = rest[:to] + piece + rest[to:]
            case "insert":
                text = text[:place] + rng.choice("[]{}=,.\"'#\n\t-+0959eE_xé\u202e\x7f") + text[place:]
            case _:
                digits = [at for at, sign in enumerate(text) if sign.isdigit()]
                if digits:
                    at = rng.choice(digits)
                    text = text[:at] + rng.choice(("0", "-1", "1e400", "nan", "9" * 30, "0x1F", "1.5")) + text[at + 1 :]
    return text


def mutated_document(document: Any, rng: random.Random) -> Any:
    """A copy of plain values (as of JSON or TOML) with one to three changes: values replaced, keys misspelt, removed, doubled, moved or exchanged."""
    found = copy.deepcopy(document)
    for _ in range(rng.randint(1, 3)):
        places = list(_places(found))
        if places:
            rng.choice(_CHANGES)(*rng.choice(places), *rng.choice(places), rng)
    return found


def _put_odd(holder: Any, key: Any, _: Any, __: Any, rng: random.Random) -> None:
    holder[key] = copy.deepcopy(rng.choice(ODD_VALUES))


def _put_like(holder: Any, key: Any, other: Any, other_key: Any, rng: random.Random) -> None:
    """A value of the same kind; for a list, or in one's place, a list of such."""
    value = holder[key]
    first = value[0] if isinstance(value, list) and value else value
    if isinstance(first, dict | list) or (isinstance(first, str) and not isinstance(other[other_key], str)):
        return
    like: dict[type, Sequence[Any]] = {
        bool: (True, False),
        int: _NUMBERS,
        float: _SHARES,
        str: (first, other[other_key]),
    }
    choices = like.get(type(first), (first,))
    if isinstance(value, list) or rng.random() < 0.2:
        number = rng.choice((1, 2, 3, 5, 40))
        holder[key] = list(dict.fromkeys(rng.choices(choices, k=number)))
    else:
        holder[key] = rng.choice(choices)


def _change_number(holder: Any, key: Any, _: Any, __: Any, rng: random.Random) -> None:
    number = holder[key]
    if isinstance(number, int | float) and abs(number) < 1e6:
        holder[key] = rng.choice((number * 10, number // 2, number + 1, -number, float(number)))


def _remove(holder: Any, key: Any, _: Any, __: Any, rng: random.Random) -> None:
    del holder[key]


def _misspell(holder: Any, key: Any, _: Any, __: Any, rng: random.Random) -> None:
    if isinstance(key, str) and len(key) > 1:
        at = rng.randrange(len(key) - 1)
        holder[key[:at] + key[at + 1] + key[at] + key[at + 2 :]] = holder.pop(key)


def _copy(holder: Any, key: Any, other: Any, other_key: Any, rng: random.Random) -> None:
    holder[key] = copy.deepcopy(other[other_key])


def _exchange(holder: Any, key: Any, other: Any, other_key: Any, rng: random.Random) -> None:
    holder[key], other[other_key] = copy.deepcopy(other[other_key]), copy.deepcopy(holder[key])


def _make_list(holder: Any, key: Any, _: Any, __: Any, rng: random.Random) -> None:
    holder[key] = [holder[key], *copy.deepcopy(rng.choices(ODD_VALUES, k=rng.randint(0, 3)))]


_CHANGES = (*[_put_like] * 8, _put_odd, _put_odd, _change_number, _remove, _misspell, _copy, _exchange, _make_list)


def _places(document: Any) -> Iterator[tuple[Any, Any]]:
    """Every container of the document with every key or index of it."""
    if isinstance(document, dict | list):
        for key in document if isinstance(document, dict) else range(len(document)):
            yield document, key
            yield from _places(document[key])


def damaged_toml(text: str, rng: random.Random) -> bytes:
    """A TOML file with, mostly, other values, keys and tables, so that it is still TOML; else with another text or other bytes."""
    way = rng.random()
    if way < 0.85:
        return to_toml(mutated_document(tomllib.loads(text), rng)).encode(errors="surrogatepass")
    return mutated_text(text, rng).encode() if way < 0.95 else mutated_bytes(text.encode(), rng)


def to_toml(document: dict[str, Any]) -> str:
    """The document as TOML, tables inside the top one inline."""
    return "".join(f"{json.dumps(key)} = {_toml_value(value)}\n" for key, value in document.items())


def _toml_value(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {_toml_value(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml_value, value)) + "]"
    if isinstance(value, float):
        return repr(value) if "e" in repr(value) or "." in repr(value) else repr(value).replace("Infinity", "inf")
    return json.dumps(value).replace("\x7f", "\\u007f")
