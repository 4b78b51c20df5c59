"""A changed kernel template retires the records of the kernels it writes, and no others."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from moec.targets.base import Kernel
from moec.targets.cuda import sm
from moec.targets.cuda.target import Target
from moec.tuning.fingerprint import Fingerprint, by_kind, sources, written_by

WHOLE = Fingerprint("any", "some device", 1, "all")
FILES = {
    "emit.py": "from .kernels import gate, rows",
    "space.py": "from . import space_rows",
    "space_rows.py": "",
    "sm.py": "",
    "kernels/rows.py": "from ..sm import Sm\nfrom .shared import a",
    "kernels/gate.py": "from . import order, shared",
    "kernels/order.py": "from ...base import Kernel",
    "kernels/shared.py": "",
    "runtime/device.h": "",
}
FAMILIES = {"norm": ("kernels/rows.py", "space_rows.py"), "gate": ("kernels/gate.py",)}


@pytest.fixture
def target(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def generators(target: Path) -> list[str]:
    place = by_kind(WHOLE, target, FAMILIES)
    return [place.of(Kernel(kind, ())).generator for kind in ("norm", "gate", "other")]


@pytest.mark.parametrize(
    ("changed", "retired"),
    [
        ("kernels/rows.py", "norm"),
        ("space_rows.py", "norm"),
        ("kernels/order.py", "gate"),
        ("kernels/shared.py", "norm gate"),
        ("emit.py", "norm gate"),
        ("sm.py", ""),
        ("space.py", ""),
    ],
)
def test_what_a_change_retires(target: Path, changed: str, retired: str) -> None:
    before = generators(target)
    (target / changed).write_text(FILES[changed] + "\n# changed")
    after = generators(target)
    assert [kind for kind, old, new in zip(("norm", "gate"), before, after) if old != new] == retired.split()
    assert after[2] == "all"


def test_all_else_is_alike(target: Path) -> None:
    fingerprint = by_kind(WHOLE, target, FAMILIES).of(Kernel("gate", ()))
    assert (fingerprint.isa, fingerprint.cpu, fingerprint.threads) == ("any", "some device", 1)


def test_every_cuda_kernel_has_a_family_and_every_source_counts_for_one() -> None:
    machine = Target(sm.named("sm_90a"))
    emit = ast.parse((machine.folder / "emit.py").read_text())
    (builders,) = (
        node.value
        for node in ast.walk(emit)
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "BUILDERS"
    )
    modules = {word.split(".")[0] for word in ast.unparse(builders).strip("{}").replace("**", "").split(", ")}
    begins = {Path(files[0]).stem for files in machine.families.values()}
    assert begins == modules
    found = sources(machine.folder)
    counted = {
        file for files in machine.families.values() for file in written_by(files, machine.folder, found)
    }
    assert {file.name for file in set(found) - counted} <= {"__init__.py", "space.py"}
