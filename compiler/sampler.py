"""How the next tokens of texts are chosen, here or by an artifact that does it itself."""

from __future__ import annotations

import numpy as np

from .ir import Array
from .ops.sampling import CHOOSE_TOKEN


class Sampler:
    """How tokens are chosen: the most likely, or drawn where temperature is above 0 (ops/sampling.py)."""

    def __init__(
        self, temperature: float = 0.0, top_k: int | None = None, top_p: float = 1.0, seed: int | None = None
    ) -> None:
        self._temperature, self._top_k, self._top_p = temperature, top_k or 0, top_p
        self._random = np.random.default_rng(seed)

    def wishes(self, batch: int) -> dict[str, Array]:
        """What an artifact that chooses tokens itself is asked for so many texts; drawn anew each time."""
        every = np.ones(batch, np.float32)
        drawn = self._random.random(batch, np.float32) if self._temperature > 0 else 0 * every
        return {
            "temperature": every * np.float32(self._temperature),
            "top_k": np.full(batch, self._top_k, np.int64),
            "top_p": every * np.float32(self._top_p),
            "uniform": drawn,
        }

    def __call__(self, logits: Array) -> Array:
        """Tokens i64 [B] by logits f32 [B, vocab]: the same, chosen here."""
        if self._temperature <= 0:
            return np.asarray(np.argmax(logits, axis=-1))
        return np.asarray(CHOOSE_TOKEN.reference(logits, **self.wishes(len(logits)))[0])


GREEDY = Sampler()
