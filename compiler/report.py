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

from .bench import Bench
from .manifest import Manifest, PlannedKernel
from .profile import Phase

NUMBERS = (
    "tensors",
    "bytes",
    "error",
    "mean error",
    "worst error",
    "fired",
    "uses",
    "s",
    "trials",
    "gain",
    "noise",
    "records",
    "threads",
    "calls",
    "ms",
    "share",
    "GB/s of weights",
    "of the read bandwidth",
    "faster by",
)
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
    parts = passes(found), kernels(found), formats(found), *doubts(found), outcome(report)
    return Group(*parts, *near(found, misses))


def passes(found: Manifest) -> Table:
    """Each pass, how often it fired, and its time."""
    table = columns("pass", "fired", "nodes", "s")
    for each in found.passes:
        nodes = f"{each['nodes_before']} > {each['nodes_after']}"
        table.add_row(str(each["name"]), str(each["fired"]), nodes, f"{each['seconds']:.2f}")
    return table


def kernels(found: Manifest) -> Table:
    """Each kernel, how many nodes use it, its schedules by tokens, where they came from, what they gained."""
    table = columns("kernel", "uses", "schedule", "why")
    for each in found.kernels:
        table.add_row(each.kernel, str(each.uses), per_tokens(each.schedules), why(each, times(found)))
    return table


def doubts(found: Manifest) -> Iterable[RenderableType]:
    """Choices between schedules that another guess would have made otherwise, and how many were looked at."""
    guessed = (found.tuning or {}).get("guesses")
    if not guessed or not guessed["choices"]:
        return
    hang = len({(flip["kernel"], flip["call"]) for flip in guessed["flips"]})
    of, constants = guessed["choices"], len(guessed["constants"])
    yield Text(
        f"{hang} of {of} choices hang on one of {constants} guessed constants: halved or doubled, it makes "
        "another schedule the fastest"
    )
    table = columns("choice that hangs on a guess", "call", "guess", "schedule", "instead", "faster by")
    for flip in guessed["flips"]:
        differ = [knob for knob, value in flip["schedule"].items() if flip["other"].get(knob) != value]
        sides = (
            " ".join(f"{knob}={flip[side].get(knob)}" for knob in differ) for side in ("schedule", "other")
        )
        guess = f"{flip['constant']} x {flip['factor']:g}"
        table.add_row(flip["kernel"], flip["call"], guess, *sides, f"{flip['faster']:.1%}")
    if guessed["flips"]:
        yield table


def formats(found: Manifest) -> Table:
    """How many weights have each format, their bytes, and how far they are off what they were."""
    table = columns("format", "tensors", "bytes", "mean error", "worst error", "worst tensor")
    for format in dict.fromkeys(each.format for each in found.weights):
        same = [each for each in found.weights if each.format == format]
        errors = [(each.error, each.name) for each in same if each.error is not None]
        worst, name = max(errors, default=(0.0, ""))
        shown = (f"{sum(e for e, _ in errors) / len(errors):.2%}", f"{worst:.2%}", name) if worst else ()
        table.add_row(format, str(len(same)), size(sum(each.bytes for each in same)), *shown)
    return table


def weights(found: Manifest) -> Table:
    """Each weight, its format, its bytes, and its error."""
    table = columns("weight", "format", "bytes", "error")
    for each in found.weights:
        error = "" if each.error is None else f"{each.error:.3%}"
        table.add_row(each.name, each.format, size(each.bytes), error)
    return table


def outcome(report: Report) -> Table:
    """Sizes, bytes per token, and the comparison with PyTorch."""
    found = report.manifest
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_row("cache", _cache(found.cache["bytes_per_token"], found.cache["unfused_bytes_per_token"]))
    if "page_rows" in found.cache:
        table.add_row("pages", _pages(found.cache["page_rows"], found.cache["page_nodes"]))
    table.add_row("active weights", f"{size(found.active_bytes_per_token)} a token")
    if "without_npu" in found.target:
        table.add_row("target", f"{found.target['isa']}; where there is none, {found.target['without_npu']}")
    if report.out is not None:
        table.add_row("artifact", f"{report.out}: {size(found.size)} in {len(found.files)} files")
        table.add_row("against PyTorch", proof(found.proof))
        if judged := (found.proof or {}).get("kernels"):
            name, errors = max(judged.items(), key=lambda each: float(each[1]["max_error"]))
            table.add_row("kernels", f"at most {errors['max_error']:.1e} off standard ops ({name})")
    if found.tuning:
        table.add_row("tuning", " ".join(filter(None, (times(found), str(found.tuning["line"])))))
    if report.seconds:
        steps = ", ".join(f"{step} {seconds:.1f}" for step, seconds in report.seconds.items())
        table.add_row("seconds", f"{sum(report.seconds.values()):.1f} ({steps})")
    return table


