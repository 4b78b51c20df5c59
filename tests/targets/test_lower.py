"""Each region gives the kernel that the runtime knows under its kind, with sizes in the runtime's order."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from layers import (
    CHOSEN,
    EXPERTS,
    HEADS,
    HIDDEN,
    LATENT,
    NOPE,
    Q_LORA,
    ROPE,
    VALUE,
    WIDTH,
    apart,
    decoder,
    running,
)  # fmt: skip

from moec.compiler.ops.region import REGION
from moec.compiler.pipeline import run
from moec.compiler.text import show
from moec.passes.layout import HeadPanels, Panels
from moec.targets.base import Kernel
from moec.targets.bf16 import END_DIMS
from moec.targets.cpu.lower import layout_of
from moec.targets.cpu.pipeline import PASSES
from moec.targets.regions import DIMS, REALS, SIZES, kernel_of

MODELS = {latent: run(decoder(latent=latent), PASSES)[0] for latent in (True, False)}
GRAPHS = (*MODELS.values(), run(apart(), PASSES)[0])
KERNELS = {kernel_of(node) for graph in GRAPHS for node in graph if node.op is REGION}


@pytest.mark.parametrize(
    ("kind", "dims", "reals"),
    [
        ("linear", (HIDDEN, Q_LORA + LATENT + ROPE), ()),
        ("linear_add", (HEADS * VALUE, HIDDEN), ()),
        ("linear_swiglu", (HIDDEN, 2 * WIDTH), ()),
        ("grouped_swiglu", (HIDDEN, 2 * WIDTH, EXPERTS + 1, CHOSEN + 1), ()),
        ("grouped_swiglu", (HIDDEN, 2 * WIDTH, EXPERTS, CHOSEN), ()),
        ("grouped_combine", (WIDTH, HIDDEN, EXPERTS + 1, CHOSEN + 1, 2), ()),
        ("grouped_combine", (WIDTH, HIDDEN, EXPERTS, CHOSEN, 0), ()),
        ("rms_norm", (HIDDEN, HIDDEN, 0), (1e-6,)),
        ("rms_norm", (Q_LORA, Q_LORA + LATENT + ROPE, 0), (1e-6,)),
        ("top_k_gate", (EXPERTS, CHOSEN, 1, 1, 1, 0, 1, 1, 0), (1e-20, 2.5)),
        ("route", (HIDDEN, EXPERTS, CHOSEN, 1, 1, 1, 0, 1, 1, 1), (1e-20, 2.5)),
        ("permute", (EXPERTS, CHOSEN), ()),
        ("latent_write", (LATENT, ROPE, Q_LORA + LATENT + ROPE, Q_LORA, 0, 1), (1e-6,)),
        ("latent_attention", (HEADS, NOPE, ROPE, LATENT, VALUE, 0, 1, HEADS * (NOPE + ROPE), 0), (0.3,)),
        ("append", (1, ROPE), ()),
        ("rotary", (ROPE, 1, 1), ()),
        ("attention", (HEADS, 1, ROPE, ROPE), (0.5,)),
    ],
)
def test_the_kernel_of_each_kind(kind: str, dims: tuple[int, ...], reals: tuple[float, ...]) -> None:
    named = tuple(zip(DIMS[kind], dims, strict=True))
    assert Kernel(kind, named, tuple(zip(REALS.get(kind, ()), reals, strict=True))) in KERNELS


def test_every_kind_is_met_and_known() -> None:
    assert {kernel.kind for kernel in KERNELS} == set(DIMS) <= set(SIZES)
    assert set(REALS) <= {*DIMS, *END_DIMS}


def test_one_kernel_has_one_meaning() -> None:
    meanings: dict[Kernel, set[str]] = {}
    for graph in GRAPHS:
        for node in graph:
            if node.op is REGION:
                ops = [inner.op.name for inner in node.attrs["body"] if inner.inputs]
                meanings.setdefault(kernel_of(node), set()).add(" ".join(ops))
    assert all(len(ops) == 1 for ops in meanings.values())


def test_weights_lie_in_the_schedules_lanes() -> None:
    layouts = {kernel.kind: layout_of(kernel, {"nr": 16}) for kernel in KERNELS}
    assert layouts["linear_swiglu"] == {1: Panels(16, 2 * WIDTH, halves=2)}
    assert layouts["grouped_swiglu"] == {3: Panels(16, 2 * WIDTH, halves=2)}
    assert layouts["grouped_combine"] == {3: Panels(16, HIDDEN)}
    assert layouts["latent_attention"] == {6: HeadPanels(16, HEADS, NOPE, VALUE)}
    assert not layouts["rms_norm"]


def test_what_a_model_becomes(golden: Callable[[str], None]) -> None:
    golden(show(MODELS[True]))


@pytest.mark.parametrize("lora", [False, True])
def test_a_layer_is_nine_kernels_and_two_more_where_queries_are_low_rank(lora: bool) -> None:
    two, three = (running(run(decoder(layers, lora), PASSES)[0]) for layers in (2, 3))
    assert {kind: amount - two[kind] for kind, amount in three.items() if amount != two[kind]} == {
        "rms_norm": 2 + lora,
        "linear": 1 + lora,
        "latent_write": 1,
        "latent_attention": 1,
        "linear_add": 1,
        "route": 1,
        "grouped_swiglu": 1,
        "grouped_combine": 1,
    }
