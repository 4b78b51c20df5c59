"""One model for several targets: their plans side by side, from one graph."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import models
import pytest
from command import moec, printed, refused

from moec.compiler import plans
from moec.compiler.manifest import PlannedKernel

ALL = ("--target", "cpu", "--target", "cuda", "--target", "ascend")


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory, home: Path) -> Path:
    folder = tmp_path_factory.mktemp("v3")
    models.config("deepseek_v3").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def found(hub: Path) -> Any:
    return printed("explain", "--config", hub, *ALL)


def test_every_target_has_its_kernel_at_each_place(found: Any) -> None:
    assert list(found["targets"]) == ["cpu", "cuda", "ascend"]
    ops = {(op["place"], op["kind"], tuple(op["layers"])): op["kernels"] for op in found["ops"]}
    attention = ops["model.layers.*.self_attn", "latent_attention", (0, 1)]
    assert set(attention) == {"cpu", "cuda", "ascend"}
    assert attention["ascend"]["kernel"].endswith("bf16+bf16")
    assert attention["cpu"]["kernel"].endswith("f32")
    assert set(ops["model.embed_tokens", "embedding", ()]) == {"cuda", "ascend"}
    assert ops["model.layers.*.mlp", "linear_swiglu", (0,)]
    assert ops["model.layers.*", "route", (1,)]
    assert all(each["schedules"] and each["why"] for op in ops.values() for each in op.values())


def test_each_plan_is_that_of_the_target_alone(hub: Path, found: Any) -> None:
    alone = printed("explain", "--config", hub, "--target", "ascend")
    uses = {}
    for op in found["ops"]:
        name = op["kernels"]["ascend"]["name"]
        uses[name] = uses.get(name, 0) + max(1, len(op["layers"]))
    assert uses == {each["name"]: each["uses"] for each in alone["kernels"]}


def test_the_table_has_a_line_for_each_target(hub: Path) -> None:
    lines = moec("explain", "--config", hub, *ALL).stdout.splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("self_attn latent_attention"))
    assert "cpu" in lines[first]
    targets = [word for line in lines for word in line.split() if word in ("cpu", "cuda", "ascend")]
    assert targets.count("cpu") == targets.count("cuda") == targets.count("ascend") > 10
    assert "none: standard ops" in "\n".join(lines)


def test_what_is_for_one_target_is_not_taken_for_several(hub: Path) -> None:
    explain = ("explain", "--config", hub, *ALL)
    assert "--isa is for one --target; 3 are given" in refused(*explain, "--soc", "910B3")
    assert "no format 'int4' for weights" in refused(*explain, "--quant", "int4")
    assert "there is no target 'tpu'" in refused(*explain, "--target", "tpu")


def test_layers_are_merged_only_where_all_targets_do_the_same() -> None:
    def kernel(name: str) -> PlannedKernel:
        return PlannedKernel(name, name, [], "default", 1)

    every = {
        ("model.layers.0.mlp", "linear", 0): {"cpu": kernel("a"), "cuda": kernel("b")},
        ("model.layers.0.mlp", "linear", 1): {"cpu": kernel("a"), "cuda": kernel("b")},
        ("model.layers.1.mlp", "linear", 0): {"cpu": kernel("a"), "cuda": kernel("b")},
        ("model.layers.1.mlp", "linear", 1): {"cpu": kernel("a"), "cuda": kernel("c")},
        ("lm_head", "linear", 0): {"cpu": kernel("a")},
    }
    merged = plans.merged(every)
    assert [(op.place, list(op.layers)) for op in merged] == [
        ("model.layers.*.mlp", [0, 1]),
        ("model.layers.*.mlp", [0]),
        ("model.layers.*.mlp", [1]),
        ("lm_head", []),
    ]


def test_layers_are_told_in_short() -> None:
    assert plans.ranges([0, 2, 3, 4, 7]) == "0, 2-4, 7"
    assert plans.ranges([]) == ""
