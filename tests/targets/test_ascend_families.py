"""A changed Ascend kernel retires its family's records and no others, and no family lacks what it uses."""

from __future__ import annotations

import ast
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from moec.targets.ascend import soc, space
from moec.targets.ascend.families import FAMILIES, WRITTEN
from moec.targets.ascend.target import Target
from moec.targets.base import Kernel, Schedule
from moec.targets.bf16 import MATMULS
from moec.tuning.fingerprint import Fingerprint, by_kind, sources, written_by

from .ascend_models import MODELS, kernels

B3 = soc.SOCS[0]
FOLDER = Target(B3).folder
EVERY = sorted({one for lines in MODELS.values() for one in kernels(lines)}, key=str)
WHOLE = Fingerprint("any", "some SoC", 1, "all")


def counted(kind: str) -> set[str]:
    """The files that its records depend on, by their path in the target."""
    found = written_by(FAMILIES[kind], FOLDER, sources(FOLDER))
    return {file.relative_to(FOLDER).as_posix() for file in found}


def schedules(one: Kernel) -> Iterator[Schedule]:
    """Its defaults, and each with one knob changed."""
    found = space.space(one, B3)
    for schedule in found.defaults.values():
        yield schedule
        changed = ({**schedule, knob: value} for knob, values in found.choices.items() for value in values)
        yield from (each for each in changed if found.objection(each) is None)


def named(program: Path) -> set[str]:
    """The kernels' files that a program names in words: "matmul:linear"."""
    words = (
        node.value for node in ast.walk(ast.parse(program.read_text())) if isinstance(node, ast.Constant)
    )
    found = (re.match(r"(\w+):\w*$", word) for word in words if isinstance(word, str))
    return {f"kernels/{each.group(1)}.py" for each in found if each}


def test_every_kind_has_a_family() -> None:
    assert set(FAMILIES) == {name.split()[0] for name in space.BUILDERS}
    assert Target.families is FAMILIES


@pytest.mark.parametrize("kind", sorted(FAMILIES))
def test_a_family_has_all_that_its_kernels_are_made_of(kind: str) -> None:
    files = counted(kind)
    assert set(FAMILIES[kind]) <= files, "each file that it lists is there"
    assert {"emit.py", "timeline.py", "soc.py", "hivm/replay.py", "hivm/constants.py"} <= files
    of_kind = [one for one in EVERY if one.kind == kind]
    assert of_kind, "a model in ascend_models.py has one"
    for one in of_kind:
        builder = space.BUILDERS[space.known(one)]
        assert f"programs/{builder.__module__.rpartition('.')[2]}.py" in files
        for schedule in schedules(one):
            for step in space.steps(one, schedule, B3):
                assert f"kernels/{step.function.partition(':')[0]}.py" in files, (
                    f"{one}, {dict(schedule)}: {step.function} is in no file of its family"
                )


def test_every_file_that_a_program_names_counts_for_a_family_of_it() -> None:
    for program in (FOLDER / "programs").glob("*.py"):
        path = f"programs/{program.name}"
        of_it = set().union(*(files for files in map(counted, WRITTEN) if path in files))
        assert named(program) <= of_it, f"{path} names {sorted(named(program) - of_it)}, which count for none"


def test_every_source_counts_for_a_family() -> None:
    found = {file.relative_to(FOLDER).as_posix() for file in sources(FOLDER)}
    left = found - set().union(*map(counted, FAMILIES))
    assert {Path(name).name for name in left} <= {"__init__.py", "__main__.py", "space.py"}


@pytest.mark.parametrize(
    ("changed", "retired"),
    [
        ("kernels/gate.py", {"top_k_gate", "route"}),
        ("kernels/order.py", {"permute", "route"}),
        ("kernels/attention.py", {"attention"}),
        ("kernels/matmul.py", {*MATMULS, "latent_attention"}),
        ("space.py", set()),
        ("vendor.py", set()),
        ("timeline.py", {*WRITTEN}),
        ("hivm/costs.py", {*WRITTEN}),
        ("soc.py", {*WRITTEN}),
    ],
)
def test_what_a_change_retires(changed: str, retired: set[str], tmp_path: Path) -> None:
    folder = tmp_path / "ascend"
    shutil.copytree(FOLDER, folder, ignore=shutil.ignore_patterns("__pycache__"))
    before = by_kind(WHOLE, folder, FAMILIES).generators
    with (folder / changed).open("a") as file:
        file.write("\n# changed\n")
    after = by_kind(WHOLE, folder, FAMILIES).generators
    assert {kind for kind in before if before[kind] != after[kind]} == retired
