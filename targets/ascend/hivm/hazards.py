"""Who has to have happened before whom: vector clocks of pipes, and the accesses that they do not order.

A pipe knows of every pipe how many of its operations are done. It learns that from flags, from barriers and
from its core's scalar pipe, which hands out all work. What it was given itself it may do at once with what it
was given before: without a barrier it knows of none of that.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from ....compiler.ir import Array
from .trace import PIPES, S
from .view import View

Range = tuple[int, int, int]  # first byte, the one after the last, pipe
Access = tuple[int, View, str]  # the pipe's operation, what it touches, how to say it


class Clocks:
    """Of the pipes of some cores; a pipe is len(PIPES) * core + its place in PIPES."""

    def __init__(self, cores: int) -> None:
        count = cores * len(PIPES)
        self.given = np.zeros(count, np.int64)  # operations of each pipe
        self.known: list[Array] = list(np.zeros((count, count), np.int64))

    def issue(self, pipe: int) -> int:
        """The number of the pipe's new operation."""
        self._learn(pipe, self.known[pipe - pipe % len(PIPES) + S])
        self.given[pipe] += 1
        return int(self.given[pipe])

    def done(self, pipe: int) -> Array:
        """What is known once the pipe has done all that it was given."""
        message: Array = np.maximum(self.known[pipe], self.known[pipe - pipe % len(PIPES) + S])
        message[pipe] = self.given[pipe]
        return message

    def learn(self, pipe: int, message: Array) -> None:
        """The pipe goes on only when all of this is done."""
        self._learn(pipe, message)

    def barrier(self, pipe: int) -> None:
        """The pipe goes on when it has done all that it was given."""
        self.known[pipe][pipe] = self.given[pipe]

    def all(self, core: int) -> None:
        """All pipes of a core have done all."""
        pipes = range(core * len(PIPES), (core + 1) * len(PIPES))
        message = np.max([self.done(pipe) for pipe in pipes], axis=0)
        for pipe in pipes:
            self._learn(pipe, message)

    def ordered(self, pipe: int, other: int, operation: int) -> bool:
        """Whether that operation of the other pipe is done when this pipe does its last."""
        if pipe == other and (pipe % len(PIPES) == S or operation == self.given[pipe]):
            return True
        return bool(self.known[pipe][other] >= operation)

    def _learn(self, pipe: int, message: Array) -> None:
        np.maximum(self.known[pipe], message, out=self.known[pipe])


@dataclass(slots=True)
class History:
    """The accesses of one memory that a later one may be in conflict with."""

    reads: dict[Range, Access] = field(default_factory=dict)
    writes: dict[Range, Access] = field(default_factory=dict)

    def conflicts(self, clocks: Clocks, pipe: int, view: View, writes: bool) -> Iterator[str]:
        """How to say each earlier access of the same bytes that is not ordered before the pipe's last."""
        low, high = view.span
        for earlier in (self.writes, self.reads) if writes else (self.writes,):
            for (first, end, other), (operation, seen, said) in earlier.items():
                if first < high and low < end and not clocks.ordered(pipe, other, operation):
                    if (seen.dense and view.dense) or common(seen, view):
                        yield said

    def add(self, clocks: Clocks, pipe: int, view: View, writes: bool, said: str) -> None:
        """What a dense write covers is forgotten: who is in conflict with that, is with the write."""
        low, high = view.span
        if low == high:
            return
        if writes and view.dense:
            for earlier in (self.reads, self.writes):
                for key in [each for each in earlier if low <= each[0] and each[1] <= high]:
                    del earlier[key]
        (self.writes if writes else self.reads)[low, high, pipe] = (int(clocks.given[pipe]), view, said)


def common(one: View, other: View) -> bool:
    """Whether both touch a byte."""
    return bool(np.intersect1d(one.bytes_touched(), other.bytes_touched()).size)


class Owners:
    """Which block wrote and which read each byte of a memory of the device: blocks are not ordered at all."""

    SEVERAL = -1

    def __init__(self, size: int) -> None:
        self.written = np.zeros(size, np.int32)  # 0: nobody, else a block's number from 1
        self.read = np.zeros(size, np.int32)

    def conflict(self, block: int, view: View, writes: bool) -> str | None:
        """Another block that touched the same bytes, one of both writing; marks them as this one's."""
        places = slice(*view.span) if view.dense else view.bytes_touched()
        me, written, read = block + 1, self.written[places], self.read[places]
        others = ((written != 0) & (written != me)) | (writes & (read != 0) & (read != me))
        if writes:
            self.written[places] = me
        else:
            self.read[places] = np.where((read == 0) | (read == me), me, self.SEVERAL)
        return None if not others.any() else "another block writes" if not writes else "another block uses"
