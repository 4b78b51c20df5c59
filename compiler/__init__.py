"""The compiler: graph, capture, pipeline, artifact, command line.

from moec.compiler import compile_model, load
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .driver import compile_model as compile_model
    from .driver import explain as explain
    from .runner import load as load

__all__ = ["compile_model", "explain", "load"]
_HOMES = {"compile_model": "driver", "explain": "driver", "load": "runner"}


def __getattr__(name: str) -> Any:
    """Import what is asked for when it is asked for: `import moec.compiler.ir` must not load the driver."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
