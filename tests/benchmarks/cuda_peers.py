"""Calls of our kernels beside PyTorch's on the same numbers, and the bytes and operations they must take."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch

from moec.targets.base import Kernel

Tensor = torch.Tensor


def normal(*shape: int, scale: float = 1.0) -> Tensor:
    """Random bf16 numbers on the GPU."""
    return torch.empty(shape, dtype=torch.bfloat16, device="cuda").normal_(0, scale)


def apart(mine: Tensor, its: Tensor) -> float:
    """The largest difference over the largest value."""
    torch.cuda.synchronize()
    return float((mine.float() - its.float()).abs().max() / its.float().abs().max())


def grouped(x: Tensor, ids: Tensor, weights: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """A routed layer as PyTorch offers it: rows sorted by expert, torch._grouped_mm, the weighted sum."""
    share, experts = ids.shape[1], first.shape[0]
    flat = ids.reshape(-1)
    order = torch.argsort(flat)
    # No bincount: it waits for the GPU, which a graph cannot.
    counts = torch.zeros(experts, dtype=torch.int32, device=x.device)
    counts.scatter_add_(0, flat, torch.ones_like(flat, dtype=torch.int32))
    ends = torch.cumsum(counts, 0, dtype=torch.int32)
    both = torch._grouped_mm(x[order // share], first.transpose(-2, -1), offs=ends)
    gate, up = both.chunk(2, -1)
    rows = torch._grouped_mm(torch.nn.functional.silu(gate) * up, second.transpose(-2, -1), offs=ends)
    scaled = torch.empty_like(rows)
    scaled[order] = rows
    parts = scaled.view(*ids.shape, -1).float() * weights[..., None]
    return parts.sum(1).to(x.dtype)


class Layer:
    """A routed layer's weights."""

    def __init__(self, experts: int, width: int, hidden: int, share: int) -> None:
        self.experts, self.width, self.hidden, self.share = experts, width, hidden, share
        self.first = normal(experts, 2 * width, hidden, scale=hidden**-0.5)
        self.second = normal(experts, hidden, width, scale=width**-0.5)
        self.fused = torch.compile(grouped, dynamic=False)

    def at(self, tokens: int) -> Routed:
        """A call with so many tokens."""
        return Routed(self, tokens)


class Routed:
    """A call of a routed layer, with experts chosen evenly."""

    def __init__(self, layer: Layer, tokens: int) -> None:
        torch.manual_seed(tokens)
        self.layer, self.tokens = layer, tokens
        self.x = normal(tokens, layer.hidden)
        self.ids = torch.rand(tokens, layer.experts, device="cuda").argsort(1)[:, : layer.share].contiguous()
        self.weights = torch.rand(tokens, layer.share, device="cuda")
        rows = tokens * layer.share
        self.order = torch.empty(rows, dtype=torch.int64, device="cuda")
        self.ends = torch.empty(layer.experts, dtype=torch.int64, device="cuda")
        self.middle = torch.empty(rows, layer.width, dtype=torch.bfloat16, device="cuda")
        self.result = torch.empty_like(self.x)

    @cached_property
    def active(self) -> int:
        """How many experts have a row."""
        return int(self.ids.unique().numel())

    @property
    def bytes(self) -> float:
        """Weights of the experts that have rows, each once, activations in and out."""
        return self.active * 6 * self.layer.width * self.layer.hidden + 2 * self.x.nbytes

    @property
    def operations(self) -> float:
        return 6.0 * self.tokens * self.layer.share * self.layer.width * self.layer.hidden

    def ours(self, permute: Any, swiglu: Any, combine: Any) -> None:
        """Three kernels; the result is in `result`."""
        permute([self.ids], [self.order, self.ends])
        swiglu([self.x, self.order, self.ends, self.layer.first], [self.middle])
        routed = [self.middle, self.order, self.ends, self.layer.second, self.weights]
        combine(routed, [self.result])

    def eager(self) -> Tensor:
        """PyTorch."""
        return grouped(self.x, self.ids, self.weights, self.layer.first, self.layer.second)

    def compiled(self) -> Tensor:
        """PyTorch's compiler on the same."""
        out: Tensor = self.layer.fused(self.x, self.ids, self.weights, self.layer.first, self.layer.second)
        return out


