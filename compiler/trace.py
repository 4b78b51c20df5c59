"""From a PyTorch model to our graph: torch.export without weights in memory, then call by call."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any

import sympy
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.export import Dim, ExportedProgram, export
from torch.export.graph_signature import InputKind, InputSpec, OutputKind
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils import _pytree as pytree

from . import causal
from .aten_math import dtype_of
from .causal import Facts
from .checkpoint import BadModel, RandomWeights, Shape, Weights
from .convert import Converter
from .convert import UnsupportedOp as UnsupportedOp
from .ir import Array, B, Graph, L, S, T, Value
from .ir import Dim as Size
from .ops.sources import CONSTANT, INPUT, literal_of
from .source import Source


@dataclass(frozen=True)
class Traced:
    """A model as a graph, the weights that its constants name, and their shapes.

    `facts` is None for a module that is not a causal language model of a known family.
    """

    name: str
    graph: Graph
    weights: Weights
    shapes: Mapping[str, Shape]
    facts: Facts | None = None


def trace(source: Source) -> Traced:
    """Export the model and convert it.

    Raises BadModel where the weights do not fit the config, UnsupportedOp where the graph can not say what
    the model does.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's export warns of its own changes to come
        return _trace_causal_lm(source) if source.config else _trace_module(source)


def _trace_causal_lm(source: Source) -> Traced:
    assert source.config is not None
    config = causal.load_config(source.config)
    with FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True):
        model = causal.build(config)
        example = causal.example_of(config)
    shapes = parameter_shapes(model)
    weights = weights_of(source, shapes)
    inputs = causal.step_inputs(config)
    names = ("logits", *(v.node.attrs["name"].replace("past", "present") for v in inputs[2:]))
    with exporting(source.name):
        program = causal.export_step(model, example)
    exported = Exported(program, model, recomputed_buffers(model), prefix="model.")
    facts = causal.facts_of(source.family, config)
    return Traced(source.name, exported.graph(inputs, names), weights, shapes, facts)


@contextmanager
def exporting(name: str) -> Iterator[None]:
    """Raises BadModel where torch can not run or export the model: of its many words, the first line."""
    try:
        with causal.quiet("torch"):
            yield
    except Exception as error:  # of many kinds; all of them are about what the model does
        said = next(iter(str(error).strip().splitlines()), "").rstrip(".")
        raise BadModel(
            f"{name}: torch.export can not follow it: {type(error).__name__}: {said}; it must run on its "
            "example inputs, and no branch of its code may depend on the values of tensors"
        ) from error


def weights_of(source: Source, shapes: Mapping[str, Shape]) -> Weights:
    """Where the weights come from. Raises BadModel where a checkpoint does not hold these shapes."""
    if source.checkpoint:
        source.checkpoint.verify(shapes)
        return source.checkpoint
    return RandomWeights(source.seed, shapes) if source.seed is not None else NoWeights(source.name)


class NoWeights:
    """The weights of a model that was given as a config alone."""

    def __init__(self, name: str) -> None:
        self.name = name

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Array:
        """Raises BadModel: there are none."""
        raise BadModel(f"{self.name} is a config alone, without weights ({name}); add --random-weights SEED")


def parameter_shapes(module: nn.Module) -> dict[str, Shape]:
    """The shapes of what a checkpoint holds: parameters and persistent buffers, tied ones once."""
    kept = set(module.state_dict(keep_vars=True))
    tensors = chain(module.named_parameters(), module.named_buffers())
    return {name: tuple(tensor.shape) for name, tensor in tensors if name in kept}


def recomputed_buffers(model: nn.Module) -> dict[str, Tensor]:
    """The buffers no checkpoint holds (rotary frequencies), from the config of the module they are in."""
    found: dict[str, Tensor] = {}
    for path, module in model.named_modules():
        missing = [name for name in module._non_persistent_buffers_set if module._buffers[name] is not None]
        if missing:
            with causal.quiet():
                real = type(module)(module.config)
            found.update({f"{path}.{name}": real._buffers[name] for name in missing})
    return found


class ModuleWeights:
    """The weights of a module that is in memory."""

    def __init__(self, module: nn.Module) -> None:
        self.tensors = {name: tensor.detach() for name, tensor in module.state_dict().items()}

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Array:
        """Rows start..stop of axis 0, sharing memory with the module."""
        tensor = self.tensors[name]
        array: Array = (tensor[start:stop] if tensor.dim() else tensor).numpy()
        return array


