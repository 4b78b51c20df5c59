"""Whether an artifact is right, and how good it is.

Right: it computes what PyTorch does, up to the rounding of f32. Where weights or caches are narrower, or
PyTorch does not fit into memory, that says nothing. Then each of its kernels must compute what the standard
ops behind it do. Good: what is left of PyTorch's logits and tokens after the rounding. That is only measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from . import manifest as manifests
from . import rooms
from .exercise import Ended, Exercise, Feeds
from .ir import Array
from .source import Source

PROMPT, PADDING, NEW = 12, 5, 16  # tokens; the padding is on the left of the first of two prompts
LIMIT = 1e-3  # mean error; the largest may be larger where two experts score the same up to rounding
SLACK = 2 << 30  # bytes that PyTorch takes beside the weights, and others should have


class NotProven(RuntimeError):
    """The artifact does not compute what it should."""


def prove(
    folder: Path, source: Source, vocabulary: int | None, rounded: bool = False, weights: int = 0
) -> dict[str, Any]:
    """Run an artifact beside eager PyTorch and, where that is no judge, beside its own standard ops.

    vocabulary: None where it is not a language model. rounded: whether weights or caches are narrower than
    f32. weights: the bytes they take in PyTorch. Errors are relative to the largest value that the other one
    gives. It runs in a process of its own, for a wrong kernel may end that. Raises NotProven where the
    artifact is wrong.
    """
    try:
        with Exercise(folder) as run:
            return proven(run, folder, source, vocabulary, rounded, weights)
    except Ended as how:
        if str(how) == "SIGKILL":  # no kernel sends that
            raise NotProven(
                f"the artifact of {source.name} could not be proven: what ran it was killed, as the "
                "system does where memory is short; nothing was written. --no-prove keeps the artifact"
            ) from None
        name = culprit(folder, source, vocabulary)
        raise NotProven(
            f"the artifact of {source.name} is wrong: {name} ended the process that ran it ({how}); nothing "
            "was written. --no-prove keeps the artifact"
        ) from None


def proven(
    run: Exercise, folder: Path, source: Source, vocabulary: int | None, rounded: bool, weights: int
) -> dict[str, Any]:
    """The same of an artifact that runs elsewhere. Raises Ended where it runs no more."""
    skipped = why_not_eager(weights) if vocabulary else ""
    found: dict[str, Any] = {"skipped": skipped} if skipped else {}
    if rounded or skipped:
        limits = rooms.room_for(manifests.read(folder).target).KERNEL_LIMITS
        found |= {"simulated": simulated} if (simulated := run("simulated")) else {}
        found["kernels"] = run("kernels", feeds_of(run, source, vocabulary))
        for name, errors in found["kernels"].items():
            for measure, limit in limits.items():
                expect(source, f"its kernel {name} is", "its own standard ops", errors[measure], limit)
    if not skipped:
        found |= _module(run, source) if vocabulary is None else _language_model(run, source, vocabulary)
        expect(source, "it is", "PyTorch on average", found["mean_error"], np.inf if rounded else LIMIT)
    return found


def culprit(folder: Path, source: Source, vocabulary: int | None) -> str:
    """Which kernel ends a process, as far as it does so again when it runs by itself."""
    with TemporaryDirectory(prefix="moec-") as name, Exercise(folder) as run:
        told = Path(name) / "told"
        try:
            run("one_by_one", feeds_of(run, source, vocabulary), told)
        except Ended:
            return f"its kernel {told.read_text()}" if told.exists() else "opening it"
    return "one of its kernels"


def feeds_of(run: Exercise, source: Source, vocabulary: int | None) -> Feeds:
    """The prompts, or the example inputs of a module."""
    return _feeds(source) if vocabulary is None else run("prompt", *prompts(vocabulary))


def why_not_eager(weights: int) -> str:
    """A sentence where PyTorch with so many bytes of weights would not fit into memory, else nothing."""
    free, needed = free_memory(), weights + SLACK
    if needed <= free:
        return ""
    return f"PyTorch was not run: it needs {needed / 2**30:.1f} GiB of memory, {free / 2**30:.1f} are free"


def free_memory() -> int:
    """Bytes that processes here may still take, by the kernel and by the limits of this one's group."""
    lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    free = int(lines["MemAvailable"].split()[0]) << 10
    group = Path("/sys/fs/cgroup")
    try:
        limit, used = ((group / name).read_text().strip() for name in ("memory.max", "memory.current"))
    except OSError:
        return free
    return free if limit == "max" else min(free, int(limit) - int(used))


