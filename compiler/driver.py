"""From a model to an artifact: one straight line through all rooms."""

from __future__ import annotations

import math
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..passes.caches import NarrowCaches
from ..passes.coded import CodeLatents
from ..passes.head import LOGITS, NEXT, RESULTS, choosing
from ..passes.layout import is_weight, pack, packed
from ..passes.pages import PageCaches
from ..passes.precision import Policy, Precision
from ..targets.base import Kernel
from ..targets.paged import left_over
from ..tuning.log import Log, default_path
from ..tuning.plan import Plan
from ..tuning.search import Budget
from . import artifact, costs, library, pipeline, proof, verified
from . import manifest as manifests
from .conditions import conditions
from .guesses import guesses
from .ir import B, Graph, L, Miss, Node, P, S, T
from .manifest import File, Manifest, PlannedKernel, StoredWeight
from .onnx_graph import Naming
from .ops.coded import CODINGS
from .ops.region import REGION
from .ops.sources import INPUT, LITERAL
from .pipeline import PassReport
from .planning import NOTHING, planned
from .policy import NONE, cache_of, expect_read, pages_of, policy_of
from .progress import Steps, quiet
from .report import Report, html
from .rooms import target_of
from .rounding import Rounding, stored_weights
from .source import BadModel, Source, resolve
from .tuning_events import Listener, Teller, nobody
from .tuning_report import sections

if TYPE_CHECKING:
    from .trace import Traced

REPORT = "report.html"
FLOAT_BYTES = 4
SMALL = {B: 2, T: 3, S: 4, L: 9}  # sizes at which numbers are checked


class Clock:
    """Seconds that each step took, by name, and the end to which progress is told."""

    def __init__(self, progress: Steps) -> None:
        self.seconds: dict[str, float] = {}
        self.progress = progress

    @contextmanager
    def step(self, name: str) -> Iterator[Callable[[int, int], None]]:
        """Time a step; gives a function to tell how far it is."""
        started = time.perf_counter()
        self.progress(name, 0, 0)
        yield lambda done, total: self.progress(name, done, total)
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started


def compile_model(
    model: str = "",
    target: str = "cpu",
    *,
    out: str | Path,
    isa: str | None = None,
    budget: str = "0",
    retune: bool = False,
    verify: bool = False,
    log: str | Path | None = None,
    routing_trace: Path | None = None,
    force: bool = False,
    watch: Path | None = None,
    check: bool = False,
    config: str | Path | None = None,
    random_weights: int | None = None,
    quant: str = NONE,
    quant_config: Path | None = None,
    cache: str | None = None,
    cache_pages: int | None = None,
    head: str = LOGITS,
    threads: int | None = None,
    prove: bool = True,
    progress: Steps = quiet,
    events: Listener = nobody,
) -> Report:
    """Compile a model into the folder `out`, which appears whole or not at all.

    model: a Hugging Face folder or "package.module:function"; or config, a config.json, with random_weights,
    a seed. quant: how weights are stored ("int8", "int4", "bf16", "f16", "none" for the target's own way),
    and quant_config, a file of patterns of tensors' names and their formats. cache: how a caller keeps what
    is known of earlier tokens, "f32", "bf16", "f16" or, of latents, "fp8" or "int8", None for the target's
    own way; cache_pages: in pages of so many rows that all texts share, None for rows of each text's own.
    isa: what the artifact may use (x86-64-v3, sm_90a), None for this machine's. budget: how much to tune
    ("0", "2m", "40t"). retune: search on where the log already has a result. verify: measure once what is
    from other shapes or machines. log: the tuning log. routing_trace: expert ids that tokens chose, to time
    experts with (targets/routing.py says how). watch: a folder for the graph after each pass. check: compare
    numbers around each pass. head: what comes out, "logits" of every token or, chosen by the artifact itself,
    the "next" token of each text (passes/head.py). threads: that it will be run with, None for this
    machine's. prove: compare the artifact with PyTorch; where this machine cannot run it, the manifest says
    why. progress: told of steps; events: of tuning (tuning_events.py).
    Raises BadModel, BadPolicy, UnmetRule, UnsupportedOp, OutputTaken, CannotBuild, BadLog, BadTrace or
    NotProven: sentences for the user.
    """
    clock, machine, teller = Clock(progress), target_of(target, isa, quant), Teller(events)
    threads = threads or len(os.sched_getaffinity(0))
    machine.expect_tools()
    known = Log(Path(log or default_path()), machine.measured)
    source = resolve(model, Path(config) if config else None, random_weights)
    if source.config and not source.checkpoint and source.seed is None:
        raise BadModel(f"{source.name}: a config alone has no weights to compile; add --random-weights SEED")
    policy, cache = policy_of(quant, quant_config, machine.policies), cache_of(machine, cache)
    pages = pages_of(machine, cache_pages)
    with artifact.writing(Path(out), force) as folder:
        front = understand(source, machine, clock, watch, check, policy, cache, pages=pages, head=head)
        with clock.step("tune"):
            called = conditions(machine, front.graph, front.kernels.values(), threads, routing_trace)
            plan = planned(front, known, Budget.parse(budget), called, progress, retune, verify, teller)
            guessed = guesses(plan, known, teller.place, called)
        with clock.step("emit") as tell:
            jobs = [(kernel, choice.schedules) for kernel, choice in plan.items()]
            emitted = library.emit_all(machine, jobs, tell)
            machine.link(emitted, folder / machine.library)
            artifact.place(folder, machine.files(emitted))
        with clock.step("write") as tell:
            graph, names = laid_out(front, machine, plan)
            rounding = Rounding()
            files = artifact.store(folder, graph, front.traced.weights, names, tell, rounding.observe)
        manifest = describe(front, machine, plan, teller, files, stored_weights(graph, rounding), guessed)
        manifest.write(folder)
        if prove and machine.runs_here:
            with clock.step("prove"):
                rounded = policy is not None or cache != "f32"
                manifest = manifest.proven(proven(front, folder, rounded))
        elif prove:
            manifest = manifest.proven({"skipped": f"not proven here: it {machine.why_not_here}"})
        report = Report(manifest, Path(out), clock.seconds, known.problems)
        (folder / REPORT).write_text(html(report, sections(plan, known, teller.place)), encoding="utf-8")
        manifest.write(folder)
    verified.remember(Path(out), manifest.files)
    return report


