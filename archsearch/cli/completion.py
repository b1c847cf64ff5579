"""What the shell offers when Tab is pressed: papers, spaces, runs, their trials, arch_ids, proxies, lists of names. Loads no torch, and reads few columns."""

import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import click
from click.shell_completion import BashComplete, CompletionItem, add_completion_class, split_arg_string

from archsearch.cli.app import RESULTS

Items = list[CompletionItem[str]]
Complete = Callable[[click.Context, click.Parameter, str], Items]
_MOST = 500  # items: a shell asks before it shows so many
_MOST_DRAWS = 10
_HEXADECIMAL = set("0123456789abcdef")
_PACKAGE = Path(__file__).parent.parent

# Bash begins a new word at every colon, so click's own script would see `:` and `12` for `RUN:12`. This one hands over the line as it was typed.
_BASH_SOURCE = """\
%(complete_func)s() {
    local IFS=$'\\n'
    local response

    response=$(env ARCHSEARCH_LINE="${COMP_LINE:0:$COMP_POINT}" ARCHSEARCH_BREAKS="$COMP_WORDBREAKS" \\
%(complete_var)s=bash_complete $1)

    for completion in $response; do
        IFS=',' read type value <<< "$completion"

        if [[ $type == 'dir' ]]; then
            compopt -o dirnames
        elif [[ $type == 'file' ]]; then
            compopt -o default
        elif [[ $type == 'nospace' ]]; then
            compopt -o nospace
        elif [[ $type == 'plain' ]]; then
            COMPREPLY+=($value)
        fi
    done

    return 0
}

%(complete_func)s_setup() {
    complete -o nosort -F %(complete_func)s %(prog_name)s
}

%(complete_func)s_setup;
"""


class ColonBash(BashComplete):
    """Click's completion for bash, for words that have colons."""

    source_template = _BASH_SOURCE

    def get_completion_args(self) -> tuple[list[str], str]:
        """The words before the one that is being typed, and this one."""
        line = os.environ.get("ARCHSEARCH_LINE", "")
        words = split_arg_string(line)[1:]
        incomplete = "" if not words or line[-1:].isspace() else words.pop()
        return words, incomplete

    def complete(self) -> str:
        """As click has it, without what stands before the last colon: bash keeps that by itself."""
        args, incomplete = self.get_completion_args()
        items = self.get_completions(args, incomplete)
        colon = incomplete.rfind(":") + 1 if ":" in os.environ.get("ARCHSEARCH_BREAKS", ":") else 0
        kept = incomplete[:colon]
        lines = [f"{item.type},{item.value.removeprefix(kept)}" for item in items]
        if items and all(item.value.endswith(":") for item in items):
            lines.append("nospace,")  # more of the word follows
        return "\n".join(lines)


add_completion_class(ColonBash, "bash")


