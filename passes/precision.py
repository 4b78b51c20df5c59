"""Weights in fewer bits, once it is known which kernel reads them.

    before   region[linear](x, w)              whose body is  linear(x, w)
    after    region[linear](x, codes, scales)  whose body is  linear(round_trip(x), dequantize(codes, scales))
    or       region[linear](x, bf16(w))        whose body is  linear(x, f32(w)); f16 alike

    before   take(table, ids)                  in a region or not
    after    f32(take(bf16(table), ids))

(codes, scales) = quantize(w). What becomes of a weight depends on its role in the graph, not on its name;
rules on names come first. From here on the rounding is a part of what the graph means.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import ClassVar

from ..compiler.ir import HALVES, Graph, Miss, Node, Op, Value, make, walk
from ..compiler.ops.cache import APPEND
from ..compiler.ops.dense import LINEAR
from ..compiler.ops.elementwise import CAST
from ..compiler.ops.index import TAKE
from ..compiler.ops.latent import LATENT_ATTENTION
from ..compiler.ops.norm import RMS_NORM
from ..compiler.ops.quantize import DEQUANTIZE, GROUP, QUANTIZE, ROUND_TRIP, whole
from ..compiler.ops.quantize import FORMATS as CODED
from ..compiler.ops.region import REGION
from ..compiler.ops.routing import GROUPED_MATMUL, TOP_K_GATE
from ..compiler.ops.shape import RESHAPE
from ..compiler.ops.sources import CONSTANT
from .layout import Layout, is_weight, packed

MAKES = (QUANTIZE, CAST)
FORMATS = ("f32", *HALVES, *CODED)

# Which operand of an op is a weight that can be narrower.
READS: Mapping[Op, int] = {LINEAR: 1, GROUPED_MATMUL: 3, LATENT_ATTENTION: -1, TAKE: 0}


class UnmetRule(ValueError):
    """A rule of the user's names no weight; the message is a sentence for them."""


@dataclass(frozen=True, slots=True)
class Codes:
    """A weight as codes and scales, a scale for each group of its numbers."""

    bits: int
    group: int = GROUP

    def pack(self, w: Value) -> tuple[Value, ...]:
        return make(QUANTIZE, w, bits=self.bits, group=self.group).values

    def unpack(self, packed: Sequence[Value]) -> Value:
        return DEQUANTIZE(*packed, bits=self.bits, group=self.group)


@dataclass(frozen=True, slots=True)
class Narrow:
    """A weight as numbers of half the bytes."""

    dtype: str

    def pack(self, w: Value) -> tuple[Value, ...]:
        return (CAST(w, dtype=self.dtype),)

    def unpack(self, packed: Sequence[Value]) -> Value:
        return CAST(*packed, dtype="f32")


@dataclass(frozen=True, slots=True)
class Site:
    """A weight where it is read: an operand of a node."""

    node: Node
    operand: int
    reader: Op
    role: str

    @property
    def weight(self) -> Value:
        return self.node.inputs[self.operand]

    @property
    def names(self) -> tuple[str, ...]:
        """The stored tensors that the weight is made of."""
        return tuple(str(node.attrs["name"]) for node in walk([self.weight]) if node.op is CONSTANT)


@dataclass(frozen=True, slots=True)
class Policy:
    """Which format a weight gets: by the first rule whose pattern fits one of its names, else by its role."""

    roles: Mapping[str, str]
    rules: Sequence[tuple[str, str]] = ()

    def wanted(self, site: Site) -> str:
        """A key of FORMATS."""
        for pattern, format in self.rules:
            if any(fnmatchcase(name, pattern) for name in site.names):
                return format
        return self.roles[site.role]

    def expect_met(self, names: Sequence[str]) -> None:
        """Raises UnmetRule where a rule is about no weight of the model."""
        for pattern, format in self.rules:
            if not any(fnmatchcase(name, pattern) for name in names):
                example = f", the first is {names[0]}" if names else ""
                raise UnmetRule(
                    f"the rule {pattern!r}: {format!r} is about no tensor that may be narrower; there are "
                    f"{len(names)} of them{example}"
                )


