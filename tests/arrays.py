"""Random operands for tests of ops, and torch's results to compare with."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from moec.compiler.ir import Value
from moec.compiler.ops import sources

rng = np.random.default_rng(0)


def real(*sizes: int) -> Any:
    return rng.standard_normal(sizes).astype(np.float32)


def whole(high: int, *sizes: int) -> Any:
    return rng.integers(0, high, sizes)


def source(name: str, dtype: str, *sizes: Any) -> Value:
    return sources.INPUT(name=name, dtype=dtype, shape=sizes)


def close(result: Any, expected: torch.Tensor, tolerance: float = 2e-6) -> None:
    np.testing.assert_allclose(result, expected.numpy(), rtol=tolerance, atol=tolerance, strict=True)


def tensors(*arrays: Any) -> list[torch.Tensor]:
    return [torch.from_numpy(np.array(array)) for array in arrays]


# Of 8 experts, the three that each token chooses.
CHOICES = {
    "first": [[0, 1, 2]],
    "last": [[7, 3, 5]],
    "three for all": [[2, 4, 6]] * 40,
    "all on one": [[5, 5, 5]] * 9,
    "uneven": [[token % 8, (token + 1) % 8, 7 - token % 8] for token in range(50)],
}


class Recording:
    """Weights that remember what was read of them."""

    def __init__(self, **arrays: Any) -> None:
        self.arrays = arrays
        self.reads: list[tuple[str, int, int | None]] = []

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Any:
        self.reads.append((name, start, stop))
        return self.arrays[name][start:stop]
