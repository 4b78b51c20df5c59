"""--quant and --quant-config: what they mean, and one sentence for what they cannot."""

from __future__ import annotations

from pathlib import Path

import models
import pytest
from command import printed, refused

from moec.compiler.ir import B, Graph, L
from moec.compiler.ops.sources import INPUT
from moec.compiler.policy import BadPolicy, cache_of, expect_read, policy_of
from moec.compiler.rooms import target_of
from moec.passes.precision import POLICIES


def test_nothing_is_narrowed_unless_asked_for() -> None:
    assert policy_of() is None
    assert policy_of("int4") == POLICIES["int4"]


def test_rules_are_kept_in_their_order(tmp_path: Path) -> None:
    (tmp_path / "rules.json").write_text('{"*.experts.*": "int4", "lm_head*": "bf16"}')
    (tmp_path / "rules.toml").write_text('"*.experts.*" = "int4"\n"lm_head*" = "bf16"\n')
    for name in ("rules.json", "rules.toml"):
        policy = policy_of("none", tmp_path / name)
        assert policy is not None
        assert policy.rules == (("*.experts.*", "int4"), ("lm_head*", "bf16"))
        assert set(policy.roles.values()) == {"f32"}
        overriding = policy_of("int8", tmp_path / name)
        assert overriding is not None
        assert overriding.roles == POLICIES["int8"].roles


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.json", "{", "cannot be read as JSON or TOML: Expecting property name"),
        ("a.toml", "a = ", "cannot be read as JSON or TOML: Invalid value"),
        ("a.json", "[1]", "holds a list, expected patterns of tensor names"),
        ("a.json", '{"*": "int5"}', "'*' has the format 'int5'; there is f32, bf16, f16, int4, int8"),
        ("a.json", '{"*": 4}', "'*' has the format 4"),
        ("a.toml", 'lm_head.weight = "int4"', "put quotes around a pattern with dots"),
        ("a.json", '\xff{"*": "int4"}', "cannot be read as JSON or TOML"),
    ],
)
def test_a_bad_file_is_one_sentence(tmp_path: Path, name: str, text: str, said: str) -> None:
    (tmp_path / name).write_bytes(text.encode("latin-1"))
    with pytest.raises(BadPolicy) as error:
        policy_of("int4", tmp_path / name)
    assert said in str(error.value)
    assert str(tmp_path / name) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(BadPolicy, match="No such file"):
        policy_of("int4", tmp_path / "rules.json")
    with pytest.raises(BadPolicy, match="Is a directory"):
        policy_of("int4", tmp_path)


def test_a_format_that_there_is_not() -> None:
    with pytest.raises(BadPolicy, match="there is no format 'int3' for weights; there is none, int4"):
        policy_of("int3")


def test_caches_that_a_target_or_a_model_does_not_have() -> None:
    cpu, cuda = target_of("cpu", "x86-64-v3"), target_of("cuda", "sm_90a")
    assert (cache_of(cpu, None), cache_of(cpu, "int8"), cache_of(cuda, None)) == ("f32", "int8", "bf16")
    with pytest.raises(BadPolicy, match="the cuda target keeps no cache in int8; there is bf16, fp8"):
        cache_of(cuda, "int8")
    with pytest.raises(BadPolicy, match="the cpu target keeps no cache in fp8; there is f32, bf16, int8"):
        cache_of(cpu, "fp8")
    past = INPUT(name="past.0.key", dtype="bf16", shape=(B, 2, L, 8))
    with pytest.raises(BadPolicy, match="a cache in int8 is one of latents, and this model has none"):
        expect_read(cpu, Graph((past,), (past,)), "int8")
    codes = INPUT(name="past.0.key", dtype="i8", shape=(B, 1, L, 8))
    expect_read(cpu, Graph((codes,), (codes,)), "int8")


def test_on_the_command_line(tmp_path: Path) -> None:
    models.config("deepseek_v3").save_pretrained(tmp_path / "hub")
    rules = tmp_path / "rules.json"
    explain = ("explain", "--config", tmp_path / "hub", "--log", tmp_path / "log")
    rules.write_text('{"*.expert.*": "int4"}')
    assert "is about no tensor that may be narrower" in refused(*explain, "--quant-config", rules)
    rules.write_text('{"lm_head*": "int2"}')
    assert "has the format 'int2'" in refused(*explain, "--quant", "int8", "--quant-config", rules)
    rules.write_text('{"lm_head*": "bf16", "*.experts.gate_up_proj": "int8"}')
    found = printed(*explain, "--quant-config", rules)
    formats = {each["name"]: each["format"] for each in found["weights"]}
    assert formats.pop("lm_head.weight") == "bf16"
    experts = {formats.pop(name) for name in list(formats) if "experts.gate_up_proj" in name}
    assert experts == {"int8"}
    assert set(formats.values()) == {"f32"}
    assert not found["misses"]
    assert "--quant" in refused(*explain, "--quant", "int5")