@dataclass(frozen=True, slots=True)
class Precision:
    """The pass: every weight in the format that a policy wants and a kernel has.

    kinds: the formats beside the widest that a target's kernel of each kind reads; widest: f32, or the
    dtype of half the bytes where no kernel reads f32.
    """

    policy: Policy
    kinds: Mapping[str, Sequence[str]]
    widest: str = "f32"
    rounds: ClassVar[bool] = True  # the numbers are others afterwards, and are meant to be

    def __call__(self, graph: Graph, misses: list[Miss]) -> Graph:
        layouts: dict[Node, dict[int, Layout]] = {}
        replacements: dict[Value, Value] = {}
        found = list(sites(graph))
        self.policy.expect_met([name for site in found for name in site.names])
        for site in found:
            format = self.format(site, misses)
            if site.node.op is TAKE and format == self.half:
                replacements[site.node[0]] = narrow_take(site.node, format)
            elif format != "f32":
                layouts.setdefault(site.node, {})[site.operand] = (
                    Codes(**CODED[format]) if format in CODED else Narrow(format)
                )
        for node, layout in layouts.items():
            narrow = rows_first(packed(round_activations(node, layout), layout))
            replacements.update(zip(node.values, narrow.values))
        return graph.replace(replacements)

    @property
    def half(self) -> str:
        """What half the bytes are called here."""
        return self.widest if self.widest in HALVES else "bf16"

    def format(self, site: Site, misses: list[Miss]) -> str:
        """The format of one weight; where it is not the one wanted, a miss says why."""
        wanted = self.policy.wanted(site)
        columns = site.weight.shape[-1]
        known = (self.half,) if site.node.op is TAKE else self.kinds.get(site.node.attrs["kind"], ())
        if wanted in CODED and (not isinstance(columns, int) or columns % whole(wanted)):
            why = f"its rows of {columns} are not whole groups of {whole(wanted)}"
        elif wanted not in (known if self.widest in known else ("f32", *known)):
            why = f"{site.node.attrs.get('kind', site.node.op.name)} has no kernel for that"
        else:
            return wanted
        format = self.half if self.half in known else "f32"
        misses.append(Miss(site.node.origin, f"{'+'.join(site.names)} is {format}, not {wanted}: {why}"))
        return format


def round_activations(region: Node, layout: Mapping[int, Layout]) -> Node:
    """The region with what it multiplies with weights of few bits rounded too, by groups alike."""
    body: Graph = region.attrs["body"]
    coded = {body.inputs[i]: each for i, each in layout.items() if isinstance(each, Codes)}

    def step(node: Node, inputs: tuple[Value, ...]) -> Sequence[Value] | None:
        if node.op not in READS or node.inputs[READS[node.op]] not in coded:
            return None
        rest, group = inputs[1:], coded[node.inputs[READS[node.op]]].group
        rounded = ROUND_TRIP(inputs[0], group=group)
        return make(node.op, rounded, *rest, origin=node.origin, **node.attrs).values

    return make(
        REGION, *region.inputs, kind=region.attrs["kind"], body=body.rewrite(step), origin=region.origin
    )


def narrow_take(take: Node, dtype: str) -> Value:
    """Rows of a table that is stored in that dtype."""
    table, ids = take.inputs
    rows = TAKE(CAST(table, dtype=dtype), ids, axis=take.attrs["axis"], origin=take.origin)
    return CAST(rows, dtype="f32")


def rows_first(region: Node) -> Node:
    """The region with rows of a narrow table taken before they are widened."""
    body: Graph = region.attrs["body"]

    def step(node: Node, inputs: tuple[Value, ...]) -> Sequence[Value] | None:
        if node.op is not TAKE or inputs[0].op is not CAST:
            return None
        table = inputs[0].node.inputs[0]
        return (CAST(TAKE(table, inputs[1], **node.attrs, origin=node.origin), dtype=node.types[0].dtype),)

    if not any(node.op is TAKE for node in body):
        return region
    kind = region.attrs["kind"]
    return make(REGION, *region.inputs, kind=kind, body=body.rewrite(step), origin=region.origin)


