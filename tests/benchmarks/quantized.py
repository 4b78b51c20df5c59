"""One product by weights of 4 and 8 bits, beside onnxruntime's MatMulNBits on the same codes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from moec.compiler.ops.quantize import DEQUANTIZE
from moec.targets.base import Kernel

from . import nbits
from .kernels import floats, opened, placed, timed
from .setting import Setting
from .timing import Batch, Errors, Row, interleave, rows

HIDDEN, WIDTH = 2048, 10944  # of a DeepSeek-V2-Lite's dense layer: so wide that copies fit no cache
FEW = 16  # rows up to which memory is the limit
GROUP_BYTES = {4: 18, 8: 34}  # codes of 32 weights and their scale
ACCURACIES = {4: (4, 0), 8: (4,)}


def quantized(setting: Setting) -> Iterator[Row | Errors]:
    """Few rows and many; each call of a run has weights of its own."""
    for bits, accuracies in ACCURACIES.items():
        bench = opened(Kernel("linear", (("k", HIDDEN), ("n", WIDTH)), (), f"int{bits}"), setting.threads)
        codes, scales = bench.weights[1], bench.weights[2]
        copies = bench.copies(1)
        peers = {
            f"MatMulNBits accuracy {each}": nbits.linears(codes, scales, bits, each, copies, setting.threads)
            for each in accuracies
        }
        for count in (1, FEW, 256):
            yield from compared(setting, bench, peers, bits, count)
        x = floats(FEW, HIDDEN)
        exact = x.astype(np.float64) @ floated(codes, scales, bits).T
        found = {name: peer.run(["y0"], {"x": x})[0] for name, peer in peers.items()}
        found["moec"] = bench.run([x], [exact])[0]
        yield Errors(f"linear int{bits}, against its stored weights", apart(found, exact))


def compared(setting: Setting, bench: Any, peers: Mapping[str, Any], bits: int, count: int) -> Iterator[Row]:
    """Rows for one count of rows: beside each peer, and the ceiling that is the limit there."""
    x, copies = {"x": floats(count, HIDDEN)}, bench.copies(1)
    calls = {"moec": Batch(timed(bench, count), bench.calls(count))}
    calls |= {
        name: Batch(placed(runner(peer, x), bench.device.threads), copies) for name, peer in peers.items()
    }
    if count <= FEW:
        calls |= setting.floors(read=HIDDEN * WIDTH / nbits.GROUP * GROUP_BYTES[bits])
    else:
        calls |= setting.floors(int8=2 * HIDDEN * WIDTH * count)
    yield from rows(f"linear int{bits} {HIDDEN}x{WIDTH}, {count} rows", interleave(calls, 15), {})


def runner(session: Any, feeds: Mapping[str, Any]) -> Callable[[], object]:
    """A call of the session with the same feeds."""
    return lambda: session.run(None, feeds)


def apart(found: Mapping[str, Any], exact: Any) -> dict[str, float]:
    """How far each result is from the exact one, over that: root mean squares."""
    return {name: float(np.linalg.norm(each - exact) / np.linalg.norm(exact)) for name, each in found.items()}


def floated(codes: Any, scales: Any, bits: int) -> Any:
    """The weights that codes i8 and scales stand for, float64."""
    return np.asarray(DEQUANTIZE.reference(codes, scales.astype(np.float64), bits=bits))
