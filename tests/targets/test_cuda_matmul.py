"""Products with weights on CUDA: which schedules are there, and that tiles cover every row once. No GPU, and
nothing compiled: what finds tiles is run as plain Python.
"""

from __future__ import annotations

import importlib
import sys
import threading
from collections import Counter
from types import ModuleType
from typing import Any

import pytest

from moec.targets.base import BUCKETS, Kernel
from moec.targets.cuda.gemm_tiles import Tiles, tiles_of
from moec.targets.cuda.sm import SMS
from moec.targets.cuda.space import space

SM = SMS[0]
PLACES = "moec.targets.cuda.kernels.gemm_places"


def kernel(kind: str, **dims: int) -> Kernel:
    return Kernel(kind, tuple(dims.items()), (), "bf16")


MAIN = (
    kernel("grouped_swiglu", k=2048, n=1536, experts=128, share=8),
    kernel("grouped_swiglu", k=7168, n=4096, experts=257, share=9),
    kernel("grouped_swiglu", k=2048, n=2816, experts=66, share=8),
    kernel("grouped_combine", k=768, n=2048, experts=128, share=8, base=0),
    kernel("grouped_combine", k=2048, n=7168, experts=257, share=9, base=1),
    kernel("grouped_combine", k=1408, n=2048, experts=66, share=8, base=2),
    kernel("linear", k=2048, n=3648, wide=0),
    kernel("linear", k=2048, n=102400, wide=1),
    kernel("linear_add", k=10944, n=2048, wide=0),
    kernel("linear_swiglu", k=2048, n=21888, wide=0),
)
TINY = (
    kernel("grouped_swiglu", k=32, n=32, experts=10, share=4),
    kernel("grouped_combine", k=16, n=32, experts=9, share=3, base=2),
    kernel("linear", k=32, n=102, wide=0),
    kernel("linear_add", k=10, n=22, wide=0),
    kernel("linear_swiglu", k=14, n=22, wide=0),
    kernel("grouped_combine", k=11, n=22, experts=5, share=3, base=0),
)


@pytest.mark.parametrize("one", [*MAIN, *TINY], ids=str)
def test_every_default_can_run(one: Kernel) -> None:
    each = space(one, SM)
    assert each.objection_to(each.defaults) is None
    assert [why for schedule in each.known if (why := each.objection(schedule))] == []
    assert set(each.defaults) <= set(BUCKETS)


@pytest.mark.parametrize("one", MAIN, ids=str)
def test_many_tokens_take_the_tensor_cores_tiles(one: Kernel) -> None:
    assert space(one, SM).defaults[max(space(one, SM).defaults)]["path"] == "gemm"


def test_rows_of_no_whole_16_bytes_stay_off_them() -> None:
    each = space(TINY[3], SM)
    assert {schedule["path"] for schedule in each.defaults.values()} == {"gemv"}
    moved = {**each.defaults[1], "path": "gemm", "t_rows": 128}
    assert "multiple of 8" in str(each.objection(moved))


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"t_rows": 256}, "t_rows=256 is not 64, 128 or 192"),
        ({"t_stages": 8}, "bytes of shared memory"),
        ({"t_rows": 192, "t_cols": 128, "t_stages": 2}, "registers a thread"),
        ({"t_split": 2}, "t_split=2 is not among [1]"),
    ],
)
def test_what_cannot_run_is_told(changed: dict[str, int], why: str) -> None:
    each = space(MAIN[0], SM)
    large = {**rest(MAIN[0]), "t_rows": 128, "t_cols": 128, "t_stages": 4}
    assert each.objection(large) is None
    assert why in str(each.objection({**large, **changed}))


def test_parts_of_k_have_steps_each() -> None:
    each = space(MAIN[6], SM)
    tiny = kernel("linear", k=128, n=64, wide=0)
    split = {**rest(MAIN[6]), "t_rows": 128, "t_cols": 64, "t_split": 4, "t_stages": 4}
    assert each.objection(split) is None
    assert "too few steps of 64 for 4 parts" in str(space(tiny, SM).objection(split))


def test_blocks_stay_where_each_has_several_pieces() -> None:
    stay = {str(one): bool(space(one, SM).default["v_stay"]) for one in MAIN}
    assert [name for name, stays in stay.items() if stays] == [str(MAIN[i]) for i in (0, 1, 2, 7, 9)]


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"v_stay": 2, "v_blocks": 1}, "v_stay=2 blocks stay where v_blocks=1 have registers"),
        ({"v_unroll": 2, "v_depth": 3}, "4 batches are no multiple of v_depth=3"),
    ],
)
def test_what_cannot_stay_is_told(changed: dict[str, int], why: str) -> None:
    each = space(MAIN[2], SM)
    assert each.objection(each.default) is None
    assert each.objection({**each.default, **changed}) == why


