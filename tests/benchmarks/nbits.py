"""onnxruntime's own operators on weights of 4 and 8 bits: MatMulNBits and QMoE, on the same codes as ours."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime as ort
from onnx import helper
from onnxruntime.capi._pybind_state import quantize_matmul_4bits

from .onnx_session import session

GROUP = 32


def bytes_of(codes: Any, bits: int) -> Any:
    """Codes i8 [.., K] as onnxruntime stores them, u8 [.., K * bits / 8]: from 0 on, even places low."""
    shifted = (codes.astype(np.int16) + (1 << (bits - 1))).astype(np.uint8)
    return shifted if bits == 8 else shifted[..., 0::2] | shifted[..., 1::2] << 4


def codes_of_onnxruntime(w: Any) -> tuple[Any, Any]:
    """w f32 [N, K] in 4 bits, as onnxruntime's own quantizer rounds it: codes i8, scales f32 [N, K/32]."""
    n, k = w.shape
    packed, scales = np.zeros((n, k // GROUP, GROUP // 2), np.uint8), np.zeros((n, k // GROUP), np.float32)
    zeros = np.zeros((n, (k // GROUP + 1) // 2), np.uint8)
    quantize_matmul_4bits(
        packed, np.ascontiguousarray(w.T), scales.reshape(-1), zeros.reshape(-1), GROUP, n, k, True
    )
    nibbles = np.stack([packed & 15, packed >> 4], axis=-1).reshape(n, k)
    return nibbles.astype(np.int8) - 8, scales


def interleaved(both: Any) -> Any:
    """[E, 2I, ..], gates before ups, as [E, 2I, ..] with a gate and its up by turns."""
    gate, up = np.split(both, 2, axis=1)
    return np.stack([gate, up], axis=2).reshape(both.shape)


def linears(
    codes: Any, scales: Any, bits: int, accuracy: int, copies: int, threads: int
) -> ort.InferenceSession:
    """x f32 [m, K] by codes i8 [N, K] and scales [N, K/32] to y0, and by almost the same to y1 and so on.

    accuracy: 0 keeps x as it is, 4 rounds it to 8 bits.
    """
    n, k = codes.shape
    packed, wide = bytes_of(codes, bits).reshape(n, k // GROUP, -1), scales.astype(np.float32).reshape(-1)
    # Copies differ a little, or onnxruntime would keep only one of them.
    weights = {f"s{i}": wide for i in range(copies)}
    weights |= {f"w{i}": np.concatenate([packed[:-1], packed[-1:] ^ np.uint8(i)]) for i in range(copies)}
    form = {"K": k, "N": n, "bits": bits, "block_size": GROUP, "accuracy_level": accuracy}
    nodes = [
        helper.make_node("MatMulNBits", ["x", f"w{i}", f"s{i}"], [f"y{i}"], domain="com.microsoft", **form)
        for i in range(copies)
    ]
    return session(nodes, weights, ["x"], [f"y{i}" for i in range(copies)], threads)


def experts(
    gate: Any, first: tuple[Any, Any], second: tuple[Any, Any], chosen: int, accuracy: int, threads: int
) -> ort.InferenceSession:
    """A MoE layer of 4 bits: x f32 [m, H] to y. Softmax over gate f32 [E, H], the best not normalised.

    first, second: codes and scales of gates and ups [E, 2I, H], and of downs [E, H, I].
    """
    weights = {
        "gate": np.ascontiguousarray(gate.T),
        "w1": bytes_of(interleaved(first[0]), 4),
        "s1": interleaved(first[1]).astype(np.float32),
        "w2": bytes_of(second[0], 4),
        "s2": second[1].astype(np.float32),
    }
    form = {
        "k": chosen,
        "activation_type": "swiglu",
        "swiglu_fusion": 1,
        "normalize_routing_weights": 0,
        "expert_weight_bits": 4,
        "block_size": GROUP,
        "accuracy_level": accuracy,
    }
    # Without weights of their own, chosen experts are always mixed by the softmax over themselves alone.
    operands = ["x", "logits", "w1", "s1", "", "w2", "s2", *[""] * 7, "chances"]
    nodes = [
        helper.make_node("MatMul", ["x", "gate"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["chances"]),
        helper.make_node("QMoE", operands, ["y"], domain="com.microsoft", **form),
    ]
    return session(nodes, weights, ["x"], ["y"], threads)
