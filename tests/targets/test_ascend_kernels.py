"""Ascend kernels on this CPU, from what the vendor's compiler is given, beside float64: at odd sizes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from moec.targets.ascend import space, trial
from moec.targets.cases_bf16 import Sample

from .ascend import SOC, kernel_of, knobs_of, read, wrong

pytestmark = pytest.mark.usefixtures("ascend_toolchain", "home")
GATE = "groups=1 keep=1 sigmoid=0 top2=0 normalise=1 bias=0 shared=0 eps=1e-20 scale=1"
KERNELS = (
    "embedding v=50 n=33",
    "angles f=4",
    "rms_norm n=48 width=64 start=8 eps=1e-6 f16",
    "linear k=32 n=80 wide=0",
    "linear k=32 n=64 wide=1 f16",
    "linear_add k=40 n=32 wide=0",
    "linear_swiglu k=32 n=64 wide=0",
    f"top_k_gate experts=8 k=2 {GATE}",
    "permute experts=8 k=2",
    f"route k=32 n=8 chosen=2 {GATE}",
    "grouped_swiglu k=32 n=32 experts=8 share=2",
    "grouped_combine k=16 n=32 experts=8 share=2 base=0",
    "grouped_combine k=16 n=32 experts=8 share=2 base=2 f16",
    "latent_write c=14 r=8 width=22 start=0 pairs_in=0 pairs_out=0 eps=1e-6",
    "latent_attention heads=4 nope=12 rope=8 latent=14 value=10 pairs_in=0 pairs_out=0 width=80 start=0 "
    "scale=0.2 f16",
    "rotary r=10 pairs_in=1 pairs_out=1",
    "rotary r=6 pairs_in=0 pairs_out=1 f16",
    "append h=3 d=10",
    "attention heads=6 groups=2 dk=10 dv=14 scale=0.3",
)


@pytest.mark.parametrize("line", KERNELS)
def test_every_call_is_the_references(line: str) -> None:
    assert wrong(read(line)[0]) == []


@pytest.mark.parametrize("line", [each for each in KERNELS if each.split()[0] in ("rms_norm", "linear")])
def test_sums_may_be_larger_than_what_f16_holds(line: str) -> None:
    sample = Sample(read(line)[0])
    feeds = sample.feeds(3)
    feeds[0] = (feeds[0].astype(np.float32) * 6e4).astype(feeds[0].dtype)
    assert feeds[0].max() > 5e4
    example = replace(sample.example(3), operands=sample.operands(feeds), results=sample.wanted(feeds))
    got = trial.run(sample.kernel, space.space(sample.kernel, SOC).defaults, SOC, example)
    assert example.wrong(got) is None


def test_rows_before_a_caches_first_are_left_out() -> None:
    """A mask may have fewer columns of ones than there are new tokens."""
    one = kernel_of("append", {"h": 2, "d": 10})
    example = Sample(one).example(rows=5, batch=2, cached=0)
    past, rows, _, span = example.operands
    span[:, 1] = 2
    wanted = past.copy()
    wanted[:, :, :2] = rows[:, :, 3:]
    (cache,) = trial.run(one, space.space(one, SOC).defaults, SOC, example)
    np.testing.assert_array_equal(cache, wanted)


def test_a_knob_may_be_called_as_a_size_of_the_call_is() -> None:
    numbers = {"heads": 4.0, "latent": 14.0, "rope": 8.0, "scale": 0.2, "knob.rows": 16.0, "block": 64.0}
    one = kernel_of("mla_decode", numbers)
    assert (str(one), one.reals) == ("mla_decode heads=4 latent=14 rope=8 f32+bf16", (("scale", 0.2),))
    assert knobs_of(one, numbers) == {"rows": 16, "block": 64}
