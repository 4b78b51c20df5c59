"""What a measured time depends on, besides the kernel and its schedule."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """All that a measured time depends on besides the kernel and its schedule.

    generator is the hash of the sources that write the code: change a kernel template and its records retire.
    """

    isa: str
    cpu: str
    threads: int
    generator: str


def here(isa: str, threads: int, target: Path, processor: str = "") -> Fingerprint:
    """What measurements taken now depend on: this machine, and a target by the folder of its sources.

    processor: what it measures on, where that is not this machine's CPU.
    It holds the sources that decide the code, and what the default schedule is that ratios refer to; not
    those that describe, build, check or time it.
    """
    sources = [target / "emit.py", *(target / "kernels").glob("*.py")]
    sources += [file for name in ("space*.py", "*tiles.py", "widths.py") for file in target.glob(name)]
    for runtime in (target / "runtime", target.parent / "runtime"):
        sources += [*runtime.glob("*.cc"), *runtime.glob("*.h")]
    return Fingerprint(isa, processor or cpu_model(), threads, source_hash(sources))


def cpu_model() -> str:
    """The processor's name as the system gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def source_hash(files: Iterable[Path]) -> str:
    """16 hex digits over the files' names and bytes, in one order."""
    digest = hashlib.sha256()
    for file in sorted(files, key=lambda file: file.name):
        content = file.read_bytes()
        digest.update(f"{file.name} {len(content)}\n".encode() + content)
    return digest.hexdigest()[:16]
