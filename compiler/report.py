"""What a compilation did, as tables for people."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from ..tuning.log import Log
from ..tuning.record import Record
from .bench import Bench
from .manifest import Manifest, PlannedKernel

UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


@dataclass(frozen=True, slots=True)
class Report:
    """A manifest, where the artifact is (None: there is none), and how long each step took, in seconds.

    warnings: sentences about what was left out on the way.
    """

    manifest: Manifest
    out: Path | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)
    warnings: Sequence[str] = ()

    def json(self) -> dict[str, Any]:
        """For machines: everything the tables show, and more."""
        own = {
            "out": self.out and str(self.out),
            "seconds": dict(self.seconds),
            "warnings": list(self.warnings),
        }
        return own | asdict(self.manifest)


def size(count: float) -> str:
    """Bytes as people read them: 1536 -> 1.5 KiB."""
    for unit in UNITS:
        if count < 1024 or unit == UNITS[-1]:
            break
        count /= 1024
    return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"


def render(report: Report, misses: int = 5) -> RenderableType:
    """The whole report: passes, kernels, and what came of it. misses: how many near misses to spell out."""
    found = report.manifest
    return Group(passes(found), kernels(found), outcome(report), *near(found, misses))


def passes(found: Manifest) -> Table:
    """Each pass, how often it fired, and its time."""
    table = _table("pass", "fired", "nodes", "s")
    for each in found.passes:
        nodes = f"{each['nodes_before']} > {each['nodes_after']}"
        table.add_row(str(each["name"]), str(each["fired"]), nodes, f"{each['seconds']:.2f}")
    return table


def kernels(found: Manifest) -> Table:
    """Each kernel, how many nodes use it, its schedule, where that came from, and what it gained."""
    table = _table("kernel", "uses", "schedule", "why")
    for each in found.kernels:
        table.add_row(each.kernel, str(each.uses), _spelled(each.schedule), _why(each))
    return table


def outcome(report: Report) -> Table:
    """Sizes, bytes per token, and the comparison with PyTorch."""
    found = report.manifest
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_row("cache", _cache(found.cache["bytes_per_token"], found.cache["unfused_bytes_per_token"]))
    table.add_row("active weights", f"{size(found.active_bytes_per_token)} a token")
    if report.out is not None:
        table.add_row("artifact", f"{report.out}: {size(found.size)} in {len(found.files)} files")
        table.add_row("against PyTorch", proof(found.proof))
    if tried := sum(each.tried for each in found.kernels):
        won = [each.gain for each in found.kernels if each.gain > 1]
        best = f", by {max(won):.2f}x at most" if won else ""
        count = f"{len(won)} of {len(found.kernels)} kernels beat their default{best}"
        table.add_row("tuning", f"{tried} schedules measured on such a machine; {count}")
    if report.seconds:
        steps = ", ".join(f"{step} {seconds:.1f}" for step, seconds in report.seconds.items())
        table.add_row("seconds", f"{sum(report.seconds.values()):.1f} ({steps})")
    return table


def proof(found: Mapping[str, Any] | None) -> str:
    """The comparison with eager PyTorch in one line."""
    if found is None:
        return "not compared"
    errors = f"error {found['max_error']:.1e} at most, {found['mean_error']:.1e} on average"
    if "tokens" not in found:
        return errors
    return f"{errors}; {found['tokens_equal']} of {found['tokens']} greedy tokens equal"


def near(found: Manifest, most: int) -> Iterable[Text]:
    """Patterns that were nearly there, and why they were not taken."""
    for miss in found.misses[:most]:
        yield Text(f"near miss: {miss}", style="yellow")
    if len(found.misses) > most:
        yield Text(f"and {len(found.misses) - most} more near misses; see `moec explain`", style="yellow")


def speeds(found: Bench) -> Table:
    """Speed of prefill and decode, and the bytes behind them."""
    table = Table(show_header=False, box=None, pad_edge=False)
    per_token, ceiling = size(found.weights_per_token), size(found.read_bandwidth)
    active = size(found.active_bytes_per_token)
    rows = {
        "prefill": f"{found.prefill_tokens_per_second:.1f} tokens/s ({found.batch} x {found.prompt} tokens)",
        "decode": f"{found.decode_tokens_per_second:.1f} tokens/s ({found.batch} x {found.new} tokens)",
        "threads": str(found.threads),
        "cache": _cache(found.cache_bytes_per_token, found.unfused_cache_bytes_per_token),
        "active weights": f"{active} a token; kernels read {per_token} for each decoded",
        "bandwidth": f"decode reads weights at {found.read_share:.0%} of the {ceiling}/s this machine reads",
    }
    for name, row in rows.items():
        table.add_row(name, row)
    return table


def best(log: Log) -> list[dict[str, Any]]:
    """The fastest schedule that a log knows for each kernel and kind of machine."""
    groups: dict[tuple[Any, ...], Record] = {}
    for record in log.records:
        key = (record.kernel, record.fingerprint)
        if record.beats and record.ratio is not None:
            groups[key] = min(record, groups.get(key, record), key=lambda each: each.ratio or 1.0)
    return [
        {"kernel": str(each.kernel), "schedule": dict(each.schedule), "gain": 1 / (each.ratio or 1.0)}
        | {"trials": sum((r.kernel, r.fingerprint) == key for r in log.records), **asdict(each.fingerprint)}
        for key, each in groups.items()
    ]


def records(log: Log) -> Table:
    """The same as a table."""
    table = _table("kernel", "trials", "gain", "schedule", "isa", "threads", "cpu")
    for each in best(log):
        row = (each["kernel"], each["trials"], f"{each['gain']:.2f}x", _spelled(each["schedule"]))
        table.add_row(*map(str, (*row, each["isa"], each["threads"], each["cpu"])))
    return table


def machines(found: Sequence[Mapping[str, Any]]) -> Table:
    """What each target finds here."""
    table = _table("target", "device", "isa", "compiler", "can")
    for each in found:
        can = ", ".join(verb for verb in ("builds", "runs", "measures") if each[verb])
        table.add_row(
            *(str(each[column]) for column in ("target", "device", "isa", "compiler")), can or "nothing"
        )
    return table


def html(report: Report) -> str:
    """The report as a page of its own."""
    console = Console(record=True, width=160, file=io.StringIO())
    console.print(render(report, misses=len(report.manifest.misses)))
    return console.export_html()


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        number = column in ("fired", "uses", "s", "trials", "gain", "threads")
        table.add_column(column, justify="right" if number else "left", overflow="fold")
    return table


def _cache(stored: int, unfused: int) -> str:
    if not stored:
        return "none"
    return f"{size(stored)} a token; all heads' keys and values: {size(unfused)} ({unfused / stored:.1f}x)"


def _why(kernel: PlannedKernel) -> str:
    """ "default", or "tuned, 1.12x, 9 tried"."""
    gain = [f"{kernel.gain:.2f}x"] if kernel.gain > 1 else []
    return ", ".join([kernel.why, *gain, *([f"{kernel.tried} tried"] if kernel.tried else [])])


def _spelled(schedule: Mapping[str, int | str]) -> str:
    return " ".join(f"{knob}={value}" for knob, value in schedule.items())
