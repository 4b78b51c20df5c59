"""The matmul tile: a few rows of x against panels of a packed weight, sums kept in registers.

Every linear layer, expert and absorbed projection runs on this one nest. Rows are found through offsets, so a
gather by expert costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import reduce
from math import gcd
from typing import Any

from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T

from ...base import Kernel, Schedule
from ..isa import Isa
from .bfloat import BYTES, STORED, widened
from .exponential import silu

# A length no buffer reaches: extents of gathered operands are the caller's business.
FAR = 1 << 40
LINE = 16  # float32 in a cache line
STREAMS = 4  # places that a weight is asked for at
PLACES = 2  # that it is read at by turns where it is not asked for, with few registers


def divisor(size: int, most: int) -> int:
    """The largest divisor of size that is at most `most`."""
    return next(part for part in range(min(size, most), 0, -1) if size % part == 0)


def prefetch(element: Any, level: int = 1) -> Any:
    """Ask for the cache line that holds a buffer's element, into the first cache or the second; harmless
    beyond the buffer's end.
    """
    read, keep, data = T.int32(0), T.int32(4 - level), T.int32(1)
    return T.call_llvm_intrin("void", "llvm.prefetch", T.address_of(element), read, keep, data)


def asked(turn: Any, line: Any, block: int, lines: int, streams: int) -> Any:
    """The line of a block that ask number `line` of a turn is for, where a block is so many turns of so many
    lines: by turns one of each stream, which lie equally far apart, each in order.
    """
    return (line % streams * block + turn) * (lines // streams) + line // streams


@contextmanager
def loops(**frames: Any) -> Iterator[list[Any]]:
    """Loops inside each other, by the names of their variables, which it gives.

    Built as objects: parsing the same loops as source takes a hundred times as long, and tuning writes many.
    """
    with ExitStack() as open_loops:
        yield [IRBuilder.name(name, open_loops.enter_context(frame)) for name, frame in frames.items()]


def finished(
    finish: str, total: Callable[[Any, Any], Any], width: int, Y: Any, E: Any, at: Any, i: Any, j: Any
) -> Any:
    """What row i of a panel leaves in column j of `width`, at Y[at], of its sums total(row, column)."""
    if finish == "swiglu":
        return silu(total(i, j)) * total(i, j + width)
    if finish == "accumulate":
        return Y[at] + E[T.cast(i, "int64")] * total(i, j)
    return total(i, j) + E[at] if finish == "add" else total(i, j)


def operands(stored: str, *more: str) -> Callable[..., Any]:
    """The arguments of a tile that are pointers, `more` of them to float32; gives what makes one a buffer of
    some sizes.
    """
    names = ("X", "XAT", "W", "Y", "YAT", "E", *more)
    kinds = dict.fromkeys(names, "float32") | {"XAT": "int64", "W": stored, "YAT": "int64"}
    pointers = {name: T.arg(name.lower(), T.handle(kind)) for name, kind in kinds.items()}

    def buffer(name: str, *sizes: Any) -> Any:
        align = 8 if kinds[name] == "int64" else BYTES[kinds[name]]
        return IRBuilder.name(name, T.decl_buffer(sizes, kinds[name], data=pointers[name], align=align))

    return buffer


def tile(
    symbol: str,
    rows: int,
    k: int,
    nr: int,
    isa: Isa,
    unroll: int = 1,
    ahead: int = 0,
    finish: str = "store",
    stored: str = "float32",
) -> Any:
    """A function (x, xat, w, y, yat, extra, panels).

        y[yat[i] + p * width + j] = finish(sum_k x[xat[i] + k] * w[p, k, j])

    x, y: float32; xat, yat: int64[rows], in elements; w: [panels, k, nr], `stored` as in bfloat.py; width:
    nr. finish: store; add (plus extra, float32 at y's offsets); accumulate (times extra[i], float32[rows],
    plus y itself); swiglu (silu of the panel's first half times its second; width: nr / 2).

    A panel is read at several places at once, which hardware follows each for itself: parts of k, as many
    as there are registers to sum in, and where those are few, the next block of `ahead` steps is asked for
    at STREAMS places (0: not at all). On two cores with AVX-512, when nobody else used the memory, plain
    loops read 31 GB/s at one place a core, 36 at four and 37 at eight, and 2048x1408 took 0.85, 0.83, 0.83
    and 0.78 of the time of a tile that asks for one place, at 1, 2, 4 and 8 rows.

    A Zen 3 (AVX2, two cores) guesses better than we ask: its loops read 23.7 GB/s at one place a core, 26.7
    at two, 25.9 at four, 25.0 at eight, 20 to 24 where they ask too. So with few registers and `ahead` 0
    turns go to PLACES by turns, into the same sums: 2048x1408 took 0.87, 0.84, 0.81 and 0.95 of the time of
    a tile that asks, at 1 to 4 rows. In bfloat16 asking stays the better from 3 rows on.
    """
    in_line = LINE * BYTES["float32"] // BYTES[stored]
    lanes, vectors = isa.lanes, nr // isa.lanes
    places = divisor(k, PLACES) if isa.registers == 16 and not ahead else 1
    parts = divisor(k, max(1, isa.registers // 2 // (rows * vectors))) if places == 1 else 1
    part = k // places // parts
    unroll = divisor(part, unroll)  # steps of a turn
    block = divisor(part // unroll, max(1, ahead // (parts * unroll)))  # turns of a block
    blocks = part // unroll // block
    lines = -(-unroll * nr // in_line) if ahead else 0  # of a turn
    streams = divisor(max(1, lines), max(1, STREAMS // parts))
    width = nr // 2 if finish == "swiglu" else nr

    def total(i: Any, column: Any) -> Any:
        return reduce(lambda a, b: a + b, [C[q * rows + i, column] for q in range(parts)])

    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name(symbol)
        T.func_attr({"global_symbol": symbol, "tirx.noalias": True})
        buffer = operands(stored)
        panels = T.arg("panels", T.int32())
        X, XAT, W = buffer("X", T.int64(FAR)), buffer("XAT", rows), buffer("W", panels * k * nr)
        Y, YAT, E = buffer("Y", T.int64(FAR)), buffer("YAT", rows), buffer("E", T.int64(FAR))
        with loops(p=T.serial(panels)) as (p,):
            C = IRBuilder.name("C", T.alloc_buffer((parts * rows, nr), "float32", scope="global"))
            with loops(i=T.unroll(parts * rows), v=T.unroll(vectors), j=T.vectorized(lanes)) as (i, v, j):
                T.buffer_store(C, T.float32(0), [i, v * lanes + j])
            with loops(b=T.serial(blocks), place=T.serial(places), turn=T.serial(block)) as (b, place, turn):
                first = place * (k // places) + b * block * unroll  # step of the block
                with loops(q=T.unroll(parts), line=T.unroll(lines)) as (q, line):
                    later = (p * k + q * part + first + block * unroll) * nr
                    T.evaluate(prefetch(W[later + asked(turn, line, block, lines, streams) * in_line]))
                with loops(u=T.unroll(unroll), q=T.unroll(parts)) as (u, q):
                    at = q * part + first + turn * unroll + u
                    with loops(i=T.unroll(rows), v=T.unroll(vectors), j=T.vectorized(lanes)) as (i, v, j):
                        row, column = q * rows + i, v * lanes + j
                        product = X[XAT[i] + T.cast(at, "int64")] * widened(W[(p * k + at) * nr + column])
                        T.buffer_store(C, C[row, column] + product, [row, column])
            with loops(i=T.unroll(rows), v=T.unroll(width // lanes), j=T.vectorized(lanes)) as (i, v, j):
                to = YAT[i] + T.cast(p * width + v * lanes + j, "int64")
                T.buffer_store(Y, finished(finish, total, width, Y, E, to, i, v * lanes + j), [to])
    return builder.get()


def strip(
    symbol: str,
    rows: int,
    nr: int,
    isa: Isa,
    unroll: int,
    finish: str = "store",
    stored: str = "float32",
) -> Any:
    """A function (x, xat, w, y, yat, extra, sums, top, steps, ask, pace, first, last): some steps of k of
    what tile does with one panel, while that strip of the weight is in the first cache for all rows.

        sums[i, j] (if first: 0) += sum_s x[xat[i] + s] * w[s, j]; if last, y[..] = finish(sums)

    sums: float32[rows, nr], written unless last; top: the first row's place in extra, where that has one
    element for each. Meanwhile lines of w are asked for into the second cache, from element `ask` on, one in
    every `pace` elements.
    """
    in_line = LINE * BYTES["float32"] // BYTES[stored]
    lanes, vectors = isa.lanes, nr // isa.lanes
    asks = -(-unroll * nr // (2 * in_line))  # in a turn
    width = nr // 2 if finish == "swiglu" else nr
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name(symbol)
        T.func_attr({"global_symbol": symbol, "tirx.noalias": True})
        buffer = operands(stored, "SUMS")
        numbers = ("top", "steps", "ask", "pace", "first", "last")
        top, steps, ask, pace, first, last = (T.arg(name, T.int32()) for name in numbers)
        X, XAT, W = buffer("X", T.int64(FAR)), buffer("XAT", rows), buffer("W", T.int64(FAR))
        Y, YAT, E = buffer("Y", T.int64(FAR)), buffer("YAT", rows), buffer("E", T.int64(FAR))
        SUMS = buffer("SUMS", rows, nr)
        C = IRBuilder.name("C", T.alloc_buffer((rows, nr), "float32", scope="global"))
        every = [(i, T.ramp(v * lanes, 1, lanes)) for i in range(rows) for v in range(vectors)]
        with T.If(first != 0):
            with T.Then():
                for i, column in every:
                    T.buffer_store(C, T.broadcast(T.float32(0), lanes), [i, column])
            with T.Else():
                for i, column in every:
                    T.buffer_store(C, SUMS[i, column], [i, column])
        with loops(turn=T.serial(T.truncdiv(steps, unroll))) as (turn,):
            for line in range(asks):
                T.evaluate(prefetch(W[T.cast(ask + (turn * asks + line) * pace, "int64")], 2))
            with loops(u=T.unroll(unroll)) as (u,):
                at = T.cast(turn * unroll + u, "int64")
                with loops(i=T.unroll(rows), v=T.unroll(vectors), j=T.vectorized(lanes)) as (i, v, j):
                    column = v * lanes + j
                    product = X[XAT[i] + at] * widened(W[at * nr + column])
                    T.buffer_store(C, C[i, column] + product, [i, column])
        with T.If(last != 0):
            with (
                T.Then(),
                loops(i=T.unroll(rows), v=T.unroll(width // lanes), j=T.vectorized(lanes)) as (i, v, j),
            ):
                to = YAT[i] + T.cast(v * lanes + j, "int64")
                result = finished(finish, lambda _, j: C[i, j], width, Y, E, to, i + top, v * lanes + j)
                T.buffer_store(Y, result, [to])
            with T.Else():
                for i, column in every:
                    T.buffer_store(SUMS, C[i, column], [i, column])
    return builder.get()


def shape(schedule: Any, loops: Any) -> None:
    """Unroll all loops but the last, which becomes vectors."""
    for loop in loops[:-1]:
        schedule.unroll(loop)
    schedule.vectorize(loops[-1])


FINISH = {
    "linear": "store",
    "linear_add": "add",
    "linear_swiglu": "swiglu",
    "grouped_swiglu": "swiglu",
    "grouped_combine": "accumulate",
}


def tiles(kernel: Kernel, schedule: Schedule, isa: Isa, prefix: str) -> Sequence[Any]:
    """Tiles of 1, 2, .. mr rows: whatever rows there are split into nearly equal heights. With few registers
    tiles are so low that many rows would read a panel from the second cache over and over: then strips of as
    many rows, too.
    """
    nr, mr, unroll, ahead = (int(schedule[knob]) for knob in ("nr", "mr", "unroll", "ahead"))
    k, finish, stored = kernel["k"], FINISH.get(kernel.kind, "store"), STORED[kernel.weights]
    heights = range(1, mr + 1)
    made = [tile(f"{prefix}_{rows}", rows, k, nr, isa, unroll, ahead, finish, stored) for rows in heights]
    if isa.registers == 16 and kernel.kind in FINISH:
        turn = gcd(k, 4)  # strips begin at multiples of 4
        made += [strip(f"{prefix}_strip_{rows}", rows, nr, isa, turn, finish, stored) for rows in heights]
    return made


BUILDERS = dict.fromkeys(FINISH, tiles)
