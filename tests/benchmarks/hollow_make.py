"""An artifact without its large weights, to be filled with random numbers on another machine (hollow.py).

Files, kernels and sizes are those of any artifact; small weights are there and drawn as usual. The large
ones, matrices in bf16, and all codes with their scales only have their places in files still to be written.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from moec.compiler import artifact, driver, library
from moec.compiler.blobs import HUGE, LIMIT, Blobs, labels
from moec.compiler.conditions import conditions
from moec.compiler.ir import Graph, Value, walk
from moec.compiler.manifest import File
from moec.compiler.onnx_graph import Naming, Stored, frontier, to_onnx
from moec.compiler.ops.quantize import QUANTIZE
from moec.compiler.planning import NOTHING, planned
from moec.compiler.policy import NONE, cache_of, policy_of
from moec.compiler.progress import Steps, quiet
from moec.compiler.rooms import target_of
from moec.compiler.rounding import Rounding, stored_weights
from moec.compiler.session import MODEL
from moec.compiler.slices import evaluated, nbytes
from moec.compiler.source import resolve
from moec.compiler.tuning_events import Teller
from moec.tuning.log import Log, default_path

from .hollow import PREFIX

LARGE = 1 << 20  # bytes from which a matrix is left out


def make(
    config: Path,
    out: Path,
    target: str,
    isa: str | None,
    log: Path | None = None,
    tell: Steps = quiet,
    quant: str = NONE,
    threads: int = 1,
) -> None:
    """Compiles a model of that config, with the best schedules of the log, into a hollow artifact."""
    machine, clock, teller = target_of(target, isa), driver.Clock(tell), Teller()
    source = resolve("", config, 0)
    policy, cache = policy_of(quant, None, machine.policies), cache_of(machine, None)
    front = driver.understand(source, machine, clock, None, False, policy, cache)
    called = conditions(machine, front.graph, front.kernels.values(), threads)
    known = Log(log or default_path(), machine.measured)
    plan = planned(front, known, NOTHING, called, tell, False, False, teller)
    with artifact.writing(out, force=True) as folder:
        jobs = [(kernel, choice.schedules) for kernel, choice in plan.items()]
        with clock.step("emit") as told:
            machine.link(library.emit_all(machine, jobs, told), folder / machine.library)
        graph, names = driver.laid_out(front, machine, plan)
        files = store(folder, graph, front.traced.weights, names)
        weights = stored_weights(graph, Rounding())
        driver.describe(front, machine, plan, teller, files, weights).write(folder)


def store(folder: Path, graph: Graph, weights: Any, naming: Naming) -> dict[str, File]:
    """Writes the model and its small weights; gives all files, also those that are not there yet."""
    values = frontier(graph)
    large, names = [each for each in values if is_large(each)], dict(zip(values, labels(values)))
    places, missing = placed([(names[value], nbytes(value.type)) for value in large])
    stored: dict[Value, Stored] = dict(zip(large, places))
    blobs = Blobs(folder)
    for group, slices in evaluated([each for each in values if each not in stored], weights):
        stored.update(zip(group, blobs.add([(names[value], value) for value in group], slices)))
    blobs.close()
    stored = {value: stored[value] for value in values}
    (folder / MODEL).write_bytes(to_onnx(graph, stored, naming).SerializeToString())
    there = {path.name: artifact.fingerprint(path) for path in sorted(folder.iterdir())}
    return {**there, **missing}


def is_large(value: Value) -> bool:
    """Whether the weight is left out."""
    if any(node.op is QUANTIZE for node in walk([value])):
        return True
    return value.type.rank > 1 and value.type.dtype == "bf16" and nbytes(value.type) >= LARGE


def placed(tensors: Sequence[tuple[str, int]]) -> tuple[list[Stored], dict[str, File]]:
    """A place for each tensor, by its name and bytes, and the files that they make up."""
    found, sizes = list[Stored](), list[int]()
    for name, length in tensors:
        if not sizes or sizes[-1] + length > LIMIT:
            sizes.append(0)
        start = -(-sizes[-1] // HUGE) * HUGE
        found.append(Stored(name, f"{PREFIX}{len(sizes):03}.bin", start, length))
        sizes[-1] = start + length
    return found, {f"{PREFIX}{count:03}.bin": File(size, "0" * 64) for count, size in enumerate(sizes, 1)}
