"""Tiny models as artifacts for a GPU, beside PyTorch's logits in float64: built here, checked there.

    PYTHONPATH=tests/.links python3 -m tests.device.models build/device [FAMILY ..]

Weights are rounded to bf16 before PyTorch sees them, so what is left is the rounding of activations (and of
weights where there are fewer bits, which standard ops do alike). Checked are two texts, one of them padded,
at once and token by token, recorded as a graph and not, with a mask of their length and a wider one, and the
padded one alone; beside it, what the artifact's standard ops give.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from moec.targets.base import CannotBuild
from moec.targets.paged import PAGE

FOLDER = "models"
TOKENS, LONG, STEPS = 24, 520, 15  # of a text, of one for larger models, and of those one by one
# A token is off by rounding, or it is FLIPPED: another expert was chosen, by a hair's breadth. Kernels may be
# MEDIAN further off, and flip MORE tokens, than TIMES what the artifact's standard ops do.
FLIPPED, MEDIAN, MORE, TIMES = 0.1, 1e-2, 0.05, 2
EQUAL = 1e-3  # of the largest logit: between the same kernels replayed and not, with masks of the same width
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
    "whole_v3_fp8": ("deepseek_v3", {**WHOLE, **LATENT}),
    "whole_qwen3": ("qwen3_moe", {**WHOLE, **HEADS}),
    "tiny_v3_paged": ("deepseek_v3", {}),
    "whole_v3_paged": ("deepseek_v3", {**WHOLE, **LATENT}),
    "tiny_v3_next": ("deepseek_v3", {}),
    "tiny_qwen3_next": ("qwen3_moe", {}),
    "whole_v2_lite_next": ("deepseek_v2_lite", {**WHOLE, **LATENT, "q_lora_rank": None}),
    "whole_v2_lite_paged_next": ("deepseek_v2_lite", {**WHOLE, **LATENT, "q_lora_rank": None}),
    "tiny_v3_over_fp8": ("deepseek_v3", {}),
    "whole_v3_over_fp8": ("deepseek_v3", {**WHOLE, **LATENT}),
}
QUANT: Mapping[str, str] = {"whole_v3_fp8": "fp8"}  # those whose weights are stored in fewer bits


def prepare(folder: Path, machine: Any, names: Sequence[str] = ()) -> None:
    """Writes the artifact of each model or those named, and its reference; says which could not be built."""
    for name in names or MODELS:
        family, changes = MODELS[name]
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
        about: Mapping[str, Any] = {"isa": machine.capabilities.name, "quant": QUANT.get(name, "none")}
        about = {**about, "head": "next" if name.endswith("_next") else "logits"}
        about = {**about, "cache_pages": PAGE if "_paged" in name else None}
        about = {**about, "cache": "fp8" if name.endswith("_over_fp8") else None}
        compile_model(hub, target="cuda", out=folder / name, prove=False, force=True, budget="0", **about)
        ids, mask = text(int(changes.get("vocab_size", 64)), LONG if changes else TOKENS)
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


def text(vocabulary: int, tokens: int) -> tuple[Any, Any]:
    """Two random texts i64 [2, tokens], the second shorter by a quarter, and their mask."""
    ids = np.random.default_rng(3).integers(2, vocabulary, (2, tokens))
    mask = np.ones_like(ids)
    mask[1, : tokens // 4] = 0
    return ids, mask


def reference(hub: Path, ids: Any, mask: Any) -> Any:
    """PyTorch's logits f64 [2, tokens, vocabulary]."""
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
        errors = ", ".join(f"{way} {each[0]:.1e}/{each[1]:.0%}" for way, each in found["errors"].items())
        graph = "" if found.get("replays") else " (no graph)"
        print(f"{'FAIL' if found['wrong'] else 'ok  '} {name}{graph}: {errors} {found['wrong']}", flush=True)
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
    artifact = mixed(load(folder / name))
    found = dict(ways(artifact, ids, mask))
    errors = {way: error(each, *part(each, logits, mask)) for way, each in found.items()}
    own = error(load(folder / name, kernels=False).logits(ids, mask), logits, mask)
    wrong = [
        f"{way} is off by {median:.2g} in the median, {flips:.0%} of tokens by more than {FLIPPED}, {where}"
        for way, (median, flips, where) in errors.items()
        if not (median <= MEDIAN + TIMES * own[0] and flips <= MORE + TIMES * own[1])
    ]
    apart = float(np.max(np.abs(found["replayed"] - found["as wide"])))
    if artifact.replays and not apart <= EQUAL * float(np.max(np.abs(logits))):
        wrong.append(f"a replayed graph is {apart:.2g} off the same kernels without one")
    if artifact.chooses:
        wrong += tokens_wrong(artifact, ids, mask)
    return {"errors": {**errors, "functions": own}, "wrong": "; ".join(wrong), "replays": artifact.replays}


