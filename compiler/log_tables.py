"""What `moec log` shows: rows for machines, and the same as tables for people."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table

from ..tuning.plan import gains, served
from ..tuning.record import Record
from ..tuning.winners import Winner
from .report import columns, per_tokens

Row = Mapping[str, Any]


def trial(record: Record) -> dict[str, Any]:
    """One record as a row: gain is the default's time over its time."""
    return {
        "kernel": str(record.kernel),
        "status": record.status,
        "reason": record.reason,
        "gain": record.ratio and 1 / record.ratio,
        "noise": record.noise,
        "beats": record.beats,
        "schedules": served(record.schedules, gains(record.schedules, record.ratios)),
        "profile": record.profile,
        "time": record.time,
        **asdict(record.fingerprint),
    }


def winner(best: Winner) -> dict[str, Any]:
    """The best of a kernel on a kind of machine as a row."""
    record = best.record
    return {
        "kernel": str(record.kernel),
        "gain": best.gain,
        "noise": record.noise,
        "trials": best.trials,
        "schedules": served(record.schedules, gains(record.schedules, record.ratios)),
        "profile": record.profile,
        "time": record.time,
        **asdict(record.fingerprint),
    }


def trials(rows: Sequence[Row]) -> RenderableType:
    table = columns("time", "kernel", "status", "gain", "noise", "schedule", "cpu")
    for row in rows:
        what = per_tokens(row["schedules"]) + (f"\n{row['reason']}" if row["reason"] else "")
        table.add_row(row["time"][:19], row["kernel"], row["status"], *_gain(row), what, row["cpu"])
    return table if rows else "no records"


def won(rows: Sequence[Row]) -> RenderableType:
    table = columns("kernel", "trials", "gain", "noise", "schedule", *WHERE)
    for row in rows:
        words = (row["kernel"], str(row["trials"]), *_gain(row), per_tokens(row["schedules"]))
        table.add_row(*words, *_where(row))
    return table if rows else "no schedule that won"


def differing(found: Mapping[str, Any]) -> RenderableType:
    """What compiler/log_commands.diff found: kernels with two best schedules, then those of one log only."""
    table = columns("kernel", "gain", "A", "B", *WHERE)
    for pair in found["differ"]:
        a, b = pair["a"], pair["b"]
        table.add_row(b["kernel"], f"{pair['gain']:.2f}x", _best(a), _best(b), *_where(b))
    parts: list[RenderableType] = [table] if found["differ"] else []
    parts += _only("A", found["only_a"]) + _only("B", found["only_b"])
    counts = {name: len(found[name]) for name in ("differ", "only_a", "only_b")}
    return Group(
        *parts,
        f"{found['same']} kernels have the same best schedules in both, {counts['differ']} do not; "
        f"{counts['only_a']} are only in A, {counts['only_b']} only in B",
    )


def retiring(found: Mapping[str, Any]) -> RenderableType:
    """What compiler/log_commands.prune removed, or would."""
    table = columns("records", "kernels", "generator", "cpu")
    for row in found["kinds"]:
        table.add_row(str(row["records"]), row["kind"], row["generator"], row["cpu"])
    verb = "would be retired" if found["dry_run"] else "retired"
    end = f"{found['retired']} records {verb}, {found['kept']} kept"
    return Group(table, end) if found["kinds"] else end


WHERE = ("isa", "threads", "cpu", "profile")


def _where(row: Row) -> Iterable[str]:
    return (str(row[name]) for name in WHERE)


def _gain(row: Row) -> tuple[str, str]:
    gain, noise = row["gain"], row["noise"]
    return ("" if gain is None else f"{gain:.2f}x", "" if noise is None else f"{noise:.1%}")


def _best(row: Row) -> str:
    return f"{row['gain']:.2f}x the default\n{per_tokens(row['schedules'])}"


def _only(name: str, rows: Sequence[Row]) -> list[Table]:
    table = columns(f"only in {name}", "trials", "gain", "noise", "schedule", *WHERE)
    for row in rows:
        words = (row["kernel"], str(row["trials"]), *_gain(row), per_tokens(row["schedules"]))
        table.add_row(*words, *_where(row))
    return [table] if rows else []


def heuristics(rows: Sequence[Row]) -> RenderableType:
    """What was learned: gain and worst are of its choices for shapes unlike those it had learned from."""
    table = columns("kind", "dtype", "isa", "profile", "records", "shapes", "judged", "gain", "worst", "used")
    for row in rows:
        speeds = [f"{1 / row[part]:.2f}x" if row["judged"] else "" for part in ("ratio", "worst")]
        counts = (str(row[part]) for part in ("records", "shapes", "judged"))
        used = "unmeasured too" if row["unmeasured"] else "to start searches"
        table.add_row(*(row[part] for part in ("kind", "dtype", "isa", "profile")), *counts, *speeds, used)
    return table if rows else "too few shapes to learn from: a kind of kernel needs three that were tuned"


def refitted(row: Row) -> RenderableType:
    """Constants before and after, and what simulated times are worth with them."""
    table = columns(f"{row['isa']}, {row['calls']} calls", "before", "after")
    for name, pair in row["constants"].items():
        table.add_row(name, *(f"{value:.4g}" for value in pair))
    table.add_section()
    table.add_row("a time is off by", *(f"{value:.2f}x" for value in row["off"]))
    table.add_row("pairs in the wrong order", *(f"{value:.0%}" for value in row["misranked"]))
    table.add_row("the chosen over the fastest", *(f"{value:.3f}x" for value in row["slower"]))
    return table
