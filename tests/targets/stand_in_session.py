"""What tests of runtimes run in processes of their own: sessions over a stand-in for a device's driver.

python stand_in_session.py LIBRARY DEVICE SCENARIO.. prints what it saw as JSON; device: gpu, npu or cpu,
which is a simulated NPU. Numbers in bf16 are 16-bit integers.
"""

from __future__ import annotations

import ctypes
import gc
import json
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper

BF16, ROOM, WIDTH = 16, 6, 8
PLACES = {"gpu": ("gpu", 0x10DE), "npu": ("npu", 0x19E5), "cpu": ("npu", 0x19E5)}  # memory, and its vendor
TABLE = np.arange(4 * WIDTH, dtype=np.uint16).reshape(4, WIDTH)


def model() -> bytes:
    """ids [b,1,t] -> y = 2 * table[ids] in f32 [b,1,t,8], and the same appended to a cache."""
    shapes = {
        "ids": (TensorProto.INT64, ["b", 1, "t"]),
        "past": (TensorProto.BFLOAT16, ["b", 1, ROOM, WIDTH]),
        "mask": (TensorProto.INT64, ["b", "z"]),
        "span": (TensorProto.INT64, ["b", 2]),
        "y": (TensorProto.FLOAT, ["b", 1, "t", WIDTH]),
        "present": (TensorProto.BFLOAT16, ["b", 1, ROOM, WIDTH]),
    }
    values = {name: helper.make_tensor_value_info(name, *what) for name, what in shapes.items()}
    table = helper.make_tensor("table", TensorProto.BFLOAT16, TABLE.shape, TABLE.tobytes(), raw=True)
    w = helper.make_tensor("w", TensorProto.BFLOAT16, (WIDTH, WIDTH), bytes(WIDTH * WIDTH * 2), raw=True)
    nodes = [
        helper.make_node("embed", ["ids", "table"], ["e"], domain="moec"),
        helper.make_node("add", ["e", "w", "e"], ["a"], domain="moec"),
        helper.make_node("write", ["past", "a", "mask", "span"], ["present"], domain="moec"),
        helper.make_node("wide", ["a", "w"], ["y"], domain="moec"),
    ]
    inputs = [values[name] for name in ("ids", "past", "mask", "span")]
    graph = helper.make_graph(nodes, "g", inputs, [values["y"], values["present"]], [table, w])
    opsets = [helper.make_opsetid("", 22), helper.make_opsetid("moec", 1)]
    made: bytes = helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()
    onnx.checker.check_model(onnx.load_from_string(made))
    return made


def open_session(
    library: str, graph_of: bytes | None = None, fallback: bool = False, **options: str
) -> onnxruntime.InferenceSession:
    """A session whose nodes all run on the stand-in, unless they may fall back to onnxruntime's."""
    if not any(device.ep_metadata.get("registration") == library for device in onnxruntime.get_ep_devices()):
        onnxruntime.register_execution_provider_library(library, library)
    devices = [d for d in onnxruntime.get_ep_devices() if d.ep_metadata.get("registration") == library]
    chosen = onnxruntime.SessionOptions()
    chosen.add_provider_for_devices(devices, options)
    chosen.add_session_config_entry("session.disable_cpu_ep_fallback", str(int(not fallback)))
    chosen.log_severity_level = 4
    return onnxruntime.InferenceSession(graph_of or model(), chosen)


def value(array: np.ndarray[Any, Any]) -> onnxruntime.OrtValue:
    """On the host; uint16 stands for bf16."""
    if array.dtype == np.uint16:
        return onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(array, BF16)
    return onnxruntime.OrtValue.ortvalue_from_numpy(array)


def on_device(array: np.ndarray[Any, Any]) -> onnxruntime.OrtValue:
    """A copy in the device's memory."""
    dtype = BF16 if array.dtype == np.uint16 else array.dtype
    memory, vendor = PLACES[sys.argv[2]]
    made = onnxruntime.OrtValue.ortvalue_from_shape_and_type(list(array.shape), dtype, memory, 0, vendor)
    onnxruntime.copy_tensors([value(array)], [made])
    return made


