"""Rows as codes of int8: reference, expansion, onnxruntime."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from arrays import real, source

from moec.compiler.ir import TypeMismatch, make
from moec.compiler.ops.coded import DECODE_ROWS, ENCODE_ROWS, format_of

Run = Callable[..., list[Any]]


@pytest.mark.parametrize("columns", [1, 14, 32, 81, 512])
def test_a_group_has_a_scale_and_the_nearest_codes(everywhere: Run, columns: int) -> None:
    x = real(2, 7, columns)
    x[0, 1], x[0, 2], x[0, 3], x[0, 4] = 0, x[0, 2] * 1e37, x[0, 3] * 1e-37, x[0, 4] * 1e-44
    x[1, :, 0] = 30
    codes, scales = everywhere(ENCODE_ROWS, x, format="int8")
    assert (codes.dtype, scales.shape) == (np.int8, (2, 7, -(-columns // 32)))
    for start in range(0, columns, 32):
        part, place = x[..., start : start + 32], slice(start, start + 32)
        np.testing.assert_array_equal(scales[..., start // 32], np.abs(part).max(-1) / np.float32(127))
        mine = scales[..., start // 32, None]
        wanted = np.clip(np.rint(part / np.where(mine > 0, mine, 1)), -127, 127)
        np.testing.assert_array_equal(codes[..., place], wanted)
    assert not codes[0, 1].any()
    back = everywhere(DECODE_ROWS, codes, scales)[0]
    halves = np.repeat(scales, 32, axis=-1)[..., :columns] * np.float32(0.501)
    assert (np.abs(back - x) <= halves)[:, np.arange(7) != 4].all()


def test_halves_go_to_the_even_code(everywhere: Run) -> None:
    x = np.array([[127, 0.5, 1.5, -0.5, -2.5, 126.5]], np.float32)
    assert everywhere(ENCODE_ROWS, x, format="int8")[0].tolist() == [[127, 0, 2, 0, -2, 126]]


def test_what_is_no_number_spoils_its_group_only(run: Run) -> None:
    x = real(1, 64)
    x[0, 3] = np.nan
    back = run(DECODE_ROWS, *run(ENCODE_ROWS, x, format="int8"))[0]
    assert np.isnan(back[0, :32]).all()
    assert np.isfinite(back[0, 32:]).all()


def test_one_large_number_costs_its_neighbours_only() -> None:
    """An e4m3 code with one scale for all of a row is off by 2.6 % of normal numbers, and here too."""
    x, big = real(64, 512), real(64, 512)
    big[:, 100] = 100
    for rows, most in ((x, 0.006), (big, 0.06)):
        off = DECODE_ROWS.reference(*ENCODE_ROWS.reference(rows, format="int8")) - rows
        rest = np.arange(512) != 100
        assert np.sqrt(np.mean(off[:, rest] ** 2)) < most * np.sqrt(np.mean(rows[:, rest] ** 2))


def test_what_is_refused() -> None:
    x = source("x", "f32", 4, 40)
    with pytest.raises(TypeMismatch, match="format is 'int4', but must be 'fp8' or 'int8'"):
        ENCODE_ROWS(x, format="int4")
    codes, scales = make(ENCODE_ROWS, x, format="int8").values
    assert (str(codes.type), str(scales.type)) == ("i8[4, 40]", "f32[4, 2]")
    assert [format_of(node) for node in (codes.node, DECODE_ROWS(codes, scales).node)] == ["int8", "int8"]
    with pytest.raises(TypeMismatch, match="scales is"):
        DECODE_ROWS(codes, source("s", "f32", 4, 1))
    with pytest.raises(TypeMismatch, match="codes is i32, but must be u8 or i8"):
        DECODE_ROWS(source("c", "i32", 4, 40), scales)