def explain(
    model: str = "",
    target: str = "cpu",
    *,
    isa: str | None = None,
    log: str | Path | None = None,
    watch: Path | None = None,
    config: str | Path | None = None,
    quant: str = NONE,
    quant_config: Path | None = None,
    cache: str | None = None,
    cache_pages: int | None = None,
    head: str = LOGITS,
    threads: int | None = None,
    progress: Steps = quiet,
) -> Report:
    """What became of an artifact's model, or what would of a model, whose weights are not needed.

    Arguments and errors are those of compile_model.
    """
    if model and (Path(model) / manifests.NAME).is_file():
        return Report(manifests.read(Path(model)), Path(model))
    clock, machine = Clock(progress), target_of(target, isa, quant)
    threads = threads or len(os.sched_getaffinity(0))
    shapes = Path(config or model)
    source = resolve(model, shapes if config or shapes.exists() else None)
    policy, cache = policy_of(quant, quant_config, machine.policies), cache_of(machine, cache)
    pages = pages_of(machine, cache_pages)
    front = understand(source, machine, clock, watch, False, policy, cache, pages=pages, head=head)
    known = Log(Path(log or default_path()), machine.measured)
    called = conditions(machine, front.graph, front.kernels.values(), threads)
    teller = Teller()
    plan = planned(front, known, NOTHING, called, quiet, teller=teller)
    weights = stored_weights(laid_out(front, machine, plan)[0], Rounding())
    return Report(describe(front, machine, plan, teller, {}, weights), None, clock.seconds, known.problems)


@dataclass(frozen=True, slots=True)
class Front:
    """A model after all passes: its graph, the kernel of each region, and how it came to that."""

    source: Source
    traced: Traced
    graph: Graph
    kernels: Mapping[Node, Kernel]
    passes: Sequence[PassReport]
    misses: Sequence[Miss]


def understand(
    source: Source,
    machine: Any,
    clock: Clock,
    watch: Path | None,
    check: bool,
    policy: Policy | None,
    cache: str,
    traced: Traced | None = None,
    pages: int = 0,
    head: str = LOGITS,
) -> Front:
    """Trace the model and run the target's passes. No weight is read unless numbers are to be checked.

    traced: the same model, traced before. pages: rows of pages that caches are in, 0 for none. head: as in
    compile_model. Raises BadPolicy for pages that the target does not read, BadModel for a head that the
    model does not have.
    """
    from .trace import trace

    if traced is None:
        with clock.step("trace"):
            traced = trace(source)
    misses: list[Miss] = []
    with clock.step("passes"):
        asked = headed(source, traced.graph, head)
        feeds = pipeline.random_feeds(asked, SMALL) if check else {}
        checked = pipeline.Check(traced.weights, feeds) if check else None
        narrow = narrowing(cache)
        rounding = [Precision(policy, machine.formats, machine.widest)] if policy else []
        paged = [PageCaches(pages)] if pages else []
        passes = (*narrow, *paged, *machine.passes, *rounding)
        graph, reports = pipeline.run(asked, passes, misses=misses, watch=watch, check=checked)
        expect_read(machine, graph, cache)
        kernels = {node: machine.kernel_of(node) for node in graph if node.op is REGION}
    return Front(source, traced, graph, kernels, reports, misses)


