"""Machines of a Ray cluster as one judge: cores build, and devices measure what was built elsewhere.

A machine declares what it measures on ("cpu:" and the processor's name, "gpu:NVIDIA H200"), one of each, and
an actor takes that one: a device never has two measurements. Or it declares its cores, and an actor takes
each of these to build; where nobody does, each device's machine builds what it measures. What was built
travels as files with their SHA-256. A candidate is timed where its incumbent is, beside it, so that ratios
are of one machine.

All devices have one fingerprint, all that builds has the tools that records are about, and all machines have
one architecture; an actor checks that before it takes part. Only the process that tunes writes the log, and
what comes back from an actor it uses as data. GPUs and NPUs were tried as stand-ins only, all on one machine.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import socket
import threading
from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ..targets.base import CannotBuild, Kernel, Schedules
from . import cluster
from .cluster import CORES, NoFleet, ray
from .crew import Crew
from .fingerprint import Fingerprint, here
from .judge import Worker
from .measure import Measurement
from .parcel import Parcel, packed
from .record import spelled

NONE = "none"  # the release of a package that is not there
AHEAD = 8  # candidates built for each device while it measures, at most


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a machine has to be: a fingerprint; releases by name of packages of its Python, and of what else a
    target builds with; and an architecture, as only that is built for.
    """

    place: Fingerprint
    packages: Mapping[str, str]
    tools: Mapping[str, str]
    architecture: str = field(default_factory=platform.machine)


class Bench:
    """What runs in an actor: a device, or a core that only builds, behind the processes that protect it."""

    def __init__(self, device: str, options: Mapping[str, Any], limits: Mapping[str, Any]) -> None:
        self.device, self.worker = device, Worker(device, options, **limits)

    def start(self, wanted: Wanted, measures: bool) -> tuple[str, str]:
        """Its host, and why it cannot do what is wanted; empty if it can."""
        try:
            if measures:
                self.worker.start()
            else:
                self.worker.building.start()
            why = unlike(wanted, self.device, self.worker, measures)
        except CannotBuild as error:
            why = str(error)
        return socket.gethostname(), why

    def trial(
        self,
        kernel: Kernel,
        schedules: Schedules,
        incumbent: Schedules | None,
        points: Collection[str] | None,
        fresh: bool,
        built: Sequence[tuple[Schedules, Parcel]],
    ) -> dict[str, Any]:
        """The measurement's fields; or, as "cannot", why this machine builds nothing. built: elsewhere."""
        for each, parcel in built:
            self.worker.building.take(kernel, each, parcel)
        try:
            if fresh:
                return asdict(self.worker.afresh(kernel, schedules, incumbent, points))
            return asdict(self.worker.trial(kernel, schedules, incumbent, points))
        except CannotBuild as error:
            return {"cannot": str(error)}

    def prepare(self, kernel: Kernel, candidates: Sequence[Schedules]) -> dict[str, Any]:
        """Builds candidates for this machine; what fails is told when they are tried."""
        with suppress(CannotBuild):
            self.worker.prepare(kernel, candidates)
        return {}

    def build(self, kernel: Kernel, schedules: Schedules) -> dict[str, Any]:
        """As "built", the parcel of a candidate for others; or what became of it, or "cannot"."""
        try:
            (built,) = self.worker.building.build(kernel, [schedules])
        except CannotBuild as error:
            return {"cannot": str(error)}
        return asdict(built) if isinstance(built, Measurement) else {"built": packed(built)}

    def stop(self) -> None:
        """Ends its processes and removes their files."""
        self.worker.close()


def unlike(wanted: Wanted, device: str, worker: Worker, measures: bool) -> str:
    """How this machine differs from what is wanted; empty if it does not. One that builds nothing may lack
    packages.
    """
    spec, place = importlib.util.find_spec(device.partition(":")[0]), wanted.place
    assert spec is not None, "its processes have started"
    assert spec.origin is not None
    cores = min(place.threads, len(os.sched_getaffinity(0)))
    mine = here(place.isa, cores, Path(spec.origin).parent, worker.processor)
    checks = [
        ("architecture, for which alone is built", platform.machine(), wanted.architecture),
        ("generator of kernels", mine.generator, place.generator),
    ]
    if measures:
        checks += [("processor", mine.cpu, place.cpu), ("cores", str(mine.threads), str(place.threads))]
    packages = [(name, _version(name), release) for name, release in wanted.packages.items()]
    checks += [each for each in packages if worker.builders or each[1] != NONE]
    if worker.builders:
        tools = worker.building.tools
        checks += [(name, tools.get(name, NONE), release) for name, release in wanted.tools.items()]
    return next((f"its {name}: {found}; wanted: {want}" for name, found, want in checks if found != want), "")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return NONE


