"""What PyTorch itself computes: the reference that an artifact is proved against.

transformers' own eager attention and eager experts, in f32 or truly in f64, in a process of their own, so that
their memory is gone when the numbers are here. `python -m moec.compiler.eager FOLDER` is that process.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from .checkpoint import Weights
from .ir import Array
from .source import Source, resolve
from .trace import build, load_config, parameter_shapes, recomputed_buffers, weights_of


@dataclass(frozen=True)
class Reference:
    """logits [B,T,vocab] of the prompt, f32 or f64; tokens i64 [B,n] that greedy decoding adds to it."""

    logits: Array
    tokens: Array


def reference(
    source: Source, ids: Array, attention_mask: Array | None = None, new_tokens: int = 0, double: bool = False
) -> Reference:
    """Run the model in PyTorch, in a process of its own.

    ids i64 [B,T]; attention_mask i64 [B,T], 0 for padding on the left, all 1 where not given. double: every
    operation in float64, with one module's weights in memory at a time; else f32, all of them at once.
    Raises RuntimeError, with what the process wrote, where it fails.
    """
    mask = np.ones_like(ids) if attention_mask is None else attention_mask
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        np.savez(folder / "inputs.npz", ids=ids, mask=mask)
        model = str(source.checkpoint.folder) if source.checkpoint else ""
        job = {"model": model, "config": "" if model else str(source.config), "seed": source.seed}
        (folder / "job.json").write_text(json.dumps({**job, "new_tokens": new_tokens, "double": double}))
        command = [sys.executable, "-m", "moec.compiler.eager", name]
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONWARNINGS": "ignore"})
        if done.returncode:
            raise RuntimeError(f"the PyTorch reference of {source.name} failed:\n{done.stderr[-4000:]}")
        with np.load(folder / "outputs.npz") as outputs:
            return Reference(outputs["logits"], outputs["tokens"])


def inputs(source: Source) -> tuple[Array, ...]:
    """The example inputs of a module that is not a language model, in the order of the graph's inputs; floats in f32."""
    tensors = [leaf for leaf in pytree.tree_leaves(source.inputs) if isinstance(leaf, Tensor)]
    return tuple((tensor.float() if tensor.is_floating_point() else tensor).numpy() for tensor in tensors)


def outputs(source: Source, double: bool = False) -> tuple[Array, ...]:
    """What a module that is not a language model returns for its example inputs, run here, where it already is."""
    dtype = torch.float64 if double else torch.float32
    module = source.module.to(dtype)
    inputs = pytree.tree_map(lambda x: x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x, source.inputs)
    with torch.no_grad():
        results = pytree.tree_leaves(module(*inputs))
    module.float()
    return tuple(result.numpy() for result in results)


class Eager:
    """A causal language model in PyTorch whose weights are read when their module runs."""

    def __init__(self, source: Source, double: bool = False) -> None:
        assert source.config is not None
        self.dtype = torch.float64 if double else torch.float32
        config = load_config(source.config)
        with torch.device("meta"):
            self.model = build(config, "eager", "eager")
        weights = weights_of(source, parameter_shapes(self.model))
        for path, data in recomputed_buffers(self.model).items():
            owner, _, name = path.rpartition(".")
            self.model.get_submodule(owner)._buffers[name] = data
        names = {id(tensor): name for name, tensor in reversed(self.model.state_dict(keep_vars=True).items())}
        for module in self.model.modules():
            self._fill(module, weights, names, keep=not double)

    def _fill(self, module: nn.Module, weights: Weights, names: dict[int, str], keep: bool) -> None:
        """Read a module's own weights just before it runs; drop them after, unless they are to be kept."""
        own = [(table, key, tensor) for table in (module._parameters, module._buffers) for key, tensor in table.items()
               if tensor is not None and id(tensor) in names]
        if not own:
            return

        def load(*_: Any) -> None:
            for table, key, tensor in own:
                if table[key].is_meta:
                    data = torch.from_numpy(weights.read(names[id(tensor)])).to(self.dtype)
                    table[key] = nn.Parameter(data, requires_grad=False) if isinstance(tensor, nn.Parameter) else data

        def drop(*_: Any) -> None:
            for table, key, tensor in own:
                table[key] = tensor

        module.register_forward_pre_hook(load)
        if not keep:
            module.register_forward_hook(drop)

    def run(self, ids: Tensor, mask: Tensor, new_tokens: int = 0) -> Reference:
        """Logits of the prompt, then greedy decoding with transformers' own cache."""
        with torch.no_grad(), warnings.catch_warnings(), exact(self.dtype):
            warnings.simplefilter("ignore")
            return self._run(ids, mask, new_tokens)

    def _run(self, ids: Tensor, mask: Tensor, new_tokens: int) -> Reference:
        from transformers import DynamicCache

        cache = DynamicCache(config=self.model.config)
        prompt = logits = self._step(ids, mask, cache)
        tokens: list[Tensor] = []
        for number in range(new_tokens):
            tokens.append(logits[:, -1:].argmax(-1))
            mask = torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
            if number + 1 < new_tokens:
                logits = self._step(tokens[-1], mask, cache)
        added = torch.cat(tokens, 1) if tokens else ids[:, :0]
        return Reference(prompt.numpy(), added.numpy())

    def _step(self, ids: Tensor, mask: Tensor, cache: Any) -> Tensor:
        places = (mask.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        result = self.model(input_ids=ids, attention_mask=mask, position_ids=places, past_key_values=cache, use_cache=True)
        logits: Tensor = result.logits
        return logits


class exact(TorchDispatchMode):
    """With it, what the model asks to do in f32 (norms, softmax, rotary angles) is done in the given dtype."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.wanted = dtype

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        args, kwargs = pytree.tree_map(lambda x: self.wanted if x is torch.float32 else x, (args, kwargs or {}))
        return func(*args, **kwargs)


def main(folder: Path) -> None:
    """Do the job that `reference` left in the folder."""
    job = json.loads((folder / "job.json").read_text())
    source = resolve(job["model"], Path(job["config"]) if job["config"] else None, job["seed"])
    with np.load(folder / "inputs.npz") as inputs:
        ids, mask = torch.from_numpy(inputs["ids"]), torch.from_numpy(inputs["mask"])
    result = Eager(source, job["double"]).run(ids, mask, job["new_tokens"])
    np.savez(folder / "outputs.npz", logits=result.logits, tokens=result.tokens)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
