"""Synchronised HIVM run at real capacities: right results, and every seeded fault seen."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from moec.targets.ascend import soc, space, vendor
from moec.targets.ascend.hivm import blocks, interpret
from moec.targets.ascend.hivm.affine import affine_map
from moec.targets.ascend.hivm.blocks import Outcome
from moec.targets.ascend.hivm.memory import Memory
from moec.targets.ascend.hivm.parse import Unreadable
from moec.targets.ascend.hivm.vectors import converted
from moec.targets.ascend.hivm.view import View
from moec.targets.ascend.lowering import lowering
from moec.targets.ascend.trial import sizes_of
from moec.targets.base import Kernel, serving
from moec.targets.cases_bf16 import Example, Sample
from moec.targets.checks import checked, tokens
from moec.targets.sample import unwritten

from .ascend_models import TINY, kernel, kernels
from .hivm_text import DOUBLED, F32, add, barrier, buffer, flag, load, module, row

B3 = soc.SOCS[0]
SYNC = re.compile(r'"hivm\.hir\.(set_flag|wait_flag|pipe_barrier|sync_block_set|sync_block_wait)"')
Values = np.ndarray[Any, Any]


def doubled(*lines: str, elements: int = 64, count: int = 1) -> tuple[Outcome, Values, Values]:
    """What came of such a kernel, x and y."""
    x = np.arange(elements, dtype=np.float32)
    y = np.full(elements, np.nan, np.float32)
    return blocks.run(blocks.program(module(*lines), "kernel"), (count, 1, 1), [x, y, elements]), x, y


def test_a_kernel_without_faults() -> None:
    outcome, x, y = doubled(*DOUBLED)
    assert outcome.wrong is None
    np.testing.assert_array_equal(y, 2 * x)
    assert outcome.peak == {"UB": 512, "L1": 0, "L0C": 0}
    assert outcome.moved == {"GM->UB": 256, "UB->GM": 256}


@pytest.mark.parametrize(
    ("left_out", "word"),
    [
        (flag("set", "MTE2", "V"), "deadlock: AIV0.V waits for MTE2, event 0"),
        (flag("wait", "MTE2", "V"), "race on AIV0.UB: AIV0.V line"),
        (flag("set", "V", "MTE3"), "deadlock: AIV0.MTE3 waits for V"),
        (flag("wait", "V", "MTE3"), "flag left set at the end: AIV0, V to MTE3, event 0"),
        (load("%from", "%a"), ""),
    ],
)
def test_what_is_left_out_is_seen(left_out: str, word: str) -> None:
    outcome, _, y = doubled(*(line for line in DOUBLED if line != left_out))
    if word:
        assert any(word in each for each in outcome.races + outcome.faults), outcome
    else:
        assert np.isnan(y).all(), "what was never written reads as NaN"


def test_flags_in_the_wrong_order_are_a_deadlock() -> None:
    turned = [*DOUBLED]
    at = turned.index(flag("set", "MTE2", "V"))
    turned[at], turned[at + 1] = turned[at + 1], turned[at]
    assert "deadlock" in doubled(*turned)[0].faults[0]


def test_a_flag_set_twice() -> None:
    twice = [line for line in DOUBLED for _ in range(1 + (line == flag("set", "MTE2", "V")))]
    assert any("set twice" in each for each in doubled(*twice)[0].races)


def test_one_pipe_needs_a_barrier_between_what_depends() -> None:
    more = list(DOUBLED)
    more.insert(more.index(add("%a", "%a", "%b")) + 1, add("%b", "%b", "%b"))
    assert any("AIV0.V line" in each for each in doubled(*more)[0].races)
    more.insert(more.index(add("%b", "%b", "%b")), barrier("V"))
    outcome, x, y = doubled(*more)
    assert outcome.wrong is None
    np.testing.assert_array_equal(y, 4 * x)


def test_buffers_that_overlap() -> None:
    """The sum's buffer is planned over its operand's: the next load into that does not wait for the store."""
    lines = [*DOUBLED, load("%from", "%a"), *(flag(what, "MTE2", "V") for what in ("set", "wait"))]
    assert doubled(*lines)[0].wrong is not None, "the second load overwrites what the sum reads"
    lines.insert(-3, flag("set", "V", "MTE2", 1))
    lines.insert(-3, flag("wait", "V", "MTE2", 1))
    assert doubled(*lines)[0].wrong is None
    shifted = [line.replace('"(%c256)', '"(%c64)') for line in lines]
    assert any("race on AIV0.UB" in each for each in doubled(*shifted)[0].races)


def test_a_buffer_that_shrank() -> None:
    small = [
        line if "%b =" not in line else buffer("%b", "%c256", F32.replace("64x", "32x")) for line in DOUBLED
    ]
    wide = [
        *small[:4],
        '%w = "memref.reinterpret_cast"(%b) <{operandSegmentSizes = array<i32: 1, 0, 0, 0>, static_offsets = '
        "array<i64: 0>, static_sizes = array<i64: 64>, static_strides = array<i64: 1>}> : "
        f"({F32.replace('64x', '32x')}) -> {F32}",
        *(line.replace("%b", "%w") for line in small[4:]),
    ]
    (fault,) = doubled(*wide)[0].faults
    assert "touches bytes 256 to 512 of AIV0.UB, expected at most those from 256 to 384" in fault


@pytest.mark.parametrize("index", ["%i64", "%before"])
def test_an_index_that_nobody_clamped(index: str) -> None:
    before = '%before = "arith.constant"() <{value = -1 : index}> : () -> index'
    lines = [line if "%from =" not in line else row("%from", "%x", index) for line in DOUBLED]
    (fault,) = doubled(before, *lines)[0].faults
    assert "of argument 0, expected at most those from 0 to 256" in fault


def test_a_buffer_past_the_end_of_its_memory() -> None:
    place = f'%c256 = "arith.constant"() <{{value = {soc.UB - 32} : i64}}> : () -> i64'
    assert "AIV0.UB" in doubled(place, *DOUBLED)[0].faults[0]


def test_blocks_are_not_ordered() -> None:
    outcome = doubled(*DOUBLED, count=2)[0]
    assert any("where another block writes" in each or "another block uses" in each for each in outcome.races)
    apart = [line if "%to =" not in line else row("%to", "%y", "%at") for line in DOUBLED]
    index = [
        '%b64 = "hivm.hir.get_block_idx"() : () -> i64',
        '%m = "arith.muli"(%b64, %c64) : (i64, i64) -> i64',
    ]
    index.append('%at = "arith.index_cast"(%m) : (i64) -> index')
    outcome, _, y = doubled(*index, *apart, elements=128, count=2)
    assert outcome.wrong is None, "all read the same, each writes its own"
    assert not np.isnan(y).any()


def test_an_unknown_op_is_named() -> None:
    with pytest.raises(Unreadable, match=r"line \d+.*hivm\.hir\.vfrobnicate"):
        blocks.program(module('"hivm.hir.vfrobnicate"() : () -> ()'), "kernel")
    with pytest.raises(Unreadable, match="no function 'other'; there are kernel"):
        blocks.program(module(), "other")
    with pytest.raises(Unreadable, match="no op in MLIR's generic form"):
        blocks.program("module { func.func @k() }", "k")


@pytest.mark.parametrize(
    ("text", "values", "wanted"),
    [
        ("()[s0, s1] -> (s1 + 128, s0)", (5, 7), [135, 5]),
        ("()[s0] -> ((s0 floordiv 64) mod 2)", (200,), [1]),
        ("(d0)[s0] -> (d0 * -3 + (s0 - 1) ceildiv 4)", (2, 6), [-4]),
    ],
)
def test_affine_maps(text: str, values: Sequence[int], wanted: list[int]) -> None:
    assert affine_map(text)(values) == wanted


def test_masks_are_bits() -> None:
    memory = Memory.on_chip("AIV0", "ub", 0)
    mask = View.buffer(memory, 4, "i1", (3, 16))
    bits = np.random.default_rng(0).integers(0, 2, (3, 16)).astype(bool)
    mask.write(bits)
    assert memory.data is not None
    assert memory.data[4:10].tolist() == np.packbits(bits, bitorder="little").tolist()
    assert not memory.data[10:].any()
    column = mask.at(5, (3, 1), (16, 1))
    np.testing.assert_array_equal(column.read(), bits[:, 5:6])
    column.write(~bits[:, 5:6])
    bits[:, 5] ^= True
    np.testing.assert_array_equal(mask.read(), bits)


@pytest.mark.parametrize(
    ("mode", "wanted"),
    [
        ("rint", [2, 2, -2, 127]),
        ("floor", [1, 2, -3, 127]),
        ("trunc", [1, 2, -2, 127]),
        ("round", [2, 3, -3, 127]),
    ],
)
def test_casts_to_whole_numbers_round_and_end_as_told(mode: str, wanted: list[int]) -> None:
    values = np.array([1.5, 2.5, -2.5, 1000], np.float32)
    assert converted(values, "i8", mode, None).tolist() == wanted  # type: ignore[arg-type]


def example_of(one: Kernel, few: int) -> Iterator[tuple[str, Example]]:
    """Some of the calls that are compared with the reference: the first, some between, the last."""
    sample, calls = Sample(one), checked(one, {1: {}})
    small = [name for name, options in calls.items() if options["rows"] * options.get("batch", 1) <= 40]
    for at in sorted({round(at) for at in np.linspace(0, len(small) - 1, few)}):
        yield small[at], sample.example(**calls[small[at]])


class Tried:
    """A call of a kernel's default schedule."""

    def __init__(self, one: Kernel, example: Example) -> None:
        self.kernel, self.example = one, example
        defaults = space.space(one, B3).defaults
        schedule = defaults[serving(defaults, tokens(one, example.operands))]
        self.sizes = sizes_of(one, example.operands)
        self.steps = list(interpret.taken(space.steps(one, schedule, B3), self.sizes))
        self.results = [unwritten(like.astype(dtype)) for like, dtype in zip(example.results, example.dtypes)]

    def run(self) -> tuple[list[Values], list[Outcome]]:
        """What its HIVM gives."""
        given = (self.example.operands, self.results, self.sizes, dict(self.kernel.reals))
        return interpret.run(self.steps, B3, *given, self.example.in_place)

    def seen(self, place: int, changed: str) -> str | None:
        """What is wrong when one step's HIVM is another; None where nothing is."""
        reals, in_place = dict(self.kernel.reals), self.example.in_place
        ports = interpret.placed(self.steps, self.example.operands, self.results, self.sizes, in_place)
        for at, step in enumerate(self.steps):
            outcome = interpret.launch(step, B3, ports, self.sizes, reals, changed if at == place else None)
            if outcome.wrong:
                return outcome.wrong
        return self.example.wrong(interpret.made(ports, self.results))


