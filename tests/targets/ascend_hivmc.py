"""A stand-in for hivmc: objects for the stand-in for ACL, made of the linalg behind the HIVM it is given.

    python -m tests.targets.ascend_hivmc TABLE CALLS NAME.hivm.mlir OPTIONS..

makes kernel.o in the folder where it is called. TABLE: JSON of what is known of each function by its name;
CALLS: a file that gets the words of each call.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from .ascend_stand_in import finished
from .stand_in_objects import Function


def main() -> None:
    """Refuses text that is not what was planned."""
    table, calls, given, *options = sys.argv[1:]
    told = json.loads(Path(table).read_text())[Path(given).name.removesuffix(".hivm.mlir")]
    with Path(calls).open("a") as file:
        file.write(json.dumps([given, *options]) + "\n")
    if Path(given).read_text() != told["hivm"]:
        sys.exit("this is not the HIVM that was planned")
    function = Function(**told["function"])
    finished(function, Path(told["host"]).read_bytes(), Path("made"))
    Path("made", f"{function.name}.o").rename("kernel.o")


if __name__ == "__main__":
    main()
