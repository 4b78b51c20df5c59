"""Triton functions to linalg, in the toolchain's Python: a request a line in JSON, an answer a line.

{"function": "rows:rms_norm", "types": {"x": "*bf16", "n": "i32"}, "constants": {"BLOCK": 1024},
 "soc": "Ascend910B3"}
{"name": "rms_norm", "linalg": "...", "mixed": false}   or   {"error": "..."}
"""

import importlib
import json
import os
import sys

from triton._C.libtriton import ir
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.compiler.compiler import make_backend


def lowered(request):
    file, name = request["function"].split(":")
    function = getattr(importlib.import_module(f".{file}", __package__), name)
    types, constants = request["types"], request["constants"]
    signature = {
        parameter: "constexpr" if parameter in constants else types[parameter]
        for parameter in function.arg_names
    }
    backend = make_backend(GPUTarget("npu", request["soc"], 0))
    source = ASTSource(fn=function, signature=signature, constants=constants)
    options = backend.parse_options(source.parse_options())
    context = ir.context()
    ir.load_dialects(context)
    backend.load_dialects(context)
    module = source.make_ir(options, backend.get_codegen_implementation(), backend.get_module_map(), context)
    stages = {}
    backend.add_stages(stages, options)
    facts = {"hash": "", "target": backend.target, **options.__dict__}
    linalg = stages["ttadapter"](stages["ttir"](module, facts), facts)
    return {"name": name, "linalg": str(linalg), "mixed": facts.get("mix_mode") == "mix"}


def main():
    # What tools print must not come between the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        try:
            answer = lowered(json.loads(line))
        except Exception as error:  # of any kind: it is the kernel's author's, and he is told
            words = getattr(error, "stderr", b"") or b""
            answer = {"error": f"{type(error).__name__}: {error} {words.decode(errors='replace')[-1500:]}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
