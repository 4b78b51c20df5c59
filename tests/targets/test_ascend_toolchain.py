"""The Ascend toolchain's installation: what is pinned, and what is said where something is wrong.

Nothing is downloaded: pip, apt-get and the compilers are scripts of the tests where they are run at all.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from moec.compiler.cli import main
from moec.targets.ascend import debs, installation, toolchain
from moec.targets.base import CannotBuild

Program = Callable[..., Path]
DEB = "mlir-19-tools_1:19.1.7-3~deb12u1_amd64"


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The toolchain's folder of a user who has none, and a PATH with nothing on it."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    return toolchain.folder()


@pytest.fixture
def program(tmp_path: Path, root: Path) -> Program:
    """Puts a shell script on PATH, or elsewhere."""

    def write(name: str, script: str, folder: Path | None = None) -> Path:
        path = (folder or tmp_path / "bin") / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        return path

    return write


def fill(root: Path, program: Program, **facts: Any) -> None:
    """Puts programs where an installation has them, and its marker."""
    program("python", "exit 0", root / "venv" / "bin")
    for name in ("bishengir-compile", "bishengir-opt"):
        program(name, "exit 0", root / "venv/lib/python3.11/site-packages/ascendnpuir/bin")
    for name in toolchain.PROGRAMS:
        program(name, "exit 0", root / "llvm" / "bin")
    marker = {"pins": toolchain.pins(), "packages": toolchain.pinned(), "mlir": "19.1.7", **facts}
    (root / toolchain.MARKER).write_text(json.dumps(marker))


def forbidden(*arguments: Any) -> Any:
    raise AssertionError("nothing is to be done")


def test_every_wheel_is_pinned_by_hash() -> None:
    text = re.sub(r"(?m)^#.*\n", "", toolchain.PINS.read_text())
    requirement = r"(?:[\w-]+==[\w.]+(?: \\\n    --hash=sha256:[0-9a-f]{64})+\n)"
    assert re.fullmatch(f"{requirement}+", text)
    assert toolchain.pinned().keys() == {"triton-ascend", "ascendnpu-ir", "pybind11", "numpy"}
    major, minor, *_ = map(int, toolchain.pinned()["numpy"].split("."))
    assert (major, minor) < (2, 3)


def test_every_package_of_debian_is_pinned_by_hash() -> None:
    assert {name.partition("_")[0] for name in debs.pinned()} == {*debs.PACKAGES, "libllvm19"}
    assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in debs.pinned().values())


def test_what_is_installed_is_found_and_not_installed_again(
    root: Path, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(root, program)
    monkeypatch.setattr(installation, "installed", forbidden)
    assert toolchain.find().vendor.name == "bin"
    assert installation.install()["already"] is True
    assert toolchain.facts() == {
        **{"installed": True, "missing": "", "folder": str(root), "mlir": "19.1.7"},
        **toolchain.pinned(),
    }


def test_results_of_other_compilers_are_not_mixed(root: Path, program: Program) -> None:
    fill(root, program)
    before = toolchain.find().digest
    fill(root, program, mlir="19.1.1")
    assert toolchain.find().digest != before


def test_none_is_told_with_what_to_do(root: Path) -> None:
    with pytest.raises(
        toolchain.NotInstalled, match=r"not installed in .*run: moec toolchain install ascend"
    ):
        toolchain.find()
    assert toolchain.facts()["installed"] is False


def test_other_pins_are_another_toolchain(root: Path, program: Program) -> None:
    fill(root, program, pins="0" * 64)
    with pytest.raises(toolchain.NotInstalled, match="another one than this version"):
        toolchain.find()


@pytest.mark.parametrize("text", ["", '{"pins": "', "[]"])
def test_half_a_marker_is_none(root: Path, program: Program, text: str) -> None:
    fill(root, program)
    (root / toolchain.MARKER).write_text(text)
    with pytest.raises(toolchain.NotInstalled, match="is not installed"):
        toolchain.find()


def test_a_missing_program_is_told(root: Path, program: Program) -> None:
    fill(root, program)
    (root / "llvm" / "bin" / "llc").unlink()
    with pytest.raises(toolchain.NotInstalled, match=r"damaged: .*/llc is gone"):
        toolchain.find()


def test_a_killed_installation_is_begun_anew(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installation, "python_for", lambda named: (sys.executable, "3.11.0"))

    def killed(root: Path, *rest: Any) -> None:
        (root / "venv").mkdir()  # fails where the last one's is there
        raise KeyboardInterrupt

    monkeypatch.setattr(installation, "install_wheels", killed)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            installation.install()
        assert (root / "venv").exists()
        assert toolchain.missing(root) is not None


def test_the_marker_goes_before_anything_else(
    root: Path, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(root, program, pins="0" * 64)
    seen = []
    monkeypatch.setattr(installation.shutil, "rmtree", lambda path: seen.append(toolchain.marker(path)))
    with pytest.raises(CannotBuild):
        installation.install()
    assert seen == [{}]


def test_two_installations_wait_for_each_other(
    root: Path, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(installation, "installed", forbidden)
    root.parent.mkdir(parents=True)
    waiting = threading.Event()
    done: list[dict[str, Any]] = []
    with (root.parent / f".{root.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        other = threading.Thread(
            target=lambda: done.append(installation.install(lambda line: waiting.set())), daemon=True
        )
        other.start()
        assert waiting.wait(10)
        fill(root, program)
    other.join(10)
    assert [each["already"] for each in done] == [True]


def test_no_python_of_that_version(root: Path, program: Program) -> None:
    other = str(program("other", "echo 3.10.4"))
    with pytest.raises(CannotBuild, match=rf"needs Python 3\.11, .* and {other} is none; install it"):
        installation.python_for(other)


def test_another_python_is_searched_on_path(
    root: Path, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", str(program("mine", "echo 3.13.0")))
    with pytest.raises(CannotBuild, match=r"neither this Python nor a python3\.11 on PATH is one"):
        installation.python_for(None)
    found = program("python3.11", "echo 3.11.9")
    assert installation.python_for(None) == (str(found), "3.11.9")


REFUSED = """\
ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE. If you have updated the package
versions, please update the hashes. Otherwise, examine the package contents carefully.
    triton-ascend==3.2.0 from https://host/triton_ascend.whl (from -r pins.txt (line 3)):
        Expected sha256 00
             Got        17
