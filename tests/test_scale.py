"""The front end at full width: a hundred billion parameters of DeepSeek-V3's, none of them in memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import DeepseekV3Config

MOST_BYTES = 1_500_000_000  # one layer's experts are 22 GB in bf16
LAYERS, DENSE = 12, 3  # the other 49 are like the last 9, and PyTorch takes most of a second to export each
# A process counts what its parent held when it was forked, and pytest may hold more: so a small parent asks.
ALONE = """
import resource, subprocess, sys
status = subprocess.run(sys.argv[2:]).returncode
open(sys.argv[1], "w").write(str(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024))
sys.exit(status)
"""


@pytest.mark.slow
def test_every_layer_of_deepseek_v3_is_found(tmp_path: Path) -> None:
    config = DeepseekV3Config(architectures=["DeepseekV3ForCausalLM"], num_hidden_layers=LAYERS)
    config.save_pretrained(tmp_path)
    explain = [sys.executable, "-m", "moec.compiler", "explain", "--config", tmp_path, "--json"]
    watched = [sys.executable, "-c", ALONE, tmp_path / "peak", *explain, "--log", tmp_path / "log.jsonl"]
    found = json.loads(subprocess.run(watched, check=True, capture_output=True).stdout)
    assert 0 < int((tmp_path / "peak").read_text()) < MOST_BYTES
    fired = {each["name"]: each["fired"] for each in found["passes"]}
    uses: dict[str, int] = {}
    for kernel in found["kernels"]:
        kind = kernel["kernel"].split()[0]
        uses[kind] = uses.get(kind, 0) + kernel["uses"]
    assert found["misses"] == []
    assert fired["fuse_mla"] == uses["latent_attention"] == uses["latent_write"] == LAYERS
    assert fired["join_shared"] == 2 * (LAYERS - DENSE)
    assert fired["fuse_gate"] == fired["lower_routing"] == LAYERS - DENSE
    assert uses["route"] == uses["grouped_swiglu"] == uses["grouped_combine"] == LAYERS - DENSE
    assert found["cache"]["bytes_per_token"] == LAYERS * (512 + 64) * 4
