"""The schedules worth trying for latent attention."""

from __future__ import annotations

from ..base import Kernel, Schedule, Space
from ..paged import unpaged
from .sm import Sm
from .widths import tiled


def space(kernel: Kernel, sm: Sm) -> Space:
    """a_: absorbed, p_: materialised.

    a_way: "plain", a pipeline that TileLang makes; "seesaw", two warpgroups that take turns; or "early",
    which asks for the cache before there are queries, and of one token adds up parts while it projects them;
    a_rows: heads of tokens that share a block; a_keys, a_stages: keys of a tile, tiles under way; a_threads;
    a_waves: blocks for each multiprocessor that the cache is split for; a_least: keys that are worth a part;
    a_project: tokens of a tile of the projections; a_most: new tokens up to which this way is taken.
    p_way: "plain"; "ahead", where the next scores are multiplied while those before are softened; or "turns",
    where in addition two warpgroups multiply in turns. p_rows: tokens of a block; p_keys, p_stages as above;
    p_columns: of a tile of the keys and values that are made. Over codes the absorbed way is one of its own.
    """
    kernel = unpaged(kernel)  # a tile lies in one page, so nothing else is worth trying there
    if kernel.kind == "latent_write" or not tiled(kernel):
        return Space({}, {})
    coded = kernel.cache == "fp8"

    def fits(schedule: Schedule) -> str | None:
        needed = shared_bytes(kernel, schedule)
        return (
            f"{needed} bytes of shared memory; {sm} has {sm.shared_bytes}"
            if needed > sm.shared_bytes
            else None
        )

    def shared_out(schedule: Schedule) -> str | None:
        rows, threads = int(schedule["a_rows"]), int(schedule["a_threads"])
        if not coded or threads == MULTIPLYING[rows]:
            return None
        return f"a_rows={rows} over codes goes with a_threads={MULTIPLYING[rows]}, not {threads}"

    def paired(schedule: Schedule) -> str | None:
        shape = {name: int(schedule[name]) for name in ("a_rows", "a_keys", "a_stages", "a_threads")}
        if schedule["a_way"] != "seesaw" or (kernel["rope"] == 64 and shape == SEESAW):
            return None
        return f"a_way=seesaw is for {SEESAW} and rope=64, not {shape} and rope={kernel['rope']}"

    def behind(schedule: Schedule) -> str | None:
        if schedule["a_way"] != "early" or kernel.kind == "latent_attention":
            return None
        return "a_way=early is for attention behind a step that waits for the cache; mla_decode has none"

    def held(schedule: Schedule) -> str | None:
        registers = int(schedule["a_rows"]) * kernel["latent"] // int(schedule["a_threads"])
        return f"{registers} registers a thread for the result alone" if registers > 128 else None

    def led(schedule: Schedule) -> str | None:
        if schedule["p_way"] == "plain" or narrow:
            return None
        return f"p_way={schedule['p_way']} is for values of at most 128 that are no wider than keys"

    narrow = kernel.kind == "latent_attention" and kernel["value"] <= min(kernel["nope"], 128)
    wide = kernel["heads"] > 16 and kernel["rope"] == 64
    shape = SEESAW if wide else {"a_rows": 16, "a_keys": 64, "a_stages": 2, "a_threads": 128}
    if coded:
        rows = 64 if kernel["heads"] > 16 else 16
        shape = {"a_rows": rows, "a_keys": 64, "a_stages": 2, "a_threads": MULTIPLYING[rows]}
    default: dict[str, int | str] = {
        **{"a_way": "seesaw" if wide and not coded else "plain", **shape, "a_waves": 1, "a_least": 128},
        **{"a_project": 16, "a_most": 128},
        **{"p_way": "turns" if narrow else "plain", "p_rows": 128, "p_keys": 128, "p_stages": 2},
        "p_columns": 256 if narrow and wide else 128,
    }
    choices: dict[str, list[int | str]] = {
        **{"a_way": ["plain", "seesaw", "early"], "a_rows": [16, 64], "a_keys": [32, 64]},
        **{"a_stages": [1, 2, 3, 4, 5], "a_threads": [128, 256]},
        **{"a_waves": [1, 2, 4], "a_least": [64, 128, 256, 512]},
        **{"a_project": [16, 64], "a_most": [16, 64, 128, 256]},
        **{
            "p_way": ["plain", "ahead", "turns"],
            "p_rows": [128],
            "p_keys": [64, 128],
            "p_stages": [1, 2],
            "p_columns": [128, 256],
        },
    }
    if coded:
        choices["a_way"] = ["plain"]
    rules = (fits, paired, behind, held, shared_out)
    if kernel.kind == "mla_decode":
        choices = {name: choices[name] for name in ATTEND}
        return Space(choices, {name: default[name] for name in ATTEND}, rules=rules)
    larger: dict[int, Schedule] = {17: {"a_project": 64}} if wide else {}
    if narrow and not wide:
        larger = {257: {"p_columns": 256}}
    if kernel["heads"] <= 16 and not coded:  # a token's are one tile of rows: then only latency counts
        larger = {2: {name: default[name] for name in EARLY}, **larger}
        default |= EARLY
    return Space(choices, default, rules=(*rules, led), larger=larger)


ATTEND = ("a_way", "a_rows", "a_keys", "a_stages", "a_threads", "a_waves", "a_least")  # knobs of mla_decode
SEESAW = {"a_rows": 64, "a_keys": 64, "a_stages": 2, "a_threads": 256}
EARLY: dict[str, int | str] = {"a_way": "early", "a_threads": 256, "a_least": 64}
MULTIPLYING = {16: 128, 64: 256}  # a_threads by a_rows over codes, which others load and widen
BARRIERS = 1024  # bytes of shared memory


def shared_bytes(kernel: Kernel, schedule: Schedule) -> int:
    """What the larger of the two ways needs: queries, tiles of the cache, chances and room for reductions; of
    codes, also a tile that is widened.
    """
    rows, keys, stages = (int(schedule[f"a_{name}"]) for name in ("rows", "keys", "stages"))
    latent, rope = kernel["latent"], kernel["rope"]
    coded = kernel.cache == "fp8"
    tile = keys * (latent * (1 if coded else 2) + 2 * rope)
    once = 2 * (rows * (latent + rope) + rows * keys + (keys * latent if coded else 0))
    absorbed = once + tile * stages + 8 * int(schedule["a_threads"]) + BARRIERS
    if kernel.kind != "latent_attention":
        return absorbed
    rows, keys, stages = (int(schedule[f"p_{name}"]) for name in ("rows", "keys", "stages"))
    head, value = kernel["nope"] + kernel["rope"], kernel["value"]
    return max(absorbed, 2 * (rows * head + keys * (head + value) * stages) + BARRIERS)
