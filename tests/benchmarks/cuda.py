"""How fast kernels are on this machine's GPU, beside PyTorch, others' figures, and what it can do at most:

    PYTHONPATH=tests/.links python3 -m tests.benchmarks.cuda build/device
        [moe] [decode] [caches] [prefill] [linear]
        [--log tuning.jsonl] [--json FILE]

Kernels come from a folder that tests.device.prepare made, with the best schedules of the log. Each contender
is a CUDA graph, replayed with the cache flushed before; medians of 30, in microseconds. The floor is the
larger of the bytes that must be moved over the bandwidth and the operations over the rate measured in the
same run. Columns in brackets are quoted from an earlier run on such a GPU (research/performance.md), they are
not measured here.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from moec.targets.cuda import target
from moec.tuning.fingerprint import of_target
from moec.tuning.log import Log

from ..device import index, kernels
from ..device.index import Entry, Index
from . import cuda_peers as peers
from .cuda_timing import Ceilings, Ours, ceilings, timed

TOKENS = (1, 16, 64, 256, 1024, 4096)
# Microseconds by tokens, of SGLang's Triton kernels with its tuned configuration for this GPU.
SGLANG: Mapping[str, Sequence[float]] = {
    "moe_qwen3": (38.6, 223.2, 299.0, 325.0, 380.7, 761.5),
    "moe_v3_quarter": (100.7, 527.8, 1105, 1298, 1406, 2612),
    "moe_v2_lite": (47.3, 240.2, 278.7, 301.2, 361.4, 969.3),
}
# batch, cached tokens, heads: microseconds of FlashMLA, SGLang's Triton kernel, TileLang's example. They
# begin with queries that are absorbed already and end before the values are projected.
DECODE: Mapping[tuple[int, int, int], Sequence[float | None]] = {
    (1, 8192, 128): (28.9, 57.1, 25.1),
    (1, 65536, 128): (55.4, 336, 117.8),
    (16, 4096, 128): (46.7, 287, 67.3),
    (64, 4096, 128): (119.8, 1138, 166.5),
    (128, 4096, 128): (229.4, 2390, 325.0),
    (128, 8192, 128): (447.8, 4832, None),
    (128, 4096, 16): (164.7, 334.5, None),
    (32, 4096, 16): (54.4, 101.4, None),
}
KINDS = (("mla_decode", "decode", peers.Decode), ("latent_attention", "whole", peers.Latent))
PREFILL = ((1, 1024), (1, 4096), (4, 2048), (1, 16384))  # sequences and their tokens
LIMIT = 2e-2  # of the largest value, between us and a peer


@dataclass
class Setting:
    """Where kernels come from, and what the GPU can do."""

    folder: Path
    known: Index
    log: Log | None
    place: Any
    ceilings: Ceilings
    compiled: bool = True  # whether torch.compile takes part: it takes ten seconds for each row

    def ours(self, entry: Entry) -> Ours:
        """A kernel ready to be called."""
        return Ours(self.folder, entry, self.log, self.place.of(entry.kernel))

    def find(self, kind: str, cache: str = "", **dims: int) -> Entry | None:
        """The first kernel of these sizes, whose cache is in that format."""
        for entry in self.known.entries:
            sizes = dict(entry.kernel.dims)
            if cache and entry.kernel.cache != cache:
                continue
            if entry.kernel.kind == kind and all(sizes.get(name) == size for name, size in dims.items()):
                return None if entry.failed else entry
        return None


@dataclass(frozen=True)
class Row:
    """One line: what was timed, the floor, seconds by contender, and quoted seconds."""

    what: str
    floor: float
    seconds: Mapping[str, float]
    quoted: Mapping[str, float]

    def __str__(self) -> str:
        ours, others = self.seconds.get("moec"), {k: v for k, v in self.seconds.items() if k != "moec"}
        cells = [f"floor {1e6 * self.floor:8.1f}"]
        if ours:
            cells.append(f"moec {1e6 * ours:8.1f} ({ours / self.floor:.2f}x floor)")
        named = [
            *((k, v, "") for k, v in others.items()),
            *((k, v, "quoted") for k, v in self.quoted.items()),
        ]
        for name, each, word in named:
            ratio = f" ({each / ours:.2f}x)" if ours else ""
            text = f"{name} {1e6 * each:8.1f}{ratio}"
            cells.append(f"[{text}]" if word else text)
        return f"{self.what:34} " + "  ".join(cells)


def moe(setting: Setting) -> Iterator[Row]:
    """A routed layer: permute, both grouped products, swiglu and the weighted sum; the gate is not in it."""
    for name, (experts, width, hidden, share) in kernels.LAYERS.items():
        dims = {"experts": experts, "share": share}
        entries = [
            setting.find("permute", experts=experts, k=share),
            setting.find("grouped_swiglu", k=hidden, n=2 * width, **dims),
            setting.find("grouped_combine", k=width, n=hidden, base=0, **dims),
        ]
        layer = peers.Layer(experts, width, hidden, share)
        for place, count in enumerate(TOKENS):
            call = layer.at(count)
            contenders: dict[str, Callable[[], object]] = {}
            if all(entries):
                steps = [setting.ours(each) for each in entries if each]
                contenders["moec"] = lambda call=call, steps=steps: call.ours(*steps)
            contenders["torch._grouped_mm"] = call.eager
            if setting.compiled:
                contenders["the same, compiled"] = call.compiled
            floor = setting.ceilings.floor(call.bytes, call.operations)
            what = f"{name} T={count}, {call.active} experts"
            yield Row(what, floor, compared(what, call, contenders), {"SGLang": SGLANG[name][place] / 1e6})


def compared(what: str, call: Any, contenders: Mapping[str, Callable[[], object]]) -> dict[str, float]:
    """Seconds of each, once our result is PyTorch's."""
    if "moec" in contenders:
        contenders["moec"]()
        off = peers.apart(call.result, call.eager())
        if not off <= LIMIT:
            print(f"    WRONG: {what} is {off:.2g} off", flush=True)
            contenders = {name: each for name, each in contenders.items() if name != "moec"}
    return timed(contenders)