class Linear:
    """A product with weights."""

    def __init__(self, kernel: Kernel, rows: int) -> None:
        k, n = kernel["k"], kernel["n"]
        self.x, self.w = normal(rows, k), normal(n, k, scale=k**-0.5)
        wide = torch.float32 if dict(kernel.dims).get("wide") else torch.bfloat16
        self.result = torch.empty(rows, n, dtype=wide, device="cuda")
        self.bytes = float(self.w.nbytes + self.x.nbytes + self.result.nbytes)
        self.operations = 2.0 * rows * k * n

    def ours(self, step: Any) -> None:
        """Our kernel; the result is in `result`."""
        step([self.x, self.w], [self.result])

    def eager(self) -> Tensor:
        """cuBLAS, with bf16 out."""
        return self.x @ self.w.T


class Decode:
    """Attention over latents alone: queries that are absorbed already, values that are not projected."""

    def __init__(self, kernel: Kernel, batch: int, tokens: int, cached: int) -> None:
        heads, latent, rope, seen = kernel["heads"], kernel["latent"], kernel["rope"], cached + tokens
        q = normal(batch, tokens, heads, latent + rope)
        latents, keys = (normal(batch, 1, seen, width) for width in (latent, rope))
        caches, scales = [latents, keys], []
        if kernel.cache == "fp8":
            scales = [latents.float().abs().amax(dim=-1, keepdim=True) / 448]
            codes = (latents.float() / scales[0]).to(torch.float8_e4m3fn).view(torch.uint8)
            caches = [codes, keys]
        mask = torch.ones(batch, seen, dtype=torch.int64, device="cuda")
        span = torch.tensor([[0, seen]] * batch, device="cuda")
        self.operands = [q, *caches, mask, span, *scales]
        self.result = torch.empty(batch, tokens, heads, latent, dtype=torch.bfloat16, device="cuda")
        self.bytes = float(sum(each.nbytes for each in (q, *caches, *scales, self.result)))
        self.operations = 2.0 * batch * tokens * heads * seen * (2 * latent + rope)

    def ours(self, step: Any) -> None:
        """Our kernel; the result is in `result`."""
        step(self.operands, [self.result])


class Latent:
    """Latent attention of new tokens of some sequences after so many in the cache."""

    def __init__(self, kernel: Kernel, batch: int, tokens: int, cached: int) -> None:
        self.kernel, self.batch, self.tokens, self.seen = kernel, batch, tokens, cached + tokens
        heads, latent, rope = kernel["heads"], kernel["latent"], kernel["rope"]
        turn = torch.rand(batch, tokens, rope // 2, device="cuda")
        mask = torch.ones(batch, self.seen, dtype=torch.int64, device="cuda")
        span = torch.tensor([[0, self.seen]] * batch, device="cuda")
        w = normal(heads * (kernel["nope"] + kernel["value"]), latent, scale=latent**-0.5)
        caches = [normal(batch, 1, self.seen, width) for width in (latent, rope)]
        self.operands = [
            *(normal(batch, tokens, kernel["width"]), turn.cos(), turn.sin()),
            *(*caches, mask, span, w),
        ]
        columns = heads * kernel["value"]
        self.result = torch.empty(batch, tokens, columns, dtype=torch.bfloat16, device="cuda")
        queries = 2 * batch * tokens * heads * (kernel["nope"] + rope)
        self.bytes = float(sum(each.nbytes for each in (*caches, w)) + queries + self.result.nbytes)

    @property
    def operations(self) -> float:
        """By the cheaper of two ways: in the space of latents, or with keys and values made of them."""
        sizes = dict(self.kernel.dims)
        heads, latent, rope, nope, value = (sizes[n] for n in ("heads", "latent", "rope", "nope", "value"))
        pairs = self.batch * (self.seen * self.tokens - self.tokens * (self.tokens - 1) / 2)
        up = 2.0 * self.batch * heads * latent * (nope + value)
        absorbed = up * self.tokens + 2.0 * heads * pairs * (2 * latent + rope)
        return min(absorbed, up * self.seen + 2.0 * heads * pairs * (nope + rope + value))

    def ours(self, step: Any) -> None:
        """Our kernel; the result is in `result`."""
        step(self.operands, [self.result])

    def sdpa(self) -> Tensor:
        """PyTorch on keys and values that are there already."""
        q, k, v = self.materialised
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)

    @cached_property
    def materialised(self) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of every head, random."""
        heads, nope, value = (self.kernel[name] for name in ("heads", "nope", "value"))
        wide = nope + self.kernel["rope"]
        q, k = (normal(self.batch, heads, self.tokens, wide) for _ in range(2))
        return q, k, normal(self.batch, heads, self.tokens, value)
