"""A folder of kernel libraries that were built ahead: what is in it, and in which way it came there.

index.json lists the kernels with their schedules; each schedule has a library of its own, named by
moec.targets.cuda.device.file_name, so that any of them can serve calls side by side.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from moec.targets.base import Kernel, Schedules

FILE = "index.json"


@dataclass
class Entry:
    """A kernel, what it is of, its default schedules, and others to try, in their order.

    failed: why a schedule has no library, by the library's name.
    """

    kernel: Kernel
    of: list[str]
    default: Schedules
    others: list[Mapping[str, int | str]] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)


@dataclass
class Index:
    """All entries; sm, the architecture they are built for; versions of what built them."""

    sm: str
    versions: Mapping[str, str]
    entries: list[Entry]


def write(folder: Path, index: Index) -> None:
    """Writes the index of a folder."""
    data = {
        "sm": index.sm,
        "versions": dict(index.versions),
        "entries": [
            {
                "kernel": {name: getattr(each.kernel, name) for name in ("kind", "dims", "reals", "dtype")},
                "of": each.of,
                "default": [[first, dict(schedule)] for first, schedule in each.default.items()],
                "others": [dict(schedule) for schedule in each.others],
                "failed": each.failed,
            }
            for each in index.entries
        ],
    }
    (folder / FILE).write_text(json.dumps(data, indent=1))


def read(folder: Path) -> Index:
    """The index of a folder."""
    data = json.loads((folder / FILE).read_text())
    return Index(data["sm"], data["versions"], [entry(each) for each in data["entries"]])


def entry(data: Mapping[str, Any]) -> Entry:
    """One entry of its JSON."""
    spelled = data["kernel"]
    dims, reals = (tuple((name, number) for name, number in spelled[part]) for part in ("dims", "reals"))
    kernel = Kernel(spelled["kind"], dims, reals, spelled["dtype"])
    return Entry(kernel, data["of"], dict(data["default"]), data["others"], data["failed"])


def chosen(entries: Sequence[Entry], words: Sequence[str]) -> list[Entry]:
    """Those of which some word is the kind or the model, or is part of their text; all without words."""
    return [
        each
        for each in entries
        if not words
        or any(word == each.kernel.kind or word in each.of or word in str(each.kernel) for word in words)
    ]
