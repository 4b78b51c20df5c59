"""Which kernels are tried on a device: those that models ask for, of real sizes and of tiny odd ones."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from moec.targets import sample
from moec.targets.base import Kernel
from moec.targets.paged import KINDS, PAGED

from ..benchmarks import shapes
from ..benchmarks.shapes import write_config

# As published, but for the layers: two hold every kind of kernel.
FEW = {"num_hidden_layers": 2}
REAL: Mapping[str, dict[str, object]] = {
    "v2_lite": shapes.V2_LITE | FEW,
    "v3": shapes.V3 | FEW | {"first_k_dense_replace": 1},
    "qwen3": shapes.QWEN3_30B | FEW,
}
MOST_BYTES = 1 << 30  # of one weight: as many experts of a real model


def of_model(name: str, machine: Any) -> Iterator[Kernel]:
    """Every kernel of a model of REAL, or of a tiny one of tests/models.py ("tiny_qwen3_moe")."""
    config = dict(SMALL) if name == "small_v3" else REAL.get(name)
    if config is None:
        from .. import models

        config = models.config(name.removeprefix("tiny_")).to_dict()
    with tempfile.TemporaryDirectory() as folder:
        yield from asked_for(write_config(Path(folder) / name, config), machine)


def asked_for(folder: Path, machine: Any) -> Iterator[Kernel]:
    """The kernels of the model whose config.json is in the folder, each once."""
    from moec.compiler.driver import Clock, understand
    from moec.compiler.policy import policy_of
    from moec.compiler.progress import quiet
    from moec.compiler.source import resolve

    source = resolve("", folder)
    policy = policy_of("none", None, machine.policies)
    front = understand(source, machine, Clock(quiet), None, False, policy, "bf16")
    yield from dict.fromkeys(sample.affordable(each, MOST_BYTES) for each in front.kernels.values())


def bare(kind: str, dtype: str = "bf16", **dims: int) -> Kernel:
    """A kernel by its sizes."""
    return Kernel(kind, tuple(dims.items()), (), dtype)


def layer(experts: int, width: int, hidden: int, chosen: int) -> list[Kernel]:
    """The kernels of a routed layer without its gate and without shared experts, as peers have it."""
    return [
        bare("permute", "f32", experts=experts, k=chosen),
        bare("grouped_swiglu", k=hidden, n=2 * width, experts=experts, share=chosen),
        bare("grouped_combine", k=width, n=hidden, experts=experts, share=chosen, base=0),
    ]


def in_pages(kernels: Iterable[Kernel]) -> Iterator[Kernel]:
    """Those of latent attention, over caches in pages."""
    yield from dict.fromkeys(replace(each, kind=each.kind + PAGED) for each in kernels if each.kind in KINDS)


def over_fp8(kernels: Iterable[Kernel]) -> Iterator[Kernel]:
    """Those of latent attention, over latents in fp8."""
    for each in kernels:
        if each.kind.removesuffix(PAGED) in KINDS and each.cache == "bf16":
            yield replace(each, dtype=f"{each.weights}+fp8")


def in_fp8(kernels: Iterable[Kernel]) -> Iterator[Kernel]:
    """Those with weights, as bytes of e4m3."""
    return (replace(each, dtype="fp8") for each in kernels if each.dtype == "bf16")


# The routed layers of research/performance.md: experts, their width, the model's, experts of a token.
LAYERS = {
    "moe_qwen3": (128, 768, 2048, 8),
    "moe_v3_quarter": (256, 512, 7168, 8),
    "moe_v2_lite": (64, 1408, 2048, 6),
}
TINY = ("deepseek_v2_lite", "deepseek_v2", "deepseek_v3", "qwen3_moe")
# Attention over latents alone, of the heads of V3 and of V2-Lite.
MLA = [
    Kernel(
        "mla_decode", (("heads", heads), ("latent", 512), ("rope", 64)), (("scale", 192**-0.5),), "f32+bf16"
    )
    for heads in (128, 16)
]
# Few heads of what V3 has: the fast ways, small enough for tools that watch every access.
SMALL: Mapping[str, object] = {
    **(shapes.V3 | FEW | {"first_k_dense_replace": 1}),
    **{"vocab_size": 512, "hidden_size": 256, "intermediate_size": 384, "moe_intermediate_size": 128},
    **{"num_attention_heads": 16, "num_key_value_heads": 16, "q_lora_rank": 128, "n_routed_experts": 8},
    **{"n_group": 4, "topk_group": 2, "num_experts_per_tok": 4},
}
# Sizes at which tiles, blocks of scales and stores of 16 bytes have edges everywhere.
ODD = [
    bare("linear", "fp8", k=16, n=1, wide=1),
    bare("linear", "fp8", k=176, n=102, wide=0),
    bare("linear_add", "fp8", k=1424, n=328, wide=0),
    bare("linear_add", "fp8", k=272, n=37, wide=0),
    bare("linear_swiglu", "fp8", k=144, n=154, wide=1),
    bare("linear_swiglu", "fp8", k=1040, n=400, wide=0),
    bare("grouped_swiglu", "fp8", k=208, n=208, experts=10, share=4),
    bare("grouped_swiglu", "fp8", k=48, n=70, experts=6, share=3),
    bare("grouped_combine", "fp8", k=400, n=200, experts=10, share=4, base=2),
    bare("grouped_combine", "fp8", k=32, n=37, experts=5, share=2, base=0),
]
DENSE = [
    bare("linear", "fp8", k=2048, n=21888, wide=0),
    bare("linear_add", "fp8", k=10944, n=2048, wide=0),
]
# What models end with: vocabularies of V2-Lite, V3 and Qwen3, and odd ones, where loads and parts have edges.
ENDS = [
    *(bare("choose_token", "f32", v=size) for size in (11, 9002, 102400, 129280, 151936)),
    *(
        Kernel("last_norm", (("n", size), ("width", size), ("start", 0)), (("eps", 1e-6),))
        for size in (37, 2048)
    ),
]
NAMES = (
    "ends",
    *(*REAL, *LAYERS, "mla", *(f"tiny_{family}" for family in TINY)),
    *("fp8_odd", "fp8_dense", *(f"{layer}_fp8" for layer in LAYERS)),
    *("mla_paged", "v2_lite_paged", "v3_paged", "tiny_deepseek_v3_paged"),
    *("small_v3", "small_v3_paged", "mla_small"),
    *(f"{name}_over_fp8" for name in ("mla", "v2_lite", "v3", "tiny_deepseek_v3", "small_v3", "mla_small")),
    *(f"{name}_paged_over_fp8" for name in ("v2_lite", "tiny_deepseek_v3", "small_v3")),
)


def named(name: str, machine: Any) -> Iterator[Kernel]:
    """The kernels of one of NAMES."""
    if name in LAYERS:
        yield from layer(*LAYERS[name])
    elif name == "ends":
        yield from ENDS
    elif name == "mla":
        yield from MLA
    elif name == "mla_small":
        yield replace(MLA[0], dims=(("heads", 32), *MLA[0].dims[1:]))
    elif name.endswith("_over_fp8"):
        yield from over_fp8(named(name.removesuffix("_over_fp8"), machine))
    elif name.endswith(PAGED):
        yield from in_pages(named(name.removesuffix(PAGED), machine))
    elif name == "fp8_odd":
        yield from ODD
    elif name == "fp8_dense":
        yield from DENSE
    elif name.endswith("_fp8"):
        yield from in_fp8(layer(*LAYERS[name.removesuffix("_fp8")]))
    else:
        yield from of_model(name, machine)