def rest(one: Kernel) -> dict[str, int | str]:
    """A schedule of the tensor cores' tiles, every knob at its first value."""
    return {**{knob: values[0] for knob, values in space(one, SM).choices.items()}, "path": "gemm"}


class Plain(ModuleType):
    """tilelang.language as plain Python: one number for a variable, a list for an array."""

    int32 = int
    macro = staticmethod(lambda function: function)
    alloc_var = staticmethod(lambda dtype, init=0: init)
    alloc_local = staticmethod(lambda shape, dtype: [0] * shape[0])
    unroll = staticmethod(range)
    cast = staticmethod(lambda value, dtype: dtype(value))
    ceildiv = staticmethod(lambda value, by: -(-value // by))
    truncdiv = staticmethod(lambda value, by: value // by)
    truncmod = staticmethod(lambda value, by: value % by)
    min = staticmethod(min)
    max = staticmethod(max)

    def __init__(self) -> None:
        super().__init__("tilelang.language")
        self.barrier, self.sent = threading.Barrier(32), [0] * 32
        self.lane = threading.local()

    def shfl_up(self, value: int, by: int) -> int:
        """The value of the lane so many below; its own where there is none."""
        self.sent[self.lane.index] = value
        self.barrier.wait()
        got = self.sent[max(self.lane.index - by, 0)]
        self.barrier.wait()
        return got


@pytest.fixture
def places(monkeypatch: pytest.MonkeyPatch) -> Any:
    """kernels/gemm_places.py, its functions plain Python."""
    plain, package = Plain(), ModuleType("tilelang")
    package.language = plain  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tilelang", package)
    monkeypatch.setitem(sys.modules, "tilelang.language", plain)
    monkeypatch.delitem(sys.modules, PLACES, raising=False)
    yield importlib.import_module(PLACES)
    sys.modules.pop(PLACES, None)


def counted(module: Any, t: Tiles, ends: list[int]) -> tuple[list[int], list[int]]:
    """What a warp of count_tiles writes: bounds and firsts."""
    bounds, firsts = [-1] * (t.experts + 1), [-1] * (t.experts + 1)
    count, _ = module.places(t)

    def lane(index: int) -> None:
        module.T.lane.index = index
        count(ends, bounds, firsts, index)

    threads = [threading.Thread(target=lane, args=(index,)) for index in range(32)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    return bounds, firsts


def tiles(kind: str, **knobs: int) -> Tiles:
    """The tiles of a small kernel of 5 experts, or of a plain one."""
    dims = {"experts": 5, "share": 2} if kind.startswith("grouped") else {"wide": 0}
    one = kernel(kind, k=512, n=640, **dims)
    return tiles_of(one, {**rest(one), "t_rows": 64, **knobs}, SM)


ENDS = {
    "even": [64, 128, 192, 256, 320],
    "one row more": [65, 130, 195, 260, 325],
    "experts without rows": [0, 0, 70, 70, 200],
    "none at the end": [1, 2, 300, 300, 300],
    "all on one": [0, 0, 0, 500, 500],
}


@pytest.mark.parametrize("ends", ENDS.values(), ids=ENDS)
@pytest.mark.parametrize("rows", [16, 64, 192])
def test_tiles_cover_every_row_of_every_expert_once(places: Any, ends: list[int], rows: int) -> None:
    t = tiles("grouped_swiglu", t_rows=rows)
    bounds, firsts = counted(places, t, ends)
    _, find = places.places(t)
    seen: Counter[tuple[int, int, int]] = Counter()
    for unit in range(firsts[t.experts] * t.across):
        at = [0] * 5
        find(unit, 0, bounds, firsts, at)
        seen.update((at[0], row, at[3]) for row in range(at[1], min(at[1] + rows, at[2])))
    starts = [0, *ends[:-1]]
    wanted = {
        (expert, row, column)
        for expert, (start, end) in enumerate(zip(starts, ends))
        for row in range(start, end)
        for column in range(t.across)
    }
    assert seen == Counter(wanted)
    assert firsts[t.experts] * t.across <= places.most_units(t, ends[-1] // t.share + 1)


@pytest.mark.parametrize("m", [1, 63, 64, 65, 1000, 3000])
@pytest.mark.parametrize("split", [1, 4])
def test_tiles_cover_every_row_and_part_of_k_once(places: Any, m: int, split: int) -> None:
    t = tiles("linear", t_split=split)
    _, find = places.places(t)
    units = []
    for unit in range(places.most_units(t, m)):
        at = [0] * 5
        find(unit, m, [], [], at)
        units.append((at[1], at[3], at[4]))
    assert sorted(units) == [
        (row, column, part)
        for row in range(0, m, t.rows)
        for column in range(t.across)
        for part in range(split)
    ]
