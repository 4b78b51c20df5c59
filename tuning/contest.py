"""Who is best for which calls: candidates raced in pairs, and what each of them won put together.

Weights are laid out once, so only schedules of one layout can serve calls side by side. Each layout has its
leader: a schedule for each bucket of tokens, no worse than any other of that layout as far as is known. A
candidate races the leader of its layout at all counts of tokens; the buckets that it wins, twice, it takes
over. The leader that is ahead of all others, all buckets weighing the same, is the best.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from statistics import geometric_mean
from typing import Any

from ..targets.base import BUCKETS, Kernel, Schedules, Space, merged, serving
from .fingerprint import Fingerprint
from .log import Log
from .measure import LEAST_GAIN, Judge, Measurement, Renews, bucket_of, by_bucket, compare, won
from .record import Record, by_speed, standing
from .transfer import admitted

PROCESSES = 3  # in which a winner has to win against the default


class Contest:
    """The schedules of one kernel, as far as the log knows them, and those that enter now."""

    def __init__(
        self,
        kernel: Kernel,
        space: Space,
        judge: Judge,
        log: Log,
        fingerprint: Fingerprint,
        versions: Mapping[str, str],
    ) -> None:
        self.kernel, self.space, self.judge = kernel, space, judge
        self.log, self.fingerprint, self.versions = log, fingerprint, versions
        self.best: Record | None = None
        self.leaders: dict[Any, Record] = {}
        self._read()

    def enter(self, schedules: Schedules) -> Record:
        """Measures a candidate and logs what came of it; the record of the candidate itself."""
        if why := self.space.objection_to(schedules):
            record = self._record(schedules, Measurement("refused", why))
        else:
            record = self._measure(schedules)
        self._note(record)
        return record

    def _read(self) -> None:
        """Has the best and the leaders from the log."""
        self.best = admitted(self.space, self.log.ranked(self.kernel, self.fingerprint))
        self.leaders = {self._layout(self.best): self.best} if self.best else {}
        led = standing(self.log.of(self.kernel, self.fingerprint), lambda each: each.leads)
        for record in sorted(led, key=by_speed):
            if self.space.objection_to(record.schedules) is None:
                self.leaders.setdefault(self._layout(record), record)

    def end(self) -> Record:
        """Settles the best, then logs that there will be no more; the record of that."""
        if self.best and self.unsettled:
            self._settle(self.best)
        record = self._record(self.best.schedules if self.best else self.space.defaults, Measurement("done"))
        self.log.append(record)
        return record

    @property
    def unsettled(self) -> int:
        """Trials that the end takes, to settle the best."""
        best = self.best
        if best is None or best.settled or merged(best.schedules) == self.space.defaults:
            return 0
        return PROCESSES if isinstance(self.judge, Renews) else 1

    def _note(self, record: Record) -> None:
        self.log.append(record)
        if record.leads:
            self.leaders[self._layout(record)] = record
        if record.beats:
            self.best = record

    def _layout(self, record: Record) -> Any:
        return self.space.layout_of(record.schedule)

    def _measure(self, schedules: Schedules) -> Record:
        rival = self.leaders.get(self.space.layout_of(schedules[BUCKETS[0]])) or self.best
        seen = self.judge.trial(self.kernel, schedules, rival.schedules if rival else None)
        if seen.status != "ok":
            return self._record(schedules, seen)
        if rival is None or seen.against is None:
            first = dict.fromkeys(map(bucket_of, seen.samples), 1.0)
            return self._record(schedules, seen, first, leads=True, beats=True)
        record = self._record(schedules, seen, _chained(rival, seen), rival)
        if self._layout(rival) != self._layout(record):
            return self._compete(replace(record, leads=True))
        wins = won(seen.samples, seen.against)
        return self._confirm(record, rival, wins) if wins else record

    def _confirm(self, record: Record, rival: Record, wins: Collection[int]) -> Record:
        """Races an apparent winner once more where it seems to win, and keeps it where it does.

        Of many candidates some win by luck. Luck does not repeat, and only the second race, which chose
        nothing, says how much was gained.
        """
        points = [point for point in record.samples if bucket_of(point) in wins]
        again = self.judge.trial(self.kernel, record.schedules, rival.schedules, points)
        if again.status != "ok" or again.against is None:
            return self._record(record.schedules, again)
        ratios = _chained(rival, again)
        record = _timed(record, {**record.ratios, **ratios})
        sure = won(again.samples, again.against)
        if not sure:
            return record
        schedules = spliced(rival.schedules, record.schedules, sure, record.ratios)
        kept = {**rival.ratios, **{first: ratios[first] for first in sure}}
        better = self._compete(self._record(schedules, again, kept, rival, leads=True))
        if schedules == record.schedules:
            return better
        self._note(better)
        return record

    def _settle(self, best: Record) -> None:
        """Races the best with the default in processes of their own, and keeps it for the buckets it wins.

        A process that has measured for minutes has other memory and other neighbours than one that serves a
        model; where memory lies differs between processes too; and the best of many is the luckiest of them.
        """
        default, times = self.space.defaults, dict[int, list[float]]()
        trial = self.judge.afresh if isinstance(self.judge, Renews) else self.judge.trial
        points = {point: bucket_of(point) for point in self._points()}
        splits = self._layout(best) == self.space.layout_of(self.space.default)  # else it is all or nothing
        left = {first for first in points.values() if differ(best.schedules, default, first)}
        for _ in range(self.unsettled):
            where = [point for point in points if points[point] in left]
            seen = trial(self.kernel, best.schedules, default, where)
            if seen.status != "ok" or seen.against is None:
                self.log.append(replace(self._record(best.schedules, seen), settled=True))
                return self._read()
            race = {first: ratio.value for first, ratio in by_bucket(seen.samples, seen.against).items()}
            for first, ratio in race.items():
                times.setdefault(first, []).append(ratio)
            if splits:
                left = {first for first in left if race[first] < 1}
            elif geometric_mean(race.values()) >= 1:
                left = set()
            if not left:  # there is nothing that another process could save
                break
        kept = spliced(default, best.schedules, left, points.values()) if left else default
        even = dict.fromkeys(points.values(), 1.0)
        ratios = {**even, **{first: geometric_mean(each) for first, each in times.items()}}
        self._settled(best, seen, ratios, kept)

    def _points(self) -> set[str]:
        """Where the kernel is timed: somewhere in the log are times of each."""
        known = self.log.of(self.kernel, self.fingerprint)
        return {point for record in known for point in record.samples}

    def _settled(self, best: Record, seen: Measurement, ratios: Mapping[int, float], kept: Schedules) -> None:
        """Logs what the last races came to: what is kept, and a best that is not as withdrawn."""
        assert seen.against is not None
        if merged(kept) != merged(best.schedules):
            self.log.append(replace(self._record(best.schedules, seen, ratios), settled=True))
            ratios = {first: min(ratio, 1.0) for first, ratio in ratios.items()}
        if merged(kept) != self.space.defaults:
            record = self._record(kept, seen, ratios, leads=True, beats=True)
            self.log.append(replace(record, noise=_noise(None, seen, ratios), settled=True))
        self._read()

    def _compete(self, record: Record) -> Record:
        """The leader of a layout, ahead of all others perhaps: only a race with the best of them says so."""
        best = self.best
        if best is None or self._layout(best) == self._layout(record):
            return replace(record, beats=True)
        if (record.ratio or 1.0) >= (best.ratio or 1.0) * (1 - LEAST_GAIN):
            return record
        seen = self.judge.trial(self.kernel, record.schedules, best.schedules)
        if seen.status != "ok" or seen.against is None:
            return self._record(record.schedules, seen)
        beats = compare(seen.samples, seen.against).wins
        return self._record(record.schedules, seen, _chained(best, seen), best, leads=True, beats=beats)

    def _record(
        self,
        schedules: Schedules,
        seen: Measurement,
        ratios: Mapping[int, float] | None = None,
        rival: Record | None = None,
        leads: bool = False,
        beats: bool = False,
    ) -> Record:
        (_, schedule), *larger = schedules.items()
        record = Record(
            self.kernel,
            self.fingerprint,
            dict(schedule),
            seen.status,
            seen.reason or _disturbed(seen),
            seen.samples,
            beats=beats,
            versions=self.versions,
            profile=self.log.profile_of(self.kernel),
            larger={first: dict(schedule) for first, schedule in larger},
            leads=leads,
            noise=_noise(rival, seen, ratios) if rival and ratios else None,
        )
        return _timed(record, ratios) if ratios else record


def _timed(record: Record, ratios: Mapping[int, float]) -> Record:
    return replace(record, ratios=dict(sorted(ratios.items())), ratio=geometric_mean(ratios.values()))


def _chained(rival: Record, seen: Measurement) -> dict[int, float]:
    """The candidate's times over the default's: over its rival's, as just seen, times the rival's."""
    assert seen.against is not None
    return {
        first: rival.ratios.get(first, rival.ratio or 1.0) * ratio.value
        for first, ratio in by_bucket(seen.samples, seen.against).items()
    }


def _noise(rival: Record | None, seen: Measurement, ratios: Mapping[int, float]) -> float | None:
    """What the mean of the ratios may be off by: in what was just seen, and in what the rival's were."""
    assert seen.against is not None
    noise = compare(seen.samples, seen.against).noise
    part = len({*map(bucket_of, seen.samples)} & {*ratios}) / len(ratios)
    return None if noise is None else math.hypot(noise * part, (rival and rival.noise) or 0.0)


def _disturbed(seen: Measurement) -> str:
    """What the log should know of a measurement that worked."""
    return f"{seen.repeated} pairs were preempted and taken again" if seen.repeated else ""


def differ(one: Schedules, other: Schedules, tokens: int) -> bool:
    """Whether calls of so many tokens are served by another schedule."""
    return one[serving(one, tokens)] != other[serving(other, tokens)]


def spliced(old: Schedules, new: Schedules, wins: Collection[int], buckets: Iterable[int]) -> Schedules:
    """The old schedules but for the buckets that the new ones win.

    buckets are all that were timed: calls between them go with those of fewer tokens.
    """
    now = {}
    for first in sorted(buckets):
        schedules = new if first in wins else old
        now[first] = schedules[serving(schedules, first)]
    return merged({BUCKETS[0]: now[min(now)], **now})
