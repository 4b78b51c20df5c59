"""The process that generates code, so that a generator that crashes takes nothing else with it.

    python -m moec.compiler.emitter

Pickles of (target, kernel, schedules) come in; each is answered by an Emitted or by why there is none.
"""

from __future__ import annotations

import os
import pickle
import sys


def main() -> None:
    """Answer until the other end closes."""
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # from here on, what a toolchain prints is no reply
    while True:
        try:
            target, kernel, schedules = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        try:
            reply = target.emit(kernel, schedules)
        except Exception as error:  # a generator may raise anything; the other end knows which kernel it was
            reply = f"{type(error).__name__}: {error}".splitlines()[0]
        pickle.dump(reply, replies)
        replies.flush()


if __name__ == "__main__":
    main()
