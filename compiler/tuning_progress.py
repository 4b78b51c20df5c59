"""Tuning as it is seen: a live table on a terminal, a line for each kernel elsewhere, or JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from .progress import Bar
from .tuning_events import Done, End, Event, Listener, Start, Trial, data

STDERR = "-"
MOST_ROWS = 12
HEADS = ("kernel", "trials", "one token", "gain", "noise", "of bandwidth")
Say = Callable[[str], None]


class CannotTell(OSError):
    """The file for events cannot be written."""


@contextmanager
def watching(bar: Bar, json_events: str | None, say: Say) -> Iterator[Listener]:
    """Who listens to the events of a build. say: prints a line on stderr.

    json_events: None, STDERR, or the name of a file to append to. Raises CannotTell.
    """
    if json_events == STDERR:
        yield lambda event: say(json.dumps(data(event)))
        return
    people: Listener = Live(bar) if bar.shown else Lines(say)
    if json_events is None:
        yield people
        return
    with _appended(json_events) as stream:

        def both(event: Event) -> None:
            stream.write(json.dumps(data(event)) + "\n")
            people(event)

        yield both


def _appended(name: str) -> TextIO:
    try:
        return Path(name).open("a", encoding="utf-8", buffering=1)
    except OSError as error:
        raise CannotTell(
            f"{name} cannot be written: {error.strerror}; give --json-events another file, or none for stderr"
        ) from None


class Lines:
    """A line for each kernel whose search has ended."""

    def __init__(self, say: Say) -> None:
        self.say, self.times = say, ""

    def __call__(self, event: Event) -> None:
        if isinstance(event, Start):
            self.times = simulated(event)
        if isinstance(event, Done) and event.trials:
            noise, share = cells(event)[4:]
            speed = f"{self.times}{event.gain:.2f}x the default's speed" + (f" (±{noise})" if noise else "")
            bandwidth = f", one token at {share} of the read bandwidth" if share else ""
            cost = f"{event.trials} trials, {event.seconds:.1f} s"
            self.say(f"moec: tuned {event.kernel}: {speed}{bandwidth}; {cost}")


class Live:
    """A row for each kernel that is searched, or was."""

    def __init__(self, bar: Bar) -> None:
        self.bar = bar
        self.rows: dict[str, Trial | Done] = {}
        self.last: Trial | None = None
        self.times = ""

    def __call__(self, event: Event) -> None:
        if isinstance(event, Start):
            self.times = simulated(event)
        if isinstance(event, Trial):
            self.last = event
        if isinstance(event, Trial) or (isinstance(event, Done) and event.trials):
            self.rows[event.kernel] = event
            self.bar.below = self.table()
        if isinstance(event, End):
            self.bar.below = None

    def table(self) -> RenderableType:
        """What is shown now: the last rows, and how long it may take yet."""
        table = Table(box=None, pad_edge=False, header_style="bold")
        for name in HEADS:
            table.add_column(name, justify="left" if name == HEADS[0] else "right", no_wrap=True)
        for event in [*self.rows.values()][-MOST_ROWS:]:
            table.add_row(*map(Text, cells(event)), style="" if isinstance(event, Trial) else "dim")
        if self.last is None:
            return table
        left = "" if self.last.left is None else f", {duration(self.last.left)} left"
        return Group(table, Text(f"{self.times}kernel {self.last.number} of {self.last.searched}{left}"))


def simulated(event: Start) -> str:
    """Says so where what times are taken on is no machine, which its name tells."""
    return "simulated: " if str(event.machine.get("cpu", "")).startswith("simulated ") else ""


def cells(event: Trial | Done) -> tuple[str, ...]:
    """A row under HEADS."""
    best = "" if event.best_seconds is None else f"{event.best_seconds * 1e6:.1f} us"
    noise = "" if event.noise is None or isinstance(event, Trial) else f"{event.noise:.1%}"
    share = "" if event.share is None else f"{event.share:.0%}"
    return event.kernel, str(event.trials), best, f"{event.gain:.2f}x", noise, share


def duration(seconds: float) -> str:
    """Seconds as people read them: 65 -> "1:05"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
