"""Whether an artifact computes what PyTorch does: logits, and the tokens that greedy decoding gives."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from . import runner
from .ir import Array
from .source import Source

PROMPT, PADDING, NEW = 12, 5, 16  # tokens; the padding is on the left of the first of two prompts
LIMIT = 1e-3  # mean error; the largest may be larger where two experts score the same up to rounding


class NotProven(RuntimeError):
    """The artifact does not compute what PyTorch computes."""


def prove(folder: Path, source: Source, vocabulary: int | None) -> dict[str, Any]:
    """Run an artifact and eager PyTorch side by side; vocabulary is None where it is not a language model.

    Errors are relative to the largest value that PyTorch gives. Raises NotProven where the artifact is wrong.
    """
    found = _module(folder, source) if vocabulary is None else _language_model(folder, source, vocabulary)
    if not found["mean_error"] <= LIMIT:
        raise NotProven(
            f"the artifact of {source.name} is {found['mean_error']:.1e} off PyTorch on average, at most "
            f"{LIMIT:.0e} was expected; nothing was written. --check finds a pass that moves numbers, "
            "--no-prove keeps the artifact"
        )
    return found


def _language_model(folder: Path, source: Source, vocabulary: int) -> dict[str, Any]:
    """Two random prompts of different length, then greedy decoding."""
    from .eager import reference

    ids = np.random.default_rng(0).integers(0, vocabulary, (2, PROMPT))
    mask = np.ones_like(ids)
    mask[0, :PADDING] = 0
    wanted = reference(source, ids, mask, NEW)
    artifact = runner.load(folder, verify="size")
    logits, tokens = artifact.logits(ids, mask), artifact.generate(ids, NEW, mask)[:, PROMPT:]
    real = mask.astype(bool)
    # Greedy decoding goes its own way after the first token that differs, so only those before it count.
    equal = np.cumprod(tokens == wanted.tokens, axis=1).sum()
    return {
        **_errors([logits[real]], [wanted.logits[real]]),
        "tokens": tokens.size,
        "tokens_equal": int(equal),
    }


def _module(folder: Path, source: Source) -> dict[str, Any]:
    """The example inputs that came with the module."""
    from .eager import inputs, outputs

    feeds = {f"in.{i}": array for i, array in enumerate(inputs(source))}
    return _errors(runner.load(folder, verify="size").session.run(None, feeds), outputs(source))


def _errors(got: Sequence[Array], wanted: Sequence[Array]) -> dict[str, float]:
    """The largest and the mean difference, relative to the largest value of an output."""
    relative = [
        np.abs(mine.astype(np.float64) - its).ravel() / max(float(np.max(np.abs(its), initial=0.0)), 1e-30)
        for mine, its in zip(got, wanted, strict=True)
    ]
    every = np.concatenate(relative)
    return {
        "max_error": float(every.max(initial=0.0)),
        "mean_error": float(every.mean()) if every.size else 0.0,
    }
