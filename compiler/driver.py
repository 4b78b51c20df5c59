"""From a model to an artifact: one straight line through all rooms."""

from __future__ import annotations

import importlib
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..passes.layout import pack, packed
from ..targets.base import CannotBuild, Kernel
from ..tuning.fingerprint import here
from ..tuning.log import Log, default_path
from ..tuning.plan import Plan, make_plan
from . import artifact, costs, library, pipeline
from .front import Front, front
from .ir import Graph, Node
from .manifest import Manifest, PlannedKernel
from .report import Report, html
from .source import resolve

# step, how far, of how much: parts of a step that take long enough to be worth showing.
Progress = Callable[[str, int, int], None]

REPORT = "report.html"


def quiet(step: str, done: int, total: int) -> None:
    """Progress that nobody watches."""


class Clock:
    """Seconds that each step took, by name, and the end to which progress is told."""

    def __init__(self, progress: Progress) -> None:
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
    out: str | Path = "",
    *,
    isa: str | None = None,
    budget: str = "0",
    log: str | Path | None = None,
    force: bool = False,
    watch: Path | None = None,
    check: bool = False,
    config: str | Path | None = None,
    random_weights: int | None = None,
    threads: int | None = None,
    prove: bool = True,
    progress: Progress = quiet,
) -> Report:
    """Compile a model into the folder `out`, which appears whole or not at all.

    model: a Hugging Face folder or "package.module:function"; or config, a config.json, with random_weights, a seed.
    isa: what the artifact may use, None for this machine's. budget: how much to tune ("0", "2m", "40t"). log: the
    tuning log. watch: a folder for the graph after each pass. check: compare numbers before and after each pass.
    threads: that it will be run with, None for this machine's. prove: compare the artifact with PyTorch.
    Raises BadModel, UnsupportedOp, OutputTaken, CannotBuild or BadLog, each with a sentence for the user.
    """
    clock, machine = Clock(progress), target_of(target, isa)
    with artifact.writing(Path(out), force) as folder:
        source = resolve(model, config and Path(config), random_weights)
        made = front(source, machine, clock.step, watch, check)
        kernels = {node: machine.kernel_of(node) for node in made.graph if node.op.name == "region"}
        with clock.step("tune") as tell:
            plan = planned(machine, kernels, Log(Path(log or default_path())), budget, threads, tell)
        with clock.step("emit") as tell:
            jobs = [(kernel, choice.schedule) for kernel, choice in plan.items()]
            machine.link(library.emit_all(machine, jobs, tell), folder / machine.library)
        with clock.step("write") as tell:
            graph, names = laid_out(made.graph, machine, kernels, plan)
            files = artifact.store(folder, graph, made.traced.weights, lambda node: names.get(node.attrs["body"]), tell)
        ...


def target_of(name: str, isa: str | None) -> Any:
    """The target of that name for an instruction set. Raises CannotBuild with what there is."""
    rooms = sorted(each.parent.name for each in Path(__file__).parents[1].joinpath("targets").glob("*/target.py"))
    if name not in rooms:
        raise CannotBuild(f"there is no target {name!r}; there is {', '.join(rooms)}")
    try:
        return importlib.import_module(f"..targets.{name}.target", __package__).target(isa)
    except ValueError as error:
        raise CannotBuild(str(error)) from None
