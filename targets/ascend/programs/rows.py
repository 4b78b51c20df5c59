"""Kernels that go row by row: RMSNorm, embedding, the angles of positions."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ...base import Kernel, Schedule, Space
from ..program import BATCH, ONE, SEEN, TOKENS, Argument, Builder, M, Number, Pointer, Step, sized, tiles
from ..soc import Soc

WIDEST = 8192  # columns of a norm that are held at once
COPIED = 8192  # numbers that embedding holds of a row
COLUMNS = 2048  # of a mask that are looked at together
TURNED = 4096  # angles that one block makes


def power(number: int) -> int:
    """The smallest power of two that is no less."""
    return 1 << (number - 1).bit_length()


def rms_norm(kernel: Kernel, schedule: Schedule, soc: Soc) -> list[Step]:
    """One launch on all vector cores."""
    sizes = {"N": kernel["n"], "WIDTH": kernel["width"], "START": kernel["start"]}
    arguments: dict[str, Argument] = {
        "x": Pointer("x0", "bf16"),
        "w": Pointer("x1", "fp32"),
        "y": Pointer("y0", "bf16"),
        "m": Number(M),
        "eps": Number("eps"),
    }
    grid = (sized(soc.vectors), ONE, ONE)
    if kernel["n"] > WIDEST:
        return [Step("rows:rms_norm_wide", arguments, {**sizes, "BLOCK": WIDEST // 2}, grid)]
    tile = {"ROWS": int(schedule["rows"]), "BLOCK": power(kernel["n"])}
    return [Step("rows:rms_norm", arguments, {**sizes, **tile}, grid)]


def norm_space(kernel: Kernel, soc: Soc) -> Space:
    """Rows side by side: what fits, which is one where they are wide."""
    most = max(WIDEST // power(kernel["n"]), 1)
    rows = [count for count in (1, 2, 4, 8, 16, 32) if count <= most]
    return Space({"rows": rows}, {"rows": 1}, larger={65: {"rows": min(most, 4)}, 257: {"rows": rows[-1]}})


def embedding(kernel: Kernel, schedule: Schedule, soc: Soc) -> list[Step]:
    """One launch on all vector cores."""
    arguments: dict[str, Argument] = {
        "ids": Pointer("x0", "i64"),
        "table": Pointer("x1", "bf16"),
        "y": Pointer("y0", "bf16"),
        "m": Number(M),
    }
    sizes = {"V": kernel["v"], "N": kernel["n"], "BLOCK": min(power(kernel["n"]), COPIED)}
    return [Step("rows:embedding", arguments, sizes, (sized(soc.vectors), ONE, ONE))]


def angles(kernel: Kernel, schedule: Schedule, soc: Soc) -> list[Step]:
    """A block for each sequence's next tokens; each looks for the ones of the mask on its own."""
    arguments: dict[str, Argument] = {
        "mask": Pointer("x0", "i64"),
        "freqs": Pointer("x2", "fp32"),
        "cos": Pointer("y0", "fp32"),
        "sin": Pointer("y1", "fp32"),
        "span": Pointer("y2", "i64"),
        "tokens": Number(TOKENS),
        "seen": Number(SEEN),
    }
    freqs = power(kernel["f"])
    rows = max(min(TURNED // freqs, 64), 1)
    sizes = {"F": kernel["f"], "FREQS": freqs, "ROWS": rows, "COLUMNS": COLUMNS}
    return [Step("rows:angles", arguments, sizes, (tiles(TOKENS, rows), BATCH, ONE))]


def one_way(kernel: Kernel, soc: Soc) -> Space:
    """A kernel with nothing to choose."""
    return Space({}, {})


BUILDERS: Mapping[str, Builder] = {"rms_norm": rms_norm, "embedding": embedding, "angles": angles}
SPACES: Mapping[str, Callable[[Kernel, Soc], Space]] = {
    "rms_norm": norm_space,
    "embedding": one_way,
    "angles": one_way,
}
