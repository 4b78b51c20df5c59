"""A kernel's machine code with how to launch it, as one piece of bytes.

    {"launches": {"1": [launch, ..], ..}, "images": [bytes of a cubin, ..], "resources": [..]} newline cubins

Expressions of sizes are C++ text, as the generated table has them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class TensorMap:
    """What cuTensorMapEncodeTiled takes, in its numbers: inner axis first, strides in bytes."""

    type: int
    shape: tuple[str, ...]
    strides: tuple[str, ...]
    box: tuple[str, ...]
    element_strides: tuple[str, ...]
    interleave: int
    swizzle: int
    promotion: int
    fill: int


@dataclass(frozen=True, slots=True)
class Argument:
    """One argument of a function: memory by its port (x0, y0, s0), through a tensor map or not, or a number.

    type: of a number, in C++; value: of a size, in C++, or the name of a real.
    """

    port: str = ""
    map: TensorMap | None = None
    type: str = ""
    value: str = ""


@dataclass(frozen=True, slots=True)
class Launch:
    """A function of a cubin and all that a launch of it takes. scratch: bytes by port."""

    image: int
    entry: str
    grid: tuple[str, str, str]
    block: tuple[str, str, str]
    shared: str
    arguments: tuple[Argument, ...]
    scratch: Mapping[str, str]
    when: str = ""
    overlap: bool = False


@dataclass(frozen=True, slots=True)
class Resources:
    """What ptxas says of a function: registers a thread, bytes spilled, static shared bytes."""

    registers: int
    spilled: int
    shared: int


@dataclass(frozen=True, slots=True)
class Bundle:
    """Launches by where their schedule's bucket begins, the cubins with the functions, what those need."""

    launches: Mapping[int, Sequence[Launch]]
    images: Sequence[bytes]
    resources: Sequence[Resources]

    def to_bytes(self) -> bytes:
        """The bundle as bytes."""
        head = {
            "launches": {first: [asdict(each) for each in steps] for first, steps in self.launches.items()},
            "images": [len(image) for image in self.images],
            "resources": [asdict(each) for each in self.resources],
        }
        return json.dumps(head).encode() + b"\n" + b"".join(self.images)


def from_bytes(data: bytes) -> Bundle:
    """The bundle again."""
    line, _, code = data.partition(b"\n")
    head = json.loads(line)
    images, start = [], 0
    for size in head["images"]:
        images.append(code[start : start + size])
        start += size
    launches = {int(first): [_launch(each) for each in steps] for first, steps in head["launches"].items()}
    return Bundle(launches, images, [Resources(**each) for each in head["resources"]])


def _launch(fields: Mapping[str, Any]) -> Launch:
    arguments = tuple(
        Argument(**{**each, "map": TensorMap(**_tuples(each["map"])) if each["map"] else None})
        for each in fields["arguments"]
    )
    return Launch(**{**_tuples(fields), "arguments": arguments})


def _tuples(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}
