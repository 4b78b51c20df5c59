"""References of elementwise, shape and reducing ops against PyTorch on odd sizes; what the ops refuse."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from arrays import close, real, source, tensors, whole
from torch.nn import functional

from moec.compiler.interpret import interpret
from moec.compiler.ir import B, Graph, L, Op, S, T, TypeMismatch
from moec.compiler.ops import elementwise, index, reduce, shape, sources
from moec.compiler.ops.vocabulary import OPS

torch.set_num_threads(1)
Run = Callable[..., list[Any]]


UNARY: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "neg": torch.neg, "abs": torch.abs, "exp": torch.exp, "cos": torch.cos, "sin": torch.sin,
    "tanh": torch.tanh, "sigmoid": torch.sigmoid, "silu": functional.silu, "softplus": functional.softplus,
    "gelu": functional.gelu,
}  # fmt: skip


@pytest.mark.parametrize("name", UNARY)
@pytest.mark.parametrize("double", [False, True])
def test_unary(run: Run, name: str, double: bool) -> None:
    x = real(3, 1, 7) * 4
    tensor = torch.from_numpy(x).double() if double else torch.from_numpy(x)
    close(run(OPS[name], x, double=double)[0], UNARY[name](tensor), 1e-8 if double else 2e-6)
    assert run(OPS[name], real(0, 3))[0].shape == (0, 3)


@pytest.mark.parametrize("name", ["sqrt", "rsqrt", "log"])
def test_unary_of_positive(run: Run, name: str) -> None:
    x = np.abs(real(5, 3)) + np.float32(0.01)
    close(run(OPS[name], x)[0], getattr(torch, name)(torch.from_numpy(x)))


@pytest.mark.parametrize("name", ["sigmoid", "silu", "softplus"])
def test_large_arguments_do_not_overflow(name: str) -> None:
    x = np.array([-1e4, -100, 100, 1e4], np.float32)
    with np.errstate(over="raise", invalid="raise"):
        result = OPS[name].reference(x)
    close(result, UNARY[name](torch.from_numpy(x)), 1e-30 + 1e-6)


def test_gelu_by_tanh(run: Run) -> None:
    x = real(4, 5) * 3
    close(
        run(elementwise.GELU, x, approximate="tanh")[0],
        functional.gelu(torch.from_numpy(x), approximate="tanh"),
    )
    with pytest.raises(TypeMismatch, match="approximate is 'erf'"):
        elementwise.GELU(source("x", "f32", 2), approximate="erf")


BINARY = {
    "add": torch.add, "sub": torch.sub, "mul": torch.mul, "div": torch.div, "maximum": torch.maximum,
    "minimum": torch.minimum, "equal": torch.eq, "less": torch.lt, "less_equal": torch.le,
    "greater": torch.gt, "greater_equal": torch.ge,
}  # fmt: skip


@pytest.mark.parametrize("name", BINARY)
def test_binary_broadcasts(run: Run, name: str) -> None:
    a, b = np.round(real(3, 1, 7)), np.round(real(5, 1)) + np.float32(0.0)
    b[b == 0] = 1
    close(run(OPS[name], a, b)[0], BINARY[name](*tensors(a, b)))
    assert run(OPS[name], real(0, 3), real(3))[0].shape == (0, 3)


def test_floor_divide_and_pow(run: Run) -> None:
    a, b = whole(20, 3, 4) - 10, whole(4, 4) + 1
    close(run(elementwise.FLOOR_DIVIDE, a, b)[0], torch.floor_divide(*tensors(a, b)))
    close(run(elementwise.FLOOR_DIVIDE, *(x.astype(np.float32) for x in (a, b)))[0],
          torch.floor_divide(*tensors(a, b)).float())  # fmt: skip
    x, y = np.abs(real(3)), real(3)
    close(run(elementwise.POW, x, y)[0], torch.pow(*tensors(x, y)))


def test_logic_and_where(run: Run) -> None:
    a, b = whole(2, 3, 1).astype(bool), whole(2, 4).astype(bool)
    close(run(elementwise.LOGICAL_AND, a, b)[0], torch.logical_and(*tensors(a, b)))
    close(run(elementwise.LOGICAL_OR, a, b)[0], torch.logical_or(*tensors(a, b)))
    close(run(elementwise.LOGICAL_NOT, a)[0], torch.logical_not(*tensors(a)))
    x, y = real(3, 4), real(1)
    close(run(elementwise.WHERE, a, x, y)[0], torch.where(*tensors(a, x, y)))


@pytest.mark.parametrize("dtype", ["f64", "f16", "i64", "i32", "i8", "bool"])
def test_cast(run: Run, dtype: str) -> None:
    x = real(3, 5) * 10
    names = {"f64": "float64", "f16": "float16", "i64": "int64", "i32": "int32", "i8": "int8", "bool": "bool"}
    close(run(elementwise.CAST, x, dtype=dtype)[0], torch.from_numpy(x).to(getattr(torch, names[dtype])))


def test_cast_to_bf16_rounds_as_torch(run: Run) -> None:
    x = real(100)
    there = run(elementwise.CAST, x, dtype="bf16")[0]
    close(there.astype(np.float32), torch.from_numpy(x).bfloat16().float(), 0)


def test_nothing_is_promoted_in_silence() -> None:
    x, n, flag = source("x", "f32", 2), source("n", "i64", 2), source("f", "bool", 2)
    for call in (
        lambda: elementwise.ADD(x, n),
        lambda: elementwise.WHERE(flag, x, n),
        lambda: shape.CONCAT(x, n, axis=0),
    ):
        with pytest.raises(TypeMismatch, match="dtypes f32, i64 differ"):
            call()
    for call in (
        lambda: elementwise.EXP(n),
        lambda: elementwise.DIV(n, n),
        lambda: elementwise.ADD(flag, flag),
        lambda: elementwise.LOGICAL_AND(x, x),
        lambda: elementwise.WHERE(x, x, x),
    ):
        with pytest.raises(TypeMismatch, match="but must be"):
            call()


def test_symbolic_sizes_broadcast_only_with_themselves_and_one() -> None:
    a = source("a", "f32", B, 1, S + T)
    assert elementwise.ADD(a, source("b", "f32", T, T + S)).shape == (B, T, S + T)
    with pytest.raises(TypeMismatch, match=r"S \+ T is not L|L is not S \+ T"):
        elementwise.ADD(a, source("c", "f32", L))


def test_reshape(run: Run) -> None:
    x = real(2, 3, 4)
    close(run(shape.RESHAPE, x, shape=(6, 4))[0], torch.from_numpy(x).reshape(6, 4))
    assert shape.RESHAPE(source("y", "f32", B, S + T, 4), shape=(4 * B, S + T)).shape == (4 * B, S + T)
    assert shape.RESHAPE(source("s", "f32", 1, 1), shape=()).shape == ()
    with pytest.raises(TypeMismatch, match=r"f32\[B, T\] has B\*T elements, but f32\[B, S\] has B\*S"):
        shape.RESHAPE(source("z", "f32", B, T), shape=(B, S))


def test_transpose_and_expand(run: Run) -> None:
    x = real(2, 3, 5)
    close(run(shape.TRANSPOSE, x, perm=(2, 0, 1))[0], torch.from_numpy(x).permute(2, 0, 1))
    close(run(shape.EXPAND, real(1, 3, 1) * 0 + 2, shape=(4, 2, 3, 5))[0], torch.full((4, 2, 3, 5), 2.0))
    for perm in ((0, 1), (0, 1, 1), (-1, 0, 1)):
        with pytest.raises(TypeMismatch, match="no order of the 3 axes"):
            shape.TRANSPOSE(source("x", "f32", 2, 3, 5), perm=perm)
    for sizes in ((2, 3, 4), (3, 5), (1, 3, 5)):
        with pytest.raises(TypeMismatch, match="broadcast"):
            shape.EXPAND(source("x", "f32", 2, 3, 5), shape=sizes)


def test_slice(run: Run) -> None:
    x = real(3, 9)
    close(run(shape.SLICE, x, axis=1, start=2, stop=9, step=3)[0], torch.from_numpy(x)[:, 2:9:3])
    close(run(shape.SLICE, x, axis=0, start=1, stop=1)[0], torch.from_numpy(x)[1:1])
    past = source("past", "f32", B, L, 4)
    assert shape.SLICE(past, axis=1, start=S, stop=S + T).shape == (B, T, 4)
    assert shape.SLICE(past, axis=1, start=S + T, stop=L).shape == (B, L - S - T, 4)


@pytest.mark.parametrize(("start", "stop"), [(-1, 3), (2, 1), (0, 10), (0, L + 1), (S + T, S), (L, L - 1)])
def test_slice_out_of_range_is_refused(start: Any, stop: Any) -> None:
    x = source("x", "f32", 9) if isinstance(stop, int) else source("x", "f32", L)
    with pytest.raises(TypeMismatch, match="does not lie within axis 0"):
        shape.SLICE(x, axis=0, start=start, stop=stop)


def test_slice_out_of_range_at_run_time_is_an_error() -> None:
    past, ids = source("past", "f32", L), source("ids", "i64", T)
    graph = Graph((past, ids), (shape.SLICE(past, axis=0, start=0, stop=T),))
    with pytest.raises(ValueError, match=r"0\.\.3 does not lie within axis 0, 0\.\.2"):
        interpret(graph, {"past": real(2), "ids": whole(2, 3)}, {})


def test_axes_count_from_the_front() -> None:
    x = source("x", "f32", 2, 3)
    for call in (
        lambda: reduce.SOFTMAX(x, axis=-1),
        lambda: reduce.SUM(x, axes=(2,), keepdims=True),
        lambda: shape.CONCAT(x, axis=-1),
        lambda: index.TAKE(x, source("i", "i64", 2), axis=-2),
    ):
        with pytest.raises(TypeMismatch, match="has no axis"):
            call()


def test_concat(run: Run) -> None:
    parts = [real(2, 3), real(2, 0), real(2, 4)]
    close(run(shape.CONCAT, *parts, axis=1)[0], torch.cat(tensors(*parts), 1))
    ends = [source(f"x{i}", "f32", B, size) for i, size in enumerate((S, T, L - S - T))]
    assert shape.CONCAT(*ends, axis=1).shape == (B, L)
    with pytest.raises(TypeMismatch, match="differ in axis 0 only"):
        shape.CONCAT(*ends, axis=0)


def test_iota_and_full(run: Run) -> None:
    close(run(shape.IOTA, size=5, dtype="f32")[0], torch.arange(5).float())
    close(run(shape.FULL, shape=(2, 0), value=1.5, dtype="f32")[0], torch.full((2, 0), 1.5))
    assert run(shape.FULL, shape=(2,), value=0.1, dtype="f32", double=True)[0].dtype == np.float64


@pytest.mark.parametrize("keepdims", [False, True])
@pytest.mark.parametrize("axes", [(1,), (0, 2)])
@pytest.mark.parametrize(
    ("op", "oracle"), [(reduce.SUM, torch.sum), (reduce.MEAN, torch.mean), (reduce.MAX, torch.amax)]
)
def test_reductions(run: Run, op: Op, oracle: Any, axes: tuple[int, ...], keepdims: bool) -> None:
    x = real(3, 5, 7)
    close(
        run(op, x, axes=axes, keepdims=keepdims)[0], oracle(torch.from_numpy(x), dim=axes, keepdim=keepdims)
    )
    assert run(op, real(0, 5, 2), axes=(1,), keepdims=False)[0].shape == (0, 2)


def test_reductions_keep_the_dtype(run: Run) -> None:
    x = whole(5, 3, 4).astype(np.int32)
    assert run(reduce.SUM, x, axes=(0,), keepdims=False)[0].dtype == np.int32
    np.testing.assert_array_equal(
        run(reduce.CUMSUM, x, axis=1)[0], np.cumsum(x, 1).astype(np.int32), strict=True
    )
    with pytest.raises(TypeMismatch, match="ascending"):
        reduce.SUM(source("x", "f32", 2, 3), axes=(1, 0), keepdims=False)


@pytest.mark.parametrize("axis", [0, 2])
def test_softmax(run: Run, axis: int) -> None:
    x = real(3, 5, 7) * 50
    close(run(reduce.SOFTMAX, x, axis=axis)[0], torch.softmax(torch.from_numpy(x), axis))
    assert run(reduce.SOFTMAX, real(0, 5, 7), axis=2)[0].shape == (0, 5, 7)


def test_top_k_breaks_ties_by_the_lower_index(run: Run) -> None:
    values, indices = run(reduce.TOP_K, np.array([[1, 3, 3, 0, 3, 1]], np.float32), k=4)
    assert values.tolist() == [[3, 3, 3, 1]]
    assert indices.tolist() == [[1, 2, 4, 0]]
    x = real(4, 9)
    for result, expected in zip(run(reduce.TOP_K, x, k=5), torch.topk(torch.from_numpy(x), 5)):
        close(result, expected)
    unsigned = np.array([0, 255, 7], np.uint8)
    assert run(reduce.TOP_K, unsigned, k=2)[1].tolist() == [1, 2]
    assert run(reduce.TOP_K, real(0, 9), k=5)[0].shape == (0, 5)
    with pytest.raises(TypeMismatch, match="k is 10, but must be an int from 0 to 9"):
        reduce.TOP_K(source("x", "f32", 4, 9), k=10)


def test_sort_is_stable(run: Run) -> None:
    x = whole(3, 4, 20)
    for result, expected in zip(run(reduce.SORT, x), torch.sort(torch.from_numpy(x), stable=True)):
        close(result, expected)


def test_literals() -> None:
    one = sources.scalar(0.1, "f32")
    array = sources.array_of(one)
    assert array is not None
    assert array.shape == ()
    assert array == np.float32(0.1)
    assert sources.array_of(source("x", "f32", 2)) is None
    data = whole(9, 2, 3)
    np.testing.assert_array_equal(np.array(sources.array_of(sources.literal_of(data))), data, strict=True)
    np.testing.assert_array_equal(np.array(sources.array_of(sources.literal_of(data.T))), data.T, strict=True)
    with pytest.raises(TypeMismatch, match="no literal can hold complex64"):
        sources.literal_of(np.zeros(2, np.complex64))
    with pytest.raises(TypeMismatch, match=r"f32\[2\] takes 8 bytes, but the data has 4"):
        sources.LITERAL(data=b"1234", dtype="f32", shape=(2,))


def test_every_op_is_known_by_its_name() -> None:
    assert all(name == op.name for name, op in OPS.items())
    expected = (
        "input constant literal add where cast reshape iota full top_k sort take scatter_rows bincount linear"
    )
    assert set(expected.split()) <= set(OPS)
