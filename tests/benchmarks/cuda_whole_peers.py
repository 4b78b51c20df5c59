"""DeepSeek-V2-Lite's shape in transformers on the GPU: bf16, random weights, experts by torch._grouped_mm."""

from __future__ import annotations

import statistics
import time
from argparse import Namespace
from collections.abc import Callable, Mapping
from typing import Any

import torch
import transformers

from . import shapes
from .cuda_whole import CHUNK, Timed

WARM = 4  # steps that are not timed; compiled ones are compiled and recorded in them
MOST = 24  # of each kind that are


def model_of(config: Mapping[str, Any], device: str) -> Any:
    """The model, drawn on the device."""
    known = transformers.AutoConfig.for_model(**config)
    known._experts_implementation = "grouped_mm"
    with torch.device(device):
        made = transformers.AutoModelForCausalLM.from_config(
            known, dtype=torch.bfloat16, attn_implementation="sdpa"
        )
    made.set_experts_implementation("grouped_mm")
    return made.eval()


class Decode:
    """Steps of one token after a context, with a cache of fixed room."""

    def __init__(self, model: Any, context: int, room: int) -> None:
        self.model, self.cache = model, transformers.StaticCache(config=model.config, max_cache_len=room)
        ids = random_ids(model, context)
        for start in range(0, context, CHUNK):
            part = ids[:, start : start + CHUNK]
            logits = model(part, past_key_values=self.cache, logits_to_keep=1).logits
        self.token = logits.argmax(-1)

    def __call__(self, forward: Callable[..., Any]) -> None:
        """One step of the model, or of what stands for it; its token is what the next step gets."""
        logits = forward(self.token, past_key_values=self.cache).logits
        self.token.copy_(logits.argmax(-1))


def random_ids(model: Any, tokens: int) -> torch.Tensor:
    """Token ids i64 [1, tokens]."""
    return torch.randint(0, model.config.vocab_size, (1, tokens), device=model.device)


def timed(name: str, tokens: int, step: Callable[[], object]) -> Timed:
    """Medians, by the clock and on the GPU."""
    found = []
    for _ in range(WARM + MOST):
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start = time.perf_counter()
        first.record()
        step()
        last.record()
        torch.cuda.synchronize()
        found.append((time.perf_counter() - start, first.elapsed_time(last) / 1e3))
    clock, gpu = (statistics.median(each) for each in zip(*found[WARM:]))
    return Timed(name, tokens, clock, gpu)


def recorded(step: Callable[[], object]) -> Callable[[], None]:
    """The step as a CUDA graph."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def eager(model: Any, options: Namespace, room: int) -> None:
    """As transformers runs it."""
    ids = random_ids(model, options.prompt)
    print(timed(f"torch eager, {options.prompt} tokens", options.prompt, lambda: model(ids)), flush=True)
    decode = Decode(model, options.context, room)
    name = f"torch eager, a token after {options.context}"
    print(timed(name, 1, lambda: decode(model)), flush=True)


def graph(model: Any, options: Namespace, room: int) -> None:
    """The same kernels, recorded."""
    decode = Decode(model, options.context, room)
    name = f"torch in a CUDA graph, a token after {options.context}"
    print(timed(name, 1, recorded(lambda: decode(model))), flush=True)


def compiled(model: Any, options: Namespace, room: int) -> None:
    """By PyTorch's compiler, with its own CUDA graphs."""
    start = time.perf_counter()
    decode = Decode(model, options.context, room)
    forward = torch.compile(model, mode="reduce-overhead", dynamic=False)
    name = f"torch compiled, a token after {options.context}"
    print(timed(name, 1, lambda: decode(forward)), flush=True)
    print(f"    {time.perf_counter() - start:.0f} s with compiling", flush=True)
    ids = random_ids(model, options.prompt)
    name = f"torch compiled, {options.prompt} tokens"
    print(timed(name, options.prompt, lambda: forward(ids, use_cache=False)), flush=True)


WAYS: Mapping[str, Callable[[Any, Namespace, int], None]] = {
    "eager": eager,
    "graph": graph,
    "compiled": compiled,
}


def run(options: Namespace) -> None:
    """Each of the chosen ways; one that fails is left out with a line that says why."""
    start = time.perf_counter()
    with torch.no_grad():  # as generate() does, for the sake of its caches
        model = model_of(shapes.V2_LITE, "cuda")
        print(f"transformers {transformers.__version__}: {time.perf_counter() - start:.0f} s", flush=True)
        for way in options.peers:
            try:
                WAYS[way](model, options, options.context + 2 * (WARM + MOST))
            except Exception as error:
                print(f"    torch {way} does not run: {str(error).strip()[:600]}", flush=True)
