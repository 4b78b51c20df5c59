"""`moec toolchain`: compilers of a target that pip does not bring along. Loaded when asked for."""

from __future__ import annotations

from typing import Any

import click

from .cli import as_json, say, say_aside

EXAMPLES = """
\b
Examples:
  moec toolchain install ascend
  moec toolchain install ascend --python /usr/bin/python3.11
  moec toolchain show ascend --json
"""
with_name = click.argument("name", type=click.Choice(["ascend"]), metavar="NAME")


@click.group(epilog=EXAMPLES)
def toolchain() -> None:
    """Compilers that a target needs in a place of their own: NAME is ascend."""


@toolchain.command(epilog=EXAMPLES)
@with_name
@click.option("--python", help="A Python 3.11 for it; default: this one, or the first python3.11 on PATH.")
@as_json
def install(name: str, python: str | None, machine: bool) -> None:
    """Install what the target NAME needs to compile; nothing is done where it is there already.

    About 700 MB in the user's data folder: Triton for Ascend and Huawei's compiler from PyPI, by their
    hashes, and MLIR 19, where this machine has none, from Debian's packages. No NPU or CANN is needed.
    """
    from ..targets.ascend.installation import install

    done = install(lambda line: say_aside(f"moec: {line}"), python)
    say(machine, done, lambda console: console.print(sentence(done), soft_wrap=True))


@toolchain.command(epilog=EXAMPLES)
@with_name
@as_json
def show(name: str, machine: bool) -> None:
    """What is installed for the target NAME, and what is missing."""
    from ..targets.ascend.toolchain import facts

    found = facts()
    rows = [f"{key}: {value}" for key, value in found.items() if value not in (True, "")]
    say(machine, found, lambda console: console.print(*rows, sep="\n", soft_wrap=True))


def sentence(done: dict[str, Any]) -> str:
    """What came of an installation."""
    if done["already"]:
        return f"already installed: {done['folder']}"
    return f"installed in {done['seconds']:.0f} s, {done['bytes'] / 1e6:.0f} MB: {done['folder']}"