"""


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (REFUSED, "not the one that pins.txt names: triton-ascend==3.2.0 was refused"),
        ("/usr/bin/python: No module named pip\n", "has no pip"),
        (
            "WARNING: Retrying\nERROR: No matching distribution found for numpy==2.2.6\n",
            "No matching distribution found for numpy==2.2.6; it needs PyPI, or another index",
        ),
    ],
)
def test_what_pip_says_is_told_in_a_sentence(
    root: Path, program: Program, monkeypatch: pytest.MonkeyPatch, said: str, words: str
) -> None:
    python = program("python", f"case \"$*\" in *'-m pip'*) /bin/cat >&2 <<'E'\n{said}E\nexit 1;; esac")
    monkeypatch.setattr(sys, "executable", str(python))
    root.mkdir(parents=True)
    with (root / "lock").open("w") as lock, pytest.raises(CannotBuild) as raised:
        installation.install_wheels(root, str(python), lock.fileno())
    assert words in str(raised.value)


def test_pip_is_told_to_check_every_hash(
    root: Path, program: Program, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    python = program("python", f'echo "$*" >> {tmp_path}/called')
    monkeypatch.setattr(sys, "executable", str(python))
    root.mkdir(parents=True)
    with (root / "lock").open("w") as lock:
        installation.install_wheels(root, str(python), lock.fileno())
    called = (tmp_path / "called").read_text().splitlines()[1]
    assert {"--require-hashes", "--no-deps", "--only-binary=:all:", str(toolchain.PINS)} <= {*called.split()}


def test_a_wheel_of_another_hash_is_refused(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = tiny_wheel(tmp_path)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    monkeypatch.delenv("PIP_CONSTRAINT", raising=False)
    monkeypatch.setattr(toolchain, "PINS", tmp_path / "pins.txt")
    root.mkdir(parents=True)
    with (root / "lock").open("w") as lock:
        toolchain.PINS.write_text(f"tiny==1.0 --hash=sha256:{'0' * 64}\n")
        with pytest.raises(CannotBuild, match=r"not the one that pins.txt names: tiny==1.0 was refused"):
            installation.install_wheels(root, sys.executable, lock.fileno())
        toolchain.PINS.write_text(f"tiny==1.0 --hash=sha256:{sha256(wheel.read_bytes()).hexdigest()}\n")
        installation.install_wheels(root, sys.executable, lock.fileno())
    assert [*root.glob("venv/lib/python3.*/site-packages/tiny.py")]


def tiny_wheel(folder: Path) -> Path:
    """A wheel with one empty module."""
    path, info = folder / "tiny-1.0-py3-none-any.whl", "tiny-1.0.dist-info"
    files = {
        "tiny.py": "",
        f"{info}/METADATA": "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{name},,\n" for name in (*files, f"{info}/RECORD"))
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return path


def test_the_next_installation_waits_for_what_a_killed_one_had_started(
    root: Path, program: Program, tmp_path: Path
) -> None:
    slow = f'case "$2" in -c) echo 3.11.0;; *) echo $$ > {tmp_path}/pid; exec /bin/sleep 60;; esac'
    words = ["-m", "moec.compiler", "toolchain", "install", "ascend", "--python", str(program("slow", slow))]
    first = subprocess.Popen([sys.executable, *words], stderr=subprocess.DEVNULL)
    pid = int(soon(lambda: (tmp_path / "pid").read_text()))
    first.kill()
    first.wait()
    assert toolchain.missing(root) is not None
    with (root.parent / f".{root.name}.lock").open("w") as lock:
        with pytest.raises(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.kill(pid, signal.SIGKILL)
        soon(lambda: fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB) or "free")


def soon(ask: Callable[[], str], limit_s: float = 20.0) -> str:
    """The answer, as soon as there is one."""
    end = time.monotonic() + limit_s
    while True:
        with suppress(OSError):
            if answer := ask():
                return answer
        assert time.monotonic() < end, "no answer"
        time.sleep(0.02)


def test_this_machines_mlir_is_taken(root: Path, program: Program) -> None:
    for name in toolchain.PROGRAMS:
        program(name, "echo Debian LLVM version 14.0.6")
        program(f"{name}-19", "echo Ubuntu LLVM version 19.1.1")
    root.mkdir(parents=True)
    found = debs.provide(root, lambda line: None, forbidden)
    assert found == {"mlir": "19.1.1", "from": "this machine's own", "debs": {}}
    assert (root / "llvm" / "bin" / "opt").resolve().name == "opt-19"


def test_no_mlir_and_no_apt_is_told(root: Path) -> None:
    if debs.programs_here():
        pytest.skip("MLIR 19 is installed where Debian has it")
    root.mkdir(parents=True)
    with pytest.raises(CannotBuild, match=r"no apt-get to get it with; install LLVM and MLIR 19 so that"):
        debs.provide(root, lambda line: None, forbidden)


APT = """\
case "$*" in
*libfoo*|*=1:19.1.7-3*) exit 100;;
*mlir-19-tools) echo "Inst libllvm19 (1:19.1.1 Ubuntu:24.04 [amd64])"
  echo "Inst libc6 [2.38] (2.39 Ubuntu:24.04 [amd64])"
  echo "Inst mlir-19-tools (1:19.1.1 Ubuntu:24.04 [amd64])";;