@pytest.mark.usefixtures("ascend_toolchain", "home")
@pytest.mark.parametrize("one", kernels(TINY), ids=str)
def test_kernels_are_right_and_ordered(one: Kernel) -> None:
    one = one if one.kind != "mla_decode" else replace(one, reals=(("scale", 0.125),))
    for name, example in example_of(one, 3):
        results, outcomes = Tried(one, example).run()
        assert [each.wrong for each in outcomes if each.wrong] == [], f"{one}: {name}"
        assert example.wrong(results) is None, f"{one}: {name}"


def mutants(text: str) -> list[tuple[str, str]]:
    """Each op that orders pipes or cores, and the text without it."""
    lines = text.splitlines()
    places = [(at, found) for at, line in enumerate(lines) if (found := SYNC.search(line))]
    return [
        (f"{found.group(1)}: {lines[at]}", "\n".join(lines[:at] + lines[at + 1 :])) for at, found in places
    ]


@pytest.mark.usefixtures("ascend_toolchain", "home")
@pytest.mark.parametrize(
    ("line", "options"),
    [
        ("linear k=200 n=150 wide=0 bf16", {"rows": 33}),
        ("mla_decode heads=16 latent=64 rope=32 f32+bf16", {"rows": 1, "batch": 1, "cached": 150}),
    ],
)
def test_what_orders_pipes_and_cores_cannot_be_left_out(line: str, options: dict[str, int]) -> None:
    """Every 5th of them is. Of barriers some are not needed: at the end, and where a chain of flags is."""
    one = replace(kernel(line), reals=(("scale", 0.125),) if line.startswith("mla") else ())
    tried = Tried(one, Sample(one).example(**options))
    missed, count = [], 0
    for place, step in enumerate(tried.steps):
        found = mutants(vendor.synchronised(lowering()(step, B3), B3, step.compiler))
        for said, text in found[::5]:
            count += 1
            missed += [said] if tried.seen(place, text) is None else []
    assert count > 4
    assert all(said.startswith("pipe_barrier") for said in missed), missed
    assert len(missed) <= 0.1 * count + 1
