"""What PyTorch itself computes: the reference that an artifact is proved against.

transformers' own eager attention and eager experts, in f32 or truly in f64, in a process of their own: when
the numbers are here, their memory is gone. `python -m moec.compiler.eager FOLDER` is that process.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from .causal import build, load_config
from .checkpoint import Weights
from .ir import Array
from .source import Source, resolve
from .trace import in_f32, parameter_shapes, recomputed_buffers, weights_of


@dataclass(frozen=True)
class Reference:
    """logits [B,T,vocab] of the prompt, f32 or f64; tokens i64 [B,n] that greedy decoding adds to it."""

    logits: Array
    tokens: Array


def reference(
    source: Source, ids: Array, attention_mask: Array | None = None, new_tokens: int = 0, double: bool = False
) -> Reference:
    """Run a causal language model in PyTorch, in a process of its own.

    ids i64 [B,T]; attention_mask i64 [B,T], 0 for padding on the left, all 1 where not given. double: every
    operation in float64, with one module's weights in memory at a time; else f32, all of them at once.
    Raises RuntimeError, with what the process wrote, where it fails.
    """
    mask = np.ones_like(ids) if attention_mask is None else attention_mask
    model = str(source.checkpoint.folder) if source.checkpoint else ""
    job = {"model": model, "config": "" if model else str(source.config), "seed": source.seed}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        np.savez(folder / "inputs.npz", ids=ids, mask=mask)
        (folder / "job.json").write_text(json.dumps({**job, "new_tokens": new_tokens, "double": double}))
        command = [sys.executable, "-m", "moec.compiler.eager", name]
        environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        if done.returncode:
            raise RuntimeError(f"the PyTorch reference of {source.name} failed:\n{done.stderr[-4000:]}")
        with np.load(folder / "outputs.npz") as outputs:
            return Reference(outputs["logits"], outputs["tokens"])


def main(folder: Path) -> None:
    """Do the job that `reference` left in the folder."""
    job = json.loads((folder / "job.json").read_text())
    source = resolve(job["model"], Path(job["config"]) if job["config"] else None, job["seed"])
    with np.load(folder / "inputs.npz") as inputs:
        ids, mask = torch.from_numpy(inputs["ids"]), torch.from_numpy(inputs["mask"])
    result = Eager(source, job["double"]).run(ids, mask, job["new_tokens"])
    np.savez(folder / "outputs.npz", logits=result.logits, tokens=result.tokens)


def inputs(source: Source) -> tuple[Array, ...]:
    """The example inputs of a module that is not a language model, in the order of the graph's inputs."""
    leaves = pytree.tree_leaves(pytree.tree_map(in_f32, source.inputs))
    return tuple(leaf.detach().numpy() for leaf in leaves if isinstance(leaf, Tensor))


def outputs(source: Source, double: bool = False) -> tuple[Array, ...]:
    """What such a module returns for its example inputs, computed here, where it already is in memory."""
    dtype = torch.float64 if double else torch.float32
    module = source.module.eval().to(dtype)
    wide = pytree.tree_map(
        lambda x: x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x, source.inputs
    )
    with torch.no_grad(), Exact(dtype):
        results = pytree.tree_leaves(module(*wide))
    module.float()
    return tuple(result.numpy() for result in results)


class Eager:
    """A causal language model in PyTorch whose weights are read when their module runs.

    double: compute in float64, and drop weights when their module has run.
    Raises BadModel where a checkpoint does not fit the config.
    """

    def __init__(self, source: Source, double: bool = False) -> None:
        assert source.config is not None
        self.dtype = torch.float64 if double else torch.float32
        self.keep = not double
        with torch.device("meta"):
            self.model = build(load_config(source.config), "eager", "eager")
        for path, data in recomputed_buffers(self.model).items():
            owner, _, name = path.rpartition(".")
            self.model.get_submodule(owner)._buffers[name] = data
        shapes = parameter_shapes(self.model)
        self.weights: Weights = weights_of(source, shapes)
        state = self.model.state_dict(keep_vars=True)
        self.names = {id(state[name]): name for name in shapes}
        for module in self.model.modules():
            self._fill_when_run(module)

    def run(self, ids: Tensor, mask: Tensor, new_tokens: int = 0) -> Reference:
        """Logits of the prompt, then greedy decoding with transformers' cache; as `reference`."""
        with (
            torch.no_grad(),
            warnings.catch_warnings(),
            Exact(self.dtype) if self.dtype == torch.float64 else nullcontext(),
        ):
            warnings.simplefilter("ignore")
            return self._run(ids, mask, new_tokens)

    def _run(self, ids: Tensor, mask: Tensor, new_tokens: int) -> Reference:
        from transformers import DynamicCache

        cache = DynamicCache(config=self.model.config)
        prompt = logits = self._step(ids, mask, cache)
        tokens = [ids[:, :0]]
        for number in range(new_tokens):
            tokens.append(logits[:, -1:].argmax(-1))
            mask = torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
            if number + 1 < new_tokens:
                logits = self._step(tokens[-1], mask, cache)
        return Reference(prompt.numpy(), torch.cat(tokens, 1).numpy())

    def _step(self, ids: Tensor, mask: Tensor, cache: Any) -> Tensor:
        places = (mask.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        result = self.model(
            input_ids=ids, attention_mask=mask, position_ids=places, past_key_values=cache, use_cache=True
        )
        return result.logits

    def _fill_when_run(self, module: nn.Module) -> None:
        """Let a module read its own weights just before it runs."""
        tables = (module._parameters, module._buffers)
        own = [
            (table, key, tensor)
            for table in tables
            for key, tensor in table.items()
            if id(tensor) in self.names
        ]

        def load(*_: Any) -> None:
            for table, key, tensor in own:
                if table[key].is_meta:
                    data = torch.from_numpy(self.weights.read(self.names[id(tensor)])).to(self.dtype)
                    is_parameter = isinstance(tensor, nn.Parameter)
                    table[key] = nn.Parameter(data, requires_grad=False) if is_parameter else data

        def drop(*_: Any) -> None:
            for table, key, tensor in own:
                table[key] = tensor

        if own:
            module.register_forward_pre_hook(load)
        if own and not self.keep:
            module.register_forward_hook(drop)


class Exact(TorchDispatchMode):  # type: ignore[misc]  # torch is not typed here
    """Do what a model wants done in f32 (norms, softmax, rotary angles) in another dtype."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.wanted = dtype

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        args, kwargs = pytree.tree_map(
            lambda x: self.wanted if x is torch.float32 else x, (args, kwargs or {})
        )
        return func(*args, **kwargs)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
