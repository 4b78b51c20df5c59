"""Times of a block's work, by constants: how long a pipe is busy with each, and when it can be used."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ....compiler.ir import Array
from .constants import Constants
from .trace import Work


@dataclass(frozen=True, slots=True)
class Rates:
    """What a core gets: MHz, and at most so many bytes a microsecond from and to the device's memory."""

    mhz: float
    read_b_us: float = float("inf")
    write_b_us: float = float("inf")


Times = tuple[Array, Array]  # busy, and more until it can be used
Cost = Callable[[Array, Constants, Rates], Times]


def copied(bandwidth: str, reads: bool) -> Cost:
    """Of copies: amounts are bytes and pieces, each of which costs something beside its bytes."""

    def cost(amounts: Array, known: Constants, rates: Rates) -> Times:
        nbytes, bursts = amounts.T
        most = min(getattr(known, bandwidth), rates.read_b_us if reads else rates.write_b_us)
        moved = np.maximum(nbytes, bursts * known.burst_bytes) / most
        busy = known.copy_us + bursts * known.burst_us + moved
        return busy, np.full(len(busy), known.copy_latency_us)

    return cost


def into_fractals(amounts: Array, known: Constants, rates: Rates) -> Times:
    """Of copies to L1: rows go one after the other, none faster than its bytes or than any row."""
    nbytes, rows = amounts.T
    moved = np.maximum(nbytes, rows * known.burst_bytes) / min(known.gm_l1_b_us, rates.read_b_us)
    return known.copy_us + np.maximum(moved, rows * known.row_us), np.full(len(rows), known.copy_latency_us)


def filled(amounts: Array, known: Constants, rates: Rates) -> Times:
    """L1 filled with one number; a fractal of 512 bytes at a time goes as 32 bytes."""
    return known.copy_us + amounts[:, 0] / 16 / known.l1_fill_b_us, np.zeros(len(amounts))


def fed(amounts: Array, known: Constants, rates: Rates) -> Times:
    """Bytes into L0A and into L0B."""
    busy = amounts[:, 0] / known.l1_l0a_b_us + amounts[:, 1] / known.l1_l0b_b_us
    return busy, np.full(len(amounts), known.feed_latency_us)


def multiplied(amounts: Array, known: Constants, rates: Rates) -> Times:
    """A fractal a cycle."""
    return (known.mad_head_cycles + amounts[:, 0]) / rates.mhz, np.zeros(len(amounts))


def scalar(name: str) -> Cost:
    """Single numbers."""

    def cost(amounts: Array, known: Constants, rates: Rates) -> Times:
        return np.full(len(amounts), float(getattr(known, name))), np.zeros(len(amounts))

    return cost


def computed(kind: str) -> Cost:
    """Of vector cores: amounts are how many times 256 bytes, and how many times that is done."""

    def cost(amounts: Array, known: Constants, rates: Rates) -> Times:
        slope, once = known.vector.get(kind, (known.unknown_cycles, 30.0))
        times = amounts[:, 0] * (amounts[:, 1] if amounts.shape[1] > 1 else 1)
        scale = known.vector_scale / rates.mhz
        return slope * times * scale, np.full(len(amounts), once * scale)

    return cost


COSTS: Mapping[str, Cost] = {
    "gm_ub": copied("gm_ub_b_us", True),
    "ub_gm": copied("ub_gm_b_us", False),
    "gm_l1": into_fractals,
    "l0c_gm": copied("l0c_gm_b_us", False),
    "l1_fill": filled,
    "l1_l0": fed,
    "mad": multiplied,
    "scalar_ub": scalar("scalar_ub_us"),
    "scalar_gm": scalar("scalar_gm_us"),
}


def times(works: Sequence[Work], known: Constants, rates: Rates) -> Times:
    """Of each work, in microseconds."""
    busy, more = np.zeros(len(works)), np.zeros(len(works))
    places: dict[str, list[int]] = {}
    for place, work in enumerate(works):
        places.setdefault(work.kind, []).append(place)
    for kind, at in places.items():
        amounts = np.array([works[place].amounts for place in at], float)
        busy[at], more[at] = COSTS.get(kind, computed(kind))(amounts, known, rates)
    return busy, more
