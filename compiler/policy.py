"""Which weights become narrower: --quant, and a file of rules that overrides it; and how caches are kept."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..passes.precision import FORMATS, POLICIES, ROLES, Policy
from ..targets.paged import left_over
from .ir import Graph
from .ops.coded import CODINGS

NONE = "none"
# --quant -> the policy, of a target whose kernels read all formats; None leaves weights as they are.
EVERY: Mapping[str, Policy | None] = {NONE: None, **POLICIES}


class BadPolicy(ValueError):
    """What the user said of weights' formats cannot be followed; the message is a sentence for them."""


def policy_of(
    quant: str = NONE, rules: Path | None = None, policies: Mapping[str, Policy | None] = EVERY
) -> Policy | None:
    """The policy of --quant and --quant-config among a target's; None where every weight stays as it is.

    Raises BadPolicy.
    """
    if quant not in policies:
        raise BadPolicy(f"there is no format {quant!r} for weights; there is {', '.join(policies)}")
    stays = Policy(dict.fromkeys(ROLES, "f32"))
    found, first = policies[quant], read_rules(rules) if rules else ()
    return replace(found or stays, rules=first) if first else found


def cache_of(machine: Any, cache: str | None) -> str:
    """How a target's artifact keeps earlier tokens; None for the target's own way. Raises BadPolicy."""
    if cache is not None and cache not in machine.caches:
        there = ", ".join(machine.caches)
        raise BadPolicy(f"the {machine.name} target keeps no cache in {cache}; there is {there}")
    return cache or str(machine.caches[0])


def pages_of(machine: Any, rows: int | None) -> int:
    """Rows of the pages that a target's artifact keeps caches in; 0 where each text has rows of its own.

    Raises BadPolicy.
    """
    if rows and rows not in machine.pages:
        there = f"pages of {', '.join(map(str, machine.pages))} rows" if machine.pages else "none in pages"
        raise BadPolicy(f"the {machine.name} target keeps no cache in pages of {rows} rows; there is {there}")
    return rows or 0


def expect_read(machine: Any, graph: Graph, cache: str = "") -> None:
    """Raises BadPolicy where a target with memory of its own has pages that none of its kernels reads, and
    where there is no latent for a cache of codes.
    """
    if cache in CODINGS and all(value.type.dtype != CODINGS[cache].dtype for value in graph.inputs):
        raise BadPolicy(
            f"a cache in {cache} is one of latents, and this model has none that was recognised; "
            "leave --cache out"
        )
    if "provider" in machine.facts and (left := left_over(graph)):
        raise BadPolicy(
            f"the {machine.name} target has kernels for pages of latents, and none for {left[0]!r}; leave "
            "--cache-pages out for this model"
        )


def read_rules(path: Path) -> Sequence[tuple[str, str]]:
    """Patterns of tensor names and their formats, in the file's order. Raises BadPolicy."""
    try:
        text = path.read_text(encoding="utf-8")
        content: Any = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
    except (OSError, ValueError) as error:
        said = error.strerror if isinstance(error, OSError) else error
        raise BadPolicy(f"{path}: cannot be read as JSON or TOML: {said}") from None
    if not isinstance(content, dict):
        raise BadPolicy(
            f"{path}: holds a {type(content).__name__}, expected patterns of tensor names with a format "
            'each, such as {"*.experts.*": "int4"}'
        )
    for pattern, format in content.items():
        if format not in FORMATS:
            raise BadPolicy(
                f"{path}: {pattern!r} has the format {format!r}; there is {', '.join(FORMATS)}"
                + ("; put quotes around a pattern with dots" if isinstance(format, dict) else "")
            )
    return tuple(content.items())
