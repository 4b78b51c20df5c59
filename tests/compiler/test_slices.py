"""Weights in slices: only the rows that are needed, what is shared once, and never far ahead."""

from __future__ import annotations

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import pytest
from arrays import Recording, real

from moec.compiler import slices as sliced
from moec.compiler.interpret import evaluate
from moec.compiler.ir import Node, Value, make
from moec.compiler.ops import elementwise, layout, shape
from moec.compiler.ops.quantize import QUANTIZE
from moec.compiler.ops.sources import CONSTANT
from moec.compiler.slices import Slices, evaluated, in_order, together


def weight(name: str, *sizes: int) -> Value:
    return CONSTANT(name=name, dtype="f32", shape=sizes)


def packed(w: Value, lanes: int = 4, halves: int = 1) -> tuple[Value, Value]:
    codes, scales = make(QUANTIZE, w, bits=4).values
    return (
        layout.PACK_CODES(codes, lanes=lanes, bits=4, halves=halves),
        layout.PACK(scales, lanes=lanes, halves=halves),
    )


@pytest.mark.parametrize("size", [(5, 6, 64), (10, 64), (3, 64)])
def test_codes_and_scales_are_computed_together(
    size: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sliced, "CHUNK_BYTES", 4 * 64 * 4)
    arrays = {"w": real(*size)}
    rounded: list[Any] = []

    def observe(node: Node, operands: Any, results: Any) -> None:
        rounded.extend([operands[0]] if node.op is QUANTIZE else [])

    values = packed(weight("w", *size))
    ((group, results),) = [(group, list(each)) for group, each in evaluated(values, arrays, observe)]
    assert group == values
    for value, parts in zip(values, zip(*results)):
        np.testing.assert_array_equal(np.concatenate(parts), evaluate(value, arrays), strict=True)
    np.testing.assert_array_equal(np.concatenate(rounded), arrays["w"])  # each row once


def test_a_matrix_is_read_some_panels_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sliced, "CHUNK_BYTES", 4 * 64 * 4)
    weights = Recording(w=real(10, 64))
    for span in (slices := Slices(packed(weight("w", 10, 64)), weights)).spans:
        slices.rows(*span)
    assert weights.reads == [("w", 0, 4), ("w", 4, 8), ("w", 8, 10)]


def test_of_tensors_in_a_row_only_those_that_are_met_are_read() -> None:
    arrays = {name: real(rows, 4) for name, rows in (("a", 3), ("b", 5), ("c", 2))}
    weights = Recording(**arrays)
    joined = shape.CONCAT(*(weight(name, len(array), 4) for name, array in arrays.items()), axis=0)
    slices = Slices((elementwise.NEG(joined),), weights)
    whole = -np.concatenate(list(arrays.values()))
    for start, stop, reads in (
        (0, 2, [("a", 0, 2)]),
        (2, 4, [("a", 2, 3), ("b", 0, 1)]),
        (0, 10, [("a", 0, 3), ("b", 0, 5), ("c", 0, 2)]),
    ):
        weights.reads.clear()
        np.testing.assert_array_equal(slices.rows(start, stop)[0], whole[start:stop], strict=True)
        assert weights.reads == reads


def test_what_is_needed_whole_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sliced, "CHUNK_BYTES", 64)
    weights = Recording(w=real(12, 64))
    values = packed(weight("w", 12, 64), halves=2)
    results = list(zip(*next(iter(evaluated(values, weights)))[1]))
    np.testing.assert_array_equal(np.concatenate(results[0]), evaluate(values[0], weights.arrays))
    assert weights.reads == [("w", 0, None)] * 2  # by codes and by scales, but not by each slice


def test_groups_are_what_shares_a_node_of_several_results() -> None:
    first, second, plain = packed(weight("a", 8, 64)), packed(weight("b", 8, 64)), weight("c", 3)
    assert together([plain, *first, *second]) == [(plain,), first, second]


def test_results_come_in_order_and_not_far_ahead() -> None:
    started: list[int] = []

    def call(i: int) -> int:
        started.append(i)
        time.sleep(0.01 * (3 - i % 3))
        return i

    with ThreadPoolExecutor(3) as pool:
        for i, result in enumerate(in_order(pool, (partial(call, i) for i in range(12)), ahead=2)):
            assert result == i
            assert max(started) <= i + 3


def test_an_error_of_a_slice_is_raised() -> None:
    def fail() -> None:
        raise KeyError("w")

    with ThreadPoolExecutor(1) as pool, pytest.raises(KeyError):
        list(in_order(pool, [fail], ahead=2))


def test_no_more_than_a_few_slices_are_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sliced, "CHUNK_BYTES", 1)
    alive, most, lock = 0, 0, threading.Lock()

    class Counting:
        def read(self, name: str, start: int = 0, stop: int | None = None) -> Any:
            nonlocal alive, most
            with lock:
                alive += 1
                most = max(most, alive)
            return np.zeros((1, 2), np.float32)

    for _, slices in evaluated([weight("w", 200, 2)], Counting()):
        for _ in slices:
            alive -= 1
    assert most <= 2 * len(os.sched_getaffinity(0)) + 2
