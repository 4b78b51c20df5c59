"""All ops by name."""

from __future__ import annotations

from collections.abc import Mapping

from ..ir import Op
from . import (
    attention,
    cache,
    coded,
    dense,
    elementwise,
    index,
    latent,
    layout,
    norm,
    pages,
    quantize,
    reduce,
    region,
    routing,
    sampling,
    shape,
    sources,
)

_PRIMITIVE = (sources, elementwise, shape, reduce, index, dense, attention, cache, region, layout)
_COMPOSED = (norm, routing, latent, pages, quantize, coded, sampling)

OPS: Mapping[str, Op] = {
    op.name: op for file in (*_PRIMITIVE, *_COMPOSED) for op in vars(file).values() if isinstance(op, Op)
}
