"""From a PyTorch model to our graph: torch.export without weights in memory, then call by call.

A causal language model of transformers is exported as it is. Only its cache, its mask and its positions are ours:
four custom operators that mean what the graph's own ops mean, so that one graph serves prefill and decode.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path
from typing import Any

import sympy
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.export import Dim, ExportedProgram, export
from torch.export.graph_signature import InputKind, InputSpec, OutputKind
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils import _pytree as pytree

from .aten_math import dtype_of
from .checkpoint import BadModel, RandomWeights, Shape, Weights
from .convert import Converter, UnsupportedOp
from .ir import Array, B, Graph, L, S, T, Value
from .ops.sources import CONSTANT, INPUT, literal_of
from .source import Source


@dataclass(frozen=True)
class Facts:
    """What reports say of a causal language model, by its config. `expanded` counts the values a token takes in a
    cache of full keys and values, per layer; `eos` are the tokens that end a text."""

    family: str
    layers: int
    hidden: int
    vocab: int
    heads: int
    experts: int
    chosen: int
    positions: int
    expanded: int
    eos: tuple[int, ...]


@dataclass(frozen=True)
class Traced:
    """A model as a graph, the weights that its constants name, and their shapes. `facts` is None for a module that
    is not a causal language model of a known family."""

    name: str
    graph: Graph
    weights: Weights
    shapes: Mapping[str, Shape]
    facts: Facts | None = None


def trace(source: Source) -> Traced:
    """Export the model and convert it.

    Raises BadModel where the weights do not fit the config, UnsupportedOp where the graph can not say what it does.
    """
    return _trace_causal_lm(source) if source.config else _trace_module(source)


# --- causal language models


@torch.library.custom_op("moec::append", mutates_args=())
def append(cache: Tensor, rows: Tensor, mask: Tensor) -> Tensor:
    """The cache [B,h,L,d] with new rows [B,h,T,d] after the ones it has; mask [B,S+T] tells how many these are."""
    stop = mask.shape[1]
    result = cache.clone()
    result[:, :, stop - rows.shape[2] : stop] = rows
    return result


@torch.library.custom_op("moec::filled", mutates_args=())
def filled(cache: Tensor, mask: Tensor) -> Tensor:
    """The rows of the cache that hold something: [B,h,S+T,d]."""
    return cache[:, :, : mask.shape[1]].clone()


@torch.library.custom_op("moec::causal_mask", mutates_args=())
def causal_mask(mask: Tensor, ids: Tensor) -> Tensor:
    """bool [B,1,T,S+T]: which keys a new token sees, being real tokens and not after it."""
    keys = torch.arange(mask.shape[1])
    queries = keys[mask.shape[1] - ids.shape[1] :]
    return (keys <= queries[:, None]) & (mask != 0)[:, None, None, :]


@torch.library.custom_op("moec::positions", mutates_args=())
def positions(mask: Tensor, ids: Tensor) -> Tensor:
    """i64 [B,T]: how many real tokens precede each new one."""
    return (mask.cumsum(1) - 1).clamp(min=0)[:, mask.shape[1] - ids.shape[1] :].clone()


append.register_fake(lambda cache, rows, mask: torch.empty_like(cache))
filled.register_fake(lambda cache, mask: cache.new_empty(*cache.shape[:2], mask.shape[1], cache.shape[3]))
causal_mask.register_fake(lambda mask, ids: mask.new_empty(ids.shape[0], 1, ids.shape[1], mask.shape[1], dtype=torch.bool))
positions.register_fake(lambda mask, ids: torch.empty_like(ids))


class Cache:
    """What a model of transformers sees as its cache: two tensors a layer, each replaced when it is written."""

    is_compileable = False

    def __init__(self, tensors: Sequence[Tensor], mask: Tensor) -> None:
        self.tensors = list(tensors)
        self.mask = mask

    def update(self, keys: Tensor, values: Tensor, layer_idx: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Write the new rows of a layer, and give it all rows so far."""
        for place, rows in ((2 * layer_idx, keys), (2 * layer_idx + 1, values)):
            self.tensors[place] = append(self.tensors[place], rows, self.mask)
        return filled(self.tensors[2 * layer_idx], self.mask), filled(self.tensors[2 * layer_idx + 1], self.mask)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Not asked for what counts: mask and positions are given to the model."""
        return 0


class Step(nn.Module):
    """One step of a causal language model, prefill or decode, with everything it depends on as inputs."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor, past: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Logits [B,T,vocab], and the caches with the new rows in them."""
        cache = Cache(past, attention_mask)
        result = self.model(
            input_ids=input_ids,
            attention_mask=causal_mask(attention_mask, input_ids),
            position_ids=positions(attention_mask, input_ids),
            past_key_values=cache,
            use_cache=True,
        )
        return result.logits, cache.tensors


def load_config(file: Path) -> Any:
    """The config of a model as transformers has it, without the quantization of its checkpoint."""
    from transformers import AutoConfig

    with _quiet():
        config = AutoConfig.from_pretrained(str(file))
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    return config


