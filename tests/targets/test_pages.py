"""Loading maps the pages of weights, so that no token waits for them."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from moec.compiler import load

from ..conftest import Compile

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc/self/smaps")


def mapped(folder: Path) -> tuple[int, int]:
    """KiB of the folder's weights in this process's address space, and how many of them have pages."""
    size = resident = 0
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            inside = f"{folder}/weights" in line
        elif inside and (found := re.match(r"(Size|Rss): +(\d+) kB", line)):
            size += int(found[2]) * (found[1] == "Size")
            resident += int(found[2]) * (found[1] == "Rss")
    return size, resident


def test_pages_of_weights_are_there_before_the_first_token(compiled: Compile) -> None:
    folder = compiled("deepseek_v3", hidden_size=256).out.resolve()
    loaded = load(folder, threads=1, kernels=False)
    size, resident = mapped(folder)
    assert size > 0
    assert resident < size  # nothing but our kernels maps ahead
    del loaded
    loaded = load(folder, threads=1)
    size, resident = mapped(folder)
    assert resident > 0.9 * size  # embeddings are no kernel's
    del loaded
