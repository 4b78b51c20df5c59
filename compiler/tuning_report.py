"""Tuning as a page of HTML, from the log alone: each kernel's history, its winner, and how sure that is.

A page needs nothing else: pictures are in it, and there is no script.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from html import escape

from ..targets.base import Schedule, serving, spans
from ..tuning.fingerprint import Fingerprint, Here
from ..tuning.importance import importance
from ..tuning.log import Log
from ..tuning.plan import Plan
from ..tuning.record import Record, by_speed, spelled, standing
from ..tuning.winners import NO_TRIALS

WIDTH, HEIGHT, EDGE = 640, 160, 44  # of a picture, in pixels; its edge has the numbers
LETTER = 12  # pixels
MOST_DOTS = 1000
MOST_REASONS = 8
STYLE = """<style>
.tuning { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
.tuning h3 { margin: 2rem 0 0 } .tuning p { margin: .3rem 0 } .tuning .where { opacity: .7 }
.tuning td, .tuning th { padding: .1rem .8rem .1rem 0; text-align: left; font-variant-numeric: tabular-nums }
.tuning .other { font-weight: bold } .tuning svg { display: block; width: 100%; max-width: 640px }
.tuning svg text { font-size: 11px; fill: currentColor } .tuning .axis { stroke: #8888; fill: none }
.tuning .best { stroke: #07c; stroke-width: 2; fill: none } .tuning .try { fill: #07c8 }
.tuning .bad { fill: #c30 }
</style>
"""


def sections(plan: Plan, log: Log, place: Fingerprint | Here) -> str:
    """What the log knows of each kernel of a plan, as a part of a page."""
    parts = [
        section(str(kernel), "", [*log.of(kernel, place.of(kernel))], choice.why, choice.reason)
        for kernel, choice in plan.items()
    ]
    return f'{STYLE}<main class="tuning"><h2>Tuning</h2>\n{"".join(parts)}</main>\n'


def page(records: Iterable[Record]) -> str:
    """What records have come to, as a page: a section for each kernel, machine and profile."""
    groups: dict[tuple[object, ...], list[Record]] = {}
    for record in records:
        groups.setdefault((record.kernel, record.fingerprint, record.profile), []).append(record)
    parts = []
    for some in groups.values():
        place, best = some[0].fingerprint, winner(some)
        where = f"{place.cpu}, {place.isa}, {place.threads} threads, profile {some[0].profile}"
        parts.append(section(str(some[0].kernel), where, some, *_why(best, some)))
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>moec: tuning</title>\n'
        f'{STYLE}</head><body><main class="tuning"><h1>Tuning: {len(groups)} kernels</h1>\n'
        f"{''.join(parts) or '<p>no records</p>'}</main></body></html>\n"
    )


def section(kernel: str, where: str, records: Sequence[Record], why: str, reason: str) -> str:
    """One kernel. why and reason: where its schedules are from, as in a plan."""
    records = sorted(records, key=lambda record: record.time)
    best = winner(records)
    tried = [record for record in records if record.status not in NO_TRIALS]
    parts = [f"<h3>{escape(kernel)}</h3>\n", f'<p class="where">{escape(where)}</p>\n' if where else ""]
    parts.append(f"<p>{escape(why)}: {escape(reason)}</p>\n")
    if tried:
        counts = Counter(record.status for record in records if record.status != "done")
        parts.append(f"<p>{', '.join(f'{count} {status}' for status, count in counts.items())}</p>\n")
    if best is not None:
        parts += [f"<p>{speed(best)}</p>\n"] if best.ratio != 1 else []
        parts += [history(tried), schedules(records, best)]
    return f"<section>\n{''.join(parts)}{failures(records)}</section>\n"


def winner(records: Iterable[Record]) -> Record | None:
    """The best of them that won and still stands."""
    return min(standing(records, lambda record: record.beats), key=by_speed, default=None)


def baseline(records: Iterable[Record]) -> Record | None:
    """The default's record: the first that ran, by which all ratios are."""
    first = (record for record in records if record.status == "ok" and record.beats and record.ratio == 1)
    return next(first, None)


def speed(best: Record) -> str:
    """ "1.31x the default's speed, ±0.8 %"."""
    noise = "noise not known" if best.noise is None else f"±{best.noise:.1%}"
    return f"{1 / (best.ratio or 1.0):.3f}x the default's speed, {noise}"


def history(tried: Sequence[Record]) -> str:
    """A picture: the gain of each trial, those that failed at the bottom, and the best so far as a line."""
    gains = [1 / record.ratio if record.ratio else None for record in tried]
    known = [gain for gain in gains if gain is not None]
    low, high = min(*known, 1.0), max(*known, 1.0)
    low, high = low - 0.05 * (high - low) - 0.01, high + 0.05 * (high - low) + 0.01

    def x(index: float) -> float:
        return round(EDGE + (WIDTH - EDGE - 8) * index / max(1, len(tried) - 1), 1)

    def y(gain: float) -> float:
        return round((HEIGHT - 24) * (high - gain) / (high - low) + 4, 1)

    dots = "".join(
        f'<circle class="bad" cx="{x(index)}" cy="{HEIGHT - 18}" r="2"/>'
        if gain is None
        else f'<circle class="try" cx="{x(index)}" cy="{y(gain)}" r="2.5"/>'
        for index, gain in [*enumerate(gains)][:: math.ceil(len(gains) / MOST_DOTS)]
    )
    line = " ".join(f"{x(index)},{y(gain)}" for index, gain in steps(tried))
    marks = "".join(
        f'<text x="0" y="{y(gain) + 4}">{gain:.2f}x</text>'
        f'<path class="axis" d="M{EDGE} {y(gain)}H{WIDTH - 8}"/>'
        for gain in ([1.0, max(known)] if y(1.0) - y(max(known)) > LETTER else [max(known)])
    )
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img"><title>gain over the default by trial</title>{marks}'
        f'{dots}<polyline class="best" points="{line}"/>'
        f'<text x="{EDGE}" y="{HEIGHT - 2}">1</text>'
        f'<text x="{WIDTH - 8}" y="{HEIGHT - 2}" text-anchor="end">{len(tried)} trials</text></svg>\n'
    )


def steps(tried: Sequence[Record]) -> list[tuple[int, float]]:
    """The best gain so far by trial, as the corners of a stair."""
    corners: list[tuple[int, float]] = []
    for index, record in enumerate(tried):
        gain = 1 / record.ratio if record.beats and record.ratio else 0.0
        last = corners[-1][1] if corners else 0.0
        if gain > last:
            corners += [(index, last)] if corners else []
            corners.append((index, gain))
    return [*corners, (len(tried) - 1, corners[-1][1])] if corners else []


def schedules(records: Sequence[Record], best: Record) -> str:
    """Knob by knob: the default, the winner, by tokens both, and how much the knob matters."""
    default, shares = baseline(records) or best, importance(records)
    columns = [] if default.schedules == best.schedules else served("default", default)
    columns += served("", best)
    rows = []
    for knob in best.schedule:
        cells = "".join(
            f"<td{' class=other' if value.get(knob) != usual(default, first).get(knob) else ''}>"
            f"{escape(str(value.get(knob, '')))}</td>"
            for _, first, value in columns
        )
        share = f"<td>{shares[knob]:.0%}</td>" if knob in shares else ""
        rows.append(f"<tr><th>{escape(knob)}</th>{cells}{share}</tr>\n")
    titles = [title for title, *_ in columns] + (["explains of the variance"] if shares else [])
    head = "".join(f"<th>{escape(title)}</th>" for title in titles)
    return f"<table><tr><th></th>{head}</tr>\n{''.join(rows)}</table>\n"


def served(name: str, record: Record) -> list[tuple[str, int, Schedule]]:
    """A title for each schedule of a record, the tokens it begins at, and itself."""
    titles = (f"{name} {span} tokens".strip() for span in spans(record.schedules))
    return [(title, *each) for title, each in zip(titles, record.schedules.items())]


def usual(default: Record, tokens: int) -> Schedule:
    """The default for calls of so many tokens."""
    return default.schedules[serving(default.schedules, tokens)]


def failures(records: Iterable[Record]) -> str:
    """Why trials failed, the most frequent first."""
    reasons = Counter(
        f"{record.status}: {record.reason}" for record in records if record.status not in ("ok", "done")
    )
    items = "".join(
        f"<li>{count} {escape(reason)}</li>\n" for reason, count in reasons.most_common(MOST_REASONS)
    )
    return f"<details><summary>failed or refused</summary><ul>\n{items}</ul></details>\n" if items else ""


def _why(best: Record | None, records: Sequence[Record]) -> tuple[str, str]:
    """What a plan would say, as far as the log alone knows."""
    tried = len({spelled(record.schedules) for record in records if record.status == "ok"})
    if best is None:
        return "default", "nothing ran"
    if best is baseline(records):
        return "default", f"none of {tried} tried beat it"
    return "log", f"the best of {tried} tried"