def narrowing(cache: str) -> Sequence[Any]:
    """The passes that have caches kept that way."""
    if cache in CODINGS:
        return NarrowCaches(), CodeLatents(cache)
    return (NarrowCaches(cache),) if cache != "f32" else ()


def headed(source: Source, graph: Graph, head: str) -> Graph:
    """The graph of what is asked of the model. Raises BadModel where it does not say how texts go on."""
    try:
        return choosing(graph) if head == NEXT else graph
    except ValueError as error:
        raise BadModel(f"{source.name}: {error}") from None


def laid_out(front: Front, machine: Any, plan: Plan) -> tuple[Graph, Naming]:
    """The graph with weights in the order the plan's kernels read them, and the op name of each region."""
    layouts = {
        node: machine.layout_of(kernel, plan[kernel].schedule) for node, kernel in front.kernels.items()
    }
    names = {
        packed(node, layouts[node]).attrs["body"]: machine.op_name(kernel, plan[kernel].schedules)
        for node, kernel in front.kernels.items()
    }
    return pack(front.graph, layouts), lambda region: names.get(region.attrs["body"])


def describe(
    front: Front,
    machine: Any,
    plan: Plan,
    teller: Teller,
    files: Mapping[str, File],
    weights: Sequence[StoredWeight],
    guessed: Mapping[str, Any] | None = None,
) -> Manifest:
    """All that is known before the artifact is run. guessed: what choices hang on (guesses.py)."""
    uses = Counter(front.kernels.values())
    facts, stored = front.traced.facts, costs.cache_bytes(front.graph)
    hashed = getattr(front.traced.weights, "fingerprint", lambda: "")
    return Manifest(
        source={"name": front.source.name, "family": front.source.family, "hash": hashed()},
        target={**machine.facts, "whole": whole(front.graph)},
        onnxruntime=artifact.ONNXRUNTIME,
        files=files,
        kernels=[
            PlannedKernel(
                machine.op_name(kernel, chosen.schedules),
                str(kernel),
                chosen.rows(),
                chosen.why,
                uses[kernel],
                round(chosen.gain, 3),
                chosen.tried,
                chosen.reason,
            )
            for kernel, chosen in plan.items()
        ],
        toolchain=library.toolchain(machine),
        cache={
            "bytes_per_token": stored,
            "unfused_bytes_per_token": facts.layers * facts.expanded * FLOAT_BYTES if facts else stored,
            **in_pages(front.graph),
        },
        active_bytes_per_token=costs.active_bytes(front.graph),
        passes=[asdict(report) for report in front.passes],
        weights=weights,
        misses=[str(miss) for miss in front.misses],
        positions=facts.positions if facts else None,
        tuning=teller.worth.json() | ({"guesses": guessed} if guessed else {}) if teller.worth else None,
    )


def in_pages(graph: Graph) -> Mapping[str, int]:
    """Rows of the pages that caches are in, and how many nodes gather or write them for lack of kernels."""
    pools = [value.shape[2] for value in graph.inputs if P in value.shape]
    return {"page_rows": int(pools[0]), "page_nodes": len(left_over(graph))} if pools else {}


def whole(graph: Graph) -> bool:
    """Whether every node of an artifact is a kernel of ours."""
    return all(node.op is REGION or is_known(node) for node in graph)


def is_known(node: Node) -> bool:
    """Whether nothing is left of the node at run time: it is fed, or an expression of weights."""
    return node.op in (INPUT, LITERAL) or is_weight(node[0])


def proven(front: Front, folder: Path, rounded: bool) -> Mapping[str, Any]:
    """The artifact in the folder beside PyTorch; rounded: whether any number is stored narrower."""
    facts, shapes = front.traced.facts, front.traced.shapes.values()
    weights = FLOAT_BYTES * sum(map(math.prod, shapes))
    found = proof.prove(folder, front.source, facts.vocab if facts else None, rounded, weights)
    return found | ({"head": NEXT} if RESULTS[0] in front.graph.names else {})
