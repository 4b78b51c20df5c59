"""Constants of the simulated timeline, refitted to an NPU's times, from a file that the user names."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

from ..base import CannotBuild
from .hivm.constants import GUESSED, Constants

SETTING = "MOEC_ASCEND_CONSTANTS"  # a file that `moec log refit -o` has written


def constants() -> Mapping[str, float]:
    """Those of the file, none where no file is named. Raises CannotBuild for a file that is none of these."""
    path = os.environ.get(SETTING)
    if not path:
        return {}
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))["constants"]
        wrong = [name for name, value in found.items() if name not in GUESSED or not positive(value)]
    except (OSError, ValueError, LookupError, AttributeError, TypeError) as error:
        raise CannotBuild(f"{SETTING} names {path}, which has no constants: {error}") from None
    if wrong:
        raise CannotBuild(f"{path}: {wrong[0]} is {found[wrong[0]]!r}; expected numbers for {GUESSED}")
    return {name: float(value) for name, value in found.items()}


def positive(value: object) -> bool:
    """Whether it is a number that a constant can be."""
    return type(value) in (int, float) and math.isfinite(value) and value > 0  # type: ignore[arg-type,operator]


def known(changed: Mapping[str, float]) -> Constants:
    """All constants: those that are published or guessed, but for these."""
    return replace(Constants(), **changed)  # type: ignore[arg-type]


def named(soc: str) -> str:
    """What simulated times of that SoC are of, in records: other constants make other times."""
    changed = constants()
    digest = sha256(json.dumps(sorted(changed.items())).encode()).hexdigest()[:8]
    return f"simulated {soc}" + (f" with constants {digest}" if changed else "")
