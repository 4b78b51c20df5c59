"""One float32 product tuned by us and by TVM's own MetaSchedule, with the same seconds.

    python -m tests.benchmarks.metaschedule FOLDER ours 60       # tunes: one search for every count of rows
    python -m tests.benchmarks.metaschedule FOLDER peer 60 64    # the peer's: one for 64 rows alone
    python -m tests.benchmarks.metaschedule FOLDER compare 1 64 512

The peer may lay out weights as it likes before they are timed, as ours are. Its builder imports all of TVM's
tensor intrinsics in every process, which takes longer than it gives a build; a product of floats needs none,
so it gets a build without them. Its seconds, like ours, begin when all is imported. The last step times both
in turns, weights cold, and onnxruntime's MatMul (MLAS) with them.
Needs xgboost, psutil and cloudpickle: pip install -e '.[bench]'.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import moec.targets.cpu
from moec.targets.base import Kernel
from moec.targets.cpu.device import Device
from moec.targets.cpu.isa import host
from moec.targets.cpu.space import space
from moec.tuning.fingerprint import here
from moec.tuning.judge import Worker
from moec.tuning.log import Log
from moec.tuning.plan import make_plan
from moec.tuning.search import Budget, tune

from .kernels import floats, mlas, timed
from .timing import interleave

THREADS = 2
KERNEL = Kernel("linear", (("k", 2048), ("n", 1408)))
BATCH = 16  # candidates of the peer that are built, then timed, at a time


def product(rows: int) -> Any:
    """y = x @ w as the peer takes it: the weight may be laid out anew."""
    from tvm import te

    k, n = KERNEL["k"], KERNEL["n"]
    x, w = te.placeholder((rows, k), name="x"), te.placeholder((k, n), name="w")
    along = te.reduce_axis((0, k), name="along")
    y = te.compute((rows, n), lambda i, j: te.sum(x[i, along] * w[along, j], axis=along), name="y")
    return te.create_prim_func([x, w, y]).with_attr({"global_symbol": "main", "layout_free_buffers": [1]})


def target() -> Any:
    """This machine, in the peer's words."""
    from tvm.target import Target

    isa = host()
    return Target(
        {
            "kind": "llvm",
            "mtriple": isa.triple,
            "mcpu": isa.llvm_cpu,
            "mattr": list(isa.llvm_attributes),
            "num-cores": THREADS,
        }
    )


def lowered(module: Any, onto: Any) -> Any:
    """The peer's default build, less the tensor intrinsics."""
    from tvm.driver import build
    from tvm.s_tir.transform import RemoveWeightLayoutRewriteBlock

    return build(RemoveWeightLayoutRewriteBlock(skip_tensor_rewrite=True)(module), target=onto)


def register() -> None:
    """What each of the peer's builders runs first."""
    from tvm_ffi import register_global_func

    register_global_func("peer.lowered", lambda module, onto, _: lowered(module, onto), override=True)


def peer(rows: int, folder: Path, seconds: float) -> None:
    """The peer's search, into a database in the folder. It knows no seconds: it is ended when they end."""
    import tvm.s_tir.tensor_intrin  # noqa: F401 its search asks for it; that takes half a minute
    from tvm.s_tir import meta_schedule

    register()
    build = meta_schedule.builder.LocalBuilder(
        max_workers=THREADS, f_build="peer.lowered", initializer=register
    )
    run = meta_schedule.runner.LocalRunner()
    threading.Timer(seconds, os._exit, [0]).start()
    meta_schedule.tune_tir(
        product(rows),
        target(),
        str(folder / f"peer{rows}"),
        max_trials_global=100_000,
        num_trials_per_iter=BATCH,
        builder=build,
        runner=run,
        num_tuning_cores=THREADS,
        seed=1,
    )


def ours(folder: Path, seconds: float) -> None:
    """Our search, into a log in the folder."""
    place = here(host().name, THREADS, Path(moec.targets.cpu.__file__).parent)
    device = "moec.targets.cpu.device:Device"
    with Worker(device, {"isa": host().name, "threads": THREADS}, builders=THREADS) as judge:
        judge.start()
        spaces = {KERNEL: space(KERNEL, host())}
        summary = tune(spaces, judge, Budget(seconds), Log(folder / "ours.jsonl"), place)
    print(f"{summary.trials} trials in {summary.seconds:.0f} s")


def best_of_peer(rows: int, folder: Path, copies: int) -> Callable[[], None]:
    """A run of the peer's best, `copies` times with weights of their own."""
    import tvm
    from tvm.s_tir import meta_schedule
    from tvm.s_tir.transform import RemoveWeightLayoutRewriteBlock

    database = meta_schedule.database.JSONDatabase(work_dir=str(folder / f"peer{rows}"))
    module = tvm.IRModule({"main": product(rows)})
    found = database.query_schedule(module, target(), "main")
    print(f"peer, {rows} rows: {len(database)} trials that ran")
    laid_out = RemoveWeightLayoutRewriteBlock(skip_tensor_rewrite=True)(found.mod)["main"]
    shapes = [tuple(map(int, laid_out.buffer_map[param].shape)) for param in laid_out.params]
    x, *_ = (tvm.runtime.tensor(floats(*shape)) for shape in shapes)
    y = tvm.runtime.tensor(floats(*shapes[2]))
    weights = [tvm.runtime.tensor(floats(*shapes[1], seed=seed)) for seed in range(copies)]
    main = lowered(found.mod, target())["main"]

    def run() -> None:
        for w in weights:
            main(x, w, y)

    return run


def compare(counts: Sequence[int], folder: Path) -> None:
    """Times the best of both, and MLAS, in turns."""
    place = here(host().name, THREADS, Path(moec.targets.cpu.__file__).parent)
    spaces = {KERNEL: space(KERNEL, host())}
    plan = make_plan([KERNEL], spaces, Log(folder / "ours.jsonl"), place)
    bench = Device(host().name, THREADS).bench(KERNEL, plan[KERNEL].schedules)
    for count in counts:
        own, copies = bench.calls(count), bench.copies(count)
        contenders = {
            "moec": timed(bench, count),
            "MetaSchedule": best_of_peer(count, folder, copies),
            "MLAS": mlas(KERNEL, count, THREADS, copies),
        }
        taken = interleave(contenders, 20)
        times = {name: taken[name] / (own if name == "moec" else copies) for name in taken}
        work = 2 * KERNEL["k"] * KERNEL["n"] * count
        each = (
            f"{name} {spent * 1e6:.0f} us, {work / spent / 1e9:.0f} GFLOP/s" for name, spent in times.items()
        )
        print(
            f"{count} rows: {'; '.join(each)}; {times['MetaSchedule'] / times['moec']:.2f}x the peer's speed"
        )


if __name__ == "__main__":
    folder, step, *numbers = Path(sys.argv[1]), sys.argv[2], *map(int, sys.argv[3:])
    folder.mkdir(parents=True, exist_ok=True)
    if step == "peer":
        peer(numbers[1], folder, numbers[0])
    elif step == "ours":
        ours(folder, numbers[0])
    else:
        compare(numbers, folder)