def decode(setting: Setting) -> Iterator[Row]:
    """One token for each sequence: what others publish, then all of it, which also absorbs the queries and
    projects the values.
    """
    names = ("FlashMLA", "SGLang", "TileLang example")
    for (batch, cached, heads), quoted in DECODE.items():
        what = f"{batch} x {cached}, {heads} heads"
        theirs = {name: each / 1e6 for name, each in zip(names, quoted) if each}
        for kind, word, made in KINDS:
            if entry := setting.find(kind, "bf16", heads=heads):
                call, step = made(entry.kernel, batch, 1, cached), setting.ours(entry)
                floor = setting.ceilings.floor(call.bytes, call.operations)
                seconds = timed({"moec": lambda call=call, step=step: call.ours(step)})
                yield Row(f"{word} {what}", floor, seconds, theirs if kind == "mla_decode" else {})


def caches(setting: Setting) -> Iterator[Row]:
    """One token for each sequence, over latents in fp8 and in bf16; the floor is that of fp8."""
    for heads in (128, 16):
        for batch, cached in ((1, 8192), (16, 4096), (64, 4096), (128, 4096)):
            calls, contenders = [], {}
            for name, cache in (("moec", "fp8"), ("over bf16", "bf16")):
                if entry := setting.find("mla_decode", cache, heads=heads):
                    call, step = peers.Decode(entry.kernel, batch, 1, cached), setting.ours(entry)
                    calls.append(call)
                    contenders[name] = lambda call=call, step=step: call.ours(step)
            if "moec" in contenders:
                floor = setting.ceilings.floor(calls[0].bytes, calls[0].operations)
                yield Row(f"fp8 {batch} x {cached}, {heads} heads", floor, timed(contenders), {})


def prefill(setting: Setting) -> Iterator[Row]:
    """The first tokens of sequences; PyTorch gets keys and values that are materialised already."""
    for heads in (16, 128):
        entry = setting.find("latent_attention", "bf16", heads=heads)
        if entry is None:
            continue
        for batch, count in PREFILL:
            call = peers.Latent(entry.kernel, batch, count, 0)
            step = setting.ours(entry)
            contenders = {"moec": lambda call=call, step=step: call.ours(step), "torch SDPA": call.sdpa}
            floor = setting.ceilings.floor(call.bytes, call.operations)
            yield Row(f"prefill {batch} x {count}, {heads} heads", floor, timed(contenders), {})


def linear(setting: Setting) -> Iterator[Row]:
    """Products with weights, beside cuBLAS."""
    for entry in setting.known.entries:
        large = entry.kernel.kind == "linear" and entry.kernel["k"] * entry.kernel["n"] >= 1 << 20
        if not large or entry.failed:
            continue
        step = setting.ours(entry)
        for count in TOKENS:
            call = peers.Linear(entry.kernel, count)
            contenders = {"moec": lambda call=call, step=step: call.ours(step), "cuBLAS": call.eager}
            floor = setting.ceilings.floor(call.bytes, call.operations)
            what = f"linear {entry.kernel['k']}x{entry.kernel['n']} m={count}"
            yield Row(what, floor, compared(what, call, contenders), {})


SECTIONS: Mapping[str, Callable[[Setting], Iterator[Row]]] = {
    "moe": moe,
    "decode": decode,
    "caches": caches,
    "prefill": prefill,
    "linear": linear,
}


def main() -> None:
    """Run the chosen sections, print a table and, with --json, write it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("sections", nargs="*", choices=[[], *SECTIONS])
    parser.add_argument("--log", type=Path)
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    torch.set_grad_enabled(False)
    machine, limits = target.target(), ceilings()
    place = of_target(machine, 1)
    log = Log(options.log) if options.log else None
    known = index.read(options.folder)
    setting = Setting(options.folder, known, log, place, limits, not options.no_compile)
    print(f"{machine.processor}: {limits.read / 1e12:.2f} TB/s, {limits.operations / 1e12:.0f} TFLOP/s bf16")
    found: list[dict[str, Any]] = [{"device": machine.processor, **vars(limits)}]
    for name in options.sections or SECTIONS:
        for row in SECTIONS[name](setting):
            print(row, flush=True)
            found.append({"section": name, **vars(row)})
            if options.json:
                options.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
