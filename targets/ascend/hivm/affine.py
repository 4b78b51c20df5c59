"""Affine maps: `(d0)[s0] -> (d0 * 2 + s0, s0 floordiv 64)`, read and worked out; nothing is executed."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

Values = Sequence[int]
Expression = Callable[[Values], int]
TOKEN = re.compile(r"floordiv|ceildiv|mod|\d+|\w+|[-+*(),]")
SUMS = ("+", "-")
PRODUCTS = ("*", "floordiv", "ceildiv", "mod")


@dataclass(frozen=True, slots=True)
class Map:
    """What a map gives for its dimensions and symbols, in that order."""

    results: tuple[Expression, ...]

    def __call__(self, values: Values) -> list[int]:
        return [each(values) for each in self.results]


def affine_map(text: str) -> Map:
    """Raises ValueError for what is no map."""
    given, _, wanted = text.partition(" -> ")
    reader = _Reader(TOKEN.findall(wanted), re.findall(r"\w+", given))
    reader.take("(")
    results = [reader.sum()]
    while reader.next == ",":
        reader.take(",")
        results.append(reader.sum())
    reader.take(")")
    return Map(tuple(results))


class _Reader:
    """Reads sums of products of names, numbers and sums in brackets."""

    def __init__(self, tokens: list[str], names: list[str]) -> None:
        self._tokens, self._names = tokens[::-1], names

    @property
    def next(self) -> str:
        return self._tokens[-1] if self._tokens else ""

    def take(self, expected: str = "") -> str:
        if not self._tokens or (expected and self.next != expected):
            raise ValueError(f"an affine map has {self.next!r} where {expected or 'a value'!r} was expected")
        return self._tokens.pop()

    def sum(self) -> Expression:
        found = self.product()
        while self.next in SUMS:
            found = combined(self.take(), found, self.product())
        return found

    def product(self) -> Expression:
        found = self.value()
        while self.next in PRODUCTS:
            found = combined(self.take(), found, self.value())
        return found

    def value(self) -> Expression:
        word = self.take()
        if word == "(":
            found = self.sum()
            self.take(")")
            return found
        if word == "-":
            return combined("-", constant(0), self.value())
        if word in self._names:
            place = self._names.index(word)
            return lambda values: values[place]
        return constant(int(word))


def constant(number: int) -> Expression:
    """A number whatever the values."""
    return lambda values: number


def combined(sign: str, left: Expression, right: Expression) -> Expression:
    """Two expressions joined."""
    match sign:
        case "+":
            return lambda values: left(values) + right(values)
        case "-":
            return lambda values: left(values) - right(values)
        case "*":
            return lambda values: left(values) * right(values)
        case "mod":
            return lambda values: left(values) % right(values)
        case "floordiv":
            return lambda values: left(values) // right(values)
    return lambda values: -(-left(values) // right(values))
