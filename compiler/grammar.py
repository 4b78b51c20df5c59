"""The words of the text form of graphs: tokens, sizes, numbers, strings and types."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar

import sympy

from .ir import B, Dim, L, P, S, T, Type, TypeMismatch, plain


class TextError(ValueError):
    """A text that is no graph."""


Item = TypeVar("Item")
_SIZES: dict[str, sympy.Symbol] = {str(symbol): symbol for symbol in (B, T, S, L, P)}
_TOKEN = re.compile(
    r"""(?P<space>\s+) | (?P<origin>\#[^\n]*) | (?P<data>b64"[A-Za-z0-9+/=]*")
    | (?P<string>"(?:[^"\\\n]|\\.)*")
    | (?P<label>%(?:[A-Za-z0-9_.]+|"(?:[^"\\\n]|\\.)*"))
    | (?P<float>[0-9]+(?:\.[0-9]+(?:e[+-]?[0-9]+)?|e[+-]?[0-9]+)) | (?P<int>[0-9]{1,30})
    | (?P<word>[A-Za-z_][A-Za-z0-9_]*) | (?P<mark>\*\*|[()\[\]{},;:=+*/-])""",
    re.VERBOSE,
)


class Token(NamedTuple):
    kind: str
    text: str
    line: int


def _tokens(text: str) -> Iterator[Token]:
    place, line = 0, 1
    while place < len(text):
        match = _TOKEN.match(text, place)
        if match is None:
            raise TextError(f"line {line}: cannot read {text[place : place + 20].splitlines()[0]!r}")
        place = match.end()
        if match.lastgroup != "space":
            yield Token(str(match.lastgroup), match.group(), line)
        line += match.group().count("\n")
    yield Token("end of text", "end of text", line)


class Parser:
    """Recursive descent over the tokens; what is read need not be trusted, and is never evaluated."""

    def __init__(self, text: str) -> None:
        self.tokens = list(_tokens(text))
        self.place = 0
        self.depth = 0

    @property
    def next(self) -> Token:
        return self.tokens[self.place]

    def error(self, sentence: str) -> TextError:
        return TextError(f"line {self.next.line}: {sentence}")

    def at(self, *wanted: str) -> bool:
        """Whether the next token is of one of these kinds, or one of these marks or words."""
        token = self.next
        return token.kind in wanted or (token.kind in ("mark", "word") and token.text in wanted)

    def expect(self, *wanted: str) -> str:
        if not self.at(*wanted):
            raise self.error(f"expected {' or '.join(wanted)}, but here is {self.next.text}")
        self.place += 1
        return self.tokens[self.place - 1].text

    def accept(self, *wanted: str) -> str:
        return self.expect(*wanted) if self.at(*wanted) else ""

    def string(self) -> str:
        return str(self.unquoted(self.expect("string")))

    def unquoted(self, text: str) -> str:
        try:
            return str(json.loads(text))
        except ValueError:
            raise self.error(f"{text} is no JSON string") from None

    def sequence(self, item: Callable[[], Item], stop: str) -> list[Item]:
        """Items between commas up to the closing mark, which is taken too."""
        items: list[Item] = []
        while not self.at(stop):
            items.append(item())
            if not self.at(stop):
                self.expect(",")
        self.expect(stop)
        return items

    def nested(self) -> None:
        """Called on the way in; deep nesting is refused before Python's stack is."""
        self.depth += 1
        if self.depth > 50:
            raise self.error("nested more than 50 deep")

    def type(self) -> Type:
        dtype = self.expect("word")
        self.expect("[")
        shape = tuple(self.sequence(self.dim, "]"))
        try:
            return Type(dtype, shape)
        except TypeMismatch as error:
            raise self.error(str(error)) from None

    def bytes(self) -> bytes:
        text = self.expect("data")[4:-1]
        try:
            return base64.b64decode(text, validate=True)
        except ValueError:
            raise self.error("the data is no base64") from None

    def flag(self) -> bool:
        return self.expect("true", "false") == "true"

    def number(self) -> float | Dim:
        """A float, or an int or symbolic size."""
        place = self.place
        sign = -1 if self.accept("-") else 1
        if self.at("float"):
            return sign * float(self.expect("float"))
        if self.at("inf", "nan"):
            return sign * float(self.expect("word"))
        self.place = place
        return self.dim()

    def dim(self) -> Dim:
        self.nested()
        negative = bool(self.accept("-"))
        total = -self.product() if negative else self.product()
        while sign := self.accept("+", "-"):
            total = total + self.product() if sign == "+" else total - self.product()
        self.depth -= 1
        return plain(total)

    def product(self) -> Any:
        total = self.power()
        while sign := self.accept("*", "/"):
            factor = self.power()
            if sign == "/" and factor == 0:
                raise self.error("a size divided by 0")
            total = total * factor if sign == "*" else sympy.sympify(total) / factor
        return total

    def power(self) -> Any:
        if self.at("int"):
            return int(self.expect("int"))
        if self.accept("("):
            inner = self.dim()
            self.expect(")")
            return inner
        name = self.expect("word")
        if name in ("floor", "ceiling") and self.at("("):
            return getattr(sympy, name)(self.power())
        if name not in _SIZES:
            raise self.error(f"{name} is no size; sizes are made of {', '.join(_SIZES)}")
        return _SIZES[name] ** self.exponent() if self.accept("**") else _SIZES[name]

    def exponent(self) -> int:
        exponent = int(self.expect("int"))
        if exponent > 8:
            raise self.error(f"a size to the power of {exponent}")
        return exponent
