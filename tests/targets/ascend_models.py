# ruff: noqa: E501
"""The kernels that models ask for, by model: as `moec explain` lists them. Their reals shape no code."""

from __future__ import annotations

from collections.abc import Mapping

from moec.targets.ascend import space
from moec.targets.base import Kernel
from moec.targets.regions import REALS

VALUES = {"eps": 1e-6, "scale": 0.125}

# Sizes of tests/models.py: no powers of two, and all different where they may be.
TINY = """
embedding v=64 n=32 bf16
angles f=5 f32
rms_norm n=24 width=46 start=0 f32
rms_norm n=10 width=10 start=0 f16
linear k=32 n=102 wide=0 bf16
linear k=32 n=64 wide=1 f16
linear_add k=40 n=32 wide=0 bf16
linear_swiglu k=32 n=96 wide=0 bf16
linear k=32 n=102 wide=0 int8row
linear_add k=40 n=32 wide=0 int8row
linear_swiglu k=32 n=96 wide=0 int8row
top_k_gate experts=8 k=2 groups=4 keep=2 sigmoid=1 top2=1 normalise=1 bias=1 shared=1 f32
route k=32 n=8 chosen=2 groups=4 keep=2 sigmoid=1 top2=1 normalise=1 bias=1 shared=1 bf16
permute experts=8 k=3 f32
grouped_swiglu k=32 n=32 experts=10 share=4 bf16
grouped_combine k=16 n=32 experts=10 share=4 base=2 bf16
grouped_combine k=11 n=22 experts=5 share=3 base=0 f16
grouped_swiglu k=32 n=32 experts=10 share=4 int8row
grouped_combine k=16 n=32 experts=10 share=4 base=2 int8row
latent_write c=14 r=8 width=102 start=80 pairs_in=0 pairs_out=0 f32+bf16
latent_attention heads=4 nope=12 rope=8 latent=14 value=10 pairs_in=0 pairs_out=1 width=80 start=0 bf16+bf16
mla_decode heads=4 latent=14 rope=8 f32+bf16
rotary r=10 pairs_in=1 pairs_out=1 f32
rotary r=6 pairs_in=0 pairs_out=0 f16
append h=2 d=10 f32+bf16
attention heads=4 groups=2 dk=10 dv=10 f32+bf16
"""
V2_LITE = """
embedding v=102400 n=2048 bf16
angles f=32 f32
rms_norm n=2048 width=2048 start=0 f32
linear k=2048 n=3648 wide=0 bf16
linear k=2048 n=102400 wide=1 bf16
linear_add k=10944 n=2048 wide=0 bf16
linear_swiglu k=2048 n=21888 wide=0 bf16
linear k=2048 n=3648 wide=0 int8row
top_k_gate experts=64 k=6 groups=1 keep=1 sigmoid=0 top2=0 normalise=0 bias=0 shared=2 f32
route k=2048 n=64 chosen=6 groups=1 keep=1 sigmoid=0 top2=0 normalise=0 bias=0 shared=2 bf16
permute experts=66 k=8 f32
grouped_swiglu k=2048 n=2816 experts=66 share=8 bf16
grouped_combine k=1408 n=2048 experts=66 share=8 base=2 bf16
grouped_swiglu k=2048 n=2816 experts=66 share=8 int8row
grouped_combine k=1408 n=2048 experts=66 share=8 base=2 int8row
latent_write c=512 r=64 width=3648 start=3072 pairs_in=0 pairs_out=0 f32+bf16
latent_attention heads=16 nope=128 rope=64 latent=512 value=128 pairs_in=0 pairs_out=0 width=3648 start=0 bf16+bf16
mla_decode heads=16 latent=512 rope=64 f32+bf16
"""
# Whole, then the slices of 8 and 16 devices.
V3 = """
embedding v=129280 n=7168 bf16
rms_norm n=7168 width=7168 start=0 f32
rms_norm n=1536 width=2112 start=0 f32
linear k=7168 n=2112 wide=0 bf16
linear k=1536 n=24576 wide=0 bf16
linear k=7168 n=129280 wide=1 bf16
linear_add k=16384 n=7168 wide=0 bf16
linear_swiglu k=7168 n=36864 wide=0 bf16
linear k=7168 n=2112 wide=0 int8row
linear_add k=16384 n=7168 wide=0 int8row
linear_swiglu k=7168 n=36864 wide=0 int8row
top_k_gate experts=256 k=8 groups=8 keep=4 sigmoid=1 top2=1 normalise=1 bias=1 shared=1 f32
route k=7168 n=256 chosen=8 groups=8 keep=4 sigmoid=1 top2=1 normalise=1 bias=1 shared=1 bf16
permute experts=257 k=9 f32
grouped_swiglu k=7168 n=4096 experts=257 share=9 bf16
grouped_combine k=2048 n=7168 experts=257 share=9 base=2 bf16
grouped_swiglu k=7168 n=4096 experts=257 share=9 int8row
grouped_combine k=2048 n=7168 experts=257 share=9 base=2 int8row
latent_write c=512 r=64 width=2112 start=1536 pairs_in=0 pairs_out=1 f32+bf16
latent_attention heads=128 nope=128 rope=64 latent=512 value=128 pairs_in=0 pairs_out=1 width=24576 start=0 bf16+bf16
mla_decode heads=128 latent=512 rope=64 f32+bf16
grouped_swiglu k=7168 n=512 experts=257 share=9 bf16
grouped_combine k=256 n=7168 experts=257 share=9 base=2 bf16
grouped_swiglu k=7168 n=256 experts=257 share=9 bf16
grouped_combine k=128 n=7168 experts=257 share=9 base=2 bf16
latent_attention heads=16 nope=128 rope=64 latent=512 value=128 pairs_in=0 pairs_out=1 width=3072 start=0 bf16+bf16
latent_attention heads=8 nope=128 rope=64 latent=512 value=128 pairs_in=0 pairs_out=1 width=1536 start=0 bf16+bf16
mla_decode heads=8 latent=512 rope=64 f32+bf16
"""
# Qwen3-30B-A3B.
QWEN3 = """
embedding v=151936 n=2048 bf16
rms_norm n=2048 width=2048 start=0 f32
rms_norm n=128 width=128 start=0 f32
angles f=64 f32
linear k=2048 n=4096 wide=0 bf16
linear k=2048 n=512 wide=0 bf16
linear k=2048 n=151936 wide=1 bf16
linear_add k=4096 n=2048 wide=0 bf16
grouped_swiglu k=2048 n=1536 experts=128 share=8 bf16
grouped_combine k=768 n=2048 experts=128 share=8 base=2 bf16
top_k_gate experts=128 k=8 groups=1 keep=1 sigmoid=0 top2=0 normalise=1 bias=0 shared=0 f32
route k=2048 n=128 chosen=8 groups=1 keep=1 sigmoid=0 top2=0 normalise=1 bias=0 shared=0 bf16
permute experts=128 k=8 f32
rotary r=128 pairs_in=1 pairs_out=1 f32
append h=4 d=128 f32+bf16
attention heads=32 groups=4 dk=128 dv=128 f32+bf16
"""


def kernel(line: str) -> Kernel:
    """From "linear k=2048 n=64 wide=0 bf16", as a kernel is written."""
    kind, *dims, dtype = line.split()
    sizes = tuple((name, int(size)) for name, _, size in (dim.partition("=") for dim in dims))
    return Kernel(kind, sizes, tuple((name, VALUES[name]) for name in REALS.get(kind, ())), dtype)


def kernels(lines: str) -> list[Kernel]:
    """Those of a model. Raises ValueError for one without a builder, rather than leave it out."""
    found = [*map(kernel, lines.strip().splitlines())]
    for one in found:
        space.known(one)
    return found


def built_as(one: Kernel) -> str:
    """The name of its builder."""
    return f"{one.kind} {one.weights}" if one.weights.startswith("int8") else one.kind


MODELS: Mapping[str, str] = {"tiny": TINY, "v2_lite": V2_LITE, "v3": V3, "qwen3": QWEN3}