def mixed(artifact: Any) -> Any:
    """The artifact, the pages of whose caches lie in random order, if there are any."""
    ordered, random = artifact.table, np.random.default_rng(7)

    def table(batch: int, rows: int) -> dict[str, Any]:
        pages = ordered(batch, rows)
        return {name: random.permuted(each.ravel()).reshape(each.shape) for name, each in pages.items()}

    artifact.table = table
    return artifact


def ways(artifact: Any, ids: Any, mask: Any) -> Iterator[tuple[str, Any]]:
    """Logits by the name of how they came to be: of both texts, or of the last of them."""
    from moec.compiler.texts import Texts

    batch, length = ids.shape
    yield "whole", artifact.logits(ids, mask)
    yield "whole again", artifact.logits(ids, mask)
    yield "one by one", one_by_one(Texts(artifact, batch, length), ids, mask)
    yield "in more room", one_by_one(Texts(artifact, batch, 3 * length), ids, mask)
    yield "a wide mask", one_by_one(Wide(artifact, batch, 2 * length), ids, mask)
    recorded = artifact.texts(batch, length)
    yield "replayed", one_by_one(recorded, ids, mask)
    yield "as wide", one_by_one(Wide(artifact, batch, recorded.rows), ids, mask)
    yield "replayed again", one_by_one(artifact.texts(batch, length), ids, mask)
    yield "alone", artifact.logits(ids[1:], mask[1:])
    yield "alone replayed", one_by_one(artifact.texts(1, length), ids[1:], mask[1:])
    artifact.generate(ids, 4, mask)  # for its own sake


def tokens_wrong(artifact: Any, ids: Any, mask: Any) -> Iterator[str]:
    """Where tokens are not those that the logits of the same step and the same draws give."""
    from moec.compiler.sampler import Sampler
    from moec.compiler.texts import Texts

    for how, texts in (("", Texts(artifact, *ids.shape)), (" replayed", artifact.texts(*ids.shape))):
        texts.step(ids[:, :-STEPS], mask[:, :-STEPS])
        for end in range(ids.shape[1] - STEPS + 1, ids.shape[1] + 1):
            wish: Mapping[str, Any] = {"temperature": end % 3 * 0.7, "top_k": end % 4 * 9, "top_p": 0.9}
            step = ids[:, end - 1 : end], mask[:, :end]
            token = texts.next(*step, Sampler(**wish, seed=end))
            wanted = Sampler(**wish, seed=end)(texts.step(*step)[:, -1])
            if (token != wanted).any():
                yield f"token {end}{how} with {wish} is {token}, by its logits {wanted}"


def one_by_one(texts: Any, ids: Any, mask: Any) -> Any:
    """Logits of the last STEPS tokens, one by one after all others at once."""
    first, length = ids.shape[1] - STEPS, ids.shape[1]
    texts.step(ids[:, :first], mask[:, :first])
    ends = range(first + 1, length + 1)
    return np.concatenate([texts.step(ids[:, end - 1 : end], mask[:, :end]) for end in ends], axis=1)


def part(found: Any, logits: Any, mask: Any) -> tuple[Any, Any]:
    """Of the last texts and tokens, as many as there are."""
    texts, tokens = found.shape[:2]
    return logits[-texts:, -tokens:], mask[-texts:, -tokens:]


class Wide:
    """Texts whose mask is as wide as their caches have rows from the first step on."""

    def __init__(self, artifact: Any, batch: int, rows: int) -> None:
        self.artifact, self.cache, self.rows = artifact, artifact.cache(batch, rows), rows

    def step(self, ids: Any, mask: Any) -> Any:
        """As that of Texts."""
        wide = np.pad(mask, ((0, 0), (0, self.rows - mask.shape[1])))
        return self.artifact.step(ids, wide, self.cache)


def error(found: Any, wanted: Any, mask: Any) -> tuple[float, float, str]:
    """A token's error, over the root mean square of its logits: the median, the part above FLIPPED, which."""
    off = np.where(mask[..., None] != 0, found.astype(np.float64) - wanted, 0)
    each = np.sqrt(np.mean(off**2, axis=-1) / np.mean(wanted**2, axis=-1))
    each = np.where(np.isfinite(each), each, np.inf)
    real = each[mask != 0]
    bad = np.argwhere(each > FLIPPED)[:5].tolist()
    return float(np.median(real)), float(np.mean(real > FLIPPED)), f"texts and tokens {bad}" if bad else ""


if __name__ == "__main__":
    sys.exit(main())
