"""The schedules worth trying for what goes row by row, for routers, and for attention over plain heads."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ..base import Kernel, Schedule, Space
from .sm import Sm
from .widths import LANES, TILE_K, TILE_M, norm_vector, widest

BLOCKS = (64, 128, 256, 512, 1024)  # threads of a block


def threads_for(numbers: int, vector: int, parts: int = 1) -> int:
    """The smallest block that needs no more than so many loads a thread, or the largest."""
    return next((threads for threads in BLOCKS if threads * vector * parts >= numbers), BLOCKS[-1])


def too_much(shared: int, sm: Sm) -> str | None:
    """Why a block cannot have so many bytes of shared memory, or None."""
    return (
        f"{shared} bytes of shared memory; {sm} has {sm.shared_bytes}" if shared > sm.shared_bytes else None
    )


def space(kernel: Kernel, sm: Sm) -> Space:
    """Every schedule worth trying for one kernel. Raises ValueError for a kind without a space."""
    if kernel.kind not in SPACES:
        raise ValueError(
            f"there is no space for {kernel.kind!r}; there is one for {', '.join(sorted(SPACES))}"
        )
    return SPACES[kernel.kind](kernel, sm)


def embedding(kernel: Kernel, sm: Sm) -> Space:
    """threads: of the block that copies a row."""
    return Space({"threads": BLOCKS}, {"threads": threads_for(kernel["n"], widest(kernel["n"]))})


def rms_norm(kernel: Kernel, sm: Sm) -> Space:
    """threads: of a block, which takes a row or, of short ones, a row a warp."""
    vector = norm_vector(kernel)
    short = kernel["n"] <= 2 * LANES * vector

    def held(schedule: Schedule) -> str | None:
        parts = -(-kernel["n"] // (int(schedule["threads"]) * vector))
        fits = short or parts * vector <= 64
        return None if fits else f"a thread would hold {parts * vector} numbers of a row; at most 64"

    return Space(
        {"threads": BLOCKS}, {"threads": 128 if short else threads_for(kernel["n"], vector)}, rules=(held,)
    )


def threads_alone(default: int) -> Callable[[Kernel, Sm], Space]:
    """Kernels where a thread does the same whatever their number."""
    return lambda kernel, sm: Space({"threads": BLOCKS}, {"threads": default})


def fixed(kernel: Kernel, sm: Sm) -> Space:
    """Kernels with nothing to choose."""
    return Space({}, {})


def route(kernel: Kernel, sm: Sm) -> Space:
    """product: how logits come, by rows of the weight or by tiles. rows: threads of a block, and how many
    columns (experts) and rows (tokens) it takes. tiles: their width in experts, how many blocks share k, and
    how many stages are under way.
    """
    k, vector = kernel["k"], widest(kernel["k"])

    def held(schedule: Schedule) -> str | None:
        parts = -(-k // (int(schedule["threads"]) * vector))
        numbers = parts * vector * int(schedule["columns"])
        return f"a thread would hold {numbers} weights; at most 128" if numbers > 128 else None

    def tiles(schedule: Schedule) -> str | None:
        needed = 2 * TILE_K * (TILE_M + int(schedule["width"])) * int(schedule["stages"])
        return too_much(needed, sm)

    choices: dict[str, list[int | str]] = {
        **{
            "product": ["rows", "tiles"],
            "threads": [64, 128, 256, 512],
            "columns": [1, 2, 4],
            "rows": [1, 2, 4, 8],
        },
        **{"width": [64, 128], "parts": [1, 2, 4, 8, 16], "stages": [2, 3, 4]},
    }
    default: dict[str, int | str] = {
        **{"product": "rows", "threads": min(512, threads_for(k, vector, 4)), "columns": 1, "rows": 1},
        **{"width": 64, "parts": 8, "stages": 4},
    }
    larger: dict[int, Schedule] = {
        2: {"rows": 2},
        5: {"rows": 4, "columns": 2},
        17: {"product": "tiles"},
        257: {"product": "tiles", "width": 128, "parts": 2},
    }
    return Space(choices, default, rules=(held, tiles), larger=larger)


def attention(kernel: Kernel, sm: Sm) -> Space:
    """rows: of queries in a block, each a head of a token; keys: of a tile; threads; splits: blocks that
    share the keys of few tokens.
    """
    dk, dv = kernel["dk"], kernel["dv"]

    def fits(schedule: Schedule) -> str | None:
        rows, keys = int(schedule["rows"]), int(schedule["keys"])
        needed = 2 * (rows * dk + keys * (dk + dv)) + 1024
        return too_much(needed, sm)

    def registers(schedule: Schedule) -> str | None:
        rows, keys, threads = (int(schedule[name]) for name in ("rows", "keys", "threads"))
        needed = rows * (keys + keys // 2 + dv) // threads
        return f"{needed} registers of a thread for scores and results; at most 200" if needed > 200 else None

    def groups(schedule: Schedule) -> str | None:
        rows, threads = int(schedule["rows"]), int(schedule["threads"])
        return None if threads == 2 * rows else f"{threads} threads for {rows} rows; expected 128 for each 64"

    most = max(1, sm.multiprocessors // kernel["groups"])
    splits = max(count for count in (1, 2, 4, 8, 16, 32) if count <= most)
    return Space(
        choices={
            "rows": [64, 128],
            "keys": [32, 64, 128],
            "threads": [128, 256],
            "splits": [1, 2, 4, 8, 16, 32],
        },
        default={"rows": 64, "keys": 64, "threads": 128, "splits": splits},
        rules=(fits, registers, groups),
    )


SPACES: Mapping[str, Callable[[Kernel, Sm], Space]] = {
    "embedding": embedding,
    "angles": threads_alone(256),
    "rms_norm": rms_norm,
    "last_norm": rms_norm,
    "route": route,
    "top_k_gate": fixed,
    "permute": fixed,
    "rotary": threads_alone(128),
    "append": threads_alone(128),
    "attention": attention,
    "choose_token": lambda kernel, sm: Space({"threads": BLOCKS[2:]}, {"threads": 512}),
}
