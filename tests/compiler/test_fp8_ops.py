"""Weights as e4m3 in tiles of 128 x 128, tokens in groups of 128: reference, expansion, onnxruntime."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from arrays import real, source

from moec.compiler import slices
from moec.compiler.checkpoint import unblock
from moec.compiler.ir import TypeMismatch, make
from moec.compiler.ops import fp8
from moec.compiler.ops.coded import DECODE_ROWS, ENCODE_ROWS
from moec.compiler.ops.quantize import DEQUANTIZE, QUANTIZE, ROUND_TRIP, TILE
from moec.compiler.ops.sources import CONSTANT

Run = Callable[..., list[Any]]
E4M3 = ml_dtypes.float8_e4m3fn
FORMAT = {"bits": 8, "group": TILE}
SHAPES = [(128, 128), (256, 384), (130, 160), (1, 16), (3, 200, 144), (2, 128, 256)]


def tile_by_tile(w: Any) -> tuple[Any, Any]:
    """Codes and scales of a matrix, one tile after the other."""
    codes = np.zeros(w.shape, E4M3)
    scales = np.zeros([-(-size // 128) for size in w.shape], np.float32)
    for i, j in np.ndindex(*scales.shape):
        place = slice(i * 128, i * 128 + 128), slice(j * 128, j * 128 + 128)
        scales[i, j] = np.abs(w[place]).max() / np.float32(448)
        codes[place] = (w[place] / (scales[i, j] or np.float32(1))).astype(E4M3)
    return codes, scales


@pytest.mark.parametrize("shape", SHAPES)
def test_each_tile_has_a_scale_and_the_nearest_codes(everywhere: Run, shape: tuple[int, ...]) -> None:
    w = real(*shape)
    w[..., :1, :16] *= 1e4
    codes, scales = everywhere(QUANTIZE, w, **FORMAT)
    assert (codes.dtype, scales.dtype) == (np.uint8, np.float32)
    for one, mine, factors in zip(*(x.reshape(-1, *x.shape[-2:]) for x in (w, codes, scales))):
        wanted, wide = tile_by_tile(one)
        np.testing.assert_array_equal(mine.view(E4M3).astype(np.float32), wanted.astype(np.float32))
        np.testing.assert_array_equal(factors, wide)
    back = everywhere(DEQUANTIZE, codes, scales, **FORMAT)[0]
    wide = np.repeat(np.repeat(scales, 128, -2), 128, -1)[..., : shape[-2], : shape[-1]]
    np.testing.assert_array_equal(back, codes.view(E4M3).astype(np.float32) * wide)
    assert (np.abs(back - w) <= np.maximum(np.abs(w) / 16, wide * 2**-10)).all()


def test_zeros_and_tiny_numbers_stay_finite(everywhere: Run) -> None:
    w = real(256, 256)
    w[:128, :128], w[:128, 128:], w[128:, :128] = 0, w[:128, 128:] * 1e-30, -np.abs(w[128:, :128]) * 1e30
    w[200, 200] = -1e-20
    codes, scales = everywhere(QUANTIZE, w, **FORMAT)
    assert np.isfinite(scales).all()
    assert scales[0, 0] == 0
    assert not codes[:128, :128].any()
    assert codes[200, 200] == 0  # no negative zero
    assert not np.isin(codes, (0x7F, 0x80, 0xFF)).any()
    assert np.isfinite(everywhere(DEQUANTIZE, codes, scales, **FORMAT)[0]).all()


def stored(w: Any, power: bool = False) -> tuple[Any, Any]:
    """A matrix as checkpoints have it: codes and scales, these by the largest of a tile, or powers of two."""
    codes, scales = tile_by_tile(w)
    if power:
        scales = np.exp2(np.ceil(np.log2(scales))).astype(np.float32)
        wide = np.repeat(np.repeat(scales, 128, 0), 128, 1)[: w.shape[0], : w.shape[1]]
        codes = (w / wide).astype(E4M3)
    return codes, scales


def test_codes_of_a_checkpoint_come_back(run: Run) -> None:
    """Scaled by the largest of a tile: the very codes, and scales up to the last bit."""
    w = real(300, 528) * np.exp2(np.arange(300) % 7 - 20)[:, None].astype(np.float32)
    codes, scales = stored(w)
    mine, factors = run(QUANTIZE, unblock(codes, scales, 128), **FORMAT)
    np.testing.assert_array_equal(mine, np.where(codes.view(np.uint8) == 0x80, 0, codes.view(np.uint8)))
    np.testing.assert_allclose(factors, scales, rtol=2**-23)


def test_numbers_under_powers_of_two_come_back(everywhere: Run) -> None:
    """Also where no code of a tile is the largest one: nothing is rounded twice."""
    w = unblock(*stored(real(300, 272), power=True), 128)
    codes, scales = everywhere(QUANTIZE, w, **FORMAT)
    assert (np.frexp(scales)[0] == 0.5).all()
    np.testing.assert_array_equal(everywhere(DEQUANTIZE, codes, scales, **FORMAT)[0], w)


@pytest.mark.parametrize("shape", [(5, 128), (2, 3, 256), (4, 144), (1, 16)])
def test_round_trip(everywhere: Run, shape: tuple[int, ...]) -> None:
    x = real(*shape)
    x[..., :16] *= 100
    result = everywhere(ROUND_TRIP, x, group=TILE)[0]
    for start in range(0, shape[-1], 128):
        part = x[..., start : start + 128]
        scales = np.abs(part).max(-1, keepdims=True) / np.float32(448)
        np.testing.assert_array_equal(
            result[..., start : start + 128], (part / scales).astype(E4M3).astype(np.float32) * scales
        )


def test_round_trip_of_zeros_and_of_no_rows(everywhere: Run, run: Run) -> None:
    assert not everywhere(ROUND_TRIP, np.zeros((2, 160), np.float32), group=TILE)[0].any()
    assert run(ROUND_TRIP, real(0, 256), group=TILE)[0].shape == (0, 256)


def test_double_precision_has_the_same_codes(run: Run) -> None:
    w = real(130, 144)
    single, double = (run(QUANTIZE, w, **FORMAT, double=double) for double in (False, True))
    np.testing.assert_array_equal(single[0], double[0], strict=True)
    np.testing.assert_array_equal(single[1].astype(np.float64), double[1], strict=True)


@pytest.mark.parametrize("shape", [(5, 130, 144), (300, 144)])
def test_slices_are_those_of_the_whole(monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...]) -> None:
    """A tile is never cut: experts are done apart, a matrix whole."""
    monkeypatch.setattr(slices, "CHUNK_BYTES", 20_000)
    w = real(*shape)
    node = make(QUANTIZE, CONSTANT(name="w", dtype="f32", shape=shape), **FORMAT)
    whole = QUANTIZE.reference(w, **FORMAT)
    for value, wanted in zip(node.values, whole):
        found = np.concatenate(list(slices.evaluate_rows(value, {"w": w})))
        np.testing.assert_array_equal(found, wanted)


def test_what_is_refused() -> None:
    quantize = partial(QUANTIZE, **FORMAT)
    with pytest.raises(TypeMismatch, match="the last axis is 40, but must be a multiple of 16"):
        quantize(source("w", "f32", 4, 40))
    with pytest.raises(TypeMismatch, match="must have rows"):
        quantize(source("w", "f32", 64))
    with pytest.raises(TypeMismatch, match="codes is i8, but must be u8"):
        DEQUANTIZE(source("c", "i8", 4, 64), source("s", "f32", 1, 1), **FORMAT)
    with pytest.raises(TypeMismatch, match="scales is"):
        DEQUANTIZE(source("c", "u8", 129, 64), source("s", "f32", 1, 1), **FORMAT)


def test_a_code_is_one_of_256_numbers() -> None:
    numbers = fp8.numbers()
    assert np.isnan(numbers[[0x7F, 0xFF]]).all()
    assert numbers[[0x7E, 0xFE, 0x38, 0x01]].tolist() == [448, -448, 1, 2**-9]


def test_a_row_has_a_scale_and_the_nearest_codes(everywhere: Run) -> None:
    x = real(2, 3, 40)
    x[0, 1], x[1, 2] = 0, x[1, 2] * 1e20
    x[1, 1, :2] = -1e-20, 1e-20
    codes, scales = everywhere(ENCODE_ROWS, x, format="fp8")
    np.testing.assert_array_equal(scales, np.abs(x).max(axis=-1, keepdims=True) / np.float32(448))
    wanted = (x / np.where(scales > 0, scales, 1)).astype(E4M3).astype(np.float32)
    np.testing.assert_array_equal(codes.view(E4M3).astype(np.float32), wanted)
    assert not np.isin(codes, (0x7F, 0x80, 0xFF)).any()
    back = everywhere(DECODE_ROWS, codes, scales)[0]
    assert (np.abs(back - x) <= np.maximum(np.abs(x) / 16, scales * 2**-10)).all()
    many = real(64, 512)
    off = DECODE_ROWS.reference(*ENCODE_ROWS.reference(many, format="fp8")) - many
    assert np.sqrt(np.mean(off**2)) < 0.03 * np.sqrt(np.mean(many**2))  # of normal numbers
