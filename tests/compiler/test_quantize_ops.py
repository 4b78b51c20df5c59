"""Weights in codes and scales, rounded activations, codes in panels: reference, expansion, onnxruntime."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from arrays import real, source

from moec.compiler.interpret import interpret
from moec.compiler.ir import B, Graph, TypeMismatch, Value, make
from moec.compiler.ops import layout, quantize

Run = Callable[..., list[Any]]


def awkward(*shape: int) -> Any:
    """Weights with a group of zeros, one of tiny numbers, one of large ones, one that is all negative."""
    w = real(*shape)
    groups = w.reshape(-1, 32)
    groups[0], groups[1], groups[2], groups[3] = 0, groups[1] * 1e-9, groups[2] * 1e5, -np.abs(groups[3])
    return w


def error(w: Any, bits: int, run: Run) -> float:
    codes, scales = run(quantize.QUANTIZE, w, bits=bits)
    off = run(quantize.DEQUANTIZE, codes, scales, bits=bits)[0] - w
    return float(np.sqrt((off**2).sum() / (w**2).sum()))


@pytest.mark.parametrize("shape", [(4, 64), (3, 5, 96), (1, 128), (4, 32)])
@pytest.mark.parametrize(("bits", "low", "high"), [(4, -8, 7), (8, -127, 127)])
def test_codes_are_in_their_range(
    everywhere: Run, shape: tuple[int, ...], bits: int, low: int, high: int
) -> None:
    w = awkward(*shape)
    codes, scales = everywhere(quantize.QUANTIZE, w, bits=bits)
    assert (codes.dtype, scales.dtype) == (np.int8, np.float16)
    assert scales.shape == (*shape[:-1], shape[-1] // 32)
    assert low <= codes.min() < codes.max() <= high
    assert np.isfinite(scales).all()
    assert not codes.reshape(-1, 32)[:2].any()
    back = everywhere(quantize.DEQUANTIZE, codes, scales, bits=bits)[0]
    wide = codes.reshape(-1, 32) * scales.astype(np.float32).reshape(-1, 1)
    np.testing.assert_array_equal(back.reshape(-1, 32), wide)


@pytest.mark.parametrize("shape", [(6, 37), (2, 3, 64), (4, 1)])
@pytest.mark.parametrize("bits", [4, 8])
def test_a_whole_row_may_share_a_scale(everywhere: Run, shape: tuple[int, ...], bits: int) -> None:
    w = real(*shape)
    w[0] = 0
    codes, scales = everywhere(quantize.QUANTIZE, w, bits=bits, group=quantize.ROW)
    assert (scales.dtype, scales.shape) == (np.float16, (*shape[:-1], 1))
    assert not codes[0].any()
    back = everywhere(quantize.DEQUANTIZE, codes, scales, bits=bits, group=quantize.ROW)[0]
    np.testing.assert_array_equal(back, codes * scales.astype(np.float32))
    largest = np.abs(w).max(-1, keepdims=True)
    assert (np.abs(back - w) <= largest / {8: 253, 4: 6}[bits]).all()
    trip = everywhere(quantize.ROUND_TRIP, w, group=quantize.ROW)[0]
    assert (np.abs(trip - w) <= largest / 253).all()


def test_formats_name_what_the_ops_do() -> None:
    for name, attrs in quantize.FORMATS.items():
        assert quantize.format_of(make(quantize.QUANTIZE, source("w", "f32", 4, 64), **attrs)) == name


def test_codes_are_the_nearest(run: Run) -> None:
    w = awkward(7, 256)
    for bits in (4, 8):
        codes, scales = run(quantize.QUANTIZE, w, bits=bits)
        wide = scales.astype(np.float32)[..., None]
        with np.errstate(all="ignore"):
            steps = np.where(wide != 0, w.reshape(7, 8, 32) / wide, 0)
        inside = np.clip(steps, *quantize.RANGES[bits])
        assert np.abs(codes.reshape(7, 8, 32) - inside).max() <= 0.5 + 1e-4


def test_the_error_is_what_the_bits_allow(run: Run) -> None:
    w = real(64, 1024)
    plain = np.abs(w.reshape(-1, 32)).max(1, keepdims=True) / 7
    rounded = np.clip(np.rint(w.reshape(-1, 32) / plain), -7, 7) * plain
    simple = float(np.sqrt(((rounded.reshape(w.shape) - w) ** 2).sum() / (w**2).sum()))
    assert 0.080 < error(w, 4, run) < 0.085 < simple
    assert 0.0050 < error(w, 8, run) < 0.0057


def test_codes_do_not_depend_on_precision_around_them(run: Run) -> None:
    w = real(8, 64)
    single = run(quantize.QUANTIZE, w, bits=4)
    double = run(quantize.QUANTIZE, w, bits=4, double=True)
    np.testing.assert_array_equal(single[0], double[0], strict=True)
    np.testing.assert_array_equal(single[1].astype(np.float64), double[1], strict=True)


def test_rows_by_themselves_are_those_of_the_whole(run: Run) -> None:
    w = real(3, 4, 64)
    whole = run(quantize.QUANTIZE, w, bits=4)
    for i in range(3):
        for part, all_ in zip(run(quantize.QUANTIZE, w[i : i + 1], bits=4), whole):
            np.testing.assert_array_equal(part, all_[i : i + 1])


def test_more_groups_than_are_done_at_once(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    w = real(5, 96)
    whole = run(quantize.QUANTIZE, w, bits=4)
    monkeypatch.setattr(quantize, "BLOCK", 2)
    for part, other in zip(run(quantize.QUANTIZE, w, bits=4), whole):
        np.testing.assert_array_equal(part, other, strict=True)


def test_round_trip(everywhere: Run) -> None:
    x = real(5, 64) * np.array([[1], [0], [1e-30], [1e5], [3]], np.float32)
    result = everywhere(quantize.ROUND_TRIP, x)[0]
    assert not result[1].any()
    groups, rounded = x.reshape(-1, 32), result.reshape(-1, 32)
    largest = np.abs(groups).max(1, keepdims=True)
    assert (np.abs(rounded - groups) <= largest / 254 * 1.001).all()
    np.testing.assert_allclose(np.abs(rounded).max(1, keepdims=True), largest, rtol=1e-6)
    again = everywhere(quantize.ROUND_TRIP, result)[0]
    np.testing.assert_allclose(again, result, rtol=1e-6)


def test_round_trip_rounds_halves_to_even(everywhere: Run) -> None:
    x = np.zeros((1, 32), np.float32)
    x[0, :5] = 127, 0.5, 1.5, -0.5, -2.5
    assert everywhere(quantize.ROUND_TRIP, x)[0][0, :5].tolist() == [127, 0, 2, 0, -2]


def test_no_rows_at_all(run: Run) -> None:
    assert run(quantize.ROUND_TRIP, real(0, 64))[0].shape == (0, 64)


def test_quantize_refuses() -> None:
    with pytest.raises(TypeMismatch, match="the last axis is 40, but must be a multiple of 32"):
        quantize.QUANTIZE(source("w", "f32", 4, 40), bits=4)
    with pytest.raises(TypeMismatch, match="bits is 3"):
        quantize.QUANTIZE(source("w", "f32", 4, 64), bits=3)
    with pytest.raises(TypeMismatch, match="the weight is bf16"):
        quantize.QUANTIZE(source("w", "bf16", 4, 64), bits=4)
    with pytest.raises(TypeMismatch, match="scales is"):
        quantize.DEQUANTIZE(source("c", "i8", 4, 64), source("s", "f16", 4, 1), bits=4)
    with pytest.raises(TypeMismatch, match="the last axis is B"):
        quantize.ROUND_TRIP(source("x", "f32", 4, B))
    with pytest.raises(TypeMismatch, match="the last axis is B, but must be a known size above 0"):
        quantize.ROUND_TRIP(source("x", "f32", 4, B), group=quantize.ROW)
    with pytest.raises(TypeMismatch, match="group is 16"):
        quantize.QUANTIZE(source("w", "f32", 4, 64), bits=8, group=16)


def byte(codes: Any, p: int, c: int, j: int, b: int, lanes: int, bits: int, halves: int) -> int:
    """One byte of packed codes, by the description of the layout."""
    rows, width = codes.shape[0] // halves, lanes // halves
    row = p * width + j % width
    inside = row < rows
    line = codes[j // width * rows + row].astype(int) if inside else np.zeros(codes.shape[1], int)
    if bits == 8:
        return int(line[4 * c + b] + 128)
    group, chunk = divmod(c, 4)
    low = 32 * group + 4 * chunk + b
    return int((line[low] + 8) | (line[low + 16] + 8) << 4)


@pytest.mark.parametrize(
    ("rows", "lanes", "halves"), [(8, 4, 1), (7, 4, 1), (1, 4, 1), (8, 4, 2), (10, 8, 2)]
)
@pytest.mark.parametrize("bits", [4, 8])
def test_packed_codes(everywhere: Run, rows: int, lanes: int, halves: int, bits: int) -> None:
    low, high = quantize.RANGES[bits]
    codes = np.random.default_rng(0).integers(low, high + 1, (2, rows, 64)).astype(np.int8)
    packed = everywhere(layout.PACK_CODES, codes, lanes=lanes, bits=bits, halves=halves)[0]
    expected = [
        [byte(each, *place, lanes, bits, halves) for place in np.ndindex(packed.shape[1:])] for each in codes
    ]
    np.testing.assert_array_equal(packed.reshape(2, -1), expected)
    back = everywhere(layout.UNPACK_CODES, packed, rows=rows, bits=bits, halves=halves)[0]
    np.testing.assert_array_equal(back, codes, strict=True)


def test_pack_codes_refuses() -> None:
    with pytest.raises(TypeMismatch, match="a row has 48 codes, but must have a multiple of 32"):
        layout.PACK_CODES(source("c", "i8", 8, 48), lanes=4, bits=4)
    with pytest.raises(TypeMismatch, match="codes is f32"):
        layout.PACK_CODES(source("c", "f32", 8, 64), lanes=4, bits=4)
    packed: Value = source("p", "u8", 2, 8, 4, 4)
    with pytest.raises(TypeMismatch, match="9 rows fill 3 panels of 4, not 2"):
        layout.UNPACK_CODES(packed, rows=9, bits=4)
    with pytest.raises(TypeMismatch, match="a multiple of 4"):
        layout.UNPACK_CODES(source("p", "u8", 2, 6, 4, 4), rows=8, bits=4)


def test_double_precision_knows_codes() -> None:
    codes, scales = source("c", "i8", 2, 32), source("s", "f16", 2, 1)
    graph = Graph((codes, scales), (quantize.DEQUANTIZE(codes, scales, bits=8),), ("w",))
    feeds = {"c": np.ones((2, 32), np.int8), "s": np.full((2, 1), 0.5, np.float16)}
    assert interpret(graph, feeds, {}, double=True)["w"].dtype == np.float64
