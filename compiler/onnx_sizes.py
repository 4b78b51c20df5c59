"""Sizes known only at run time, computed in ONNX from the shapes of a graph's own inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import sympy

from .ir import Dim, Type


class Sizes:
    """Turns a size such as 6*B*T into a one-element i64 tensor, through `op` and `constant` of the scope."""

    def __init__(
        self, op: Callable[..., str], constant: Callable[..., str], inputs: Mapping[str, Type]
    ) -> None:
        self._op = op
        self._constant = constant
        self._axes: dict[sympy.Symbol, tuple[str, int]] = {}
        self._equations: dict[sympy.Expr, sympy.Symbol] = {}
        self._names: dict[Dim, str] = {}
        for name, type in inputs.items():
            for axis, dim in enumerate(type.shape):
                if not isinstance(dim, int) and dim not in self._equations:
                    read = sympy.Symbol(f"{name}.{axis}", positive=True, integer=True)
                    self._equations[dim], self._axes[read] = read, (name, axis)
        self._solutions = _solve(self._equations)

    def __call__(self, dim: Dim) -> str:
        """The name of a one-element tensor that holds `dim`. Raises ValueError where no input tells it."""
        if dim not in self._names:
            self._names[dim] = self._constant([dim]) if isinstance(dim, int) else self._emit(self._read(dim))
        return self._names[dim]

    def _read(self, dim: sympy.Expr) -> sympy.Expr:
        """`dim` in terms of sizes that can be read off an input."""
        if dim in self._equations:
            return self._equations[dim]
        read = dim.subs(self._solutions)
        for known, symbol in self._equations.items():
            read = read.subs(known.subs(self._solutions), symbol)
        if read.free_symbols - set(self._axes):
            known_sizes = ", ".join(map(str, self._equations))
            raise ValueError(f"no input has a size that tells {dim}; known are {known_sizes}")
        return read

    def _emit(self, expression: sympy.Expr) -> str:
        above, below = sympy.together(expression).as_numer_denom()
        if below != 1:
            return self._op("Div", self._emit(above), self._emit(below))
        if expression in self._axes:
            name, axis = self._axes[expression]
            return self._op("Shape", name, start=axis, end=axis + 1)
        if expression.is_Integer:
            return self._constant([int(expression)])
        return self._fold(expression)

    def _fold(self, expression: sympy.Expr) -> str:
        """A sum, product or power of simpler sizes."""
        if expression.is_Pow:
            base, times = expression.args
            return self._fold(sympy.Mul(*[base] * int(times), evaluate=False))
        kinds: dict[Any, str] = {sympy.Add: "Add", sympy.Mul: "Mul"}
        if expression.func not in kinds:
            raise ValueError(f"a size of the form {expression} has no ONNX spelling; sums and products have")
        first, *others = (self._emit(part) for part in expression.args)
        for other in others:
            first = self._op(kinds[expression.func], first, other)
        return first


def _solve(equations: Mapping[sympy.Expr, sympy.Symbol]) -> dict[sympy.Symbol, sympy.Expr]:
    """Each symbol that follows from the equations `dim = read`, one unknown at a time: S from S+T and T."""
    solutions: dict[sympy.Symbol, sympy.Expr] = {}
    reads = set(equations.values())
    progress = True
    while progress:
        progress = False
        for dim, read in equations.items():
            unknown = [s for s in dim.free_symbols if s not in solutions]
            if len(unknown) == 1 and sympy.Poly(dim, unknown[0]).degree() == 1:
                left = sympy.expand(dim.subs(solutions))
                found = sympy.solve(left - read, unknown[0])
                if found and not (found[0].free_symbols - reads):
                    solutions[unknown[0]] = found[0]
                    progress = True
    return solutions
