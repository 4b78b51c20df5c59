"""One model planned for several targets: which kernel and schedule each has for each op, side by side."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.table import Table

from ..tuning.log import Log, default_path
from .conditions import conditions
from .driver import Clock, Front, describe, laid_out, understand
from .manifest import Manifest, PlannedKernel
from .planning import NOTHING, planned
from .policy import NONE, cache_of, policy_of
from .progress import Steps, quiet
from .report import columns, per_tokens, times, why
from .rooms import target_of
from .rounding import Rounding, stored_weights
from .source import resolve
from .tuning_events import Teller

LAYER = re.compile(r"\blayers\.(\d+)\b")
Place = tuple[str, str, int]  # a module, a kind of kernel, and which of several alike


@dataclass(frozen=True, slots=True)
class Op:
    """What the targets do at one place of a model, in all layers where that is the same.

    place: the module it comes from, with * for the layer; kind: of the kernels; kernels: by target, of those
    that have one there.
    """

    place: str
    kind: str
    kernels: Mapping[str, PlannedKernel]
    layers: Sequence[int] = ()

    @property
    def key(self) -> tuple[str, str, Sequence[tuple[str, str]]]:
        """What is the same in other layers."""
        return self.place, self.kind, [(target, each.name) for target, each in self.kernels.items()]


@dataclass(frozen=True, slots=True)
class Plans:
    """ops: in the order of the model. manifests: what is known of each target's artifact, by target."""

    source: str
    ops: Sequence[Op]
    manifests: Mapping[str, Manifest]
    warnings: Sequence[str] = field(default=())

    def json(self) -> dict[str, Any]:
        """For machines: everything the table shows, and more."""
        return {
            "source": self.source,
            "ops": [asdict(op) for op in self.ops],
            "targets": {name: dict(found.target) for name, found in self.manifests.items()},
            "active_bytes_per_token": {
                name: found.active_bytes_per_token for name, found in self.manifests.items()
            },
            "cache": {name: dict(found.cache) for name, found in self.manifests.items()},
            "warnings": list(self.warnings),
        }


def compare(
    model: str,
    targets: Sequence[str],
    *,
    log: str | Path | None = None,
    config: str | Path | None = None,
    quant: str = NONE,
    quant_config: Path | None = None,
    cache: str | None = None,
    threads: int | None = None,
    progress: Steps = quiet,
) -> Plans:
    """The plans of a model for some targets, all from one graph. Only its shapes are read.

    Arguments and errors are those of driver.compile_model.
    """
    from .trace import trace

    clock, shapes = Clock(progress), Path(config or model)
    machines = {name: target_of(name, None, quant) for name in targets}
    policies = {name: policy_of(quant, quant_config, each.policies) for name, each in machines.items()}
    caches = {name: cache_of(each, cache) for name, each in machines.items()}
    source = resolve(model, shapes if config or shapes.exists() else None)
    with clock.step("trace"):
        traced = trace(source)
    found, warnings, fronts = {}, list[str](), {}
    for name, machine in machines.items():
        fronts[name] = understand(source, machine, clock, None, False, policies[name], caches[name], traced)
        known = Log(Path(log or default_path()), machine.measured)
        found[name] = described(fronts[name], machine, known, threads)
        warnings += known.problems
    return Plans(source.name, merged(places(fronts, found)), found, list(dict.fromkeys(warnings)))


def described(front: Front, machine: Any, known: Log, threads: int | None) -> Manifest:
    """All that is known of a target's artifact without making it."""
    threads, teller = threads or len(os.sched_getaffinity(0)), Teller()
    called = conditions(machine, front.graph, front.kernels.values(), threads)
    plan = planned(front, known, NOTHING, called, quiet, teller=teller)
    weights = stored_weights(laid_out(front, machine, plan)[0], Rounding())
    return describe(front, machine, plan, teller, {}, weights)


def merged(every: Mapping[Place, Mapping[str, PlannedKernel]]) -> list[Op]:
    """The ops at these places: those that are alike in several layers once."""
    found: list[Op] = []
    for (place, kind, _), kernels in every.items():
        layer = LAYER.search(place)
        op = Op(LAYER.sub("layers.*", place), kind, kernels, [int(layer[1])] if layer else [])
        alike = (i for i, each in enumerate(found) if layer and each.key == op.key)
        same = next((i for i in alike if op.layers[0] not in found[i].layers), None)
        if same is None:
            found.append(op)
        else:
            found[same] = replace(op, layers=[*found[same].layers, *op.layers])
    return found


def places(
    fronts: Mapping[str, Front], found: Mapping[str, Manifest]
) -> dict[Place, dict[str, PlannedKernel]]:
    """Each target's kernel by place, in the order of the target that has most kernels."""
    every: dict[Place, dict[str, PlannedKernel]] = {}
    for target, front in sorted(fronts.items(), key=lambda each: -len(each[1].kernels)):
        kernels = {each.kernel: each for each in found[target].kernels}
        seen = Counter[tuple[str, str]]()
        for node, kernel in front.kernels.items():
            place = (node.origin, kernel.kind)
            every.setdefault((*place, seen[place]), {})[target] = kernels[str(kernel)]
            seen[place] += 1
    return every


def plans(found: Plans) -> Table:
    """An op's place and layers, then a line for each target: its kernel, schedule, and why that one."""
    table = columns("op", "layers", "target", "kernel", "schedule", "why")
    for op in found.ops:
        place = op.place.rpartition("layers.*")[2].removeprefix(".")
        head = (f"{place} {op.kind}".strip(), ranges(op.layers))
        for number, target in enumerate(found.manifests):
            shown = head if not number else ("", "")
            if planned := op.kernels.get(target):
                sizes = planned.kernel.removeprefix(f"{op.kind} ")
                table.add_row(
                    *shown,
                    target,
                    sizes,
                    per_tokens(planned.schedules),
                    why(planned, times(found.manifests[target])),
                )
            else:
                table.add_row(*shown, target, "none: standard ops", "", "")
    return table


def ranges(numbers: Sequence[int]) -> str:
    """Ascending numbers in short: 0, 2-26."""
    spans: list[list[int]] = []
    for each in sorted(numbers):
        if spans and each == spans[-1][-1] + 1:
            spans[-1][1:] = [each]
        else:
            spans.append([each])
    return ", ".join("-".join(map(str, span)) for span in spans)
