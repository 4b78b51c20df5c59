"""Tiny models as artifacts for a GPU, beside PyTorch's logits in float64: built here, checked there.

    PYTHONPATH=tests/.links python3 -m tests.device.models build/device [FAMILY ..]

Weights are rounded to bf16 before PyTorch sees them, so what is left is the rounding of activations. Checked:
a whole text at once, and the first tokens at once and then one by one, replayed as a graph.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from moec.targets.base import CannotBuild

FOLDER = "models"
TOKENS, FIRST, PADDING = 24, 9, 6  # of a text, of those at once, and before the shorter text
MEAN, MOST = 2e-2, 1.5e-1  # root mean square of the error over that of logits, largest over largest
LIMIT_S = 240

# Of sizes that the fast kernels take.
WHOLE: Mapping[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 256,
    "intermediate_size": 384,
    "moe_intermediate_size": 128,
}
LATENT: Mapping[str, Any] = {
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "q_lora_rank": 128,
    "kv_lora_rank": 512,
    "qk_rope_head_dim": 64,
    "qk_nope_head_dim": 128,
    "v_head_dim": 128,
}
HEADS: Mapping[str, Any] = {"num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 128}
# name -> family of tests/models.py and what is otherwise.
MODELS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "tiny_v2_lite": ("deepseek_v2_lite", {}),
    "tiny_v2": ("deepseek_v2", {}),
    "tiny_v3": ("deepseek_v3", {}),
    "tiny_qwen3": ("qwen3_moe", {}),
    "whole_v2_lite": ("deepseek_v2_lite", {**WHOLE, **LATENT, "q_lora_rank": None}),
    "whole_v3": ("deepseek_v3", {**WHOLE, **LATENT}),
    "whole_qwen3": ("qwen3_moe", {**WHOLE, **HEADS}),
}


def prepare(folder: Path, machine: Any) -> None:
    """Writes each model's artifact and its reference, and says which could not be built."""
    for name, (family, changes) in MODELS.items():
        try:
            written(folder / FOLDER, name, family, changes, machine)
        except CannotBuild as cannot:
            print(f"NOT BUILT {name}: {str(cannot)[-400:]}")
        print(f"  {name}", file=sys.stderr, flush=True)


def written(folder: Path, name: str, family: str, changes: Mapping[str, Any], machine: Any) -> None:
    """One of them. Raises CannotBuild."""
    from moec.compiler import compile_model

    with tempfile.TemporaryDirectory() as hub:
        save(Path(hub), family, changes)
        isa = machine.capabilities.name
        compile_model(hub, target="cuda", isa=isa, out=folder / name, prove=False, force=True, budget="0")
        ids, mask = text(int(changes.get("vocab_size", 64)))
        logits = reference(Path(hub), ids, mask)
        np.savez(folder / f"{name}.npz", ids=ids, mask=mask, logits=logits)


def save(hub: Path, family: str, changes: Mapping[str, Any]) -> None:
    """A tiny model as a Hugging Face folder, its weights rounded to bf16."""
    import torch

    from .. import models

    made = models.build(family, **changes)
    for tensor in made.state_dict().values():
        if tensor.ndim > 1:
            tensor.copy_(tensor.to(torch.bfloat16).to(tensor.dtype))
    made.save_pretrained(hub)


def text(vocabulary: int) -> tuple[Any, Any]:
    """Two random texts i64 [2, TOKENS], the second shorter, and their mask."""
    ids = np.random.default_rng(3).integers(2, vocabulary, (2, TOKENS))
    mask = np.ones_like(ids)
    mask[1, :PADDING] = 0
    return ids, mask


def reference(hub: Path, ids: Any, mask: Any) -> Any:
    """PyTorch's logits f64 [2, TOKENS, vocabulary]."""
    from moec.compiler.eager import reference
    from moec.compiler.source import resolve

    return reference(resolve(str(hub)), ids, mask, double=True).logits


def main() -> int:
    """Checks all models, or those that are named, each in a process of its own."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.here:
        print(json.dumps(checked(options.folder / FOLDER, *options.names)))
        return 0
    there = sorted(file.stem for file in (options.folder / FOLDER).glob("*.npz"))
    wrong = 0
    for name in options.names or there:
        found = child(options.folder, name)
        wrong += bool(found["wrong"])
        errors = ", ".join(f"{way} {mean:.1e} / {most:.1e}" for way, (mean, most) in found["errors"].items())
        print(f"{'FAIL' if found['wrong'] else 'ok  '} {name}: {errors} {found['wrong']}", flush=True)
    return wrong > 0


def child(folder: Path, name: str) -> dict[str, Any]:
    """What a process of its own finds."""
    command: Sequence[str] = [sys.executable, "-m", "tests.device.models", str(folder), name, "--here"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S)
    except subprocess.TimeoutExpired:
        return {"errors": {}, "wrong": f"no end after {LIMIT_S} s"}
    if done.returncode:
        last = (done.stdout + done.stderr).strip().splitlines()[-3:]
        return {"errors": {}, "wrong": f"exit status {done.returncode}: {' | '.join(last)[-800:]}"}
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def checked(folder: Path, name: str) -> dict[str, Any]:
    """Errors of each way to run the model, and a sentence if one is too large."""
    from moec.compiler import load

    with np.load(folder / f"{name}.npz") as kept:
        ids, mask, logits = (kept[each] for each in ("ids", "mask", "logits"))
    artifact = load(folder / name)
    ways = {"whole": artifact.logits(ids, mask), "one by one": one_by_one(artifact, ids, mask)}
    errors = {way: error(found, logits, mask) for way, found in ways.items()}
    wrong = [
        f"{way} is off by {mean:.2g} on average and {most:.2g} at most"
        for way, (mean, most) in errors.items()
        if not (mean <= MEAN and most <= MOST)
    ]
    return {"errors": errors, "wrong": "; ".join(wrong)}


def one_by_one(artifact: Any, ids: Any, mask: Any) -> Any:
    """Logits of some tokens at once, then of each of the others."""
    texts = artifact.texts(*ids.shape)
    found = [texts.step(ids[:, :FIRST], mask[:, :FIRST])]
    for end in range(FIRST + 1, ids.shape[1] + 1):
        found.append(texts.step(ids[:, end - 1 : end], mask[:, :end]))
    return np.concatenate(found, axis=1)


def error(found: Any, wanted: Any, mask: Any) -> tuple[float, float]:
    """Root mean square of the error over that of the logits, and the largest over the largest."""
    real = mask != 0
    off, right = found[real].astype(np.float64) - wanted[real], wanted[real]
    mean = float(np.sqrt(np.mean(off**2) / np.mean(right**2)))
    return mean, float(np.max(np.abs(off)) / np.max(np.abs(right)))


if __name__ == "__main__":
    sys.exit(main())
