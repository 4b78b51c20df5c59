"""Workers of a fleet that do the same: each is asked for one thing at a time, and who is lost is out."""

from __future__ import annotations

import threading
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any

from .cluster import NoFleet, ray

RETRIES = 2  # of a thing whose worker was lost
START_SECONDS = 120  # without a worker that is ready or at work
STOP_SECONDS = 5  # for a worker that is told to end before it is made to
ASK_SECONDS = 600  # more than a worker takes, whatever its candidate does


@dataclass(frozen=True, slots=True, eq=False)
class Hand:
    """An actor that is ready, and the host it is on."""

    actor: Any
    host: str


class Crew:
    """The actors that take one of what some workers declare; several threads may ask at a time."""

    def __init__(self, name: str) -> None:
        """name: of the fleet and what they declare, for people."""
        self.lost: list[str] = []  # a sentence for each that is out
        self._name, self._closed = name, False
        self._actors: list[Any] = []
        self._hires: list[threading.Thread] = []
        self._idle: list[Hand] = []
        self._starting = self._busy = 0
        self._last: dict[Hashable, Hand] = {}  # who was asked about it
        self._changed = threading.Condition()

    def hire(self, remote: Any, count: int, *wanted: Any) -> None:
        """Begins to place so many actors; remote makes one, start(*wanted) has it ready, and says its host
        and why it cannot do what is wanted, if so.
        """
        self._starting, self._actors = count, [remote() for _ in range(count)]
        arguments = [(actor, *wanted) for actor in self._actors]
        self._hires = [threading.Thread(target=self._hire, args=each, daemon=True) for each in arguments]
        for hire in self._hires:
            hire.start()

    def _hire(self, actor: Any, *wanted: Any) -> None:
        """Waits until the actor is placed and ready: as long as others use what it takes."""
        host, why = "a worker", ""
        try:
            host, why = ray().get(actor.start.remote(*wanted))
        except ray().exceptions.RayError as error:
            why = _first_line(error)
        with self._changed:
            self._starting -= 1
            if why and not self._closed:
                self.lost.append(f"{host}: {why}")
            elif not why:
                self._idle.append(Hand(actor, host))
            self._changed.notify_all()

    def close(self) -> None:
        """Ends all at once; who waits for an answer sees KeyboardInterrupt, and so do those who ask later."""
        with self._changed:
            actors, self._actors, self._closed = self._actors, [], True
            stops = [hand.actor.stop.remote() for hand in self._idle]
            self._changed.notify_all()
        if stops:
            ray().wait(stops, num_returns=len(stops), timeout=STOP_SECONDS)
        for actor in actors:
            ray().kill(actor)
        for hire in self._hires:
            hire.join(STOP_SECONDS)

    def wait(self) -> None:
        """Until one is ready; the others join as they start. Raises NoFleet."""
        with self._changed:
            self._await()

    def ask(self, method: str, *arguments: Any, about: Hashable = None) -> Mapping[str, Any]:
        """What whoever is free answers, best who was asked last about the same; if that is lost, another one,
        twice at most, and then it is the answer of a crash. One with "cannot" in it loses who gave it.

        Raises NoFleet when nobody is left, KeyboardInterrupt once it is closed.
        """
        lost = 0
        while True:
            hand = self._borrow(about)
            try:
                asked = getattr(hand.actor, method).remote(*arguments)
                reply: Mapping[str, Any] = ray().get(asked, timeout=ASK_SECONDS)
            except ray().exceptions.RayError as error:
                lost, why = lost + 1, _first_line(error)
            else:
                if "cannot" not in reply:
                    self._give_back(hand, about)
                    return reply
                why = reply["cannot"]  # of the machine, not of the candidate
            self._lose(hand, why)
            if lost > RETRIES:
                why = f"{lost} workers were lost with it; {hand.host}: {why}"
                return {"status": "crashed", "reason": why[:300]}

    def _borrow(self, about: Hashable) -> Hand:
        with self._changed:
            self._await()
            last = self._last.get(about)
            hand = last if last in self._idle else self._idle[0]
            self._idle.remove(hand)
            self._busy += 1
            return hand

    def _give_back(self, hand: Hand, about: Hashable) -> None:
        with self._changed:
            self._busy -= 1
            self._idle.append(hand)
            self._last[about] = hand
            self._changed.notify_all()

    def _lose(self, hand: Hand, why: str) -> None:
        with self._changed:
            self._busy -= 1
            self._changed.notify_all()
            if self._closed:
                raise KeyboardInterrupt
            self.lost.append(f"{hand.host}: {why}")
            self._actors.remove(hand.actor)
        ray().kill(hand.actor)

    def _await(self) -> None:
        """Waits for an idle one."""
        while not self._idle or self._closed:
            if self._closed:
                raise KeyboardInterrupt
            if not (self._starting or self._busy):
                raise NoFleet(f"no worker of {self._name} is left: {'; '.join(self.lost)}")
            if not self._changed.wait(START_SECONDS) and not self._busy:
                waited = f"{self._starting} are in use or do not start, as seen for {START_SECONDS} s"
                raise NoFleet("; ".join((f"no worker of {self._name} is ready: {waited}", *self.lost)))


def _first_line(error: Exception) -> str:
    error = getattr(error, "cause", None) or error  # Ray wraps what was raised in an actor
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:200]
