#!/usr/bin/env python3
"""Stands for nvcc, and keeps what it made: sources that a change elsewhere did not touch compile at once.

`through` has the compiler call this file instead of the nvcc that it would find.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

REAL, KEPT = "MOEC_REAL_NVCC", "MOEC_KEPT_CUBINS"


def through(nvcc: str, folder: Path) -> None:
    """From now on what nvcc makes is kept in a folder, for this process and those it starts."""
    home = folder / "home"
    (home / "bin").mkdir(parents=True, exist_ok=True)
    link = home / "bin" / "nvcc"
    text = f'#!/bin/sh\nexec {sys.executable} -S -E {Path(__file__).absolute()} "$@"\n'
    link.write_text(text)
    link.chmod(0o755)
    os.environ.update({REAL: nvcc, KEPT: str(folder.absolute()), "CUDA_HOME": str(home.absolute())})


def main() -> int:
    """Does what nvcc would, with the source in kernel.cu and the result where -o says."""
    arguments = sys.argv[1:]
    key = hashlib.sha256(repr((os.environ[REAL], arguments)).encode())
    key.update(Path("kernel.cu").read_bytes())
    kept = Path(os.environ[KEPT]) / key.hexdigest()
    out = Path(arguments[arguments.index("-o") + 1])
    try:
        line, _, code = kept.read_bytes().partition(b"\n")
        out.write_bytes(code)
        sys.stderr.write(json.loads(line))
        return 0
    except OSError:
        pass
    environment = {name: value for name, value in os.environ.items() if name != "CUDA_HOME"}
    done = subprocess.run([os.environ[REAL], *arguments], capture_output=True, text=True, env=environment)
    sys.stdout.write(done.stdout)
    sys.stderr.write(done.stderr)
    if done.returncode == 0:
        handle, name = tempfile.mkstemp(dir=kept.parent)
        with os.fdopen(handle, "wb") as file:
            file.write(json.dumps(done.stdout + done.stderr).encode() + b"\n" + out.read_bytes())
        os.replace(name, kept)
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
