"""finish.sh on machines that are made up: stand-ins for npu-smi, hivmc, bishengir-compile and CANN."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from moec.targets.ascend import build, finish, soc
from moec.targets.ascend.finish import HIVMC
from moec.targets.base import Emitted

from .ascend_bundles import EMITTED, image

NPU_SMI_SCRIPT = """#!/bin/sh
case $2 in
  -l) echo "NPU ID : 0" ;;
  *) cat <<'END'
{board}END
esac
"""
BOARD = "\tNPU ID         : 0\n\tChip Name      : {chip}\n\tNPU Name       : {npu}\n"
# Writes what it was given into the object, and all calls into a file; fails on what `refused` has.
HIVMC_SCRIPT = """#!/bin/sh
echo "$*" >>"{calls}"
case $1 in *.mlir) ;; *) echo "hivmc: no file"; exit 1 ;; esac
if grep -q "$(cat "$1")" "{refused}" 2>/dev/null; then echo "error: no room for $1" >&2; exit 1; fi
{{ echo "object of"; cat "$1"; }} >kernel.o
"""
# Plans linalg itself, with a workspace of so many bytes, and calls hivmc as the real one does.
BISHENGIR_SCRIPT = """#!/bin/sh
echo "bishengir-compile $*" >>"{calls}"
{{
  echo "  func.func @k_infer_workspace_shape_function() -> index {{"
  echo "    %c = arith.constant {workspace} : index"
  echo "  }}"
  echo "planned anew: $(cat "$1")"
}} >module.hivm.opt.mlir
hivmc module.hivm.opt.mlir -o kernel
"""


@dataclass
class Machine:
    """A folder of tools, a CANN, and an artifact."""

    root: Path

    @property
    def calls(self) -> list[str]:
        file = self.root / "calls"
        return file.read_text().splitlines() if file.exists() else []

    @property
    def kernels(self) -> Path:
        return self.root / "artifact" / "ascend"

    @property
    def log(self) -> str:
        return (self.kernels / "finish.log").read_text()

    def tool(self, name: str, script: str) -> None:
        path = self.root / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(script)
        path.chmod(0o755)

    def npu(self, chip: str, name: str = "") -> None:
        board = BOARD.format(chip=chip, npu=name)
        self.tool("npu-smi", NPU_SMI_SCRIPT.format(board=board))

    def hivmc(self) -> None:
        self.tool("hivmc", HIVMC_SCRIPT.format(calls=self.root / "calls", refused=self.root / "refused"))

    def bishengir(self, workspace: int) -> None:
        self.tool(
            "bishengir-compile", BISHENGIR_SCRIPT.format(calls=self.root / "calls", workspace=workspace)
        )

    def cann(self, version: str) -> None:
        (self.root / "cann").mkdir(exist_ok=True)
        (self.root / "cann" / "version.cfg").write_text(f"runtime_running_version=[1.0:{version}]\n")

    def finish(self, *options: str, code: int = 0, **environment: str) -> str:
        """What it says; it ends with that status."""
        done = subprocess.run(
            ["sh", str(self.kernels / "finish.sh"), *options],
            capture_output=True,
            text=True,
            env={
                "PATH": f"{self.root / 'bin'}:/usr/bin:/bin",
                "ASCEND_HOME_PATH": str(self.root / "cann"),
                **environment,
            },
        )
        assert done.returncode == code, done.stdout + done.stderr
        assert not [*self.kernels.glob(".finish*")]
        return done.stdout + done.stderr


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """One on which all is well, and an artifact for it of two kernels."""
    made = Machine(tmp_path)
    write(made, [EMITTED], soc.SOCS[0])
    made.npu("910B3")
    made.hivmc()
    made.cann("9.0.0")
    return made


def write(machine: Machine, emitted: list[Emitted], on: soc.Soc) -> None:
    for name, content in finish.files(emitted, on, "libmoec_ascend.so", {}).items():
        path = machine.root / "artifact" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def test_kernels_are_made_of_the_planned_text_with_the_vendors_own_words(machine: Machine) -> None:
    said = machine.finish()
    assert (machine.kernels / "few_1a.o").read_text() == "object of\nhivm of few_1a"
    assert (machine.kernels / "many_2b.o").exists()
    assert machine.calls[0].split()[1:] == [*HIVMC, "-o", "kernel"]
    assert "2 kernels made, 0 were there already" in said
    assert f"moec run {machine.root / 'artifact'}" in said
    assert "CANN: 9.0.0" in machine.log


def test_a_second_run_does_nothing(machine: Machine) -> None:
    machine.finish()
    before = {path.name: path.stat().st_mtime_ns for path in machine.kernels.glob("*.o")}
    calls = len(machine.calls)
    assert "0 kernels made, 2 were there already" in machine.finish()
    assert {path.name: path.stat().st_mtime_ns for path in machine.kernels.glob("*.o")} == before
    assert len(machine.calls) == calls
    assert "2 kernels made" in machine.finish("--again")


@pytest.mark.parametrize(
    ("chip", "npu", "expected"),
    [("910B1", "", "Ascend910B1"), ("Ascend910", "9392", "Ascend910_9392"), ("310P3", "", "Ascend310P3")],
)
def test_another_npu_is_refused_by_its_name(machine: Machine, chip: str, npu: str, expected: str) -> None:
    machine.npu(chip, npu)
    said = machine.finish(code=1)
    assert f"these kernels are for Ascend910B3, this machine's NPU is {expected}" in said
    assert not machine.calls
    assert "2 kernels made" in machine.finish("--any-npu")


def test_a_910c_is_known_by_chip_and_npu(machine: Machine) -> None:
    write(machine, [EMITTED], soc.named("910_9392"))
    machine.npu("Ascend910", "9392")
    assert "NPU: Ascend910_9392" in machine.finish()


@pytest.mark.parametrize("version", ["8.0.RC3", "7.1.0", "8.3"])
def test_a_cann_that_is_too_old_is_refused(machine: Machine, version: str) -> None:
    machine.cann(version)
    assert f"this is CANN {version}; expected 8.5 or newer" in machine.finish(code=1)
    assert not machine.calls


def test_the_version_is_found_where_other_releases_have_it(machine: Machine) -> None:
    (machine.root / "cann" / "version.cfg").unlink()
    place = machine.root / "cann" / f"{subprocess.getoutput('uname -m')}-linux"
    place.mkdir()
    (place / "ascend_toolkit_install.info").write_text("package_name=Ascend-cann-toolkit\nversion=8.5.0\n")
    assert "CANN: 8.5.0" in machine.finish()
    (place / "ascend_toolkit_install.info").write_text("")
    assert "names no version" in machine.finish(code=1)


@pytest.mark.parametrize(
    ("tool", "sentence"),
    [
        ("npu-smi", "npu-smi is not on PATH"),
        ("hivmc", "neither hivmc nor bishengir-compile is on PATH"),
    ],
)
def test_a_missing_tool_is_named(machine: Machine, tool: str, sentence: str) -> None:
    (machine.root / "bin" / tool).unlink()
    assert sentence in machine.finish(code=1)
    assert not [*machine.kernels.glob("*.o")]


def test_without_cann_or_with_an_unknown_option_nothing_is_done(machine: Machine) -> None:
    assert "ASCEND_HOME_PATH is not set" in machine.finish(code=1, ASCEND_HOME_PATH="")
    assert "--fast is no option" in machine.finish("--fast", code=2)


def test_a_kernel_that_hivmc_refuses_is_compiled_here_from_linalg(machine: Machine) -> None:
    (machine.root / "refused").write_text("hivm of many_2b\n")
    machine.bishengir(512)
    assert "2 kernels made" in machine.finish()
    assert "planned anew: linalg of many_2b" in (machine.kernels / "many_2b.o").read_text()
    (called,) = (call for call in machine.calls if call.startswith("bishengir-compile"))
    assert called.endswith("many_2b.linalg.mlir " + " ".join([*image("").options, "-o", "kernel"]))


def test_what_needs_another_workspace_than_the_library_gives_is_not_taken(machine: Machine) -> None:
    (machine.root / "refused").write_text("hivm of many_2b\n")
    machine.bishengir(1024)
    said = machine.finish(code=1)
    assert "Not made: many_2b" in said
    assert "its workspace is 1024, the library gives 512 bytes a block" in machine.log
    assert not (machine.kernels / "many_2b.o").exists()


def test_a_failing_kernel_stops_no_other_and_says_what_to_send_back(machine: Machine) -> None:
    (machine.root / "refused").write_text("hivm of few_1a\n")
    said = machine.finish(code=1)
    assert "FAILED few_1a" in said
    assert "made many_2b.o" in said
    assert (
        f"Send back {machine.kernels / 'finish.log'}, and of each kernel that failed its .hivm.mlir" in said
    )
    assert "error: no room for" in machine.log
    (machine.root / "refused").unlink()
    assert "1 kernels made, 1 were there already" in machine.finish()


def test_on_another_cpu_the_library_is_linked_anew_without_the_simulation(machine: Machine) -> None:
    machine.tool("uname", '#!/bin/sh\n[ "$1" = -m ] && echo aarch64 || exec /usr/bin/uname "$@"\n')
    script = (machine.kernels / "finish.sh").read_text()
    assert " -march" not in script
    table = (machine.kernels / "runtime" / "table.cc").read_text()
    (machine.kernels / "runtime" / "table.cc").write_text(table.replace("#ifdef __x86_64__", "#if 0"))
    assert "FAILED libmoec_ascend.aarch64.so" in machine.finish(code=1), "the artifact has no manifest"
    (machine.root / "artifact" / "manifest.json").write_text("{}\n")
    said = machine.finish()
    made = machine.root / "artifact" / "libmoec_ascend.aarch64.so"
    assert made.exists(), machine.log
    assert "made libmoec_ascend.aarch64.so" in said
    shown = subprocess.run(["nm", "-D", "--defined-only", made], capture_output=True, text=True, check=True)
    names = {line.split()[-1] for line in shown.stdout.splitlines()}
    assert names == {"CreateEpFactories", "ReleaseEpFactory"} | {
        word.strip("; ") for word in build.EXPORTS.split() if word.startswith("moec_")
    }
    assert "kept libmoec_ascend.aarch64.so" in machine.finish()
    sums = ["sha256sum", "--check", "--strict", "libmoec_ascend.aarch64.so.sha256"]
    done = subprocess.run(sums, cwd=machine.root / "artifact", capture_output=True, text=True, check=True)
    assert done.stdout == "libmoec_ascend.aarch64.so: OK\nmanifest.json: OK\n"
