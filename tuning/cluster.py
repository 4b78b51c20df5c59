"""The Ray cluster under a fleet: joining it, reaching it, and what its machines say they measure on.

Members of a Ray cluster send each other pickles and run them: a fleet is for machines that trust each other.
"""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any

from ..targets.base import CannotBuild

CORES = "cores"  # what a machine declares that only builds, as many as it has
STORE_BYTES = 100 << 20  # of Ray's object store: what goes to and fro is small
# Unless the environment says otherwise. Nothing is reported to anybody. Ray would end the actor where a
# candidate takes all memory; Linux ends the candidate. CUDA_VISIBLE_DEVICES stays as it is: Ray does not know
# the devices. By itself Ray asks for a token on machines that happen to have one, which others then lack.
SETTINGS = {
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_memory_monitor_refresh_ms": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


class NoFleet(CannotBuild):
    """There is no fleet, or none that fits; the text says what there is and what to do."""


def ray() -> Any:
    """The library. Raises NoFleet where it is not installed."""
    try:
        import ray
    except ImportError:
        raise NoFleet("a fleet needs Ray: pip install 'moec[fleet]' on each of its machines") from None
    return ray


def join_command(address: str, device: str) -> list[str]:
    """The command that makes this machine a member with one device, or with all its cores; without an
    address, the first member.
    """
    ray()
    count = len(os.sched_getaffinity(0)) if device == CORES else 1
    return [
        *(sys.executable, "-m", "ray.scripts.scripts", "start", "--block"),
        *([f"--address={address}"] if address else ["--head", "--include-dashboard=false"]),
        *("--num-cpus=0", f"--object-store-memory={STORE_BYTES}"),
        f"--resources={json.dumps({device: count})}",
    ]


@contextmanager
def connected(address: str) -> Iterator[None]:
    """In the cluster as the one that gives work; where that is so already, it stays so.

    What Ray says of its processes goes to stderr meanwhile. Raises NoFleet where there is no cluster that
    this machine is a member of.
    """
    if ray().is_initialized():
        yield
        return
    os.environ.update({**SETTINGS, **os.environ})
    try:
        ray().init(address=address, log_to_driver=False, logging_level="ERROR")
    except Exception as error:  # Ray's, the network's, or the operating system's
        said = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise NoFleet(
            f"no fleet answers at {address} ({said}); the first machine starts one with `moec worker`, "
            "others join it with `moec worker --join HOST:6379`, and moec tune runs on one of them"
        ) from None
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        ray().shutdown()


def declared() -> Counter[str]:
    """What the members that are alive measure on or build with, and how many of each there are."""
    found: Counter[str] = Counter()
    for node in ray().nodes():
        if node["Alive"]:
            found.update({name: int(count) for name, count in node["Resources"].items() if _is_ours(name)})
    return found


def _is_ours(name: str) -> bool:
    return name == CORES or (":" in name and not name.startswith(("node:", "accelerator_type:")))
