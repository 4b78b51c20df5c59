"""Whether tuning can be trusted: tunes models twice, into fresh logs, and measures what came of it anew.

    python -m tests.benchmarks.tuner BUDGET [--family NAME] [--only KERNELS] [--threads N]

BUDGET is that of one tune ("60s", "20t"), for all kernels or those whose name has KERNELS in it. Then, in a
process that knows nothing of the tuning, every kernel's winners race its default, and the winners of one tune
those of the other. A kernel is slower than its default,
or the tunes disagree, where the race is sure of it; the bounds say how sure it can be.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from moec.compiler.conditions import Conditions, conditions
from moec.compiler.driver import Clock, understand
from moec.compiler.planning import planned
from moec.compiler.progress import quiet
from moec.compiler.rooms import target_of
from moec.compiler.source import resolve
from moec.targets.base import Kernel, Schedules
from moec.tuning.judge import Worker
from moec.tuning.log import Log
from moec.tuning.measure import Ratio, compare
from moec.tuning.plan import Plan
from moec.tuning.search import Budget

DEMO = Path(__file__).parents[2] / "examples" / "deepseek_small"
AGREE, RACES = 0.03, 4
Taken = dict[str, list[float]]
_COMMON = {"vocab_size": 4096, "hidden_size": 512, "num_hidden_layers": 2, "num_attention_heads": 8}
# Families beside the demo, as small as it: transformers' model_type, and its config.
FAMILIES: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "deepseek_v2": (
        "deepseek_v2",
        {
            **_COMMON,
            **{"intermediate_size": 1024, "moe_intermediate_size": 256, "n_routed_experts": 16},
            **{"num_key_value_heads": 8, "q_lora_rank": None, "kv_lora_rank": 128, "qk_rope_head_dim": 32},
            **{"qk_nope_head_dim": 64, "v_head_dim": 64, "n_shared_experts": 2, "num_experts_per_tok": 4},
            **{"first_k_dense_replace": 1, "topk_method": "greedy", "n_group": 1, "topk_group": 1},
        },
    ),
    "qwen3_moe": (
        "qwen3_moe",
        {
            **_COMMON,
            **{"num_key_value_heads": 2, "head_dim": 64, "num_experts": 16, "num_experts_per_tok": 4},
            **{"moe_intermediate_size": 384, "norm_topk_prob": True},
        },
    ),
}


@dataclass(frozen=True)
class Verdict:
    """One kernel, measured anew: the first tune's time over the default's, and over the second tune's."""

    kernel: Kernel
    tuned: bool
    promised: float  # the default's time over its, as the first tune measured it
    default: Ratio | None
    other: Ratio | None

    @property
    def slower(self) -> bool:
        return self.default is not None and self.default.lower > 1

    @property
    def apart(self) -> bool:
        return self.other is not None and not (
            self.other.lower <= 1 + AGREE and self.other.upper >= 1 - AGREE
        )


def config_of(family: str, folder: Path) -> Path:
    """A folder with that family's config.json."""
    if family == "demo":
        return DEMO
    import transformers

    kind, fields = FAMILIES[family]
    transformers.AutoConfig.for_model(kind, **fields, architectures=None).save_pretrained(folder)
    return folder


def tunes(
    family: str, only: str, budget: str, threads: int, folder: Path
) -> tuple[Conditions, Sequence[Plan]]:
    """The plans of two tunes that know nothing of each other, and how their kernels are called."""
    machine = target_of("cpu", None)
    config = config_of(family, folder)
    front = understand(resolve("", config), machine, Clock(quiet), None, False, None, "f32")
    kept = {node: kernel for node, kernel in front.kernels.items() if only in str(kernel)}
    called = conditions(machine, front.graph, front.kernels.values(), threads)
    plans = []
    for number in range(2):
        started = time.perf_counter()
        log = Log(folder / f"{family}{number}.jsonl")
        plans.append(planned(replace(front, kernels=kept), log, Budget.parse(budget), called, quiet))
        measured = sum(record.status not in ("done", "refused") for record in log.records)
        seconds = time.perf_counter() - started
        print(f"{family}, tune {number + 1}: {measured} trials, {seconds:.0f} s", flush=True)
    return called, plans


def raced(judge: Worker, kernel: Kernel, mine: Schedules, its: Schedules) -> Ratio | None:
    """One's time over the other's, in some races: of a single one the noise of its seconds decides. None
    where they are the same.
    """
    if mine == its:
        return None
    both: tuple[Taken, Taken] = ({}, {})
    for _ in range(RACES):  # one of them gives up where the first is surely slower
        seen = judge.trial(kernel, mine, its)
        assert seen.against is not None, seen.reason
        for taken, samples in zip(both, (seen.samples, seen.against)):
            for point, seconds in samples.items():
                taken.setdefault(point, []).extend(seconds)
    return compare(*both)


def judged(called: Conditions, plans: Sequence[Plan]) -> Iterator[Verdict]:
    """Every kernel that has a choice, measured anew."""
    with Worker(*called.device) as judge:
        judge.start()
        for kernel, choice in plans[0].items():
            space = called.machine.space(kernel)
            if space.choices:
                default = raced(judge, kernel, choice.schedules, space.defaults)
                other = raced(judge, kernel, choice.schedules, plans[1][kernel].schedules)
                yield Verdict(kernel, choice.why != "default", choice.gain, default, other)


def said(ratio: Ratio | None) -> str:
    """ "0.912 (0.890-0.931)", or that there was nothing to compare."""
    return f"{ratio.value:.3f} ({ratio.lower:.3f}-{ratio.upper:.3f})" if ratio else "the same"


def main() -> None:
    """Prints a row for each kernel of each family, and what there is to complain about."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("budget")
    parser.add_argument("--family", choices=["demo", *FAMILIES], action="append")
    parser.add_argument("--only", default="")
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    for family in given.family or ["demo", *FAMILIES]:
        with tempfile.TemporaryDirectory(prefix="moec-tuner-") as folder:
            called, plans = tunes(family, given.only, given.budget, given.threads, Path(folder))
        verdicts = list(judged(called, plans))
        for each in verdicts:
            if each.other and abs(each.other.value - 1) > AGREE:
                print(*(plan[each.kernel].schedules for plan in plans), sep="\n")
            promised = f"promised {1 / each.promised:.3f}" if each.tuned else "default"
            print(f"{each.kernel}: {promised}, to default {said(each.default)}, to other {said(each.other)}")
        slower, apart = (sum(getattr(each, fault) for each in verdicts) for fault in ("slower", "apart"))
        tuned = f"{family}: {sum(each.tuned for each in verdicts)} of {len(verdicts)} kernels tuned"
        print(f"{tuned}; {slower} slower than their default, {apart} more than {AGREE:.0%} apart", flush=True)


if __name__ == "__main__":
    main()
