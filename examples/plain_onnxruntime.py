"""Run an artifact with onnxruntime and numpy alone: nothing of moec is imported.

    python examples/plain_onnxruntime.py OUT 5 17 42

The caches are bound once as input and output, so each step writes its new rows in place.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort


def open_session(folder: Path) -> ort.InferenceSession:
    """The artifact's session, with its kernel library registered."""
    options = ort.SessionOptions()
    options.register_custom_ops_library(str((folder / "libmoec_cpu.so").resolve()))
    return ort.InferenceSession(str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"])


def greedy(session: ort.InferenceSession, prompt: list[int], steps: int) -> list[int]:
    """The `steps` most likely tokens after the prompt, one at a time."""
    room = len(prompt) + steps
    binding = session.io_binding()
    for past in (item for item in session.get_inputs() if item.name.startswith("past.")):
        _, heads, _, width = past.shape
        cache = ort.OrtValue.ortvalue_from_numpy(np.zeros((1, heads, room, width), np.float32))
        binding.bind_ortvalue_input(past.name, cache)
        binding.bind_ortvalue_output(past.name.replace("past.", "present."), cache)
    seen, new, answer = 0, prompt, []
    for _ in range(steps):
        seen += len(new)
        binding.bind_cpu_input("input_ids", np.array([new], np.int64))
        binding.bind_cpu_input("attention_mask", np.ones((1, seen), np.int64))
        binding.bind_output("logits")
        session.run_with_iobinding(binding)
        logits = binding.get_outputs()[-1].numpy()  # in the order in which they were bound
        new = [int(logits[0, -1].argmax())]
        answer += new
    return answer


if __name__ == "__main__":
    print(greedy(open_session(Path(sys.argv[1])), [int(token) for token in sys.argv[2:]], 16))
