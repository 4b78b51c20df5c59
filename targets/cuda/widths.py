"""How wide loads and tiles of the small kernels are: what both their code and their spaces go by."""

from __future__ import annotations

from ..base import Kernel

LANES = 32  # of a warp
TILE_M, TILE_K = 64, 64  # of a router's tiles


def widest(*sizes: int) -> int:
    """How many neighbouring bf16 one load takes where all offsets are multiples of these sizes: at most 8."""
    return next(width for width in (8, 4, 2, 1) if all(size % width == 0 for size in sizes))


def norm_vector(kernel: Kernel) -> int:
    """What a load of rms_norm takes: less than it could where lanes would have nothing to do."""
    vector = widest(kernel["n"], kernel["width"], kernel["start"])
    while vector > 2 and kernel["n"] // vector < LANES:
        vector //= 2
    return vector


def tiled(kernel: Kernel) -> bool:
    """Whether sizes of latent attention are whole tiles, at addresses that bulk copies can read."""
    wanted = {"latent": 128, "rope": 32}
    if kernel.kind == "latent_attention":
        wanted |= {"nope": 64, "value": 64, "width": 8, "start": 8}
    return not any(kernel[name] % size for name, size in wanted.items()) and kernel["latent"] <= 512
