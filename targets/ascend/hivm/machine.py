"""One block's cores while it runs: values, memories, flags, and what is wrong with how pipes are ordered."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

from ....compiler.ir import Array
from .hazards import Clocks, History, Owners
from .memory import CAPACITIES, Memory
from .parse import Op
from .trace import MTE1, PIPES, Did, M, S, Trace, Work
from .view import View

EVENTS = 8  # flags of each pair of pipes
CROSSING = 16  # how often a flag between cores can be set before it is waited for
FEW = 1 << 14  # elements up to which numbers are moved, where they are known, even for times only
Message = tuple[Array | None, int]  # what is known, and the event that said so


class Fault(RuntimeError):
    """A block that cannot go on: says what and where."""


class Machine:
    """A block and its cores. moves: False leaves out what comes of memory that has no contents.

    wrong: sentences on races and flags, each once.
    """

    def __init__(self, names: Sequence[str], block: int, checked: bool, moves: bool) -> None:
        self.block, self.moves = block, moves
        self.clocks = Clocks(len(names)) if checked else None
        self.histories: dict[str, History] = {}
        self.owners: dict[str, Owners] = {}
        self.crossing: dict[tuple[str, str, int], deque[Message]] = {}
        self.trace, self.wrong = Trace(len(names)), dict[str, None]()
        self.cores = [Core(self, name, index) for index, name in enumerate(names)]

    def partners(self, core: Core) -> list[Core]:
        """The cores that one of this kind tells and waits for."""
        return [other for other in self.cores if other.cube != core.cube]

    def left(self) -> None:
        """Notes every flag that is still set."""
        for core in self.cores:
            for (source, target, event), messages in core.flags.items():
                if messages:
                    flag = f"{PIPES[source]} to {PIPES[target]}, event {event}"
                    self.wrong[f"flag left set at the end: {core.name}, {flag}"] = None
        for (sender, receiver, flag_id), waiting in self.crossing.items():
            if waiting:
                self.wrong[f"flag left set at the end: {sender} to {receiver}, flag {flag_id}"] = None


class Core:
    """One core. values: by name, numbers and views. views: those made before, by op and what they are of."""

    def __init__(self, machine: Machine, name: str, index: int) -> None:
        self.machine, self.name, self.index = machine, name, index
        self.cube = name == "AIC"
        self.sub_block = 0 if self.cube else int(name[-1])
        self.values: dict[str, Any] = {}
        self.views: dict[Any, View] = {}
        self.scalars = 0
        self.flags: dict[tuple[int, int, int], deque[Message]] = {}
        poison = 0xFF if machine.moves else 0  # where not all is moved, what is missing is a number
        self.memories = {space: Memory.on_chip(name, space, poison) for space in CAPACITIES}
        for memory in self.memories.values() if not machine.moves else ():
            memory.track()

    def pipe(self, place: int) -> int:
        """The number of one of its pipes."""
        return self.index * len(PIPES) + place

    def issue(
        self,
        op: Op,
        place: int,
        work: Work,
        reads: Sequence[View],
        writes: Sequence[View],
        known: bool = True,
    ) -> bool:
        """Gives a pipe work; whether numbers are to be moved. known: whether what else it takes is.

        Raises OutOfBounds.
        """
        for view in (*reads, *writes):
            view.check()
        machine = self.machine
        machine.trace.issue(self.pipe(place), work, self.scalars)
        self.scalars = 0
        if machine.clocks:
            machine.clocks.issue(self.pipe(place))
            self._access(op, place, reads, writes)
            if place == M:  # the library's product waits for itself
                machine.clocks.barrier(self.pipe(M))
        return machine.moves or self._known(reads, writes, known)

    def _known(self, reads: Sequence[View], writes: Sequence[View], known: bool) -> bool:
        """Whether what is written will be known, which it is from here on, or not."""
        known = known and all(view.known for view in reads)
        known = known and all(view.size <= FEW and view.memory.data is not None for view in writes)
        for view in writes:
            view.learn(known)
        return known

    def _access(self, op: Op, place: int, reads: Sequence[View], writes: Sequence[View]) -> None:
        clocks, pipe = self.machine.clocks, self.pipe(place)
        assert clocks
        said = f"{self.name}.{PIPES[place]} {op}"
        for view, is_write in [*((each, False) for each in reads), *((each, True) for each in writes)]:
            history = self.machine.histories.setdefault(view.memory.name, History())
            for earlier in history.conflicts(clocks, pipe, view, is_write):
                self.machine.wrong[f"race on {view.memory.name}: {said} with {earlier}"] = None
            history.add(clocks, pipe, view, is_write, said)
            if owners := self.machine.owners.get(view.memory.name):
                other = owners.conflict(self.machine.block, view, is_write)
                if other:
                    self.machine.wrong[f"race on {view.memory.name}: {said}, where {other}"] = None

    def set(self, source: int, target: int, event: int) -> None:
        """Raises Fault for a flag that there is not."""
        if not 0 <= event < EVENTS:
            raise Fault(f"{self.name} sets event {event} of {PIPES[source]}; there are {EVENTS}")
        messages = self.flags.setdefault((source, target, event), deque())
        if messages:
            flag = f"{PIPES[source]} to {PIPES[target]}, event {event}"
            self.machine.wrong[f"flag set twice before it is waited for: {self.name}, {flag}"] = None
        messages.append(self._message(source, Did.SET))

    def wait(self, source: int, target: int, event: int) -> None:
        """Raises Fault for a flag that nobody set: nobody will, for one core's ops come in their order."""
        messages = self.flags.get((source, target, event))
        if not messages:
            pair = f"{PIPES[target]} waits for {PIPES[source]}"
            raise Fault(f"deadlock: {self.name}.{pair}, event {event}, which is not set")
        self._learn(target, messages.popleft(), Did.WAIT)

    def send(self, source: int, flag: int) -> None:
        """Sets a flag of the cores beside it."""
        message = self._message(source, Did.SEND)
        for other in self.machine.partners(self):
            waiting = self.machine.crossing.setdefault((self.name, other.name, flag), deque())
            waiting.append(message)
            if len(waiting) > CROSSING:
                raise Fault(f"{self.name} sets flag {flag} for {other.name} more than {CROSSING} times")

    def receive(self, flag: int) -> bool:
        """Whether all cores beside it set the flag; then it goes on."""
        crossing, others = self.machine.crossing, self.machine.partners(self)
        if not others or not all(crossing.get((other.name, self.name, flag)) for other in others):
            return False
        for other in others:
            self._learn(S, crossing[other.name, self.name, flag].popleft(), Did.RECEIVE)
        return True

    def barrier(self, place: int | None) -> None:
        """One pipe waits for itself, or all of them for each other."""
        clocks, first = self.machine.clocks, self.pipe(0)
        self.machine.trace.add(
            Did.ALL if place is None else Did.BARRIER, first + (place or 0), 0, self.scalars
        )
        self.scalars = 0
        if clocks and place is None:
            clocks.all(self.index)
        elif clocks and place is not None:
            clocks.barrier(first + place)

    def feed(self) -> None:
        """The cube's product reads what is moved to it: it waits for that."""
        if clocks := self.machine.clocks:
            clocks.learn(self.pipe(M), clocks.done(self.pipe(MTE1)))

    def _message(self, source: int, did: Did) -> Message:
        event = self.machine.trace.add(did, self.pipe(source), 0, self.scalars)
        self.scalars = 0
        return (self.machine.clocks.done(self.pipe(source)) if self.machine.clocks else None, event)

    def _learn(self, target: int, message: Message, did: Did) -> None:
        known, event = message
        self.machine.trace.add(did, self.pipe(target), event, self.scalars)
        self.scalars = 0
        if self.machine.clocks and known is not None:
            self.machine.clocks.learn(self.pipe(target), known)
