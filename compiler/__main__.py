"""python -m moec.compiler: the same as the command `moec`."""

from __future__ import annotations

from .cli import main

main()
