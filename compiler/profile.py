"""Where the time of a step goes: in our kernels, in other nodes, in onnxruntime between them, outside of it.

Kernels carry a clock of their own, so their time is that of undisturbed steps. Only what the other nodes take
is seen through onnxruntime's profiler, in steps of its own; what is left of a run is onnxruntime. Where a
device has a clock, kernels take what it says of all of them; each is timed alone, in the profiler's steps, so
they may add up to more.
"""

from __future__ import annotations

import json
import re
import tempfile
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from statistics import fmean as mean
from typing import Any, TypeVar

from .bench import counters, device_clock, random_prompt, steps
from .ir import Array
from .runner import Artifact
from .session import open_session

PROMPTS = 4  # times a prompt is run; the first warms up
Item = TypeVar("Item")
HALF_MICROSECOND = 5e-7  # the profiler rounds a node's time down to whole microseconds


@dataclass(frozen=True, slots=True)
class Part:
    """The kernels of one kind, or the nodes of one operator: calls, seconds, bytes of weights in a step."""

    name: str
    calls: float
    seconds: float
    weight_bytes: float = 0.0

    @property
    def bandwidth(self) -> float:
        """Bytes of weights read per second."""
        return self.weight_bytes / self.seconds if self.seconds else 0.0


Parts = Mapping[str, Part]


@dataclass(frozen=True, slots=True)
class Phase:
    """One step of a phase; kernels, others, onnxruntime and outside add up to its seconds.

    name: "prefill" or "decode"; tokens: of a step, over the batch; nodes: that onnxruntime runs in one.
    outside: of the session's run, in Python. profiler_seconds: what onnxruntime's profiler adds to a step.
    kernels, others: by kind and by operator, the slowest first.
    """

    name: str
    tokens: int
    nodes: int
    layers: int
    seconds: float
    kernel_seconds: float
    other_seconds: float
    onnxruntime_seconds: float
    outside_seconds: float
    profiler_seconds: float
    kernels: Sequence[Part]
    others: Sequence[Part]


@dataclass(frozen=True, slots=True)
class Step:
    """What one step took: in all, inside the session's runs, and its kernels by kind.

    runs: how many it was; device_seconds: what a device with a clock of its own took for them.
    """

    seconds: float
    run_seconds: float
    kernels: Parts
    runs: int = 1
    device_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Run:
    """What onnxruntime's profiler saw of one run: how many nodes, and those that are not ours by operator."""

    nodes: int
    others: Parts


class Clocked:
    """A session that counts its runs and adds up their time."""

    def __init__(self, session: Any, clock: Callable[[], float]) -> None:
        """clock: the seconds that a device took for the last run."""
        self._session, self._clock = session, clock
        self.seconds, self.runs, self.device_seconds = 0.0, 0, 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def run_with_iobinding(self, binding: Any, options: Any = None) -> None:
        """The session's, timed."""
        start = time.perf_counter()
        self._session.run_with_iobinding(binding, options)
        self.seconds += time.perf_counter() - start
        self.runs += 1
        self.device_seconds += self._clock()


def profile(artifact: Artifact, prompt: int, new: int, batch: int, threads: int) -> list[Phase]:
    """Prefill of a random prompt and decode of `new` tokens, for `batch` sequences at once.

    Raises BadRequest where the model has fewer positions.
    """
    ids = random_prompt(artifact, prompt, new, batch)
    ours = {each.name.decode() for each in counters(artifact)}
    with tempfile.TemporaryDirectory(prefix="moec-") as folder:
        session = open_session(artifact.folder, artifact.manifest, threads, profile=Path(folder) / "run")
        watched = Artifact(artifact.folder, artifact.manifest, session)
        plain, disturbed = walked(artifact, ids, new), walked(watched, ids, new)
        each = iter(seen(json.loads(Path(session.end_profiling()).read_text()), ours))
    runs = [joined(list(islice(each, step.runs))) for step in disturbed]
    layers = sum(re.fullmatch(r"past\.\d+\.key", each.name) is not None for each in session.get_inputs())
    prefill, decode = slice(1, PROMPTS), slice(PROMPTS, None)
    return [
        phase("prefill", ids.size, layers, plain[prefill], disturbed[prefill], runs[prefill]),
        phase("decode", batch, layers, plain[decode], disturbed[decode], runs[decode]),
    ]


def walked(artifact: Artifact, ids: Array, new: int) -> list[Step]:
    """PROMPTS times the prompt i64 [B, T], then the new tokens after the last of them."""
    session = Clocked(artifact.session, device_clock(artifact))
    clocked = Artifact(artifact.folder, artifact.manifest, session)
    prompts = [next(timed(clocked, session, ids, new)) for _ in range(PROMPTS - 1)]
    return [*prompts, *timed(clocked, session, ids, new)]


