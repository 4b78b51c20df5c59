"""`moec log`: what is in a tuning log, and merging, pruning and exporting it. Loaded when asked for."""

from __future__ import annotations

import json
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..tuning.record import STATUSES, Record
from .cli import Refused, as_json, say, with_log

if TYPE_CHECKING:
    from ..tuning.log import Log

LIST = 50  # records that show lists

with_kernel = click.option(
    "--kernel", default="", help='Only kernels with this in their name: "linear", "k=1024".'
)
with_cpu = click.option("--cpu", default="", help="Only processors with this in their name.")
with_status = click.option("--status", type=click.Choice(STATUSES), help="Only records of this status.")


def example(*lines: str) -> Any:
    """A command's examples, shown as they are under its help."""
    return "\n".join(("\b", "Examples:", *(f"  moec log {line}" for line in lines)))


@click.group()
def log() -> None:
    """The tuning log: what was tried on which kernel, and how fast it was."""


@log.command(epilog=example("show --kernel grouped --status wrong", "show --last 0 --json"))
@with_log
@with_kernel
@with_cpu
@with_status
@click.option("--last", default=LIST, show_default=True, type=click.IntRange(0), help="How many; 0: all.")
@as_json
def show(log: Path | None, machine: bool, last: int, **filters: Any) -> None:
    """The records themselves, oldest first: each schedule that was tried, and what came of it."""
    from .log_tables import trial, trials

    found = opened(log)
    records = deque(chosen(found, **filters), maxlen=last or None)
    warn(found)
    rows = [*map(trial, records)]
    say(machine, rows, lambda console: console.print(trials(rows)))


@log.command(epilog=example("best", "best --kernel linear --cpu EPYC --json"))
@with_log
@with_kernel
@with_cpu
@as_json
def best(log: Path | None, machine: bool, **filters: Any) -> None:
    """The best schedules of each kernel on each machine: the gain over its default, the noise, the trials."""
    from ..tuning.winners import winners
    from .log_tables import winner, won

    found = opened(log)
    known = winners(chosen(found, **filters))
    warn(found)
    rows = [*map(winner, known.values())]
    say(machine, rows, lambda console: console.print(won(rows)))