def on_host(source: onnxruntime.OrtValue, like: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """A copy on the host."""
    array = np.zeros_like(like)
    onnxruntime.copy_tensors([source], [value(array)])
    return array


def feeds(tokens: int, start: int, batch: int = 1) -> dict[str, np.ndarray[Any, Any]]:
    """Ids count up from `start`, which is how many tokens the cache has."""
    ids = (start + np.arange(batch * tokens)).reshape(batch, 1, tokens) % len(TABLE)
    span = np.tile(np.array([[0, start + tokens]]), (batch, 1))
    past = np.full((batch, 1, ROOM, WIDTH), 7, np.uint16)
    return {"ids": ids, "past": past, "mask": np.ones((batch, ROOM), np.int64), "span": span}


def plain(library: str) -> Any:
    """Runs from the host's memory: what came out, and whether it is right."""
    session, right = open_session(library), []
    for tokens, batch in ((1, 1), (5, 1), (2, 3), (0, 1), (3, 0)):
        given = feeds(tokens, 1, batch)
        y, present = session.run_with_ort_values(None, {k: value(v) for k, v in given.items()})
        wanted = 2 * TABLE[given["ids"]]
        cache = given["past"].copy()
        cache[:, :, 1 : 1 + tokens] = wanted
        got = np.frombuffer(ctypes.string_at(present.data_ptr(), cache.nbytes), np.uint16).reshape(
            cache.shape
        )
        right.append(bool(np.array_equal(y.numpy(), wanted) and np.array_equal(got, cache)))
    return right


class Bound:
    """A step of one token with everything in the device's memory and the cache in place."""

    def __init__(self, session: onnxruntime.InferenceSession) -> None:
        self.session, self.given = session, feeds(1, 0)
        self.values = {name: on_device(array) for name, array in self.given.items()}
        self.y = on_device(np.zeros((1, 1, 1, WIDTH), np.float32))
        self.binding = session.io_binding()
        for name, each in self.values.items():
            self.binding.bind_ortvalue_input(name, each)
        self.binding.bind_ortvalue_output("y", self.y)
        self.binding.bind_ortvalue_output("present", self.values["past"])

    def step(self, start: int, graph: int | None = None, wait: bool = True) -> bool:
        """Whether the token at `start` gave the right y. Without wait, copying that must wait for the run."""
        given = feeds(1, start)
        for name in ("ids", "span"):
            onnxruntime.copy_tensors([value(given[name])], [self.values[name]])
        options = onnxruntime.RunOptions()
        if graph is not None:
            options.add_run_config_entry("gpu_graph_id", str(graph))
        if not wait:
            options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        self.session.run_with_iobinding(self.binding, options)
        return bool(
            np.array_equal(on_host(self.y, np.zeros((1, 1, 1, WIDTH), np.float32)), 2 * TABLE[given["ids"]])
        )

    def cache(self) -> list[int]:
        """The first number of each row."""
        rows: list[int] = on_host(self.values["past"], self.given["past"])[0, 0, :, 0].tolist()
        return rows


def bound(library: str) -> Any:
    """IOBinding in place, without graphs."""
    bench = Bound(open_session(library))
    return {"right": [bench.step(start, wait=start < 2) for start in range(4)], "cache": bench.cache()}


def graph(library: str) -> Any:
    """Captured, replayed, run beside a replay without a graph, captured under another id."""
    bench = Bound(open_session(library, graph="1"))
    right = [bench.step(start) for start in range(3)]
    right += [bench.step(3, graph=-1), bench.step(4)]
    right += [bench.step(1, graph=2), bench.step(2, graph=2), bench.step(5)]
    elapsed = ctypes.CDLL(library).moec_elapsed_us
    elapsed.restype = ctypes.c_float
    return {"right": right, "cache": bench.cache(), "elapsed": elapsed()}


def clocked(library: str) -> Any:
    """What is counted of kernels timed one by one: calls and microseconds, before runs and after."""
    counts = ctypes.CDLL(library).moec_counts
    row = ctypes.c_char_p * 2, ctypes.c_uint64 * 3
    table = type("Row", (ctypes.Structure,), {"_fields_": [("names", row[0]), ("counts", row[1])]}) * 4

    def read() -> list[tuple[int, int]]:
        rows = table()
        counts(rows, ctypes.c_size_t(4))
        return [(each.counts[0], each.counts[2] // 1000) for each in rows]

    bench, before = Bound(open_session(library, clock="1", graph="1")), read()
    right = [bench.step(start) for start in range(4)]
    return {"right": right, "cache": bench.cache(), "counts": [before, read()]}


def graph_to_host_memory(library: str) -> Any:
    """A graph cannot write what is bound on the host; without one the session can."""
    said = []
    for graph in ("1", "0"):
        session = open_session(library, graph=graph)
        given = feeds(1, 0)
        binding = session.io_binding()
        for name, array in given.items():
            binding.bind_ortvalue_input(name, value(array))
        binding.bind_output("y")
        binding.bind_ortvalue_output("present", on_device(given["past"]))
        said.append(told(session.run_with_iobinding, binding))
        binding.bind_ortvalue_output("y", on_device(np.zeros((1, 1, 1, WIDTH), np.float32)))
        said.append(told(session.run_with_iobinding, binding))
    return said


def two_sessions(library: str) -> Any:
    """One after the other in turns, on one library."""
    first, second = Bound(open_session(library)), Bound(open_session(library, graph="1"))
    return [bench.step(start) for start in range(4) for bench in (first, second)]


def two_threads(library: str) -> Any:
    """Each with a session of its own, at once."""

    def steps(bench: Bound) -> bool:
        return all(bench.step(start % 4) for start in range(40))

    with ThreadPoolExecutor(2) as threads:
        return list(threads.map(steps, [Bound(open_session(library)) for _ in range(2)]))


def many_shapes(library: str) -> Any:
    """As many shapes as runs."""
    session = open_session(library)
    for batch in range(1, 200):
        session.run_with_ort_values(["y"], {k: value(v) for k, v in feeds(2, 1, batch).items()})
    return batch


def bad_shapes(library: str) -> Any:
    """What does not fit is told in a sentence; the session goes on."""
    session, said = open_session(library), []
    for change in (
        {"span": np.zeros((3, 2), np.int64)},
        {"mask": np.ones((1, ROOM + 1), np.int64)},
    ):
        given = {k: value(v) for k, v in {**feeds(1, 0), **change}.items()}
        said.append(told(session.run_with_ort_values, None, given))
    session.run_with_ort_values(None, {k: value(v) for k, v in feeds(1, 0).items()})
    return said


class Tensor(ctypes.Structure):
    """MoecTensor of the library's own interface."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("rank", ctypes.c_int32),
        ("type", ctypes.c_int32),
        ("shape", ctypes.c_int64 * 8),
    )


class Gpu:
    """Memory and a stream of the stand-in for CUDA."""

    def __init__(self) -> None:
        self.cuda, self.stream = ctypes.CDLL("libcuda.so.1"), ctypes.c_void_p()
        context = ctypes.c_void_p()
        self.cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0)
        self.cuda.cuCtxSetCurrent(context)
        self.cuda.cuStreamCreate(ctypes.byref(self.stream), 1)

    def placed(self, array: np.ndarray[Any, Any]) -> ctypes.c_void_p:
        """A copy there, which stays."""
        place = ctypes.c_void_p()
        self.cuda.cuMemAlloc_v2(ctypes.byref(place), ctypes.c_size_t(array.nbytes))
        self.cuda.cuMemcpyAsync(
            place, ctypes.c_void_p(array.ctypes.data), ctypes.c_size_t(array.nbytes), self.stream
        )
        return place

    def fetch(self, array: np.ndarray[Any, Any], place: int) -> None:
        """Its contents, once all that was asked for is done."""
        size = ctypes.c_size_t(array.nbytes)
        self.cuda.cuMemcpyAsync(ctypes.c_void_p(array.ctypes.data), ctypes.c_void_p(place), size, self.stream)


class Npu:
    """Memory and a stream of the stand-in for ACL."""

    def __init__(self) -> None:
        self.acl, self.stream = ctypes.CDLL("libascendcl.so"), ctypes.c_void_p()
        self.acl.aclInit(None)
        self.acl.aclrtSetDevice(0)
        self.acl.aclrtCreateStream(ctypes.byref(self.stream))

    def placed(self, array: np.ndarray[Any, Any]) -> ctypes.c_void_p:
        """A copy there, which stays."""
        place, size = ctypes.c_void_p(), ctypes.c_size_t(array.nbytes)
        self.acl.aclrtMalloc(ctypes.byref(place), size, 0)
        self.acl.aclrtMemcpy(place, size, ctypes.c_void_p(array.ctypes.data), size, 1)
        return place

    def fetch(self, array: np.ndarray[Any, Any], place: int) -> None:
        """Its contents, once all that was asked for is done."""
        size = ctypes.c_size_t(array.nbytes)
        self.acl.aclrtSynchronizeStream(self.stream)
        self.acl.aclrtMemcpy(ctypes.c_void_p(array.ctypes.data), size, ctypes.c_void_p(place), size, 2)


class Cpu:
    """This process's memory, where a simulated NPU's lies too."""

    def __init__(self) -> None:
        self.stream, self.kept = ctypes.c_void_p(), list[np.ndarray[Any, Any]]()

    def placed(self, array: np.ndarray[Any, Any]) -> ctypes.c_void_p:
        """A copy, which stays."""
        self.kept.append(array.copy())
        return ctypes.c_void_p(self.kept[-1].ctypes.data)

    def fetch(self, array: np.ndarray[Any, Any], place: int) -> None:
        """Its contents."""
        ctypes.memmove(array.ctypes.data, place, array.nbytes)


def direct(library: str) -> Any:
    """The library's own interface: what it says of good and of bad calls."""
    device, ours = {"gpu": Gpu, "npu": Npu, "cpu": Cpu}[sys.argv[2]](), ctypes.CDLL(library)
    ours.moec_launch.restype = ctypes.c_char_p

    def tensor(array: np.ndarray[Any, Any], type_: int) -> Tensor:
        return Tensor(device.placed(array), array.ndim, type_, (ctypes.c_int64 * 8)(*array.shape))

    def launch(row: int, x: list[Tensor], y: list[Tensor]) -> str | None:
        inputs, outputs = (Tensor * len(x))(*x), (Tensor * len(y))(*y)
        said = ours.moec_launch(
            *(ctypes.c_size_t(row), ctypes.c_size_t(len(x)), inputs, ctypes.c_size_t(len(y)), outputs),
            device.stream,
        )
        return said and said.decode()

    x = np.arange(9 * WIDTH, dtype=np.uint16).reshape(9, WIDTH)
    mine, w, y = tensor(x, BF16), tensor(np.zeros((WIDTH, WIDTH), np.uint16), BF16), tensor(x, BF16)
    said = [launch(1, [mine, w, mine], [y]) for _ in range(2)]
    got = np.zeros_like(x)
    device.fetch(got, y.data)
    said += [launch(1, [mine, w, mine], [w]), launch(1, [w, w], [y]), launch(9, [], [])]
    mine.type = 1
    said.append(launch(1, [mine, w, mine], [y]))
    cache, mask = (
        tensor(np.zeros((1, 1, ROOM, WIDTH), np.uint16), BF16),
        tensor(np.ones((1, ROOM), np.int64), 7),
    )
    rows, span = tensor(np.zeros((1, 1, 1, WIDTH), np.uint16), BF16), tensor(np.array([[0, 1]]), 7)
    moved = Tensor(cache.data + 2 * WIDTH, 4, BF16, cache.shape)
    said.append(launch(2, [cache, rows, mask, span], [moved]))
    return {"said": said, "right": bool(np.array_equal(got, 2 * x))}


def out_of_memory(library: str) -> Any:
    """More than the device has."""
    session = open_session(library)
    ids = np.zeros((1, 1, 3000), np.int64)
    given = {k: value(v) for k, v in {**feeds(1, 0), "ids": ids}.items()}
    return told(session.run_with_ort_values, None, given)


def too_many_rows(library: str) -> Any:
    """More blocks than a launch of an NPU has: one for each token."""
    session, given = open_session(library), feeds(ROOM, 0, 11000)
    return told(session.run_with_ort_values, None, {k: value(v) for k, v in given.items()})


def unfinished(library: str) -> Any:
    """A run of a kernel that was not finished for the NPU."""
    given = {k: value(v) for k, v in feeds(1, 0).items()}
    return told(open_session(library).run_with_ort_values, None, given)


def simulated(library: str) -> Any:
    """Whether a library says that it is simulated: to onnxruntime, to who asks, and by its clock."""
    session, ours = open_session(library), ctypes.CDLL(library)
    session.run_with_ort_values(None, {k: value(v) for k, v in feeds(1, 0).items()})
    devices = [d for d in onnxruntime.get_ep_devices() if d.ep_metadata.get("registration") == library]
    ours.moec_elapsed_us.restype = ctypes.c_float
    return devices[0].ep_metadata["simulated"], ours.moec_simulated(), ours.moec_elapsed_us()


def mixed(library: str) -> Any:
    """Nodes of onnxruntime's own before and after ours: copied to and fro, but no graph."""
    given, made = feeds(3, 1), onnx.load_from_string(model())
    made.graph.node[0].input[0] = "shifted"
    made.graph.node.insert(0, helper.make_node("Sub", ["ids", "one"], ["shifted"]))
    made.graph.node.append(helper.make_node("Mul", ["y", "y"], ["z"]))
    made.graph.initializer.append(helper.make_tensor("one", TensorProto.INT64, [1], [1]))
    made.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, None))
    session = open_session(library, made.SerializeToString(), fallback=True)
    z = session.run_with_ort_values(["z"], {k: value(v) for k, v in given.items()})[0].numpy()
    right = bool(np.array_equal(z, (2.0 * TABLE[given["ids"] - 1]) ** 2))
    return right, told(open_session, library, made.SerializeToString(), True, graph="1")


def old_onnxruntime(library: str) -> Any:
    """What a runtime is told that has only the interface of version 1."""
    said: list[str] = []
    address = ctypes.CFUNCTYPE(ctypes.c_size_t, ctypes.c_uint32)

    @ctypes.CFUNCTYPE(ctypes.c_size_t, ctypes.c_int, ctypes.c_char_p)
    def create_status(code: int, text: bytes) -> int:
        said.append(text.decode())
        return len(said)

    table = (ctypes.c_void_p * 1)(ctypes.cast(create_status, ctypes.c_void_p))
    name = ctypes.create_string_buffer(b"1.22.0")
    get_api = address(lambda version: ctypes.addressof(table) if version == 1 else 0)
    get_version = ctypes.CFUNCTYPE(ctypes.c_size_t)(lambda: ctypes.addressof(name))
    base = (ctypes.c_void_p * 2)(*(ctypes.cast(f, ctypes.c_void_p) for f in (get_api, get_version)))
    made, count = (ctypes.c_void_p * 1)(), ctypes.c_size_t()
    ctypes.CDLL(library).CreateEpFactories(b"", base, None, made, ctypes.c_size_t(1), ctypes.byref(count))
    return said[0]


def told(run: Callable[..., Any], *arguments: Any, **named: Any) -> str:
    """What the exception says."""
    try:
        run(*arguments, **named)
    except Exception as error:
        return str(error)
    return "nothing"


def refused(library: str) -> Any:
    """What registering says where the library cannot run, and the direct interface."""
    ours = ctypes.CDLL(library)
    ours.moec_launch.restype = ctypes.c_char_p
    direct = ours.moec_launch(0, 0, None, 0, None, None).decode()
    registering = told(onnxruntime.register_execution_provider_library, library, library)
    return [registering, direct]


if __name__ == "__main__":
    print(json.dumps({name: globals()[name](sys.argv[1]) for name in sys.argv[3:]}))
    gc.collect()
    if any(device.ep_metadata.get("registration") for device in onnxruntime.get_ep_devices()):
        onnxruntime.unregister_execution_provider_library(sys.argv[1])
