"""What tuning cost, and what it bought: an estimate from the times of a model's kernels alone.

A step of decode runs each kernel as often as the model uses it, on one token; prefill does on many, as many
as the kernel was timed with. What a model does besides its kernels is left out, and so are kernels that were
never timed; those that have nothing to choose never are.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ..targets.base import Kernel, Schedules, Space, bucket, merged, serving
from .fingerprint import Fingerprint, Here
from .log import Log
from .measure import bucket_of
from .plan import Choice, Plan
from .record import Record


@dataclass(frozen=True, slots=True)
class Worth:
    """Cost: seconds and trials of one build. Gain: the default schedules' time over the plan's, in decode and
    in prefill, None where it is not known.

    kernels counts those that have a choice, kept those of them that have their default schedules, timed those
    that decode is estimated from.
    """

    seconds: float
    trials: int
    kernels: int
    kept: int
    timed: int
    decode: float | None = None
    prefill: float | None = None
    interrupted: bool = False

    def __str__(self) -> str:
        cost = f"{self.seconds:.0f} s of tuning"
        kept = f"{self.kept} of {self.kernels} kernels kept their default"
        gains = {"decode": self.decode, "prefill": self.prefill}
        bought = ", ".join(f"{phase} {gain:.2f}x" for phase, gain in gains.items() if gain is not None)
        if not bought:
            return f"{cost}; {kept}"
        return f"{cost}: {bought}, estimated from the times of {self.timed} kernels; {kept}"

    def json(self) -> dict[str, Any]:
        """The numbers, and the line for people."""
        return {**asdict(self), "line": str(self)}


def worth(
    plan: Plan,
    spaces: Mapping[Kernel, Space],
    uses: Mapping[Kernel, int],
    log: Log,
    place: Fingerprint | Here,
    seconds: float = 0.0,
    trials: int = 0,
    interrupted: bool = False,
) -> Worth:
    """That of a plan, which took so many seconds and trials. uses: how many nodes each kernel has."""
    choices = [kernel for kernel, space in spaces.items() if has_choice(space)]
    kept = sum(merged(plan[kernel].schedules) == spaces[kernel].defaults for kernel in choices)
    decode: dict[Kernel, tuple[float, float]] = {}
    prefill: dict[Kernel, tuple[float, float]] = {}
    for kernel, choice in plan.items():
        known = [record for record in log.of(kernel, place.of(kernel)) if record.status == "ok"]
        ratios = _ratios(choice, spaces[kernel], log.ranked(kernel, place.of(kernel)))
        sizes = {tokens_of(point) for record in known for point in record.samples}
        if ratios is not None and sizes:
            for phase, tokens in ((decode, 1), (prefill, max(sizes))):
                if (now := seconds_of(choice.schedules, tokens, known)) is not None:
                    now *= uses[kernel] / tokens
                    phase[kernel] = now, now / ratios.get(bucket(tokens), 1.0)
    gains = _gain(decode.values()), _gain(prefill.values())
    return Worth(seconds, trials, len(choices), kept, len(decode), *gains, interrupted)


def has_choice(space: Space) -> bool:
    """Whether there is more than one schedule."""
    return any(len(values) > 1 for values in space.choices.values())


def seconds_of(schedules: Schedules, tokens: int, records: Iterable[Record]) -> float | None:
    """Seconds of a call with so many tokens: the median over all samples of what serves it; where calls of so
    many tokens were timed in several ways, the mean of those. None: never timed.
    """
    wanted, samples = schedules[serving(schedules, tokens)], dict[str, list[float]]()
    for record in records:
        if record.schedules[serving(record.schedules, tokens)] == wanted:
            for point, seconds in record.samples.items():
                if tokens_of(point) == tokens:
                    samples.setdefault(point, []).extend(seconds)
    medians = [statistics.median(each) for each in samples.values() if each]
    return statistics.fmean(medians) if medians else None


def tokens_of(point: str) -> int:
    """The tokens of a call that is timed: "m=64 zipf" -> 64."""
    return int(point.split()[0].removeprefix("m="))


def _ratios(choice: Choice, space: Space, ranked: Sequence[Record]) -> Mapping[int, float] | None:
    """The chosen schedules' times over the default's in each bucket, None where they were not measured."""
    if merged(choice.schedules) == space.defaults:
        return {}
    for record in ranked:
        if merged(record.schedules) == merged(choice.schedules):
            buckets = {bucket_of(point) for point in record.samples}
            return record.ratios or dict.fromkeys(buckets, record.ratio or 1.0)
    return None


def _gain(times: Iterable[tuple[float, float]]) -> float | None:
    """The defaults' time over that of now, of pairs (now, default)."""
    pairs = list(times)
    return sum(default for _, default in pairs) / sum(now for now, _ in pairs) if pairs else None
