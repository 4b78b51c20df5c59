"""What the kernels at the end of a model are tried on: the last token's norm, and the choice of the next."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ..compiler.ir import Array
from ..compiler.ops.sampling import CHOOSE_TOKEN
from .base import Kernel
from .cases import Case, Feeds, Random, uniform
from .cases_attention import norm, norm_weights

TOKENS = 5  # of a text of which the last one counts
# Of all weight: a sum of kernels may be off by less, for its terms are exponentials in f32.
ROUNDING = 2e-6


def last_feeds(kernel: Kernel, rows: int, random: Random) -> list[Array]:
    """x [rows, TOKENS, width]."""
    return [uniform(random, rows, TOKENS, kernel["width"])]


def last_norm(kernel: Kernel, feeds: Feeds) -> list[Array]:
    """The last token of each text normed."""
    x, w = feeds
    return norm(kernel, [x[:, -1:], w])


def choose_feeds(kernel: Kernel, rows: int, random: Random) -> list[Array]:
    """logits [rows, v], temperature, top_k, top_p and uniform [rows].

    Wishes come in turns: all of them, which takes longest, then just some. Logits are of many scales, some
    with ties, some mostly -inf. What is drawn is drawn again where the reference, in float64, comes so near
    to a limit that rounding decides: so what a right kernel chooses is known.
    """
    size, turn = kernel["v"], np.arange(rows) % 6
    scale = np.where(turn == 0, 2.0, random.choice([0.01, 0.5, 3.0, 20.0], rows))
    logits = (random.standard_normal((rows, size)) * scale[:, None]).astype(np.float32)
    logits[turn == 1] = np.round(logits[turn == 1])
    logits[turn == 2] = np.where(random.random((np.count_nonzero(turn == 2), size)) < 0.9, -np.inf, 1.5)
    logits[np.arange(rows), random.integers(0, size, rows)] = np.float32(2.5)
    heat = np.where(turn == 3, 0.0, random.choice([0.5, 0.8, 1.0, 1.7], rows)).astype(np.float32)
    top_k = np.where(np.isin(turn, (0, 1, 4)), random.choice([1, 40, 50, 1000, size // 2], rows), 0)
    part, drawn = np.ones(rows, np.float32), np.zeros(rows, np.float32)
    for row in range(rows):
        while True:
            if turn[row] in (0, 1, 2, 5):
                part[row] = random.choice([0.1, 0.9, 0.95]) + random.random() * 0.04
            drawn[row] = random.random(dtype=np.float32)
            if heat[row] <= 0 or clear(logits[row], heat[row], top_k[row], part[row], drawn[row]) > ROUNDING:
                break
    return [logits, heat, top_k.astype(np.int64), part, drawn]


def clear(logits: Array, heat: float, top_k: int, part: float, drawn: float) -> float:
    """How far the sums of a row's weights are from top_p's limit and from what is drawn, in parts of all."""
    weights = np.exp((logits.astype(np.float64) - logits.max()) / heat)
    if 0 < top_k < len(weights):
        weights[logits < np.partition(logits, -top_k)[-top_k]] = 0
    falling = -np.sort(-weights)
    sums = np.cumsum(falling)
    near = np.abs(sums / sums[-1] - part).min() if part < 1 else 1.0
    larger = np.concatenate([[0.0], sums[:-1]])
    least = falling[max(int((larger < np.float64(part) * sums[-1]).sum()), 1) - 1]
    sums = np.cumsum(np.where(weights >= least, weights, 0))
    return float(min(near, np.abs(sums / sums[-1] - drawn).min()))


def choose_token(kernel: Kernel, feeds: Feeds) -> list[Array]:
    """As the op has it."""
    logits, *wishes = feeds
    return list(CHOOSE_TOKEN.reference(logits.astype(np.float64), *wishes))


CASES: Mapping[str, Case] = {
    "last_norm": Case(last_feeds, last_norm, norm_weights),
    "choose_token": Case(choose_feeds, choose_token),
}