class Fleet:
    """All devices of one kind in a Ray cluster, and its cores: a judge that several threads may ask.

    A context manager: what it started on other machines ends with it.
    """

    def __init__(
        self,
        address: str,
        kind: str,
        device: tuple[str, Mapping[str, Any]],
        wanted: Wanted,
        **limits: Any,
    ) -> None:
        """kind: what workers declare, such as "cpu:some model"; device, limits: as those of judge.Worker."""
        self.address, self.kind, self.lanes = address, kind, 0
        self.builders: int = limits.get("builders", 1)
        self._device, self._limits, self._wanted = device, limits, wanted
        self._devices, self._cores = (Crew(f"the fleet at {address} for {name!r}") for name in (kind, CORES))
        self._builds: OrderedDict[Kernel, dict[str, Future[Mapping[str, Any]]]] = OrderedDict()
        self._pool: ThreadPoolExecutor | None = None  # a thread for each core that builds
        self._turn, self._stack = threading.Lock(), ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
        if self._pool:
            self._pool.shutdown()
        self._stack.close()

    @property
    def lost(self) -> Sequence[str]:
        """A sentence for each worker that is out."""
        return [*self._devices.lost, *self._cores.lost]

    def start(self) -> None:
        """Has the first of each ready; the others join as they start. Raises NoFleet."""
        self._stack.enter_context(cluster.connected(self.address))
        there = cluster.declared()
        if not there[self.kind]:
            names = ", ".join(f"{name!r} ({count})" for name, count in sorted(there.items()))
            raise NoFleet(
                f"no worker of the fleet at {self.address} declares {self.kind!r}; they declare "
                f"{names or 'nothing'}: name one of these with --on, or run `moec worker --join` there"
            )
        self.lanes = there[self.kind]
        limits = self._limits
        if cores := min(there[CORES], AHEAD * self.lanes):
            self.builders, limits = -(-cores // self.lanes), {**limits, "builders": 0}
            self._pool = ThreadPoolExecutor(cores)
            self._hire(self._cores, CORES, cores, {**limits, "builders": 1}, measures=False)
        self._hire(self._devices, self.kind, self.lanes, limits, measures=True)
        if cores:
            self._cores.wait()
        self._devices.wait()

    def _hire(self, crew: Crew, kind: str, count: int, limits: Mapping[str, Any], measures: bool) -> None:
        remote = ray().remote(num_cpus=0, resources={kind: 1})(Bench)
        crew.hire(partial(remote.remote, *self._device, limits), count, self._wanted, measures)

    def close(self) -> None:
        """Ends all at once; who waits for a trial sees KeyboardInterrupt, and so do later trials."""
        self._devices.close()
        self._cores.close()

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
        return self._trial(kernel, schedules, incumbent, points)

    def afresh(
        self,
        kernel: Kernel,
        schedules: Schedules,
        incumbent: Schedules | None,
        points: Collection[str] | None = None,
    ) -> Measurement:
        """As a trial, in a process that its device's machine has for it alone."""
        return self._trial(kernel, schedules, incumbent, points, fresh=True)

    def _trial(
        self,
        kernel: Kernel,
        schedules: Schedules,
        incumbent: Schedules | None,
        points: Collection[str] | None = None,
        fresh: bool = False,
    ) -> Measurement:
        rivals = [each for each in (schedules, incumbent) if each is not None]
        built = []
        for each, build in [(each, self._build(kernel, each)) for each in rivals if self._pool]:
            reply = build.result()
            if "built" not in reply:
                return Measurement(**reply)
            built.append((each, reply["built"]))
        asked = kernel, schedules, incumbent, points, fresh, built
        return Measurement(**self._devices.ask("trial", *asked, about=kernel))

    def prepare(self, kernel: Kernel, candidates: Sequence[Schedules]) -> None:
        """Has them built while others are tried; or, where no cores are offered, builds them side by side
        where the kernel was tried last, if that is free. Raises as trial does.
        """
        if self._pool is None:
            self._devices.ask("prepare", kernel, candidates, about=kernel)
        for each in candidates if self._pool else ():
            self._build(kernel, each)

    def _build(self, kernel: Kernel, schedules: Schedules) -> Future[Mapping[str, Any]]:
        """The build of a candidate, begun if it was not; only those of the last kernels are kept."""
        with self._turn:
            builds = self._builds.setdefault(kernel, {})
            self._builds.move_to_end(kernel)
            if len(self._builds) > self.lanes:
                self._builds.popitem(last=False)
            if spelled(schedules) not in builds:
                assert self._pool is not None
                builds[spelled(schedules)] = self._pool.submit(self._cores.ask, "build", kernel, schedules)
            return builds[spelled(schedules)]
