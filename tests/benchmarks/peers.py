"""What a user has today: the same model in eager PyTorch, and transformers' own ONNX export."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from moec.compiler.checkpoint import RandomWeights
from moec.targets.native import find_compiler

from .absent import Absent, need


def eager(folder: Path, seed: int) -> Any:
    """The model in float32, with the same random weights as the artifact."""
    config = AutoConfig.from_pretrained(folder)
    config.use_cache = False
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    state = model.state_dict()
    weights = RandomWeights(seed, {name: tuple(tensor.shape) for name, tensor in state.items()})
    with torch.no_grad():
        for name, tensor in state.items():
            tensor.copy_(torch.from_numpy(np.ascontiguousarray(weights.read(name))))
    return model


def compiled(module: Any, *example: Any) -> Any:
    """The module by torch.compile, called once with the example. Raises Absent where that fails."""
    try:
        find_compiler()
        made = torch.compile(module)
        made(*example)
    except Exception as error:  # whatever the compiler stumbles over
        raise Absent(f"{type(error).__name__}: {str(error).splitlines()[0]}") from None
    return made


def exported(model: Any, out: Path, threads: int) -> ort.InferenceSession:
    """transformers.exporters.OnnxExporter's graph in onnxruntime; written once. Raises Absent."""
    if not out.exists():
        need("onnxscript", "bench")
        export(model, out)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    return ort.InferenceSession(str(out), options, providers=["CPUExecutionProvider"])


def export(model: Any, out: Path) -> None:
    """Write the exporter's graph; dynamic in batch and length."""
    from transformers.exporters import OnnxConfig, OnnxExporter

    warnings.filterwarnings("ignore")
    model.set_experts_implementation("grouped_mm")
    ids = torch.randint(2, 1000, (2, 16))
    exporter = OnnxExporter()
    program = exporter.export_program(
        model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, OnnxConfig(dynamic=True)
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    exporter.save_program(program[0] if isinstance(program, tuple) else program, out)