def offer(names: Callable[[], Iterable[str]], *, files: str | None = None) -> Complete:
    """Complete to one of some names; where none fits, to a file (`files` is "file") or a folder ("dir")."""

    def complete(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> Items:
        found = [CompletionItem(name) for name in names() if name.startswith(incomplete)]
        return found or _paths(incomplete, files)

    return complete


def offer_list(names: Callable[[], Iterable[str]]) -> Complete:
    """Complete the last of some names with commas between them; those that stand there already are not offered again."""

    def complete(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> Items:
        before, comma, last = incomplete.rpartition(",")
        given = before.split(",")
        return [
            CompletionItem(f"{before}{comma}{name}") for name in names() if name.startswith(last) and name not in given
        ]

    return complete


def _paths(incomplete: str, files: str | None) -> Items:
    return [CompletionItem(incomplete, type=files)] if files else []


def paper_names() -> list[str]:
    """The papers' models."""
    from archsearch.space import paper_names as names  # a listing of files

    return names()


def space_names() -> list[str]:
    """The shipped spaces, the papers' models, and the space files here."""
    from archsearch.space import spaces_folder

    shipped = sorted(path.stem for path in spaces_folder().glob("*.toml"))
    return [*shipped, *sorted(map(str, Path().glob("*.toml"))), *paper_names()]


def proxy_names() -> list[str]:
    """The shipped proxy profiles, without loading what trains them, and the TOML files here."""
    shipped = sorted(path.stem for path in (_PACKAGE / "proxy" / "shipped").glob("*.toml"))
    return [*shipped, *sorted(map(str, Path().glob("*.toml")))]


def run_names() -> list[str]:
    """The runs under results/, the latest first."""
    from archsearch.results.manifest import MANIFEST_FILE

    manifests = [path for path in RESULTS.glob(f"*/{MANIFEST_FILE}") if path.is_file()]
    return [path.parent.name for path in sorted(manifests, key=lambda path: -path.stat().st_mtime)]


def _run_items(incomplete: str, end: str = "") -> Items:
    """The runs that begin so, with what they search."""
    return [
        CompletionItem(f"{name}{end}", help=_run_words(RESULTS / name))
        for name in run_names()
        if name.startswith(incomplete)
    ]


def _run_words(folder: Path) -> str | None:
    with suppress(OSError, ValueError, LookupError, TypeError):
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        return f"{manifest['space']['name']}, {manifest['state']}"
    return None


def complete_run(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> Items:
    """RUN: a run under results/ or its folder."""
    return _run_items(incomplete) or _paths(incomplete, "dir")


def complete_run_or_trial(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> Items:
    """RUN, or RUN:TRIAL once the colon is typed."""
    return _trial_items(incomplete) if ":" in incomplete else complete_run(ctx, parameter, incomplete)


def complete_arch(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> Items:
    """ARCH: a paper's model, `RUN:`, `RUN:TRIAL`, an arch_id that `archsearch sample` printed, or a file."""
    if ":" in incomplete:
        return _trial_items(incomplete)
    found: Items = [CompletionItem(name) for name in paper_names() if name.startswith(incomplete)]
    found += _run_items(incomplete, ":")
    if incomplete and set(incomplete) <= _HEXADECIMAL:  # all of them would hide the names
        found += [CompletionItem(each) for each in dict.fromkeys(_sampled_ids()) if each.startswith(incomplete)][:_MOST]
    # Of one run alone the trials, since some shells put a blank behind a whole word.
    if len(found) == 1 and found[0].value.endswith(":"):
        return _trial_items(found[0].value) or found
    return found or _paths(incomplete, "file")


def _trial_items(incomplete: str) -> Items:
    """The trials of the run before the colon, the latest run where there is none: by number, or by arch_id where letters are typed."""
    run, _, beginning = incomplete.rpartition(":")
    rows = _trials(run)
    items = [
        CompletionItem(f"{run}:{row['trial']}", help=f"{row['state']}, {row['paper'] or row['architecture']}")
        for row in rows
        if str(row["trial"]).startswith(beginning)
    ]
    if beginning and not items:
        items = [
            CompletionItem(f"{run}:{row['arch_id']}") for row in rows if row["arch_id"].startswith(beginning.lower())
        ]
    return items[:_MOST]


def _trials(run: str) -> list[dict[str, Any]]:
    """Some columns of a run's trials; none where there is no such run, or it cannot be read: Tab is no place for errors."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    latest = (RESULTS / name for name in run_names())
    folder = next((path for path in (Path(run), RESULTS / run) if (path / "trials.parquet").is_file()), None)
    folder = folder if run else next(latest, None)
    with suppress(OSError, pa.ArrowException, ValueError):
        if folder is not None:
            columns = ["trial", "arch_id", "state", "paper", "architecture"]
            rows: list[dict[str, Any]] = pq.ParquetFile(folder / "trials.parquet").read(columns).to_pylist()
            return rows
    return []


def _sampled_ids() -> Iterator[str]:
    """The arch_ids that `archsearch sample` printed, those of the latest draw first."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    files = [path for path in (RESULTS / "samples").glob("*.parquet") if path.is_file()]
    for path in sorted(files, key=lambda path: -path.stat().st_mtime)[:_MOST_DRAWS]:
        with suppress(OSError, pa.ArrowException, ValueError):
            yield from pq.ParquetFile(path).read(["arch_id"]).column("arch_id").to_pylist()
