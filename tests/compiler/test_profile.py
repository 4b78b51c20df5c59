"""Reading onnxruntime's profile, and averaging what is in it."""

from __future__ import annotations

from typing import Any

import pytest

from moec.compiler.profile import Part, Run, Step, phase, seen


def node(name: str, start: int, length: int) -> dict[str, Any]:
    """What onnxruntime notes of a node, in microseconds."""
    return {
        "cat": "Node",
        "name": f"{name}_3_kernel_time",
        "ts": start,
        "dur": length,
        "args": {"op_name": name},
    }


def run(start: int, length: int) -> dict[str, Any]:
    """What it notes of a run."""
    return {"cat": "Session", "name": "model_run", "ts": start, "dur": length, "args": {}}


def test_nodes_belong_to_the_run_they_are_in() -> None:
    loading = {"cat": "Session", "name": "model_loading_uri", "ts": 0, "dur": 5}
    fence = {
        "cat": "Node",
        "name": "Gather_1_fence_before",
        "ts": 11,
        "dur": 0,
        "args": {"op_name": "Gather"},
    }
    first = [node("Gather", 11, 4), node("linear_k8", 16, 20), node("Gather", 40, 1)]
    second = [node("linear_k8", 71, 20)]
    found = seen([loading, *second, fence, *first, run(70, 30), run(10, 35)], ours={"linear_k8"})
    assert [each.nodes for each in found] == [3, 1]
    (gather,) = found[0].others.values()
    # The profiler rounds down: half a microsecond is added to each.
    assert (gather.name, gather.calls, gather.seconds) == ("Gather", 2, pytest.approx(6e-6))
    assert not found[1].others


def step(seconds: float) -> Step:
    """A step with half of its time in a kernel, and a quarter of it outside of the run."""
    return Step(seconds, 0.75 * seconds, {"linear": Part("linear", 3, 0.5 * seconds, 1e6)})


def test_a_step_that_was_held_up_does_not_count() -> None:
    steps = [step(1.0), step(2.0), step(2.0), step(2.0), step(100.0)]
    quiet, held_up = (Run(5, {"Cast": Part("Cast", 2, seconds)}) for seconds in (0.1, 9.0))
    runs = [quiet, quiet, quiet, quiet, held_up]
    found = phase("decode", 1, 2, steps, steps, runs)
    assert (found.seconds, found.kernel_seconds, found.other_seconds) == pytest.approx((2.0, 1.0, 0.1))
    assert (found.onnxruntime_seconds, found.outside_seconds) == pytest.approx((0.4, 0.5))
    assert (found.nodes, found.layers, found.profiler_seconds) == (5, 2, 0.0)
    assert found.kernels == [Part("linear", 3, 1.0, 1e6)]
    assert found.kernels[0].bandwidth == 1e6
