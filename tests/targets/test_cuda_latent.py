"""Schedules of latent attention on a GPU: what is admitted, what is refused and why, and the defaults."""

from __future__ import annotations

import pytest

from moec.targets.base import Kernel, Space
from moec.targets.cuda import space
from moec.targets.cuda.sm import SMS
from moec.targets.cuda.space_latent import shared_bytes
from moec.targets.cuda.widths import tiled

SM = SMS[0]


def attention(
    heads: int, rope: int = 64, nope: int = 128, latent: int = 512, start: int = 0, cache: str = "bf16"
) -> Kernel:
    """latent_attention; 16 heads are V2-Lite's, 128 those of V3."""
    sizes = {"heads": heads, "nope": nope, "rope": rope, "latent": latent, "value": nope}
    places = {"pairs_in": 0, "pairs_out": 1, "width": start + heads * (nope + rope), "start": start}
    return Kernel("latent_attention", tuple({**sizes, **places}.items()), (("scale", 0.1),), f"bf16+{cache}")


def decode(heads: int) -> Kernel:
    return Kernel("mla_decode", (("heads", heads), ("latent", 512), ("rope", 64)), (("scale", 0.1),))


LITE, V3, TINY = attention(16), attention(128), attention(4, rope=8, nope=12, latent=14)
CODED = tuple(attention(heads, cache="fp8") for heads in (16, 128))
KERNELS = (*CODED, LITE, V3, TINY, attention(16, rope=32), attention(3, latent=128), decode(16), decode(128))


def of(kernel: Kernel) -> Space:
    return space.space(kernel, SM)


@pytest.mark.parametrize("kernel", KERNELS, ids=str)
def test_defaults_are_admitted(kernel: Kernel) -> None:
    assert of(kernel).objection_to(of(kernel).defaults) is None


@pytest.mark.parametrize("kernel", [LITE, V3, *CODED, decode(128)], ids=str)
def test_defaults_are_among_the_choices(kernel: Kernel) -> None:
    found = of(kernel)
    for default in found.defaults.values():
        assert all(default[knob] in values for knob, values in found.choices.items())
        assert set(default) == set(found.choices)


@pytest.mark.parametrize(
    "kernel", [TINY, attention(4, latent=640), attention(4, start=4), attention(4, nope=96)], ids=str
)
def test_sizes_that_fit_no_tiles_leave_nothing_to_choose(kernel: Kernel) -> None:
    assert not tiled(kernel)
    assert (of(kernel).choices, of(kernel).default) == ({}, {})


def test_writing_leaves_nothing_to_choose() -> None:
    sizes = {"c": 512, "r": 64, "width": 576, "start": 0, "pairs_in": 0, "pairs_out": 1}
    assert of(Kernel("latent_write", tuple(sizes.items()), (("eps", 1e-6),))).choices == {}


def test_attention_alone_has_no_knobs_of_projections_or_of_prefill() -> None:
    assert {knob[:2] for knob in of(decode(16)).choices} == {"a_"}
    assert not {"a_project", "a_most"} & set(of(decode(16)).choices)


def test_shared_memory_is_bounded() -> None:
    large = {**of(V3).default, "a_way": "plain", "a_stages": 4}
    why = of(V3).objection(large)
    assert why
    assert str(shared_bytes(V3, large)) in why
    assert str(SM.shared_bytes) in why


def test_over_codes_rows_say_how_many_threads_multiply() -> None:
    why = str(of(CODED[0]).objection({**of(CODED[0]).default, "a_threads": 256}))
    assert why == "a_rows=16 over codes goes with a_threads=128, not 256"


def test_the_seesaw_has_one_shape() -> None:
    assert "a_way=seesaw is for" in str(of(V3).objection({**of(V3).default, "a_keys": 32}))
    narrow = attention(128, rope=32)
    assert "not" in str(of(narrow).objection({**of(V3).default}))


def test_results_fit_registers() -> None:
    wide = {**of(V3).default, "a_way": "plain", "a_stages": 1, "a_threads": 128}
    assert of(V3).objection(wide) == "256 registers a thread for the result alone"


def test_the_cache_is_read_early_only_behind_a_step_that_waited_for_it() -> None:
    early = {"a_way": "early", "a_rows": 16, "a_threads": 256}
    assert of(LITE).objection({**of(LITE).default, **early}) is None
    why = of(decode(16)).objection({**of(decode(16)).default, **early})
    assert "behind a step that waits for the cache" in str(why)