def timed(artifact: Artifact, session: Clocked, ids: Array, new: int) -> Iterator[Step]:
    """The steps of a prompt and `new` tokens, with what the kernels counted in each."""
    walk = steps(artifact, ids, new)
    for _ in range(1 + new):
        before, run, runs = tally(artifact), session.seconds, session.runs
        device, start = session.device_seconds, time.perf_counter()
        next(walk)
        seconds = time.perf_counter() - start
        kernels = {name: minus(part, before[name]) for name, part in tally(artifact).items()}
        device = session.device_seconds - device
        yield Step(seconds, session.seconds - run, kernels, session.runs - runs, device)


def tally(artifact: Artifact) -> Parts:
    """What the kernels of each kind have counted so far."""
    return summed(
        Part(each.kind.decode(), each.calls, each.nanoseconds * 1e-9, each.weight_bytes)
        for each in counters(artifact)
    )


def seen(events: Sequence[Mapping[str, Any]], ours: Collection[str]) -> list[Run]:
    """The runs in a profile of onnxruntime. ours: the operators that are kernels of the artifact."""
    nodes = [each for each in events if each["cat"] == "Node" and each["name"].endswith("_kernel_time")]
    runs = sorted((each["ts"], each["dur"]) for each in events if each["name"] == "model_run")
    nodes.sort(key=lambda each: each["ts"])
    return [
        run_of([each for each in nodes if 0 <= each["ts"] - start <= length], ours) for start, length in runs
    ]


def run_of(nodes: Sequence[Mapping[str, Any]], ours: Collection[str]) -> Run:
    """One run of these nodes."""
    named = [(each["args"]["op_name"], each["dur"] * 1e-6 + HALF_MICROSECOND) for each in nodes]
    return Run(len(nodes), summed(Part(name, 1, seconds) for name, seconds in named if name not in ours))


def joined(runs: Sequence[Run]) -> Run:
    """The runs of one step as one."""
    return Run(sum(run.nodes for run in runs), summed(part for run in runs for part in run.others.values()))


def phase(
    name: str, tokens: int, layers: int, plain: Sequence[Step], disturbed: Sequence[Step], runs: Sequence[Run]
) -> Phase:
    """The average step and the average run, without the fastest and the slowest quarter of them."""
    middle, slowed = (central(steps, lambda step: step.seconds) for steps in (plain, disturbed))
    quiet = central(runs, lambda run: total(run.others.values()))
    seconds, run = mean(step.seconds for step in middle), mean(step.run_seconds for step in middle)
    device = mean(step.device_seconds for step in middle)
    kernels = averaged([step.kernels for step in (slowed if device else middle)])
    others = averaged([each.others for each in quiet])
    in_kernels, in_others = device or total(kernels), total(others)
    return Phase(
        name,
        tokens,
        runs[-1].nodes,
        layers,
        seconds,
        kernel_seconds=in_kernels,
        other_seconds=in_others,
        onnxruntime_seconds=run - in_kernels - in_others,
        outside_seconds=seconds - run,
        profiler_seconds=mean(step.seconds for step in slowed) - seconds,
        kernels=kernels,
        others=others,
    )


def central(items: Sequence[Item], seconds: Callable[[Item], float]) -> Sequence[Item]:
    """The middle half by time, at least one."""
    quarter = (len(items) - 1) // 4
    return sorted(items, key=seconds)[quarter : len(items) - quarter]


def total(parts: Iterable[Part]) -> float:
    """Seconds of them all."""
    return sum(part.seconds for part in parts)


def averaged(steps: Sequence[Parts]) -> list[Part]:
    """The parts of an average step that have any calls, the slowest first."""
    whole = summed(part for step in steps for part in step.values() if part.calls)
    parts = [scaled(part, 1 / len(steps)) for part in whole.values()]
    return sorted(parts, key=lambda part: -part.seconds)


def summed(parts: Iterable[Part]) -> Parts:
    """Parts of the same name added up."""
    found: dict[str, Part] = {}
    for part in parts:
        found[part.name] = plus(found[part.name], part) if part.name in found else part
    return found


def plus(a: Part, b: Part, factor: float = 1.0) -> Part:
    """a and factor times b."""
    return Part(
        a.name,
        a.calls + factor * b.calls,
        a.seconds + factor * b.seconds,
        a.weight_bytes + factor * b.weight_bytes,
    )


def minus(a: Part, b: Part) -> Part:
    """What a has over b."""
    return plus(a, b, -1.0)


def scaled(part: Part, factor: float) -> Part:
    """The part, factor times."""
    return plus(Part(part.name, 0.0, 0.0), part, factor)