@log.command(epilog=example("merge laptop.jsonl server.jsonl", "merge /shared/tuning.jsonl --log mine.jsonl"))
@click.argument("files", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@with_log
@as_json
def merge(files: tuple[Path, ...], log: Path | None, machine: bool) -> None:
    """Add the records of FILES that the log lacks. The order does not matter: the best stay the best."""
    found, others = opened(log), [opened(file) for file in files]
    with writing(found):
        added = {str(other.path): found.merge(other) for other in others}
    for other in others:
        warn(other)
    data = {"log": str(found.path), "added": added}
    words = [f"{count} records from {file}" for file, count in added.items()]
    say(machine, data, lambda console: console.print(*words, f"-> {found.path}", sep="\n", soft_wrap=True))


@log.command(epilog=example("diff before.jsonl after.jsonl", "diff a.jsonl b.jsonl --kernel grouped --json"))
@click.argument("a", type=click.Path(exists=True, path_type=Path))
@click.argument("b", type=click.Path(exists=True, path_type=Path))
@with_kernel
@with_cpu
@as_json
def diff(a: Path, b: Path, machine: bool, **filters: Any) -> None:
    """Kernels whose best schedules differ between the logs A and B and by how much, or that only one has."""
    from ..tuning.winners import compared, winners
    from .log_tables import differing, winner

    logs = [opened(path) for path in (a, b)]
    found = compared(*(winners(chosen(each, **filters)) for each in logs))
    for each in logs:
        warn(each)
    pairs = found.differ.values()
    data = {
        "differ": [{"a": winner(x), "b": winner(y), "gain": y.gain / x.gain} for x, y in pairs],
        "only_a": [*map(winner, found.only_a.values())],
        "only_b": [*map(winner, found.only_b.values())],
        "same": found.same,
    }
    say(machine, data, lambda console: console.print(differing(data)))


@log.command(epilog=example("prune --dry-run", "prune --older-than 90 --keep-best"))
@with_log
@click.option(
    "--older-than", "days", type=click.FloatRange(0), metavar="DAYS", help="Retire by age instead, in days."
)
@click.option("--keep-best", is_flag=True, help="Keep those that won when tried, and the ends of searches.")
@click.option("--dry-run", is_flag=True, help="Only say what would go.")
@as_json
def prune(log: Path | None, days: float | None, keep_best: bool, dry_run: bool, machine: bool) -> None:
    """Remove records that no build with this version can use: other sources wrote their kernels.

    The log is written anew and takes the old one's place in one step; other processes may go on appending.
    """
    from .log_tables import retiring

    found, gone, kept = opened(log), Counter[tuple[str, ...]](), 0
    old = old_by_age(days) if days is not None else old_by_sources()

    def retired(record: Record) -> bool:
        nonlocal kept
        if not old(record) or (keep_best and (record.beats or record.leads or record.status == "done")):
            kept += 1
            return False
        gone[record.kernel.kind, record.fingerprint.cpu, record.fingerprint.generator] += 1
        return True

    with writing(found):
        count = sum(map(retired, found)) if dry_run else found.prune(retired)
    warn(found)
    names = ("kind", "cpu", "generator", "records")
    rows = [dict(zip(names, (*key, number))) for key, number in sorted(gone.items())]
    data = {"log": str(found.path), "dry_run": dry_run, "retired": count, "kept": kept, "kinds": rows}
    say(machine, data, lambda console: console.print(retiring(data)))


@log.command(
    epilog=example(
        "export --kernel linear --status ok > linear.jsonl", "export --kernel grouped --format t4 -o results"
    )
)
@with_log
@with_kernel
@with_cpu
@with_status
@click.option(
    "--format",
    "form",
    default="lines",
    show_default=True,
    type=click.Choice(["lines", "t4"]),
    help="lines: a log again. t4: the JSON that autotuning tools share, a document a kernel and machine.",
)
@click.option("-o", "--out", type=click.Path(path_type=Path), help="File to write; for several t4, a folder.")
@as_json
def export(log: Path | None, form: str, out: Path | None, machine: bool, **filters: Any) -> None:
    """Write records elsewhere, in a form of their own. --json: one JSON list instead of lines."""
    found = opened(log)
    if out is not None and out.exists():
        raise Refused(f"{out} is there already; export to another name, or remove it first")
    records = chosen(found, **filters)
    if form == "t4":
        written = t4_files(records, out)
    elif machine:
        written = {out: [f"{json.dumps([json.loads(record.line()) for record in records])}\n"]}
    else:
        written = {out: (f"{record.line()}\n" for record in records)}
    with writing(found, out):
        for path, text in written.items():
            write(text, path)
    warn(found)


def t4_files(records: Iterable[Record], out: Path | None) -> dict[Path | None, Iterable[str]]:
    """The text of each document, by where it goes (None: stdout)."""
    from ..tuning.t4 import document, documents

    found = documents(records) or {"": document([])}
    if len(found) > 1 and out is None:
        raise Refused(
            f"these are {len(found)} kernels and machines, and a T4 document holds one: name a new folder "
            "with -o, or narrow it down with --kernel and --cpu"
        )
    texts = {name: [f"{json.dumps(trials)}\n"] for name, trials in found.items()}
    if len(texts) > 1 and out is not None:
        return {out / name: text for name, text in texts.items()}
    return {out: next(iter(texts.values()))}


def write(text: Iterable[str], out: Path | None) -> None:
    """To a new file, or to stdout."""
    if out is None:
        for line in text:
            click.echo(line, nl=False)
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("x", encoding="utf-8") as stream:
        stream.writelines(text)


def opened(path: Path | None) -> Log:
    """The log at a path, or the user's own."""
    from ..tuning.log import Log, default_path

    return Log(path or default_path())


def warn(log: Log) -> None:
    """Tells of the lines that were left out."""
    for problem in log.problems:
        click.echo(f"moec: {problem}", err=True)


def chosen(log: Log, kernel: str, cpu: str, status: str | None = None) -> Iterator[Record]:
    """The log's records that the filters let through."""
    return (
        record
        for record in log
        if kernel.casefold() in str(record.kernel).casefold()
        and cpu.casefold() in record.fingerprint.cpu.casefold()
        and status in (None, record.status)
    )


def old_by_sources() -> Callable[[Record], bool]:
    """Whether a record's kernel was written by other sources than these."""
    from ..tuning.fingerprint import by_kind, here
    from .rooms import room_of, rooms

    current = set[str]()
    for room in map(room_of, rooms()):
        folder = Path(str(room.__file__)).parent
        found = by_kind(here("", 1, folder), folder, room.Target.families)
        current |= {found.whole.generator, *found.generators.values()}
    return lambda record: record.fingerprint.sources not in current


def old_by_age(days: float) -> Callable[[Record], bool]:
    """Whether a record is older than so many days; one without a time that can be read is not."""
    limit = datetime.now(UTC) - timedelta(days=days)

    def old(record: Record) -> bool:
        try:
            time = datetime.fromisoformat(record.time)
        except ValueError:
            return False
        return (time if time.tzinfo else time.replace(tzinfo=UTC)) < limit

    return old


@contextmanager
def writing(log: Log, out: Path | None = None) -> Iterator[None]:
    """Turns what a filesystem refuses into a sentence."""
    try:
        yield
    except BrokenPipeError:
        raise  # whoever read stdout has seen enough
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        raise Refused(f"{out or log.path} cannot be written: {error.strerror or error}{where}") from None