def build(config: Any, attention: str = "sdpa", experts: str = "grouped_mm") -> nn.Module:
    """The model of a config in f32, in eval mode, its weights wherever the caller's context puts tensors."""
    from transformers import AutoModelForCausalLM

    with _quiet():
        model = AutoModelForCausalLM.from_config(
            config, attn_implementation=attention, experts_implementation=experts, dtype=torch.float32
        )
    return model.eval()


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' advice to those who train."""
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _trace_causal_lm(source: Source) -> Traced:
    assert source.config is not None
    config = load_config(source.config)
    facts = _facts(source.family, config)
    fake = FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True)
    with fake:
        model = build(config)
        example = _example(facts, config)
    shapes = parameter_shapes(model)
    weights = weights_of(source, shapes)
    program = _export_step(model, example)
    inputs = _step_inputs(facts, config)
    data = recomputed_buffers(model)
    names = ("logits", *(f"present.{value.node.attrs['name'].removeprefix('past.')}" for value in inputs[2:]))
    graph = _converted(program, model, inputs, names, data, prefix="model.")
    return Traced(source.name, graph, weights, shapes, facts)


def weights_of(source: Source, shapes: Mapping[str, Shape]) -> Weights:
    """Where the weights come from; a checkpoint is checked against the shapes first."""
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
        raise BadModel(f"{self.name}: a config alone has no weights ({name} was asked for); add --random-weights SEED")


def _facts(family: str, config: Any) -> Facts:
    heads = config.num_attention_heads
    latent = getattr(config, "kv_lora_rank", None)
    full = heads * (config.qk_nope_head_dim + config.qk_rope_head_dim + config.v_head_dim) if latent else 0
    eos = config.eos_token_id
    return Facts(
        family=family,
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        vocab=config.vocab_size,
        heads=heads,
        experts=next(getattr(config, n) for n in ("n_routed_experts", "num_experts") if hasattr(config, n)),
        chosen=config.num_experts_per_tok,
        positions=config.max_position_embeddings,
        expanded=full or 2 * config.num_key_value_heads * config.head_dim,
        eos=tuple(eos) if isinstance(eos, list | tuple) else () if eos is None else (eos,),
    )


def _cache_widths(config: Any) -> tuple[tuple[int, int], tuple[int, int]]:
    """Heads and width of the two things a layer caches: latent and rotated key, or keys and values."""
    if getattr(config, "kv_lora_rank", None):
        return (1, config.kv_lora_rank), (1, config.qk_rope_head_dim)
    return ((config.num_key_value_heads, config.head_dim),) * 2


def _example(facts: Facts, config: Any) -> tuple[Any, ...]:
    """Inputs of sizes that are all different, and not 1, which torch would take for fixed."""
    batch, new, total, room = 2, 3, 8, 11
    past = [torch.zeros(batch, h, room, d) for _ in range(facts.layers) for h, d in _cache_widths(config)]
    return torch.zeros(batch, new, dtype=torch.int64), torch.ones(batch, total, dtype=torch.int64), past


def _export_step(model: nn.Module, example: tuple[Any, ...]) -> ExportedProgram:
    any_size = Dim.DYNAMIC
    sizes = ({0: any_size, 1: any_size}, {0: any_size, 1: any_size}, [{0: any_size, 2: any_size}] * len(example[2]))
    with torch.no_grad():
        return export(Step(model), example, dynamic_shapes=sizes, strict=False)


def _step_inputs(facts: Facts, config: Any) -> list[Value]:
    inputs = [
        INPUT(name="input_ids", dtype="i64", shape=(B, T)),
        INPUT(name="attention_mask", dtype="i64", shape=(B, S + T)),
    ]
    for layer in range(facts.layers):
        for kind, (heads, width) in zip(("key", "value"), _cache_widths(config)):
            inputs.append(INPUT(name=f"past.{layer}.{kind}", dtype="f32", shape=(B, heads, L, width)))
    return inputs


def parameter_shapes(module: nn.Module) -> dict[str, Shape]:
    """The shapes of what a checkpoint holds: parameters and persistent buffers, tied ones once."""
    kept = set(module.state_dict(keep_vars=True))
    tensors = chain(module.named_parameters(), module.named_buffers())
    return {name: tuple(tensor.shape) for name, tensor in tensors if name in kept}


def recomputed_buffers(model: nn.Module) -> dict[str, Tensor]:
    """The buffers no checkpoint holds (rotary frequencies), made anew from the config of the module they are in."""
    found: dict[str, Tensor] = {}
    for path, module in model.named_modules():
        missing = [name for name in module._non_persistent_buffers_set if module._buffers[name] is not None]
        if missing:
            with _quiet():
                real = type(module)(module.config)
            found.update({f"{path}.{name}": real._buffers[name] for name in missing})
    return found


# --- any other module


class ModuleWeights:
    """The weights of a module that is in memory."""

    def __init__(self, module: nn.Module) -> None:
        self.tensors = {name: tensor.detach() for name, tensor in module.state_dict().items()}

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Array:
        """Rows start..stop of axis 0, sharing memory with the module where it is f32."""
        array: Array = self.tensors[name][start:stop].numpy()
        return array


