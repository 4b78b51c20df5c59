"""Devices of other machines as one judge: measuring workers behind Ray actors, one for each device.

A machine declares what it measures on ("cpu:" and the processor's name, "gpu:H200"), one of each, and an
actor takes that one: a device never has two measurements. A candidate is built and timed where its incumbent
is, so that ratios are of one machine. All machines have one fingerprint and the same tools; an actor checks
that before it takes part. Only the process that tunes writes the log, and what comes back from an actor it
uses as data.
"""

from __future__ import annotations

import importlib.util
import os
import socket
import threading
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ..targets.base import CannotBuild, Kernel, Schedules
from . import cluster
from .cluster import NoFleet, ray
from .fingerprint import Fingerprint, here
from .judge import Worker
from .measure import Measurement

RETRIES = 2  # of a trial whose worker was lost
START_SECONDS = 120  # without a device that is ready or at work
STOP_SECONDS = 5  # for a worker that is told to end before it is made to
TRIAL_SECONDS = 600  # more than a worker takes, whatever its candidate does


class Bench:
    """What runs in the actor: the device of its machine, behind the processes that protect it."""

    def __init__(self, device: str, options: Mapping[str, Any], limits: Mapping[str, int]) -> None:
        self.device, self.worker = device, Worker(device, options, **limits)

    def start(self, place: Fingerprint, versions: Mapping[str, str]) -> tuple[str, str]:
        """Its host, and why it cannot measure what is wanted; empty if it can."""
        why = unlike(place, versions, self.device)
        try:
            if not why:
                self.worker.start()
        except CannotBuild as error:
            why = str(error)
        return socket.gethostname(), why

    def trial(
        self,
        kernel: Kernel,
        schedules: Schedules,
        incumbent: Schedules | None,
        points: Collection[str] | None,
    ) -> dict[str, Any]:
        """The measurement's fields; or, as "cannot", why this machine builds nothing."""
        try:
            return asdict(self.worker.trial(kernel, schedules, incumbent, points))
        except CannotBuild as error:
            return {"cannot": str(error)}

    def prepare(self, kernel: Kernel, candidates: Sequence[Schedules]) -> None:
        """Builds candidates; what fails is told when they are tried."""
        with suppress(CannotBuild):
            self.worker.prepare(kernel, candidates)

    def stop(self) -> None:
        """Ends its processes and removes their files."""
        self.worker.close()


def unlike(place: Fingerprint, versions: Mapping[str, str], device: str) -> str:
    """How this machine differs from what records are to be about; empty if it does not."""
    spec = importlib.util.find_spec(device.partition(":")[0])
    if spec is None or spec.origin is None:
        return f"it has no module {device.partition(':')[0]}; install the same moec there"
    cores = min(place.threads, len(os.sched_getaffinity(0)))
    mine = here(place.isa, cores, Path(spec.origin).parent)
    for name, found, wanted in (
        ("processor", mine.cpu, place.cpu),
        ("cores", str(mine.threads), str(place.threads)),
        ("generator of kernels", mine.generator, place.generator),
        *((package, _version(package), wanted) for package, wanted in versions.items()),
    ):
        if found != wanted:
            return f"its {name}: {found}; wanted: {wanted}"
    return ""


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"


@dataclass(frozen=True, slots=True, eq=False)
class Device:
    """An actor that is ready, and the host it is on."""

    actor: Any
    host: str


