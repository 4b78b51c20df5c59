"""The way into the cube and out of it: rows of the device's memory as fractals, and sums as rows again."""

from __future__ import annotations

from collections.abc import Mapping

from ....compiler.ir import Array
from .machine import Core
from .memory import DTYPES
from .moves import Spread, counted, plain
from .parse import Module, Op
from .scalars import Do, Make
from .trace import FIX, MTE2

QUANT = ("", "NO_QUANT", "F322BF16", "F322F16")  # what the way out may do to numbers


def nd2nz(op: Op, module: Module) -> Do:
    """Rows of the device's memory into fractals [columns, rows, 16, 32 bytes]; columns that are missing in
    the last fractal become 0, rows stay as they are.
    """
    source, target = op.operands[:2]
    plain(op, {"init_out_buffer": ("false", "")})

    def do(core: Core) -> None:
        given, made = core.values[source], core.values[target]
        work = counted(core, given, made, "gm_l1")
        if core.issue(op, MTE2, work, [given], [made]):
            rows, columns = given.shape
            whole = unfolded(made.read()).copy()
            whole[:rows, columns : -(-columns // made.shape[3]) * made.shape[3]] = 0
            whole[:rows, :columns] = given.read()
            made.write(folded(whole, made.shape))

    return do


def unfolded(fractals: Array) -> Array:
    """[n1, m1, m0, n0] as rows: [m1*m0, n1*n0]."""
    n1, m1, m0, n0 = fractals.shape
    return fractals.transpose(1, 2, 0, 3).reshape(m1 * m0, n1 * n0)


def folded(rows: Array, shape: Spread) -> Array:
    """The inverse."""
    n1, m1, m0, n0 = shape
    return rows.reshape(m1, m0, n1, n0).transpose(2, 0, 1, 3)


def fixpipe(op: Op, module: Module) -> Do:
    """Sums from the cube to rows of the device's memory, rounded to its type."""
    source, target = op.operands[:2]
    plain(op, {"pre_quant": QUANT, "dma_mode": ("nz2nd",), "pre_relu": ("", "NO_RELU")})

    def do(core: Core) -> None:
        given, made = core.values[source], core.values[target]
        work = counted(core, given, made, "l0c_gm")
        if core.issue(op, FIX, work, [given], [made]):
            rows, columns = made.shape
            made.write(unfolded(given.read())[:rows, :columns].astype(DTYPES[made.type]))

    return do


OPS: Mapping[str, Make] = {"hivm.hir.nd2nz": nd2nz, "hivm.hir.fixpipe": fixpipe}
