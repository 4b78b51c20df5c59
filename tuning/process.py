"""The near end of a worker process: started when needed, killed when it hangs, started anew when it died."""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..targets.base import CannotBuild


class Hung(Exception):
    """The worker gave no reply in time."""


class Died(Exception):
    """The worker's process ended; the text says how."""


class Process:
    """One worker (worker.py is its other end). Files it leaves in its temporary folder go with it."""

    def __init__(self, arguments: Sequence[str], start_s: float) -> None:
        """arguments: those of the worker's module; start_s bounds its start."""
        self._command = [sys.executable, "-P", "-m", f"{__package__}.worker", *arguments]
        self._start_s = start_s
        self._process: subprocess.Popen[bytes] | None = None
        self._folder: Path | None = None
        self._pending = b""
        self.told: Mapping[str, Any] = {}  # what it said when it was ready

    @property
    def pid(self) -> int | None:
        """Its process id, while there is one."""
        return self._process.pid if self._process else None

    def launch(self) -> None:
        """Begins to start it, if there is none."""
        if self._process is not None:
            return
        self._folder, self.told = Path(tempfile.mkdtemp(prefix="moec-")), {}
        with (self._folder / "stderr").open("wb") as stderr:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env={**os.environ, "TMPDIR": str(self._folder)},
                start_new_session=True,  # so that the compilers it starts can be killed with it
            )

    def start(self) -> None:
        """Has it ready: its imports take seconds. Raises CannotBuild if it cannot start."""
        self.launch()
        if self.told:
            return
        assert self._folder is not None
        with (self._folder / "stderr").open("rb") as words:
            try:
                self.told = self.receive(self._start_s)
            except (Hung, Died) as failed:
                last = words.read().decode(errors="replace").strip().splitlines()[-1:]
                why = str(failed) or f"not ready after {self._start_s} s"
                raise CannotBuild(
                    f"the measuring process did not start ({why}): {' '.join(last)}"
                ) from failed

    def send(self, request: Mapping[str, Any]) -> None:
        """Asks; the reply is still to be received. Raises CannotBuild if it cannot start."""
        self.start()
        assert self._process is not None
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # it died between two requests: receive says how

    def receive(self, seconds: float) -> dict[str, Any]:
        """The next line it writes. Raises Hung or Died; then, as with Ctrl-C, no process is left behind."""
        assert self._process is not None
        process, reply = self._process, None
        try:
            reply = json.loads(self._line(process, time.monotonic() + seconds))
            return reply or {}
        except Died:
            code = process.wait()
            raise Died(
                f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
            ) from None
        finally:
            if reply is None:
                self.close()

    def _line(self, process: subprocess.Popen[bytes], deadline: float) -> bytes:
        assert process.stdout is not None
        while b"\n" not in self._pending:
            if not select.select([process.stdout], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise Hung
            if not (more := os.read(process.stdout.fileno(), 1 << 16)):
                raise Died
            self._pending += more
        line, _, self._pending = self._pending.partition(b"\n")
        return line

    def close(self) -> None:
        """Ends it, and what it started, at once."""
        process, self._process, self._pending = self._process, None, b""
        if process is not None:
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass  # it is gone already
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    try:
                        pipe.close()
                    except BrokenPipeError:
                        pass  # a request it never read
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None
