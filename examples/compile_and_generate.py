"""Compile a model, open the artifact and continue two prompts of different length, all from Python.

    python examples/compile_and_generate.py OUT

The model is a small DeepSeek-V3 with made-up weights; for a real one give compile_model its folder.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from moec.compiler import compile_model, load

CONFIG = Path(__file__).parent / "deepseek_small" / "config.json"


def main(out: Path) -> None:
    """Compile into `out`, which must not hold anything yet."""
    report = compile_model(config=CONFIG, random_weights=0, out=out)
    found = report.manifest
    print(
        f"compiled in {sum(report.seconds.values()):.0f} s: {len(found.kernels)} kernels, {found.size} bytes"
    )
    print(
        f"cache: {found.cache['bytes_per_token']} bytes a token, not {found.cache['unfused_bytes_per_token']}"
    )
    print(f"against PyTorch: {found.proof}")

    model = load(out)
    # Padding is on the left, and the mask says what is padding.
    prompts = np.array([[0, 0, 0, 7, 8], [3, 1, 4, 1, 5]])
    mask = np.array([[0, 0, 0, 1, 1], [1, 1, 1, 1, 1]])
    print("logits:", model.logits(prompts, mask).shape)
    print("greedy:", *model.generate(prompts, 12, mask).tolist(), sep="\n  ")
    drawn = model.generate(prompts, 12, mask, temperature=0.8, top_p=0.95, seed=1)
    print("drawn:", *drawn.tolist(), sep="\n  ")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
