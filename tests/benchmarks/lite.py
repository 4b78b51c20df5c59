"""DeepSeek-V2-Lite's shape as a whole, beside llama.cpp: each contender by turns, in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

from . import gguf_model, hollow, hollow_make, llama, shapes
from .absent import expect_memory, present
from .ceilings import READ
from .setting import Setting, told
from .timing import Row, rows

PROMPT, NEW = 512, 32
ROUNDS, RUNS = 2, 3
BARS = {"prefill": {"llama.cpp": 1.3}, "decode": {"llama.cpp": 1.2, READ: 0.85}}


def lite(setting: Setting) -> Iterator[Row]:
    """int4 beside Q4_0."""
    return compared(setting, "int4", "Q4_0")


def lite8(setting: Setting) -> Iterator[Row]:
    """int8 beside Q8_0."""
    return compared(setting, "int8", "Q8_0")


def compared(setting: Setting, quant: str, form: str) -> Iterator[Row]:
    """Seconds per token of a prompt of 512, and of 32 tokens one by one on an empty cache."""
    ours = artifact(setting, quant)
    peer = present({f"llama.cpp {form}": lambda: theirs(setting, form)})
    found: dict[str, list[dict[str, float]]] = {"moec": [], **{name: [] for name in peer}}
    rates = []
    for _ in range(ROUNDS):
        rates.append(setting.ceilings[READ].rate())
        found["moec"].append(measured(ours, setting.threads))
        for name, files in peer.items():
            found[name].append(llama_measured(*files, setting.threads))
    for part in BARS:
        seconds = {name: 1 / median(each[part] for each in speeds) for name, speeds in found.items()}
        if part == "decode":
            seconds[READ] = found["moec"][0]["bytes"] / median(rates)
        bars = {name: bar for name in seconds for start, bar in BARS[part].items() if name.startswith(start)}
        yield from rows(f"DeepSeek-V2-Lite {quant}, {part}, a token", seconds, bars)


def artifact(setting: Setting, quant: str) -> Path:
    """The model with the schedules that are known, and random codes as its peer has them; made when missing.

    Raises Absent where it would not fit memory.
    """
    expect_memory(gguf_model.total(shapes.V2_LITE, "Q4_0" if quant == "int4" else "Q8_0"))
    out = setting.build / f"v2-lite-{quant}"
    if not (out / "manifest.json").exists():
        config = shapes.write_config(setting.build / "v2-lite", shapes.V2_LITE)
        empty, partial = (setting.build / f"{out.name}.{state}" for state in ("hollow", "partial"))
        hollow_make.make(config, empty, "cpu", None, tell=told, quant=quant, threads=setting.threads)
        hollow.fill(empty, partial)
        hollow.seal(partial)
        partial.rename(out)
    return out


def theirs(setting: Setting, form: str) -> tuple[Path, Path]:
    """llama-bench and its model. Raises Absent."""
    folder = setting.build / "llama"
    return llama.build(folder), llama.model(folder, shapes.V2_LITE, form)


def measured(out: Path, threads: int) -> dict[str, float]:
    """Tokens per second of prefill and decode, and bytes of weights read for a decoded token."""
    prefill, decode = bench(out, threads, PROMPT, 1), bench(out, threads, 1, NEW)
    return {
        "prefill": prefill["prefill_tokens_per_second"],
        "decode": decode["decode_tokens_per_second"],
        "bytes": decode["weights_per_token"],
    }


def bench(out: Path, threads: int, prompt: int, new: int) -> dict[str, Any]:
    """What `moec bench` prints."""
    sizes = ("--prompt", prompt, "--max-new", new, "--runs", RUNS, "--threads", threads)
    command = (sys.executable, "-m", "moec.compiler", "bench", out, *sizes, "--json")
    done = subprocess.run([*map(str, command)], stdout=subprocess.PIPE, check=True)
    return dict(json.loads(done.stdout))


def llama_measured(program: Path, path: Path, threads: int) -> dict[str, float]:
    """Tokens per second of prefill and decode."""
    speeds = llama.run(program, path, threads, PROMPT, NEW, RUNS)
    return {"decode" if each.new else "prefill": median(each.tokens_per_second) for each in speeds}
