"""`moec log learn`: default schedules for shapes that are not in the log, learned from those that are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .cli import as_json, say, with_log
from .log_commands import example, opened, warn, writing


@click.command(epilog=example("learn", "learn --log /shared/tuning.jsonl --json"))
@with_log
@as_json
def learn(log: Path | None, machine: bool) -> None:
    """Fit a small decision tree for each kind of kernel, and write them beside the log as data.

    Builds then ask them about kernels that neither the log nor a near shape has an answer for, and searches
    start with what they say. Needs scikit-learn (pip install 'moec[learn]'); reading the trees does not.
    """
    from ..tuning import heuristic
    from ..tuning import learn as learning
    from .log_tables import heuristics

    found = opened(log)
    learned, path = learning.learn(found), heuristic.beside(found.path)
    with writing(found, path):
        heuristic.write(path, learned)
    warn(found)
    rows: list[dict[str, Any]] = [
        {
            **{
                part: getattr(each, part)
                for part in ("kind", "dtype", "isa", "generator", "profile", "records")
            },
            **{part: getattr(each, part) for part in ("digest", "shapes", "judged", "ratio", "worst")},
            "unmeasured": each.sound,
        }
        for each in learned
    ]
    say(machine, {"file": str(path), "heuristics": rows}, lambda console: console.print(heuristics(rows)))
