"""MLIR's generic form of a module, read into ops: `%r = "dialect.op"(%a) <{..}> ({regions}) {..} : types`.

What attributes mean is known only to the ops' semantics; here they are text, by name.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from .affine import Map, affine_map

OP = re.compile(r'^\s*(?:(%[\w#:, %]+) = )?"([\w.]+)"\(([^)]*)\)(.*)$')
MAP = re.compile(r"^(#map\d*) = affine_map<(.*)>$")
OPENS, CLOSES = "<([{", ">)]}"


class Unreadable(ValueError):
    """Text that is not as expected, or an op that is not known; names it."""


@dataclass(slots=True)
class Region:
    """A block of ops, and its arguments' names."""

    arguments: tuple[str, ...] = ()
    ops: list[Op] = field(default_factory=list)


@dataclass
class Op:
    """One op. results, operands: names of values; attributes: text by name, "" for one that is only there.

    rest: the text behind operands, without regions. line: where it stands in the text, from 1.
    """

    name: str
    results: tuple[str, ...]
    operands: tuple[str, ...]
    rest: str
    line: int
    regions: list[Region] = field(default_factory=list)

    @cached_property
    def attributes(self) -> Mapping[str, str]:
        found: dict[str, str] = {}
        for part in (part for group in braced(self.rest) for part in split(group)):
            name, _, value = part.partition(" = ")
            found[name.strip('"')] = value
        return found

    @cached_property
    def signature(self) -> tuple[list[str], list[str]]:
        """Types of the operands and of the results."""
        given, _, made = self.rest[self.rest.rfind("}") + 1 :].lstrip("> :").rpartition(" -> ")
        return split(unwrapped(given)), split(unwrapped(made))

    @property
    def types(self) -> list[str]:
        return self.signature[1]

    def words(self, name: str) -> str:
        """What is between the brackets of an attribute: V of #hivm.pipe<PIPE_V>, or its text."""
        value = self.attributes.get(name, "")
        inner = re.search(r"<(\w+)>", value)
        return inner.group(1) if inner else value

    def number(self, name: str, default: int = 0) -> int:
        """A whole number."""
        found = re.match(r"-?\d+", self.attributes.get(name, ""))
        return int(found.group()) if found else default

    def numbers(self, name: str) -> list[int]:
        """Of an attribute array<i64: 1, 2>."""
        inner = self.attributes.get(name, "").partition(":")[2].rstrip(">")
        return [int(each) for each in inner.split(",") if each.strip()]

    def groups(self, name: str) -> list[list[int]]:
        """Of an attribute [[0, 1], [2]]."""
        inner = re.findall(r"\[([\d, ]*)\]", self.attributes.get(name, "")[1:-1])
        return [[int(each) for each in group.split(",") if each.strip()] for group in inner]

    def operands_by_segment(self) -> list[tuple[str, ...]]:
        """Operands in the groups that the op has them in."""
        rest, groups = list(self.operands), []
        for size in self.numbers("operandSegmentSizes") or [len(rest)]:
            groups.append(tuple(rest[:size]))
            del rest[:size]
        return groups

    def __str__(self) -> str:
        return f"line {self.line}: {self.name}({', '.join(self.operands)})"


@dataclass(frozen=True, slots=True)
class Module:
    """Functions by name, each an op func.func with one region; affine maps by name."""

    functions: Mapping[str, Op]
    maps: Mapping[str, Map]

    def constant(self, suffix: str) -> int:
        """What the function whose name ends so gives back; 0 where there is none."""
        for name, function in self.functions.items():
            if name.endswith(suffix):
                return function.regions[0].ops[0].number("value")
        return 0


def split(text: str) -> list[str]:
    """At commas that are in no brackets."""
    parts, depth, start = [], 0, 0
    for i, letter in enumerate(text):
        if letter in OPENS:
            depth += 1
        elif letter in CLOSES and text[i - 1 : i + 1] != "->":
            depth -= 1
        elif letter == "," and not depth:
            parts.append(text[start:i].strip())
            start = i + 1
    return [*parts, text[start:].strip()] if text[start:].strip() else parts


def braced(text: str) -> Iterator[str]:
    """What is in each pair of outermost braces."""
    depth = start = 0
    for i, letter in enumerate(text):
        if letter == "{":
            start = start if depth else i + 1
            depth += 1
        elif letter == "}":
            depth -= 1
            if not depth:
                yield text[start:i]


def unwrapped(types: str) -> str:
    """Types without the brackets around all of them."""
    return types[1:-1] if types.startswith("(") else types


def parse(text: str) -> Module:
    """Raises Unreadable."""
    maps: dict[str, Map] = {}
    lines: list[tuple[int, str]] = []
    for number, line in enumerate(text.splitlines(), 1):
        if found := MAP.match(line):
            maps[found.group(1)] = affine_map(found.group(2))
        elif line.strip() and not line.startswith(("#", "//")):
            lines.append((number, line))
    modules = _Reader(lines).region().ops
    if len(modules) != 1 or modules[0].name != "builtin.module":
        raise Unreadable("expected one builtin.module in MLIR's generic form")
    functions = modules[0].regions[0].ops
    return Module({each.words("sym_name").strip('"'): each for each in functions}, maps)


class _Reader:
    def __init__(self, lines: list[tuple[int, str]]) -> None:
        self._lines, self._at = lines, 0

    def region(self) -> Region:
        """Up to the line that closes it, which is left."""
        region = Region()
        while self._at < len(self._lines):
            number, line = self._lines[self._at]
            text = line.strip()
            if text.startswith("}"):
                break
            self._at += 1
            if text.startswith("^bb"):
                if region.arguments or region.ops:
                    raise Unreadable(f"line {number}: a second block in a region; jumps are not known")
                region.arguments = tuple(_arguments(text))
            else:
                region.ops.append(self._op(number, text))
        return region

    def _op(self, number: int, text: str) -> Op:
        found = OP.match(text)
        if not found:
            raise Unreadable(f"line {number}: {text[:120]!r} is no op in MLIR's generic form")
        results, name, operands, rest = found.groups()
        regions: list[Region] = []
        while rest.endswith("{") or (regions and rest.endswith("}, {")):
            regions.append(self.region())
            rest = rest.removesuffix("({").removesuffix("}, {") + self._lines[self._at][1].strip()
            self._at += 1
        names = tuple(each.strip() for each in operands.split(",") if each.strip())
        rest = rest.replace("})", "", 1) if regions else rest
        return Op(name, tuple(_results(results)), names, rest, number, regions)


def _arguments(text: str) -> Iterator[str]:
    for argument in split(text[text.index("(") + 1 : text.rindex(")")]):
        yield argument.partition(":")[0].strip()


def _results(text: str | None) -> Iterator[str]:
    """%5 is one, %5:2 are %5#0 and %5#1."""
    for name in split(text or ""):
        base, _, count = name.partition(":")
        yield from ([f"{base}#{i}" for i in range(int(count))] if count else [base])
