"""What models without a latent do to heads one by one: turn them, and write them into their caches."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ...base import Kernel, Schedule, Space
from ..program import BATCH, ONE, ROOM, TOKENS, Argument, Builder, M, Number, Pointer, Step, larger, sized
from ..soc import Soc
from .rows import power

FEW = 8  # tokens of a sequence below which heads are turned side by side, not tokens
WIDEST = 4096  # numbers that are turned at once


def rotary(kernel: Kernel, schedule: Schedule, soc: Soc) -> list[Step]:
    """x0 [batch, heads, tokens, r] by x1 and x2 [batch, tokens, r / 2] -> y0, by one of two functions."""
    arguments: dict[str, Argument] = {
        **{"x": Pointer("x0", "bf16"), "cos": Pointer("x1", "fp32"), "sin": Pointer("x2", "fp32")},
        **{"y": Pointer("y0", "bf16"), "heads": Number(M // larger(TOKENS, 1))},
        **{"batch": Number(BATCH), "tokens": Number(TOKENS)},
    }
    constants = {
        **{"WIDTH": kernel["r"], "PAIRS_IN": kernel["pairs_in"], "PAIRS_OUT": kernel["pairs_out"]},
        **{"MANY": int(schedule["rows"]), "HALF": power(kernel["r"] // 2)},
    }
    grid = (sized(soc.vectors), ONE, ONE)
    few, many = sized(FEW - 1) // larger(TOKENS, 1), TOKENS // FEW
    return [
        Step("heads:turn_heads", arguments, constants, grid, when=few),
        Step("heads:turn_tokens", arguments, constants, grid, when=many),
    ]


def append(kernel: Kernel, schedule: Schedule, soc: Soc) -> list[Step]:
    """Rows of x1 [batch, h, tokens, d] to where x3 tells in the cache y0 [batch, h, room, d]."""
    arguments: dict[str, Argument] = {
        **{"rows": Pointer("x1", "bf16"), "span": Pointer("x3", "i64"), "cache": Pointer("y0", "bf16")},
        **{"heads": Number(BATCH * kernel["h"]), "batch": Number(BATCH), "tokens": Number(TOKENS)},
        **{"room": Number(ROOM)},
    }
    constants = {"WIDTH": kernel["d"], "BLOCK": int(schedule["numbers"])}
    return [Step("heads:append", arguments, constants, (sized(soc.vectors), ONE, ONE))]


def rotary_space(kernel: Kernel, soc: Soc) -> Space:
    """rows: heads of one token, or tokens of one head, that are turned at once."""
    most = max(WIDEST // power(kernel["r"]), 1)
    rows = [count for count in (1, 2, 4, 8, 16, 32) if count <= most]
    return Space({"rows": rows}, {"rows": min(most, 4)}, larger={65: {"rows": rows[-1]}})


def append_space(kernel: Kernel, soc: Soc) -> Space:
    """numbers: of a head's new rows that are copied at once."""
    return Space(
        {"numbers": [512, 1024, 2048, 4096, 8192]}, {"numbers": 1024}, larger={65: {"numbers": 8192}}
    )


BUILDERS: Mapping[str, Builder] = {"append": append, "rotary": rotary}
SPACES: Mapping[str, Callable[[Kernel, Soc], Space]] = {"append": append_space, "rotary": rotary_space}
