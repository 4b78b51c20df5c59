"""A kernel's code with how to launch it, as one piece of bytes.

    {"launches": {"1": [launch, ..], ..}, "images": [image with lengths for texts and code, ..]} newline
    texts and code

Expressions of sizes are C++ text, as the generated table has them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

PARTS = ("linalg", "hivm", "host")  # of an image, in the order in which they lie behind the head


@dataclass(frozen=True, slots=True)
class Argument:
    """One argument of a function: memory by its port (x0, y0, s0), or a number.

    name: the Triton function's parameter; type: in Triton's words (bf16, i32, ..); value: of a size, in C++,
    or the name of a real.
    """

    name: str
    type: str
    port: str = ""
    value: str = ""


@dataclass(frozen=True, slots=True)
class Launch:
    """An image's function and all that a launch of it takes. scratch: bytes by port; when: a C++ number that
    is not 0 where it is launched at all.
    """

    image: int
    grid: tuple[str, str, str]
    arguments: tuple[Argument, ...]
    scratch: Mapping[str, str]
    when: str = ""


@dataclass(frozen=True, slots=True)
class Image:
    """A function in all its forms: for the vendor's compiler, planned by it, and for this machine's CPU.

    entry: its name, unique to its code. function, constants: what it is of in Triton. mixed: whether it runs
    on cube cores; task: what the vendor's compiler says of that (aiv, aic, mix). used: bytes planned by
    memory; workspace: bytes of device memory for a block; locks: how many its blocks share there. serial:
    whether blocks add to the same memory. options: what bishengir-compile was called with; notes: what it
    changed on its own. linalg, hivm: MLIR; host: an object.
    """

    entry: str
    function: str
    constants: Mapping[str, Any]
    mixed: bool
    task: str
    used: Mapping[str, int]
    workspace: int
    locks: int
    serial: bool
    options: tuple[str, ...]
    notes: tuple[str, ...]
    linalg: bytes
    hivm: bytes
    host: bytes


@dataclass(frozen=True, slots=True)
class Bundle:
    """Launches by where their schedule's bucket begins, and the images with the functions."""

    launches: Mapping[int, Sequence[Launch]]
    images: Sequence[Image]

    def to_bytes(self) -> bytes:
        """The bundle as bytes."""
        parts = [getattr(image, part) for image in self.images for part in PARTS]
        images = [
            {**asdict(image), **{part: len(getattr(image, part)) for part in PARTS}} for image in self.images
        ]
        launches = {first: [asdict(each) for each in steps] for first, steps in self.launches.items()}
        head = {"launches": launches, "images": images}
        return json.dumps(head).encode() + b"\n" + b"".join(parts)


def from_bytes(data: bytes) -> Bundle:
    """The bundle again."""
    line, _, rest = data.partition(b"\n")
    head = json.loads(line)
    images, start = [], 0
    for fields in head["images"]:
        parts = {}
        for part in PARTS:
            parts[part] = rest[start : start + fields[part]]
            start += fields[part]
        images.append(Image(**{**_tuples(fields), **parts}))
    launches = {int(first): [_launch(each) for each in steps] for first, steps in head["launches"].items()}
    return Bundle(launches, images)


def _launch(fields: Mapping[str, Any]) -> Launch:
    arguments = tuple(Argument(**each) for each in fields["arguments"])
    return Launch(**{**_tuples(fields), "arguments": arguments})


def _tuples(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}
