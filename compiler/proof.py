"""Whether an artifact is right, and how good it is.

Right: it computes what PyTorch does, up to the rounding of f32. Where weights or caches are narrower, or
PyTorch does not fit into memory, that says nothing. Then each of its kernels must compute what the standard
ops behind it do. Good: what is left of PyTorch's logits and tokens after the rounding. That is only measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from . import rooms, runner
from .ir import Array
from .kernel_proof import kernel_errors
from .session import copy
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
    gives. Raises NotProven where the artifact is wrong.
    """
    ids, mask = prompts(vocabulary or 1)
    skipped = why_not_eager(weights) if vocabulary else ""
    found: dict[str, Any] = {"skipped": skipped} if skipped else {}
    if rounded or skipped:
        artifact = runner.load(folder, verify="size")
        limits = rooms.room_for(artifact.manifest.target).KERNEL_LIMITS
        found |= {"simulated": artifact.simulated} if artifact.simulated else {}
        found["kernels"] = kernels(artifact, source, ids, mask, vocabulary)
        for name, errors in found["kernels"].items():
            for measure, limit in limits.items():
                expect(source, f"its kernel {name} is", "its own standard ops", errors[measure], limit)
    if not skipped:
        found |= _module(folder, source) if vocabulary is None else _language_model(folder, source, ids, mask)
        expect(source, "it is", "PyTorch on average", found["mean_error"], np.inf if rounded else LIMIT)
    return found


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


def kernels(
    artifact: runner.Artifact, source: Source, ids: Array, mask: Array, vocabulary: int | None
) -> dict[str, dict[str, float]]:
    """Each kernel's errors on the example inputs, or on the prompts and on one token after the second."""
    if vocabulary is None:
        return kernel_errors(artifact.folder, artifact.manifest, _feeds(source))
    empty = artifact.empty(len(ids), PROMPT + 1)
    prompt = {"input_ids": ids, "attention_mask": mask, **empty}
    errors = kernel_errors(artifact.folder, artifact.manifest, prompt)
    cache = artifact.filled(empty)
    artifact.step(ids, mask, cache)
    if artifact.on_device:
        for name, array in empty.items():
            copy(cache[name], array)
    after = np.ones((1, PROMPT + 1), np.int64)
    rows = {name: np.ascontiguousarray(each[1:]) for name, each in empty.items()}
    token = {"input_ids": ids[1:, :1], "attention_mask": after, **rows}
    for name, worse in kernel_errors(artifact.folder, artifact.manifest, token).items():
        errors[name] = {measure: max(error, worse[measure]) for measure, error in errors[name].items()}
    return errors


def _language_model(folder: Path, source: Source, ids: Array, mask: Array) -> dict[str, Any]:
    """Logits of the prompts, greedy decoding, and PyTorch's own text token by token.

    logit_error: RMS of the difference over RMS of PyTorch's logits. tokens_equal: those before the first that
    differs, after which a text goes its own way. tokens_agreed: all, where each follows PyTorch's tokens.
    """
    from .eager import reference

    wanted = reference(source, ids, mask, NEW)
    artifact = runner.load(folder, verify="size")
    tokens = artifact.generate(ids, NEW, mask)[:, PROMPT:]
    text = np.hstack([ids, wanted.tokens[:, :-1]])
    logits = artifact.logits(text, np.hstack([mask, np.ones_like(wanted.tokens[:, :-1])]))
    got, exact = (each[:, :PROMPT][mask.astype(bool)] for each in (logits, wanted.logits))
    return {
        **_errors([got], [exact]),
        "logit_error": float(np.sqrt(np.mean((got - exact) ** 2) / np.mean(exact**2))),
        "tokens": tokens.size,
        "tokens_equal": int(np.cumprod(tokens == wanted.tokens, axis=1).sum()),
        "tokens_agreed": int((logits[:, PROMPT - 1 :].argmax(-1) == wanted.tokens).sum()),
    }


def _module(folder: Path, source: Source) -> dict[str, Any]:
    """The example inputs that came with the module."""
    from .eager import outputs

    session = runner.load(folder, verify="size").session
    return _errors(session.run(None, _feeds(source)), outputs(source))


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
