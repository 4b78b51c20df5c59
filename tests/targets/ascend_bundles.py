"""What emission gives, made up: nothing here takes the toolchain."""

from __future__ import annotations

from moec.targets.ascend.bundle import Argument, Bundle, Image, Launch
from moec.targets.base import Emitted, Kernel

KERNEL = Kernel("rms_norm", (("n", 64), ("width", 64), ("start", 0)), (("eps", 1e-5),))


def image(entry: str, workspace: int = 0, mixed: bool = False) -> Image:
    """A function that is no code at all."""
    return Image(
        entry=entry,
        function="rows:rms_norm",
        constants={"N": 64},
        mixed=mixed,
        task="mix" if mixed else "aiv",
        used={"UB": 4096},
        workspace=workspace,
        locks=0,
        serial=mixed,
        options=("--target=Ascend910B3", "--enable-hivm-compile=true"),
        notes=(),
        linalg=f"linalg of {entry}".encode(),
        hivm=f"hivm of {entry}".encode(),
        host=b"\x7fELF of " + entry.encode(),
    )


FEW = Launch(
    image=0,
    grid=("larger(m, 1)", "1", "1"),
    arguments=(
        Argument("x", "bf16", port="x0"),
        Argument("s", "fp32", port="s0"),
        Argument("y", "bf16", port="y0"),
        Argument("m", "i32", value="m"),
        Argument("eps", "fp32", value="eps"),
    ),
    scratch={"s0": "(m * 4)"},
    when="smaller(m, 16)",
)
MANY = Launch(1, ("40", "1", "1"), FEW.arguments, {"s0": "(m * 8)"})
BUNDLE = Bundle({1: [FEW, MANY], 17: [MANY]}, [image("few_1a"), image("many_2b", 512, True)])
EMITTED = Emitted(KERNEL, {1: {"rows": 1}, 17: {"rows": 4}}, BUNDLE.to_bytes(), (("few_1a", "many_2b"), ()))
