"""What an artifact holds for a machine with CANN: kernels in the vendor's languages, and how to finish them.

All of it lies in the folder ascend/: NAME.linalg.mlir, NAME.hivm.mlir and NAME.json for each function,
finish.sh, and runtime/, the sources of the library, for hosts that are no x86-64.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from .. import native
from ..base import Emitted, spans
from . import build, npu
from .bundle import Bundle, Image, Launch, from_bytes
from .soc import Soc
from .table import functions, table

FOLDER = "ascend"
OLDEST_CANN = "8.5"  # whose compiler is the first release that takes such kernels, by the vendor's table
# What the vendor's compiler itself calls hivmc with.
HIVMC = (
    "--enable-debug-info=false",
    "--enable-static-bare-ptr=true",
    "--enable-bin-relocation=true",
    "--enable-hivm-inject-barrier-all-sync=false",
    "--enable-sanitizer=false",
    "--enable-triton-kernel-compile=true",
)


def files(
    emitted: Sequence[Emitted], soc: Soc, library: str, versions: Mapping[str, str]
) -> dict[str, bytes]:
    """All files by their path in the artifact. library: its name; versions: of the toolchain, by package."""
    bundles = [from_bytes(one.object_code) for one in emitted]
    every = [image for image, _ in functions(bundles).values()]
    found: dict[str, bytes] = {}
    for image in every:
        found[f"{image.entry}.linalg.mlir"] = image.linalg
        found[f"{image.entry}.hivm.mlir"] = image.hivm
        told = described(image, emitted, bundles, soc, versions)
        found[f"{image.entry}.json"] = (json.dumps(told, indent=1) + "\n").encode()
    found["finish.sh"] = script(every, soc, library).encode()
    found |= {f"runtime/{name}": content for name, content in sources(emitted, soc).items()}
    return {f"{FOLDER}/{name}": content for name, content in found.items()}


def described(
    image: Image, emitted: Sequence[Emitted], bundles: Sequence[Bundle], soc: Soc, versions: Mapping[str, str]
) -> dict[str, Any]:
    """All that is known of a function, but for its code."""
    return {
        "name": image.entry,
        "soc": soc.name,
        "triton": image.function,
        "constants": image.constants,
        "mixed": image.mixed,
        "cores": image.task,
        "memory_bytes": image.used,
        "workspace_bytes_per_block": image.workspace,
        "locks": image.locks,
        "notes": image.notes,
        "launches": [
            told for one, bundle in zip(emitted, bundles) for told in launches(image.entry, one, bundle)
        ],
        "toolchain": dict(versions),
        "commands": {
            "bishengir-compile": [
                *("bishengir-compile", f"{image.entry}.linalg.mlir", *image.options, "-o", "kernel")
            ],
            "hivmc": hivmc("hivmc", f"{image.entry}.hivm.mlir"),
        },
    }


def hivmc(program: str, hivm: str) -> list[str]:
    """What makes kernel.o, or kernel, in the folder where it is called."""
    return [program, hivm, *HIVMC, "-o", "kernel"]


def launches(entry: str, one: Emitted, bundle: Bundle) -> Iterator[dict[str, Any]]:
    """Where a kernel launches a function: for which counts of tokens, on which grid, with what."""
    for tokens, (first, every) in zip(spans(one.schedules), bundle.launches.items()):
        for launch in every:
            if bundle.images[launch.image].entry == entry:
                yield {
                    "kernel": str(one.kernel),
                    "tokens": tokens,
                    "schedule": dict(one.schedules[first]),
                    **shape(launch),
                }


def shape(launch: Launch) -> dict[str, Any]:
    """A launch's grid and arguments: expressions of sizes as C++ has them."""
    arguments = [
        {"name": each.name, "type": each.type, "is": each.port or each.value} for each in launch.arguments
    ]
    when = {"when": launch.when} if launch.when else {}
    return {"grid": launch.grid, "arguments": arguments, "scratch_bytes": dict(launch.scratch), **when}


def script(images: Sequence[Image], soc: Soc, library: str) -> str:
    """finish.sh for these functions."""
    kernels = (shlex.join(("kernel", image.entry, str(image.workspace), *image.options)) for image in images)
    linked = (*native.LINK[:1], "-Wl,-z,now", "-Wl,-z,noexecstack", "-Wl,--version-script=exports")
    given = {
        "@SOC@": soc.name,
        "@LIBRARY@": library,
        "@CANN@": OLDEST_CANN,
        "@TOOLS@": ":".join(f"$cann/{folder}" for folder in npu.TOOLS),
        "@HIVMC@": " ".join(hivmc("", "")[2:]),
        "@COMPILE@": " ".join(native.COMPILE),
        "@LINK@": " ".join(linked),
        "@KERNELS@": "\n".join(kernels),
    }
    text = (Path(__file__).parent / "finish.sh").read_text(encoding="utf-8")
    for name, value in given.items():
        text = text.replace(name, value)
    return text


def sources(emitted: Sequence[Emitted], soc: Soc) -> dict[str, bytes]:
    """The library's sources in one folder, with the table of these kernels."""
    headers = [header for folder in build.FOLDERS for header in sorted(folder.glob("*.h"))]
    found = {file.name: file.read_bytes() for file in (*build.RUNTIME, *headers)}
    if len(found) != len(build.RUNTIME) + len(headers):
        raise ValueError("two sources of the runtime have one name; they lie in one folder of an artifact")
    return {**found, "table.cc": table(emitted, soc).encode(), "exports": build.EXPORTS.encode()}
