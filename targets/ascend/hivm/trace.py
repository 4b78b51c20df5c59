"""What a block did, in order: which pipe was given what, and who waited for whom."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from enum import IntEnum

PIPES = ("S", "V", "M", "MTE1", "MTE2", "MTE3", "FIX")
S, V, M, MTE1, MTE2, MTE3, FIX = range(len(PIPES))
PLACES = {name: place for place, name in enumerate(PIPES)}


class Did(IntEnum):
    """What an event is."""

    ISSUE = 0  # a pipe is given work; which: its place among works
    SET = 1  # a pipe tells when it has come so far
    WAIT = 2  # a pipe waits for the event `which`
    BARRIER = 3  # a pipe waits for itself
    ALL = 4  # all pipes of a core wait for each other
    SEND = 5  # a pipe tells another core when it has come so far
    RECEIVE = 6  # a core waits for the event `which` of another
    PRODUCT = 7  # the cube is given work, which it begins when what it reads is being moved to L0


@dataclass(frozen=True, slots=True)
class Work:
    """What a pipe is given. kind: such as "gm_l1" or "vadd"; what the amounts are stands with its cost."""

    kind: str
    amounts: tuple[float, ...]


@dataclass(slots=True)
class Trace:
    """events: (Did, pipe, which, scalar ops before it); a pipe is len(PIPES) * core + its place in PIPES.

    works: each that was given, once, with its place: loops give the same again and again.
    """

    cores: int = 1
    events: list[tuple[int, int, int, int]] = field(default_factory=list)
    works: dict[Work, int] = field(default_factory=dict)
    moved: Counter[str] = field(default_factory=Counter)  # bytes by path, such as "GM->L1"; "MAC": products
    read: Counter[str] = field(default_factory=Counter)  # bytes by the name of the memory of the device
    written: Counter[str] = field(default_factory=Counter)
    touched: list[tuple[str, int, int]] = field(default_factory=list)  # of the device, in order: from, to

    def add(self, did: Did, pipe: int, which: int = 0, scalars: int = 0) -> int:
        """The place of the new event."""
        self.events.append((int(did), pipe, which, scalars))
        return len(self.events) - 1

    def issue(self, pipe: int, work: Work, scalars: int) -> None:
        """A pipe is given work."""
        did = Did.PRODUCT if pipe % len(PIPES) == M else Did.ISSUE
        self.events.append((int(did), pipe, self.works.setdefault(work, len(self.works)), scalars))
