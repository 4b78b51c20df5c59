"""Kernels that go row by row, write caches or route, against the ops' references."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper

from moec.targets import cases_attention
from moec.targets.base import Kernel
from moec.targets.cpu import isa
from moec.targets.cpu.device import Bench, Device
from moec.targets.cpu.sample import spread
from moec.targets.cpu.space import space
from moec.targets.cpu.table import op_name

HERE = [level for level in isa.ISAS if isa.supports(level)]
ROWS = (0, 1, 2, 3, 7, 90)


def kernel(kind: str, eps: float | None = None, scale: float | None = None, **sizes: int) -> Kernel:
    reals = {"eps": eps, "scale": scale}
    return Kernel(kind, tuple(sizes.items()), tuple((name, x) for name, x in reals.items() if x is not None))


@cache
def bench(kernel: Kernel, level: isa.Isa) -> Bench:
    return Device(level.name, 2).bench(kernel, space(kernel, level).defaults)


def check(kernel: Kernel, level: isa.Isa) -> None:
    built = bench(kernel, level)
    for rows in ROWS:
        assert built.check_feeds(built.feeds(rows)) is None, rows


@pytest.mark.parametrize(("n", "width", "start"), [(512, 576, 0), (1, 1, 0), (17, 40, 20), (1536, 2112, 0)])
@pytest.mark.parametrize("level", HERE, ids=str)
def test_rms_norm(level: isa.Isa, n: int, width: int, start: int) -> None:
    check(kernel("rms_norm", eps=1e-6, n=n, width=width, start=start), level)


@pytest.mark.parametrize("pairs", [(0, 0), (0, 1), (1, 0), (1, 1)])
@pytest.mark.parametrize("level", HERE, ids=str)
def test_rotary(level: isa.Isa, pairs: tuple[int, int]) -> None:
    check(kernel("rotary", r=24, pairs_in=pairs[0], pairs_out=pairs[1]), level)


def test_rotary_with_angles_that_broadcast() -> None:
    built = bench(kernel("rotary", r=8, pairs_in=1, pairs_out=1), HERE[0])
    x, cos, sin = built.feeds(5)
    wanted = built.case.reference(built.kernel, [x, cos, sin])
    assert np.allclose(built.run([x, cos[:, None], sin[:, None]], wanted)[0], wanted[0], atol=1e-6)
    shared = built.case.reference(built.kernel, [x, cos[:1], sin[:1]])
    assert np.allclose(built.run([x, cos[:1], sin[:1]], shared)[0], shared[0], atol=1e-6)


@pytest.mark.parametrize("level", HERE, ids=str)
def test_latent_write(level: isa.Isa) -> None:
    sizes = {"c": 16, "r": 8, "width": 30, "start": 3}
    check(kernel("latent_write", eps=1e-5, **sizes, pairs_in=0, pairs_out=1), level)


@pytest.mark.parametrize("level", HERE, ids=str)
def test_append(level: isa.Isa) -> None:
    check(kernel("append", h=3, d=10), level)


@pytest.mark.parametrize(
    ("kernel", "caches"),
    [
        (kernel("append", h=3, d=10), (0,)),
        (kernel("latent_write", eps=1e-5, c=16, r=8, width=24, start=0, pairs_in=1, pairs_out=0), (4, 5)),
    ],
    ids=["append", "latent_write"],
)
@pytest.mark.parametrize("rows", [1, 6])
def test_caches_are_written_in_place(kernel: Kernel, caches: tuple[int, ...], rows: int) -> None:
    """Only new rows change: what else the cache holds may not even be numbers."""
    built = bench(kernel, HERE[0])
    everything = spread(built.feeds(rows), built.packed)
    wanted = built.case.reference(kernel, everything)
    session, binding = built.session([everything])
    for index, place in enumerate(caches):
        everything[place][:, :, -cases_attention.SPARE :] = np.nan
        shared = onnxruntime.OrtValue.ortvalue_from_numpy(everything[place])
        binding.bind_ortvalue_input(session.get_inputs()[place].name, shared)
        binding.bind_ortvalue_output(f"y0.{index}", shared)
    session.run_with_iobinding(binding)
    for index, value in enumerate(binding.get_outputs()):
        seen = wanted[index].shape[2] - cases_attention.SPARE
        result = value.numpy()
        assert np.allclose(result[:, :, :seen], wanted[index][:, :, :seen], atol=1e-5)
        assert np.isnan(result[:, :, seen:]).all()


def test_latent_write_without_rotation() -> None:
    """cos and sin are absent."""
    without = kernel("latent_write", eps=1e-5, c=16, r=8, width=24, start=0, pairs_in=2, pairs_out=2)
    built = bench(without, HERE[0])
    everything: list[Any] = spread(built.feeds(5), built.packed)
    wanted = built.case.reference(without, everything)
    results = run_without(built, everything, absent=(2, 3), outputs=2)
    for mine, its in zip(results, wanted):
        assert np.allclose(mine, its, atol=1e-5)


def test_latent_attention_without_rotation() -> None:
    sizes = {"heads": 4, "nope": 12, "rope": 8, "latent": 16, "value": 10, "pairs_in": 2, "pairs_out": 2}
    sizes |= {"width": 80, "start": 0}
    without = kernel("latent_attention", scale=0.3, **sizes)
    built = bench(without, HERE[0])
    operands = built.feeds(5)
    wanted = built.case.reference(without, [*operands, *built.weights.values()])
    (result,) = run_without(built, spread(operands, built.packed), absent=(1, 2), outputs=1)
    assert np.allclose(result, wanted[0], atol=1e-5)


def test_angles_shared_by_all_sequences_may_have_any_shape() -> None:
    built = bench(
        kernel("latent_write", eps=1e-5, c=16, r=8, width=24, start=0, pairs_in=1, pairs_out=0), HERE[0]
    )
    everything: list[Any] = spread(built.feeds(5), built.packed)
    everything[2:4] = shared = [angles[:1] for angles in everything[2:4]]
    wanted = built.case.reference(built.kernel, everything)
    everything[2:4] = [angles.swapaxes(0, 1) for angles in shared]
    for mine, its in zip(run_without(built, everything, absent=(), outputs=2), wanted):
        assert np.allclose(mine, its, atol=1e-5)


@pytest.mark.parametrize("count", [2, 4])
def test_operands_left_off_the_end_are_missed(count: int) -> None:
    built = bench(
        kernel("latent_write", eps=1e-5, c=16, r=8, width=24, start=0, pairs_in=2, pairs_out=2), HERE[0]
    )
    everything = spread(built.feeds(5), built.packed)
    with pytest.raises(Exception, match="input 4 has rank 0; 4 was expected"):
        run_without(built, everything[:count], absent=(), outputs=2)


def run_without(built: Bench, arrays: Any, absent: tuple[int, ...], outputs: int) -> list[np.ndarray]:
    """Outputs of one call without some of its operands."""
    types = {"f": TensorProto.FLOAT, "i": TensorProto.INT64}
    given = {f"x{i}": array for i, array in enumerate(arrays) if i not in absent}
    names = ["" if i in absent else f"x{i}" for i in range(len(arrays))]
    results = [f"y{i}" for i in range(outputs)]
    node = helper.make_node(op_name(built.kernel, built.schedules), names, results, domain="moec")
    declared = [helper.make_tensor_value_info(name, types[a.dtype.kind], None) for name, a in given.items()]
    floats = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in results]
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("moec", 1)]
    model = helper.make_model(
        helper.make_graph([node], "without", declared, floats), opset_imports=opsets, ir_version=10
    )
    options = onnxruntime.SessionOptions()
    options.register_custom_ops_library(str(built.library))
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return list(session.run(None, given))


GATES = (
    {"experts": 64, "k": 6, "groups": 1, "keep": 1, "sigmoid": 0,
     "top2": 0, "normalise": 0, "bias": 0, "shared": 0},
    {"experts": 256, "k": 8, "groups": 8, "keep": 4, "sigmoid": 1,
     "top2": 1, "normalise": 1, "bias": 1, "shared": 1},
    {"experts": 160, "k": 6, "groups": 8, "keep": 3, "sigmoid": 0,
     "top2": 0, "normalise": 0, "bias": 0, "shared": 0},
    {"experts": 7, "k": 7, "groups": 1, "keep": 1, "sigmoid": 1,
     "top2": 0, "normalise": 1, "bias": 0, "shared": 2},
    {"experts": 4, "k": 1, "groups": 4, "keep": 2, "sigmoid": 0,
     "top2": 1, "normalise": 1, "bias": 1, "shared": 1},
)  # fmt: skip


@pytest.mark.parametrize("sizes", GATES, ids=lambda sizes: str(sizes["experts"]))
@pytest.mark.parametrize("level", HERE, ids=str)
def test_top_k_gate(level: isa.Isa, sizes: dict[str, int]) -> None:
    check(kernel("top_k_gate", eps=1e-20, scale=2.5, **sizes), level)


def test_gate_is_precise() -> None:
    built = bench(kernel("top_k_gate", eps=0.0, scale=1.0, **GATES[0]), HERE[0])
    for scale in (1e-3, 1, 10):
        logits = built.feeds(40)[0] * np.float32(scale)
        wanted = built.case.reference(built.kernel, [logits])
        ids, weights = built.run([logits], wanted)
        assert np.array_equal(ids, wanted[0])
        assert np.max(np.abs(weights / wanted[1] - 1)) < 1e-6


@pytest.mark.parametrize("sizes", GATES[:3], ids=lambda sizes: str(sizes["experts"]))
def test_ties_go_to_the_lower_expert(sizes: dict[str, int]) -> None:
    built = bench(kernel("top_k_gate", eps=1e-20, scale=2.5, **sizes), HERE[0])
    logits = np.random.default_rng(0).integers(0, 2, (50, sizes["experts"])).astype(np.float32)
    bias = [np.zeros(sizes["experts"], np.float32)] * sizes["bias"]
    assert built.check_feeds([logits, *bias]) is None
    assert built.check_feeds([np.zeros_like(logits), *bias]) is None


def test_logits_that_are_no_numbers_choose_experts_that_exist() -> None:
    built = bench(kernel("top_k_gate", eps=1e-20, scale=2.5, **GATES[1]), HERE[0])
    logits = np.full((3, 256), np.nan, np.float32)
    logits[1, ::2] = 1
    like = [np.zeros((3, 9), np.int64), np.zeros((3, 9))]
    ids = built.run([logits, np.zeros(256, np.float32)], like)[0]
    assert (ids[:, 8] == 256).all()  # the shared one
    assert all(len(set(row)) == 8 and 0 <= min(row) and max(row) < 256 for row in ids[:, :8].tolist())


@pytest.mark.parametrize(
    ("experts", "k", "tokens"), [(64, 6, 0), (64, 6, 1), (7, 2, 100), (256, 8, 5000), (1, 1, 9)]
)
def test_permute(experts: int, k: int, tokens: int) -> None:
    built = bench(kernel("permute", experts=experts, k=k), HERE[0])
    assert built.check_feeds(built.feeds(tokens)) is None
    assert built.check_feeds([np.full((tokens, k), experts - 1)]) is None
    assert built.check_feeds([np.zeros((tokens, k), np.int64)]) is None


def test_permute_refuses_an_expert_that_does_not_exist() -> None:
    built = bench(kernel("permute", experts=4, k=1), HERE[0])
    with pytest.raises(Exception, match=r"outside 0\.\.3"):
        built.run([np.full((2, 1), 4)], [np.zeros(2, np.int64), np.zeros(4, np.int64)])


def test_rows_that_do_not_fit_the_cache() -> None:
    built = bench(kernel("append", h=3, d=10), HERE[0])
    past, rows, _ = built.feeds(2)
    with pytest.raises(Exception, match="must be at least the 2 new ones and fit the cache's"):
        built.run([past, rows, np.ones((2, past.shape[2] + 1), np.int64)], [past])


def test_rows_that_are_not_like_the_cache() -> None:
    built = bench(kernel("append", h=3, d=10), HERE[0])
    past, rows, mask = built.feeds(2)
    turned = np.ascontiguousarray(rows.transpose(3, 1, 2, 0))
    with pytest.raises(Exception, match="new rows are 10 long on axis 0 where the cache is 2"):
        built.run([past, turned, mask], [past])


def test_a_cache_and_its_successor_that_overlap_are_refused() -> None:
    built = bench(kernel("append", h=3, d=10), HERE[0])
    past, rows, mask = built.feeds(2)
    memory = np.zeros(past.size + 8, np.float32)
    before, after = memory[: past.size].reshape(past.shape), memory[8:].reshape(past.shape)
    session, binding = built.session([[before, rows, mask]])
    binding.bind_ortvalue_output("y0.0", onnxruntime.OrtValue.ortvalue_from_numpy(after))
    with pytest.raises(Exception, match="must be one buffer or have nothing in common"):
        session.run_with_iobinding(binding)