def expect(source: Source, what: str, other: str, error: float, limit: float) -> None:
    """Raises NotProven where an error is larger than its limit, or no number."""
    if not error <= limit:
        raise NotProven(
            f"the artifact of {source.name} is wrong: {what} {error:.1e} off {other}, expected at most "
            f"{limit:.0e}; nothing was written. --check finds a pass that moves numbers, --no-prove keeps "
            "the artifact"
        )


def prompts(vocabulary: int) -> tuple[Array, Array]:
    """Two random prompts i64 [2, PROMPT] of different length, and their mask."""
    ids = np.random.default_rng(0).integers(0, max(vocabulary, 1), (2, PROMPT))
    mask = np.ones_like(ids)
    mask[0, :PADDING] = 0
    return ids, mask


def _language_model(run: Exercise, source: Source, vocabulary: int) -> dict[str, Any]:
    """Logits of the prompts, greedy decoding, and PyTorch's own text token by token.

    logit_error: RMS of the difference over RMS of PyTorch's logits. tokens_equal: those before the first that
    differs, after which a text goes its own way. tokens_agreed: all, where each follows PyTorch's tokens.
    Of an artifact that chooses tokens itself (head: next), tokens are its own choice and logits, of which a
    step gives those of its last token, come from steps of one token.
    """
    from .eager import reference

    ids, mask = prompts(vocabulary)
    wanted = reference(source, ids, mask, NEW)
    tokens = run("generate", ids, NEW, mask)[:, PROMPT:]
    text = np.hstack([ids, wanted.tokens[:, :-1]])
    logits = run("logits", text, np.hstack([mask, np.ones_like(wanted.tokens[:, :-1])]))
    got, exact = (each[:, :PROMPT][mask.astype(bool)] for each in (logits, wanted.logits))
    return {
        **_errors([got], [exact]),
        "logit_error": float(np.sqrt(np.mean((got - exact) ** 2) / np.mean(exact**2))),
        "tokens": tokens.size,
        "tokens_equal": int(np.cumprod(tokens == wanted.tokens, axis=1).sum()),
        "tokens_agreed": int((logits[:, PROMPT - 1 :].argmax(-1) == wanted.tokens).sum()),
    }


def _module(run: Exercise, source: Source) -> dict[str, Any]:
    """The example inputs that came with the module."""
    from .eager import outputs

    return _errors(run("outputs", _feeds(source)), outputs(source))


def _feeds(source: Source) -> dict[str, Array]:
    """The example inputs of a module."""
    from .eager import inputs

    return {f"in.{i}": array for i, array in enumerate(inputs(source))}


def _errors(got: Sequence[Array], wanted: Sequence[Array]) -> dict[str, float]:
    """The largest and the mean difference, relative to the largest value of an output."""
    every = np.concatenate([each.ravel() for each in _differences(got, wanted)])
    return {
        "max_error": float(every.max(initial=0.0)),
        "mean_error": float(every.mean()) if every.size else 0.0,
    }


def _differences(got: Sequence[Array], wanted: Sequence[Array]) -> list[Array]:
    """How far each number of an output is off, relative to its largest."""
    return [
        np.abs(mine.astype(np.float64) - its) / max(float(np.max(np.abs(its), initial=0.0)), 1e-30)
        for mine, its in zip(got, wanted, strict=True)
    ]