def sites(graph: Graph) -> Iterator[Site]:
    """Every weight that could be narrower, where it is read."""
    users = graph.users()
    for node in graph:
        if node.op is TAKE and is_matrix(node.inputs[0]):
            yield Site(node, 0, TAKE, "embedding")
        for inner in node.attrs["body"] if node.op is REGION else ():
            entry = inner.inputs[READS[inner.op]] if inner.op in READS else None
            operand = node.attrs["body"].inputs.index(entry) if entry in node.attrs["body"].inputs else -1
            if operand >= 0 and is_matrix(node.inputs[operand]):
                yield Site(node, operand, inner.op, role(node, inner, users, graph.outputs))


def is_matrix(value: Value) -> bool:
    """A weight in f32 with rows and columns."""
    return value.type.rank > 1 and value.type.dtype == "f32" and is_weight(value)


Users = Mapping[Value, Sequence[Node]]
Test = Callable[[Node, Node, set[Node], bool], bool]


def role(region: Node, reader: Node, users: Users, outputs: Sequence[Value]) -> str:
    """What a weight is for, by who reads it (region, node in its body) and what reads the result."""
    after = {region, *readers(region.values, users)}
    same = [node for node in after if node is region or node.op is RESHAPE]
    last = any(value in outputs for node in same for value in node.values)
    return next(name for name, test in ROLES.items() if test(region, reader, after, last))


def readers(values: Sequence[Value], users: Users) -> Iterator[Node]:
    """The nodes that read the values, looking through reshapes; these are given too."""
    for value in values:
        for node in users.get(value, ()):
            yield node
            if node.op is RESHAPE:
                yield from readers(node.values, users)


def makes(node: Node, op: Op) -> bool:
    """Whether the op is a part of a region."""
    return node.op is REGION and any(inner.op is op for inner in node.attrs["body"])


def caches_norm(node: Node) -> bool:
    """Whether the node norms something and caches it."""
    return makes(node, RMS_NORM) and makes(node, APPEND)


# Role -> whether a weight has it: by its region, its reader in the body, what reads the region's results
# (with the region itself), and whether its result is one of the graph. The first that holds counts.
ROLES: Mapping[str, Test] = {
    "embedding": lambda region, reader, after, last: reader.op is TAKE,
    "router": lambda region, reader, after, last: any(makes(node, TOP_K_GATE) for node in after),
    "latent up": lambda region, reader, after, last: reader.op is LATENT_ATTENTION,
    "latent down": lambda region, reader, after, last: any(caches_norm(node) for node in after),
    "experts": lambda region, reader, after, last: reader.op is GROUPED_MATMUL,
    "head": lambda region, reader, after, last: last,
    "dense": lambda region, reader, after, last: True,
}

# --quant -> role -> format.
POLICIES: Mapping[str, Policy] = {
    quant: Policy(
        {
            "embedding": "bf16",
            "router": "f32",
            "latent up": "bf16",
            "latent down": careful,
            "head": careful,
            "experts": quant,
            "dense": quant,
        }
    )
    for quant, careful in (("int4", "int8"), ("int8", "int8"), ("bf16", "bf16"))
}

ALL_BF16, ALL_F16 = (Policy(dict.fromkeys(ROLES, dtype)) for dtype in HALVES)
# Of a machine that multiplies int8 with int8: one scale for each row of a weight and for each token.
INT8_ROWS = Policy({**ALL_BF16.roles, **dict.fromkeys(("latent down", "experts", "dense"), "int8row")})
# Of a machine that multiplies e4m3 with e4m3: as DeepSeek ships weights, but for what comes before a cache.
FP8 = Policy({**ALL_BF16.roles, **dict.fromkeys(("experts", "dense"), "fp8")})