def _trace_module(source: Source) -> Traced:
    module = source.module.eval().float()
    example = pytree.tree_map(in_f32, source.inputs)
    sizes = pytree.tree_map(lambda x: {0: Dim.AUTO} if isinstance(x, Tensor) and x.dim() else None, example)
    with exporting(source.name), torch.no_grad():
        program = export(module, example, dynamic_shapes=sizes, strict=False)
    symbols: dict[sympy.Symbol, sympy.Symbol] = {}
    inputs = []
    for number, node in enumerate(_user_inputs(program)):
        value = node.meta["val"]
        shape = tuple(_size(size, symbols) for size in value.shape)
        inputs.append(INPUT(name=f"in.{number}", dtype=dtype_of(value.dtype), shape=shape))
    buffers = {name: buffer for name, buffer in module.named_buffers() if name not in module.state_dict()}
    graph = Exported(program, module, buffers).graph(inputs)
    return Traced(source.name, graph, ModuleWeights(module), parameter_shapes(module))


def in_f32(x: Any) -> Any:
    """A tensor of floats in f32; anything else as it is."""
    return x.float() if isinstance(x, Tensor) and x.is_floating_point() else x


def _size(size: Any, symbols: dict[sympy.Symbol, sympy.Symbol]) -> Size:
    """An example's size as ours: torch's symbols become B, T, S, L, and then N4, N5, ... as they come."""
    if isinstance(size, int):
        return size
    for symbol in sorted(size.node.expr.free_symbols - set(symbols), key=str):
        more = sympy.Symbol(f"N{len(symbols)}", positive=True, integer=True)
        symbols[symbol] = (B, T, S, L, more)[min(len(symbols), 4)]
    ours: Size = size.node.expr.subs(symbols)
    return ours


def _user_inputs(program: ExportedProgram) -> list[Any]:
    """The placeholders of the tensors the caller gives."""
    nodes = [node for node in program.graph.nodes if node.op == "placeholder"]
    kinds = [spec.kind for spec in program.graph_signature.input_specs]
    given = [node for node, kind in zip(nodes, kinds, strict=True) if kind is InputKind.USER_INPUT]
    return [node for node in given if isinstance(node.meta.get("val"), Tensor)]


@dataclass(frozen=True)
class Exported:
    """An exported program, the module it is of, and its buffers that no checkpoint holds.

    The program's names of parameters and modules begin with `prefix`; ours do not.
    """

    program: ExportedProgram
    module: nn.Module
    buffers: Mapping[str, Tensor]
    prefix: str = ""

    def graph(self, inputs: Sequence[Value], names: tuple[str, ...] = ()) -> Graph:
        """The graph, from the program as it was exported if that can be converted.

        Else from torch's functional form of it: simpler calls, but longer to make than the export itself.
        """
        try:
            return self._convert(self.program, inputs, names)
        except UnsupportedOp:
            return self._convert(self.program.run_decompositions({}), inputs, names)

    def _convert(self, program: ExportedProgram, inputs: Sequence[Value], names: tuple[str, ...]) -> Graph:
        values = dict(zip(_user_inputs(program), inputs, strict=True))
        nodes = list(program.graph.nodes)
        first_names = _first_names(self.module)
        for node, spec in zip(nodes, program.graph_signature.input_specs):
            if spec.kind is not InputKind.USER_INPUT and node.users:
                values[node] = self._constant(spec, first_names)
        changed = [
            s.target for s in program.graph_signature.output_specs if s.kind is not OutputKind.USER_OUTPUT
        ]
        if changed:
            raise UnsupportedOp(
                f"the model changes {', '.join(map(str, changed))}; return the new value instead"
            )
        outputs = Converter(values, self.prefix).run(nodes)
        return Graph(tuple(inputs), outputs, names or tuple(f"out.{i}" for i in range(len(outputs))))

    def _constant(self, spec: InputSpec, first_names: Mapping[str, tuple[str, Tensor]]) -> Value:
        """A parameter by its name; data that no checkpoint holds as it is."""
        target = str(spec.target).removeprefix(self.prefix)
        if spec.kind is InputKind.PARAMETER or (spec.kind is InputKind.BUFFER and spec.persistent):
            name, tensor = first_names[target]
            return CONSTANT(name=name, dtype=dtype_of(tensor.dtype), shape=tuple(tensor.shape))
        data = self.buffers.get(target, self.program.constants.get(str(spec.target)))
        if data is None or isinstance(data, FakeTensor):
            raise UnsupportedOp(
                f"{target} is made while the model runs and has no data here; make it a buffer"
            )
        return literal_of(data.numpy())


def _first_names(module: nn.Module) -> dict[str, tuple[str, Tensor]]:
    """Every name of a parameter or buffer -> the first name of that tensor, and the tensor."""
    first: dict[int, str] = {}
    named = chain(
        module.named_parameters(remove_duplicate=False), module.named_buffers(remove_duplicate=False)
    )
    return {name: (first.setdefault(id(tensor), name), tensor) for name, tensor in named}
