"""A compiled model in sessions over a stand-in for ACL, and simulated: kernels and all else are real.

The stand-in runs each kernel's blocks on this CPU, from objects that it launches as an NPU's would be.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import models
import numpy as np
import pytest
import torch

from moec.compiler import compile_model

from .targets import ascend_stand_in

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="loads libascendcl.so from LD_LIBRARY_PATH")

IDS = models.tokens(2, 6)
MASK = torch.tensor([[0] * 2 + [1] * 4, [1] * 6])
LONG = models.tokens(1, 40)  # of which keys and values are made, rather than latents attended over
Run = Callable[..., tuple[Mapping[str, Any], list[str]]]


@dataclass(frozen=True)
class Made:
    """A tiny model's artifact, its kernels finished for the stand-in, and transformers' model of it."""

    out: Path
    functions: list[str]
    model: Any


@pytest.fixture(scope="module")
def made(home: Path, ascend_toolchain: Any, tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("ascend")
    model = models.save(folder / "hub", "deepseek_v3")
    compile_model(str(folder / "hub"), "ascend", out=folder / "out", threads=2, prove=False)
    return Made(folder / "out", ascend_stand_in.finish(folder / "out" / "ascend"), model)


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ascend_stand_in.driver(tmp_path_factory.mktemp("acl"))


TEXTS = """
import gc, sys
import numpy as np
import onnxruntime
from moec.compiler import load

given = np.load(sys.argv[2])
artifact = load(sys.argv[1])
found = {
    "simulated": artifact.simulated,
    "logits": artifact.logits(given["ids"], given["mask"]),
    "long": artifact.logits(given["long"]),
    "texts": artifact.generate(given["ids"], 8, given["mask"]),
    "again": artifact.generate(given["ids"], 8, given["mask"]),
    "other": artifact.generate(given["ids"][:1, :1], 3),
}
np.savez(sys.argv[3], **found)
del artifact
gc.collect()
for device in onnxruntime.get_ep_devices():
    if name := device.ep_metadata.get("registration"):
        onnxruntime.unregister_execution_provider_library(name)
"""


@pytest.fixture
def run(made: Made, stand_in: Path, tmp_path: Path) -> Run:
    """Texts in a process, over the stand-in or simulated: what came out, and the stand-in's log."""

    def run(over_acl: bool, **settings: str) -> tuple[Mapping[str, Any], list[str]]:
        log, given, out = (tmp_path / name for name in ("log", "given.npz", "found.npz"))
        np.savez(given, ids=IDS.numpy(), mask=MASK.numpy(), long=LONG.numpy())
        path = {"LD_LIBRARY_PATH": str(stand_in.parent)} if over_acl else {}
        environment = (
            os.environ | {"STAND_IN_LOG": str(log), "STAND_IN_MEMORY": "4000000000"} | path | settings
        )
        command = [sys.executable, "-c", TEXTS, *map(str, (made.out, given, out))]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-3000:]
        lines = log.read_text().splitlines() if log.exists() else []
        return dict(np.load(out)), lines

    return run


def test_the_stand_ins_sessions_are_the_simulated_ones_and_transformers(made: Made, run: Run) -> None:
    found, lines = run(over_acl=True)
    simulated, _ = run(over_acl=False, STAND_IN_LOG="/dev/null")
    assert str(found.pop("simulated")) == ""
    assert str(simulated.pop("simulated")) == "simulated on this CPU"
    # The same objects have run, called by their own way each.
    assert all(np.array_equal(found[name], simulated[name]) for name in found)
    assert np.array_equal(found["texts"], found["again"])
    for name, ids, mask in (("logits", IDS, MASK), ("long", LONG, torch.ones_like(LONG))):
        with torch.no_grad():
            wanted = made.model.to(torch.bfloat16).float()(ids, attention_mask=mask).logits.numpy()
        real = mask.numpy().astype(bool)
        off = found[name][real] - wanted[real]
        assert np.sqrt(np.mean(off**2) / np.mean(wanted[real] ** 2)) < 0.05, name
    assert lines
    assert not [line for line in lines if line.startswith("wrong")]
    assert lines[-1] == "left: 0 allocations, 0 of the host, 0 streams, 0 events, 0 binaries"


def test_functions_are_loaded_once_and_weights_stay_on_the_device(made: Made, run: Run) -> None:
    _, lines = run(over_acl=True)
    loaded = [line.split()[1] for line in lines if line.startswith("load")]
    launches = [i for i, line in enumerate(lines) if line.startswith("launch") and "copying" not in line]
    assert len(loaded) == len(set(loaded))
    assert {"absorb", "prepare", "expand"} <= {name.partition("_")[0] for name in loaded}, "short and long"
    assert {lines[i].split()[1] for i in launches} == set(loaded) <= set(made.functions)
    # Ids, masks and logits are smaller than this.
    copied = [i for i, line in enumerate(lines) if "copying" in line and int(line.split()[2]) > 16_000]
    assert copied
    assert max(copied) < min(launches)
