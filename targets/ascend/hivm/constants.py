"""What times of an Ascend core are computed with: others' figures with their sources, and guesses, named so.

None was measured here. Published: the bandwidths and cycles of pto-isa's cost model (hw-native-sys/pto-isa,
include/pto/costmodel: arch_config.hpp, a2a3/cce_costmodel), whose authors fitted some of them on a 910B3 and
left others as they were; what a launch takes, from msmodeling, whose authors say that it is to be checked.
What a copy costs beside its bytes follows from the times in asc-devkit's example data_copy, which the memory
may have bounded. That rows into fractals overlap with their bytes was assumed after a published product of
8192 cubed came out 17 % too slow without.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

GIB = 2**30 / 1e6  # bytes a microsecond of a GiB a second

# kind -> cycles for 256 bytes, and cycles once; an s behind the name: one operand is a number.
VECTOR: Mapping[str, tuple[float, float]] = MappingProxyType(
    {
        **dict.fromkeys(("vadd", "vsub", "vmax", "vmin"), (2, 24)),
        **dict.fromkeys(("vadds", "vsubs"), (1, 31)),
        **dict.fromkeys(("vmaxs", "vmins"), (1, 23)),
        **{"vmul": (2, 25), "vmuls": (1, 26), "vdiv": (4, 30), "vdivs": (4, 30)},
        **dict.fromkeys(("vand", "vor", "vxor", "vnot", "vshl", "vshr", "vshls", "vshrs"), (2, 20)),
        **{"vexp": (2, 31), "vln": (2, 33), "vsqrt": (2, 39), "vrsqrt": (1, 24), "vabs": (1, 29)},
        **{"vrelu": (1, 23), "vcopy": (1, 24), "vdup": (1, 24), "vsel": (2, 27), "vcast": (2, 32)},
        **{"vcmp": (2, 36), "vcmps": (2, 36), "vreduce_last": (7, 46), "vreduce_first": (2, 24)},
    }
)


@dataclass(frozen=True, slots=True)
class Constants:
    """us: microseconds; b_us: bytes a microsecond; cycles are of the core's clock.

    vector: by kind of work; a kind that is not among them takes unknown_cycles for 256 bytes.
    """

    gm_ub_b_us: float = 100.9 * GIB
    gm_l1_b_us: float = 135.0 * GIB
    ub_gm_b_us: float = 188.46 * GIB
    l0c_gm_b_us: float = 70.0 * GIB
    l1_l0a_b_us: float = 441.0 * GIB
    l1_l0b_b_us: float = 220.5 * GIB
    l1_fill_b_us: float = 32.0 * GIB
    l2_b_us: float = 5.2e6  # all cores together
    mad_head_cycles: float = 6.0
    vector: Mapping[str, tuple[float, float]] = field(default_factory=lambda: VECTOR)
    copy_us: float = 0.0073  # a copy's pipe, beside its bytes
    burst_us: float = 0.00036  # each of a copy's pieces, into UB
    row_us: float = 0.00306  # each row of a copy into fractals, at least
    launch_cube_us: float = 5.0
    launch_vector_us: float = 2.0
    # Guesses.
    l2_bytes: float = 192 << 20  # that L2 keeps; it has as many
    copy_latency_us: float = 0.4  # until what a copy brought can be used
    burst_bytes: float = 64.0  # what a shorter piece costs
    feed_latency_us: float = 0.05  # until the cube has what was moved to L0
    cross_us: float = 0.9  # a flag between cores
    flag_us: float = 0.02  # a flag between pipes
    issue_us: float = 0.008  # the scalar pipe, to give work to another; data_copy bounds it by 0.0115
    scalar_cycles: float = 2.0  # one op on numbers
    scalar_ub_us: float = 0.02  # one number from UB or to it
    scalar_gm_us: float = 0.3  # one number of the device's memory
    vector_scale: float = 1.0  # of all cycles of vector works
    unknown_cycles: float = 16.0

    def changed(self, name: str, factor: float) -> Constants:
        """With one of them multiplied."""
        return replace(self, **{name: getattr(self, name) * factor})


# Those, and the one that only follows if the memory did not bound it.
GUESSED = (
    *("l2_bytes", "row_us", "copy_latency_us", "burst_bytes", "feed_latency_us", "cross_us", "flag_us"),
    *("issue_us", "scalar_cycles", "scalar_ub_us", "scalar_gm_us", "vector_scale", "unknown_cycles"),
)
