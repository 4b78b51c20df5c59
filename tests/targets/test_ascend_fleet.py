"""A fleet with an NPU, over the stand-ins for ACL and hivmc: a core finishes the objects that it runs."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from moec.compiler.tune import tune_model
from moec.targets.base import Kernel
from moec.tuning import cluster
from moec.tuning.log import Log

from .test_ascend_measured import B3, TOY, Machine

ray = pytest.importorskip("ray", reason="a fleet needs Ray: pip install 'moec[fleet]'")
LINEAR = Kernel("linear", (("k", 64), ("n", 48), ("wide", 1)), (), "bf16")


def test_an_npu_measures_what_a_core_has_finished(
    ascend_toolchain: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = Machine(tmp_path, monkeypatch).knows(LINEAR)
    (tmp_path / "away.py").write_text(TOY)
    monkeypatch.syspath_prepend(tmp_path)
    for name, value in cluster.SETTINGS.items():
        monkeypatch.setenv(name, value)
    # Sockets' paths have to be short, so this is no folder of pytest's.
    with tempfile.TemporaryDirectory(prefix="ray-") as scratch:
        ray.init(
            num_cpus=2,
            include_dashboard=False,
            object_store_memory=cluster.STORE_BYTES,
            resources={f"npu:{B3.name}": 1, cluster.CORES: 1},
            log_to_driver=False,
            logging_level="ERROR",
            _temp_dir=scratch,
        )
        monkeypatch.delenv("ASCEND_HOME_PATH")  # of all but the workers: here is no hivmc
        try:
            report = tune_model("away:model", "ascend", fleet="this", budget="1t", log=tmp_path / "own")
        finally:
            ray.shutdown()
    tried = [record for record in Log(tmp_path / "own") if record.status == "ok"]
    assert {(record.fingerprint.isa, record.fingerprint.cpu) for record in tried} == {(B3.name, B3.name)}
    assert report.manifest.target["times"] == "measured"
    assert {line.split()[1] for line in (tmp_path / "log").read_text().splitlines() if "load" in line} == {
        *names
    }
