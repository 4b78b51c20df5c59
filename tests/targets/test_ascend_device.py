"""The simulated NPU as a device for tuning: what it refuses, checks and times, and that it says simulated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from moec.targets.ascend import device, soc, space, vendor
from moec.targets.ascend.device import Device, affordable, calls
from moec.targets.ascend.target import target
from moec.targets.base import BUCKETS, Kernel, bucket
from moec.targets.cases_bf16 import CASES
from moec.targets.sample import draws
from moec.tuning.fingerprint import of_target
from moec.tuning.judge import Worker

NORM = Kernel("rms_norm", (("n", 64), ("width", 80), ("start", 16)), (("eps", 1e-6),), "f32")
DECODE = Kernel("mla_decode", (("heads", 4), ("latent", 32), ("rope", 16)), (("scale", 0.1),), "f32+bf16")
B3, B4 = (Device(name) for name in ("Ascend910B3", "Ascend910B4"))


def defaults(kernel: Kernel) -> Any:
    return space.space(kernel, soc.SOCS[0]).defaults


@pytest.mark.parametrize("kernel", [NORM, DECODE], ids=lambda kernel: kernel.kind)
def test_every_bucket_of_tokens_is_timed(kernel: Kernel) -> None:
    found = calls(kernel, draws(kernel, CASES[kernel.kind], ""))
    assert {bucket(asked.tokens) for asked in found.values()} == set(BUCKETS)
    assert all(name.split()[0] == f"m={asked.tokens}" for name, asked in found.items())


def test_a_call_takes_the_same_time_each_time_and_longer_on_a_slower_soc() -> None:
    first, second, slow = (each.bench(NORM, defaults(NORM)) for each in (B3, B3, B4))
    assert first.check() is None
    assert 0 < first.time("m=1") == second.time("m=1") < first.time("m=1024") < slow.time("m=1024")


def test_what_the_vendor_rejects_or_changes_is_not_timed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    B3.build(NORM, defaults(NORM), tmp_path)
    noted = vendor.Plan("", {}, 0, ("[NOTE] enable-auto-multi-buffer set to false",))
    monkeypatch.setattr(vendor, "planned", lambda *arguments: noted)
    with pytest.raises(ValueError, match=r"rows:rms_norm is not compiled as it is written: \[NOTE\]"):
        B3.build(NORM, defaults(NORM), tmp_path)

    def rejects(*arguments: Any) -> vendor.Plan:
        raise vendor.Rejected("ub overflow, requires 1580032 bits")

    monkeypatch.setattr(vendor, "planned", rejects)
    with pytest.raises(vendor.Rejected, match="ub overflow"):
        B3.build(NORM, defaults(NORM), tmp_path)


def test_only_calls_that_a_cpu_has_done_in_seconds_are_checked() -> None:
    dims = (("k", 7168), ("n", 4096), ("experts", 8), ("share", 8), ("base", 0))
    large = affordable(Kernel("grouped_combine", dims, (), "bf16"))
    assert large({"rows": 1})
    assert large({"rows": 7})
    assert not large({"rows": 130})
    cached = affordable(DECODE)
    assert cached({"rows": 33, "batch": 3, "cached": 1000})
    wide = affordable(Kernel("mla_decode", (("heads", 128), ("latent", 512), ("rope", 64)), (), "f32+bf16"))
    assert wide({"rows": 1, "batch": 3, "cached": 1000})
    assert not wide({"rows": 70, "batch": 20, "cached": 1000})


def test_a_wrong_kernel_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = B3.bench(NORM, defaults(NORM))
    right = device.trial.run

    def off(*arguments: Any, **options: Any) -> Any:
        return [result * 1.5 for result in right(*arguments, **options)]

    monkeypatch.setattr(device.trial, "run", off)
    assert "is off by" in (bench.check() or "")


def test_a_worker_tries_it_and_records_say_that_it_is_simulated() -> None:
    machine = target("910B3")
    name, options = machine.device(2)
    with Worker(name, options) as judge:
        found = judge.trial(NORM, defaults(NORM), None)
    assert found.status == "ok", found.reason
    assert set(found.samples) == {"m=1", "m=2", "m=16", "m=64", "m=256", "m=1024"}
    assert len(set(found.samples["m=64"])) == 1
    assert of_target(machine, 1).of(NORM).cpu == "simulated Ascend910B3"