*llvm-19) echo "Inst libllvm19 (1:19.1.1 Ubuntu:24.04 [amd64])"; echo "Inst libcurl4 (8 Ubuntu:24.04 [amd64])"
  echo "Inst llvm-19 (1:19.1.1 Ubuntu:24.04 [amd64])";;
esac
"""


def test_what_apt_would_install_is_chosen_from(root: Path, program: Program) -> None:
    program("apt-get", APT)
    wanted = debs.wanted_of([*debs.PACKAGES], ())
    assert wanted == ["libllvm19=1:19.1.1", "mlir-19-tools=1:19.1.1", "llvm-19=1:19.1.1"]
    assert debs.wanted_of(["libfoo"], ()) == []


def test_the_pinned_version_is_asked_for_first(root: Path, program: Program) -> None:
    version = "1:19.1.7-3~deb12u1"
    program("apt-get", f'case "$*" in *={version}) echo "Inst llvm-19 ({version} Debian [amd64])";; esac')
    assert debs.wanted_of(["llvm-19"], ()) == [f"llvm-19={version}"]


def test_a_package_that_is_not_the_pinned_one_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deb = tmp_path / f"{DEB.replace(':', '%3a')}.deb"
    deb.write_bytes(b"other")
    with pytest.raises(CannotBuild, match=f"{DEB}.deb is not the package that is pinned and was refused"):
        debs.check(deb)
    monkeypatch.setattr(debs, "pinned", lambda: {DEB: sha256(b"other").hexdigest()})
    assert debs.check(deb) == "pinned"
    monkeypatch.setattr(debs, "pinned", dict)
    assert debs.check(deb) == "apt"


def test_fresh_lists_are_fetched_where_apt_knows_nothing(root: Path, program: Program) -> None:
    program("apt-get", "exit 100")
    told: list[str] = []

    def offline(command: list[str], folder: Path | None = None) -> str:
        raise CannotBuild(f"{' '.join(command)} failed")

    with pytest.raises(CannotBuild, match=r"update failed; without apt's servers: install LLVM and MLIR 19"):
        debs.choice(root / "apt", [*debs.PACKAGES], told.append, offline)
    assert "apt knows no MLIR 19" in told[0]


def test_the_command_tells_what_is_missing(root: Path, program: Program) -> None:
    asked = ["toolchain", "show", "ascend", "--json"]
    assert "run: moec toolchain install" in json.loads(CliRunner().invoke(main, asked).stdout)["missing"]
    fill(root, program)
    assert json.loads(CliRunner().invoke(main, asked).stdout)["ascendnpu-ir"] == "1.2.0"
    again = CliRunner().invoke(main, ["toolchain", "install", "ascend"])
    assert (again.exit_code, again.stdout) == (0, f"already installed: {root}\n")


def test_the_command_refuses_in_a_sentence(root: Path, program: Program) -> None:
    none = program("none", "echo 3.9.0")
    done = CliRunner().invoke(main, ["toolchain", "install", "ascend", "--python", str(none)])
    assert done.exit_code == 2
    assert done.stderr.startswith("moec: the Ascend toolchain needs Python 3.11")
