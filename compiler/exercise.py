"""Running an artifact in a process of its own, so that a kernel that crashes takes nothing else with it.

    python -m moec.compiler.exercise FOLDER

is the other end: pickles of a function's name and arguments come in; each is answered by whether it ended
well, and what it gave or raised.
"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from . import artifact, runner
from .ir import Array
from .kernel_proof import alone, kernel_errors
from .sampler import Sampler
from .session import copy
from .texts import PAGES

Feeds = Mapping[str, Array]


class Ended(RuntimeError):
    """The process ended instead of answering; the text says by what: "SIGSEGV", "status 1"."""


class Exercise:
    """The near end: an artifact that is asked to run."""

    def __init__(self, folder: Path) -> None:
        command = [sys.executable, "-P", "-m", f"{__package__}.exercise", str(folder)]
        self._process = subprocess.Popen(  # in a group of its own: Ctrl-C is this end's to see to
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, process_group=0
        )

    def __enter__(self) -> Exercise:
        return self

    def __exit__(self, *error: object) -> None:
        self._process.kill()
        self._process.communicate()

    def __call__(self, name: str, *arguments: Any) -> Any:
        """What a function of ASKED gives. Raises what it raises, or Ended."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            pickle.dump((name, arguments), self._process.stdin)
            self._process.stdin.flush()
            well, reply = pickle.load(self._process.stdout)
        except (OSError, EOFError):
            status = self._process.wait()
            raise Ended(signal.Signals(-status).name if status < 0 else f"status {status}") from None
        if not well:
            raise reply
        return reply


@cache
def opened(folder: Path) -> runner.Artifact:
    """The artifact, once for a process."""
    return runner.load(folder, verify="size")


def simulated(folder: Path) -> str:
    """What stands in for its device, in words."""
    return opened(folder).simulated


def kernels(folder: Path, feeds: Feeds) -> dict[str, dict[str, float]]:
    """Each kernel's errors, beside its standard ops: of a language model on a prompt, whose caches are empty,
    and then on one token after its last row.
    """
    model = opened(folder)
    errors = kernel_errors(folder, model.manifest, feeds)
    if "input_ids" not in feeds:
        return errors
    ids, mask = feeds["input_ids"], feeds["attention_mask"]
    empty = {name: feeds[name] for name in model.empty(*ids.shape)}
    cache = model.filled(empty)
    model.step(ids, mask, cache)
    if model.on_device:
        for name, array in empty.items():
            copy(cache[name], array)
    for name, worse in kernel_errors(folder, model.manifest, following(feeds)).items():
        errors[name] = {measure: max(error, worse[measure]) for measure, error in errors[name].items()}
    return errors


def following(feeds: Feeds) -> Feeds:
    """One more token after the last row of a prompt, whose caches hold it; pools stay as they are."""
    shared = PAGES in feeds
    rows = {
        name: array if shared and name.startswith("past.") else np.ascontiguousarray(array[-1:])
        for name, array in feeds.items()
    }
    mask = np.ones((1, feeds["input_ids"].shape[1] + 1), np.int64)
    return {**rows, "input_ids": rows["input_ids"][:, :1], "attention_mask": mask}


def prompt(folder: Path, ids: Array, mask: Array) -> Feeds:
    """What a language model is fed: tokens i64 [B, T], with empty caches that have room for one more."""
    model = opened(folder)
    empty = model.empty(len(ids), ids.shape[1] + 1)
    wishes = Sampler(1.0, 5, 0.9, seed=0).wishes(len(ids)) if model.chooses else {}
    return {"input_ids": ids, "attention_mask": mask, **empty, **wishes}


def generate(folder: Path, ids: Array, new: int, mask: Array) -> Array:
    """As runner.Artifact.generate."""
    return opened(folder).generate(ids, new, mask)


def logits(folder: Path, ids: Array, mask: Array) -> Array:
    """As runner.Artifact.logits."""
    return opened(folder).logits(ids, mask)


def outputs(folder: Path, feeds: Feeds) -> Sequence[Array]:
    """Of a model that is no language model."""
    return [*opened(folder).session.run(None, feeds)]


def one_by_one(folder: Path, feeds: Feeds, told: Path) -> None:
    """Each kernel by itself, its name written to a file before it is run."""
    manifest = artifact.verify(folder, "size")
    for each in [feeds, following(feeds)] if "input_ids" in feeds else [feeds]:
        alone(folder, manifest, each, told.write_text)


ASKED = {each.__name__: each for each in (simulated, kernels, prompt, generate, logits, outputs, one_by_one)}


def main() -> None:
    """Answer until the other end closes."""
    folder, replies = Path(sys.argv[1]), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # from here on, what a library prints is no reply
    while True:
        try:
            name, arguments = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        try:
            reply = pickle.dumps((True, ASKED[name](folder, *arguments)))
        except Exception as error:  # whatever it is, the other end is told
            reply = pickle.dumps((False, carried(error)))
        replies.write(reply)
        replies.flush()


def carried(error: Exception) -> Exception:
    """The error, or another with its words where it is of a class that does not survive the way."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # pickle raises anything
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


if __name__ == "__main__":
    main()
