"""What a measured time depends on, besides the kernel and its schedule."""

from __future__ import annotations

import ast
import hashlib
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from ..targets.base import Finished, Kernel


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """All that a measured time depends on besides the kernel and its schedule.

    generator is the hash of the sources that write the code, and of what finishes it where it is measured:
    change a kernel template and its records retire.
    """

    isa: str
    cpu: str
    threads: int
    generator: str

    @property
    def sources(self) -> str:
        """The hash of sources alone, whatever finished the code."""
        return self.generator.partition("-")[0]

    @property
    def whole(self) -> Fingerprint:
        """Itself: it stands for all kernels, as Here does with differences."""
        return self

    def of(self, kernel: Kernel) -> Fingerprint:
        """Itself."""
        return self


@dataclass(frozen=True, slots=True)
class Here:
    """The fingerprints of a target's kernels on one machine: alike, but where a kind has sources of its own.

    whole: over all sources; generators: by kind of kernel.
    """

    whole: Fingerprint
    generators: Mapping[str, str]

    def of(self, kernel: Kernel) -> Fingerprint:
        """For one kernel: by how its weights are stored, where its kind has other sources for that."""
        names = (f"{kernel.kind} {kernel.weights}", kernel.kind)
        found = (self.generators[name] for name in names if name in self.generators)
        return replace(self.whole, generator=next(found, self.whole.generator))


def here(isa: str, threads: int, target: Path, processor: str = "", finished_by: str = "") -> Fingerprint:
    """What measurements taken now depend on: this machine, and a target by the folder of its sources.

    processor: what it measures on, where that is not this machine's CPU; finished_by: see base.Finished.
    It holds the sources that decide the code, and what the default schedule is that ratios refer to; not
    those that describe, build, check or time it.
    """
    return Fingerprint(isa, processor or cpu_model(), threads, source_hash(sources(target), finished_by))


def of_target(machine: Any, threads: int, processor: str = "") -> Here:
    """Those of a target's kernels here; processor: where they are measured, if not where the target says."""
    finished_by = machine.finished_by if isinstance(machine, Finished) else ""
    whole = here(
        machine.capabilities.name, threads, machine.folder, processor or machine.processor, finished_by
    )
    return by_kind(whole, machine.folder, machine.families, finished_by)


def by_kind(
    whole: Fingerprint, target: Path, families: Mapping[str, Sequence[str]], finished_by: str = ""
) -> Here:
    """The same, kernel by kernel. families: by kind, the files in the folder in which writing it begins; what
    they import counts too, and nothing else does.
    """
    found = sources(target)
    written = {kind: written_by(files, target, found) for kind, files in families.items()}
    return Here(whole, {kind: source_hash(files, finished_by) for kind, files in written.items()})


def sources(target: Path) -> list[Path]:
    """The files of a target that shape what is measured.

    Its C++ is among them where it is part of the kernels. A runtime with a device.h only calls a device,
    whose own clock times kernels alone.
    """
    found = [target / "emit.py", *(target / "kernels").glob("*.py"), *(target / "programs").glob("*.py")]
    found += [file for name in ("space*.py", "*tiles.py", "widths.py") for file in target.glob(name)]
    # What simulates instead, by figures of what it simulates.
    found += [*target.glob("timeline.py"), *target.glob("soc.py"), *(target / "hivm").glob("*.py")]
    if not (target / "runtime" / "device.h").exists():
        for runtime in (target / "runtime", target.parent / "runtime"):
            found += [*runtime.glob("*.cc"), *runtime.glob("*.h")]
    return found


def written_by(files: Sequence[str], target: Path, among: Sequence[Path]) -> list[Path]:
    """Those files of a target with all that they import, as far as it is among its sources, and emit.py.

    space.py, which only lists what there is for each kind, leads to all of them and is left out.
    """
    left, found = [target / file for file in ("emit.py", *files)], list[Path]()
    while left:
        file = left.pop()
        if file in among and file not in found:
            found.append(file)
            left += [each for each in imports(file) if file.name != "emit.py" and each.name != "space.py"]
    return found


def imports(file: Path) -> Sequence[Path]:
    """The files beside or above a module that it imports relatively."""
    return imported(file, file.read_text(encoding="utf-8"))


@lru_cache(512)
def imported(file: Path, text: str) -> Sequence[Path]:
    """Those that this text imports, in that file's place."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and node.level:
            folder = file.parents[node.level - 1].joinpath(*(node.module or "").split("."))
            found += [folder.with_suffix(".py"), *(folder / f"{name.name}.py" for name in node.names)]
    return found


def cpu_model() -> str:
    """The processor's name as the system gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def source_hash(files: Iterable[Path], finished_by: str = "") -> str:
    """16 hex digits over the files' names and bytes, in one order; behind a dash 8 of what finishes code."""
    digest = hashlib.sha256()
    for file in sorted(files, key=lambda file: file.name):
        content = file.read_bytes()
        digest.update(f"{file.name} {len(content)}\n".encode() + content)
    last = f"-{hashlib.sha256(finished_by.encode()).hexdigest()[:8]}" if finished_by else ""
    return digest.hexdigest()[:16] + last