def _trace_module(source: Source) -> Traced:
    module = source.module.eval().float()
    leaves = pytree.tree_map(lambda x: x.float() if isinstance(x, Tensor) and x.is_floating_point() else x, source.inputs)
    sizes = pytree.tree_map(lambda x: {0: Dim.AUTO} if isinstance(x, Tensor) and x.dim() else None, leaves)
    with torch.no_grad():
        program = export(module, leaves, dynamic_shapes=sizes, strict=False)
    symbols: dict[sympy.Symbol, sympy.Symbol] = {}
    inputs = []
    for number, node in zip(count(), _user_inputs(program)):
        value = node.meta["val"]
        shape = tuple(_dim(size, symbols) for size in value.shape)
        inputs.append(INPUT(name=f"in.{number}", dtype=dtype_of(value.dtype), shape=shape))
    data = {name: buffer for name, buffer in module.named_buffers() if name not in module.state_dict()}
    graph = _converted(program, module, inputs, (), data)
    return Traced(source.name, graph, ModuleWeights(module), parameter_shapes(module))


def _dim(size: Any, symbols: dict[sympy.Symbol, sympy.Symbol]) -> Any:
    """An example's size as ours: torch's symbols become B, T, S, L, and then N4, N5, ... as they come."""
    if isinstance(size, int):
        return size
    expression = size.node.expr
    for symbol in sorted(expression.free_symbols, key=str):
        ours = (B, T, S, L)[len(symbols)] if len(symbols) < 4 else sympy.Symbol(f"N{len(symbols)}", positive=True, integer=True)
        symbols.setdefault(symbol, ours)
    return expression.subs(symbols)


# --- both


def _user_inputs(program: ExportedProgram) -> list[Any]:
    """The placeholders of the tensors the caller gives."""
    nodes = (node for node in program.graph.nodes if node.op == "placeholder")
    specs = zip(nodes, program.graph_signature.input_specs)
    return [node for node, spec in specs if spec.kind is InputKind.USER_INPUT and isinstance(node.meta.get("val"), Tensor)]


def _converted(
    program: ExportedProgram,
    module: nn.Module,
    inputs: Sequence[Value],
    names: tuple[str, ...],
    data: Mapping[str, Tensor],
    prefix: str = "",
) -> Graph:
    """The graph of a program, as exported if it can be, else in torch's functional form, which takes far longer.

    The names of parameters and modules are relative to `prefix`.
    """
    try:
        return _graph(program, module, inputs, names, data, prefix)
    except UnsupportedOp:
        return _graph(program.run_decompositions({}), module, inputs, names, data, prefix)


def _graph(
    program: ExportedProgram,
    module: nn.Module,
    inputs: Sequence[Value],
    names: tuple[str, ...],
    data: Mapping[str, Tensor],
    prefix: str,
) -> Graph:
    values: dict[Any, Value] = dict(zip(_user_inputs(program), inputs))
    placeholders = [node for node in program.graph.nodes if node.op == "placeholder"]
    owned = _tied(module)
    for node, spec in zip(placeholders, program.graph_signature.input_specs):
        if spec.kind is not InputKind.USER_INPUT and node.users:
            values[node] = _constant(spec, program, owned, data, prefix)
    converter = Converter(values, prefix)
    converter.run(program.graph.nodes)
    (results,) = (node.args[0] for node in program.graph.nodes if node.op == "output")
    changed = [spec.target for spec in program.graph_signature.output_specs if spec.kind is not OutputKind.USER_OUTPUT]
    if changed:
        raise UnsupportedOp(f"the model changes {', '.join(map(str, changed))}; make state an input and an output of it")
    outputs = tuple(converter.resolved(node) for node in results)
    return Graph(tuple(inputs), outputs, names or tuple(f"out.{i}" for i in range(len(outputs))))


def _tied(module: nn.Module) -> dict[str, tuple[str, Tensor]]:
    """Every name of a parameter or buffer -> its first name, and the tensor."""
    first: dict[int, str] = {}
    tensors = list(chain(module.named_parameters(remove_duplicate=False), module.named_buffers(remove_duplicate=False)))
    return {name: (first.setdefault(id(tensor), name), tensor) for name, tensor in tensors}


def _constant(
    spec: InputSpec,
    program: ExportedProgram,
    owned: Mapping[str, tuple[str, Tensor]],
    data: Mapping[str, Tensor],
    prefix: str,
) -> Value:
    """A parameter by its name; data that no checkpoint holds as it is."""
    target = str(spec.target).removeprefix(prefix)
    if spec.kind is InputKind.PARAMETER or (spec.kind is InputKind.BUFFER and spec.persistent):
        name, tensor = owned[target]
        return CONSTANT(name=name, dtype=dtype_of(tensor.dtype), shape=tuple(tensor.shape))
    array = data.get(target, program.constants.get(str(spec.target)))
    if array is None or isinstance(array, FakeTensor):
        raise UnsupportedOp(f"{target} is made inside the model and has no data while it is traced; make it a buffer")
    return literal_of(array.numpy())