def proof(found: Mapping[str, Any] | None) -> str:
    """The comparison with eager PyTorch in one line."""
    if found is None:
        return "not compared"
    if "skipped" in found:
        return str(found["skipped"])
    how = f"{found['simulated']}: " if "simulated" in found else ""
    errors = [f"{how}error {found['max_error']:.1e} at most, {found['mean_error']:.1e} on average"]
    if "tokens" not in found:
        return errors[0]
    if "kernels" in found:
        errors.append(f"logits {found['logit_error']:.2%} off (RMS)")
        errors.append(f"{found['tokens_agreed']} of {found['tokens']} tokens the same after the same text")
    return "; ".join([*errors, f"{found['tokens_equal']} of {found['tokens']} greedy tokens equal"])


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
    if found.simulated:
        rows["bandwidth"] = f"none: kernels were {found.simulated}, so all this says nothing of their device"
    for name, row in rows.items():
        table.add_row(name, row)
    return table


def phases(found: Bench, phases: Sequence[Phase]) -> RenderableType:
    """Speeds, then where the time of a step of each phase goes."""
    return Group(
        speeds(found), *(part for each in phases for part in ("", *spent(each, found.read_bandwidth)))
    )


def spent(phase: Phase, ceiling: float) -> Iterable[RenderableType]:
    """A sentence and a table about one phase. ceiling: bytes per second that this machine reads, or 0."""
    per_layer = f", {phase.nodes / phase.layers:.1f} a layer" if phase.layers else ""
    step = f"{phase.name}, a step of {phase.tokens} tokens: {phase.seconds * 1e3:.2f} ms"
    profiler = f"onnxruntime's profiler adds {phase.profiler_seconds * 1e3:.2f} ms"
    yield Text(f"{step}, {phase.nodes} nodes{per_layer}; {profiler}")
    table = columns("where", "calls", "ms", "share", "GB/s of weights", "of the read bandwidth")
    for part in phase.kernels:
        speed = (
            (f"{part.bandwidth / 1e9:.1f}", f"{part.bandwidth / ceiling:.0%}")
            if part.weight_bytes and ceiling
            else ()
        )
        table.add_row(f"kernel {part.name}", f"{part.calls:.0f}", *_of(part.seconds, phase.seconds), *speed)
    for part in phase.others:
        table.add_row(f"node {part.name}", f"{part.calls:.0f}", *_of(part.seconds, phase.seconds))
    table.add_section()
    sums = {
        "all kernels": phase.kernel_seconds,
        "all other nodes": phase.other_seconds,
        "onnxruntime between nodes": phase.onnxruntime_seconds,
        "outside of onnxruntime": phase.outside_seconds,
    }
    for name, seconds in sums.items():
        table.add_row(name, "", *_of(seconds, phase.seconds))
    yield table


def _of(seconds: float, whole: float) -> tuple[str, str]:
    """Milliseconds, and their share."""
    return f"{seconds * 1e3:.3f}", f"{seconds / whole:.1%}"


def machines(found: Sequence[Mapping[str, Any]]) -> Table:
    """What each target finds here."""
    table = columns("target", "device", "isa", "compiler", "can")
    for each in found:
        how = {"runs": " (simulated)"} if each.get("simulated") else {}
        how |= {"measures": " (simulated)"} if str(each.get("times")).startswith("simulated") else {}
        can = ", ".join(verb + how.get(verb, "") for verb in ("builds", "runs", "measures") if each[verb])
        table.add_row(
            *(str(each[column]) for column in ("target", "device", "isa", "compiler")), can or "nothing"
        )
    return table


def html(report: Report, more: str = "") -> str:
    """The report as a page of its own. more: HTML to end it with."""
    console = Console(record=True, width=160, file=io.StringIO())
    console.print(render(report, misses=len(report.manifest.misses)), weights(report.manifest))
    return console.export_html().replace("</body>", f"{more}</body>")


def columns(*names: str) -> Table:
    """An empty table; columns of numbers are aligned right."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in names:
        number = column in NUMBERS
        table.add_column(column, justify="right" if number else "left", overflow="fold")
    return table


def _cache(stored: int, unfused: int) -> str:
    if not stored:
        return "none"
    return f"{size(stored)} a token; all heads' keys and values: {size(unfused)} ({unfused / stored:.1f}x)"


def _pages(rows: int, nodes: int) -> str:
    how = f"{nodes} standard operators write and gather them" if nodes else "kernels read them where they lie"
    return f"caches in pages of {rows} rows; {how}"


def times(found: Manifest) -> str:
    """What to know of times that schedules were chosen by: "simulated:", or nothing."""
    return f"{found.target['times']}:" if "times" in found.target else ""


def why(kernel: PlannedKernel, how: str = "") -> str:
    """ "default: the log knows nothing like it", or "tuned, 1.12x: the best of 9 tried here".

    how: what to know of times, as `times` has it.
    """
    gain = f", {how} {kernel.gain:.2f}x".replace(",  ", ", ") if kernel.gain > 1 else ""
    return f"{kernel.why}{gain}" + (f": {kernel.reason}" if kernel.reason else "")


def per_tokens(schedules: Sequence[Mapping[str, Any]]) -> str:
    """A schedule for calls of any size, or a line for each: "1-4: nr=32 mr=8, 1.12x"."""
    lines = [" ".join(f"{knob}={value}" for knob, value in each["schedule"].items()) for each in schedules]
    if len(lines) == 1:
        return lines[0]
    gained = [f", {each['gain']:.2f}x" if each["gain"] > 1 else "" for each in schedules]
    return "\n".join(f"{each['tokens']}: {line}{gain}" for each, line, gain in zip(schedules, lines, gained))