class Fleet:
    """All devices of one kind in a Ray cluster: a judge that several threads may ask at a time.

    A context manager: what it started on other machines ends with it.
    """

    def __init__(
        self,
        address: str,
        kind: str,
        device: tuple[str, Mapping[str, Any]],
        place: Fingerprint,
        versions: Mapping[str, str],
        **limits: int,
    ) -> None:
        """kind: what workers declare, such as "cpu:some model"; device, limits: as those of judge.Worker."""
        self.address, self.kind, self.lanes, self.builders = address, kind, 0, limits.get("builders", 1)
        self._name = f"the fleet at {address} for {kind!r}"
        self.lost: list[str] = []  # a sentence for each device that is out
        self._bench, self._wanted = (*device, limits), (place, dict(versions))
        self._actors: list[Any] = []
        self._hires: list[threading.Thread] = []
        self._idle: list[Device] = []
        self._starting = self._busy = 0
        self._last: dict[Kernel, Device] = {}  # where a kernel's incumbent is loaded
        self._changed = threading.Condition()
        self._closed, self._stack = False, ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
        self._stack.close()

    def start(self) -> None:
        """Has the first device ready; the others join as they start. Raises NoFleet."""
        self._stack.enter_context(cluster.connected(self.address))
        there = cluster.declared()
        if not there[self.kind]:
            names = ", ".join(f"{name!r} ({count})" for name, count in sorted(there.items()))
            raise NoFleet(
                f"no worker of the fleet at {self.address} declares {self.kind!r}; they declare "
                f"{names or 'nothing'}: name one of these with --on, or run `moec worker --join` there"
            )
        self.lanes = self._starting = there[self.kind]
        remote = ray().remote(num_cpus=0, resources={self.kind: 1})(Bench)
        self._actors = [remote.remote(*self._bench) for _ in range(self.lanes)]
        self._hires = [
            threading.Thread(target=self._hire, args=(actor,), daemon=True) for actor in self._actors
        ]
        for hire in self._hires:
            hire.start()
        with self._changed:
            self._await()

    def _hire(self, actor: Any) -> None:
        """Waits until the actor is placed and ready: as long as others use its device."""
        host, why = "a worker", ""
        try:
            host, why = ray().get(actor.start.remote(*self._wanted))
        except ray().exceptions.RayError as error:
            why = _first_line(error)
        with self._changed:
            self._starting -= 1
            if why and not self._closed:
                self.lost.append(f"{host}: {why}")
            elif not why:
                self._idle.append(Device(actor, host))
            self._changed.notify_all()

    def close(self) -> None:
        """Ends all at once; who waits for a trial sees KeyboardInterrupt, and so do later trials."""
        with self._changed:
            actors, self._actors, self._closed = self._actors, [], True
            stops = [device.actor.stop.remote() for device in self._idle]
            self._changed.notify_all()
        if stops:
            ray().wait(stops, num_returns=len(stops), timeout=STOP_SECONDS)
        for actor in actors:
            ray().kill(actor)
        for hire in self._hires:
            hire.join(STOP_SECONDS)

    def trial(
        self,
        kernel: Kernel,
        schedules: Schedules,
        incumbent: Schedules | None,
        points: Collection[str] | None = None,
    ) -> Measurement:
        """As a judge's, on whichever device is free; if that is lost, on another one, twice at most.

        Raises NoFleet when no device is left, KeyboardInterrupt once it is closed.
        """
        lost = 0
        while True:
            device = self._borrow(kernel)
            try:
                asked = device.actor.trial.remote(kernel, schedules, incumbent, points)
                reply = ray().get(asked, timeout=TRIAL_SECONDS)
            except ray().exceptions.RayError as error:
                lost, why = lost + 1, _first_line(error)
            else:
                if "cannot" not in reply:
                    self._give_back(device, kernel)
                    return Measurement(**reply)
                why = reply["cannot"]  # of the machine, not of the candidate
            self._lose(device, why)
            if lost > RETRIES:
                return Measurement("crashed", f"{lost} workers were lost with it; {device.host}: {why}"[:300])

    def prepare(self, kernel: Kernel, candidates: Sequence[Schedules]) -> None:
        """Builds them side by side where the kernel was tried last, if that is free; raises as trial does."""
        device = self._borrow(kernel)
        try:
            ray().get(device.actor.prepare.remote(kernel, candidates), timeout=TRIAL_SECONDS)
        except ray().exceptions.RayError as error:
            self._lose(device, _first_line(error))  # where they are tried, they are built too
        else:
            self._give_back(device, kernel)

    def _borrow(self, kernel: Kernel) -> Device:
        with self._changed:
            self._await()
            last = self._last.get(kernel)
            device = last if last in self._idle else self._idle[0]
            self._idle.remove(device)
            self._busy += 1
            return device

    def _give_back(self, device: Device, kernel: Kernel) -> None:
        with self._changed:
            self._busy -= 1
            self._idle.append(device)
            self._last[kernel] = device
            self._changed.notify_all()

    def _lose(self, device: Device, why: str) -> None:
        with self._changed:
            self._busy -= 1
            self._changed.notify_all()
            if self._closed:
                raise KeyboardInterrupt
            self.lost.append(f"{device.host}: {why}")
            self._actors.remove(device.actor)
        ray().kill(device.actor)

    def _await(self) -> None:
        """Waits for an idle device."""
        while not self._idle or self._closed:
            if self._closed:
                raise KeyboardInterrupt
            if not (self._starting or self._busy):
                raise NoFleet(f"no worker of {self._name} is left: {'; '.join(self.lost)}")
            if not self._changed.wait(START_SECONDS) and not self._busy:
                waited = f"{self._starting} are in use or do not start, as seen for {START_SECONDS} s"
                raise NoFleet("; ".join((f"no worker of {self._name} is ready: {waited}", *self.lost)))


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:200]
