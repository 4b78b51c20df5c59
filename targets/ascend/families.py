"""By kind of kernel, the sources that its records depend on: a change of others leaves them as they are.

Programs name kernels' files in words, so both are listed; what either imports counts too. A kind that is not
here depends on all sources.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

SIMULATES = "timeline.py"  # with what it imports
PRODUCTS = ("programs/matmul.py", "programs/quantized.py", "kernels/quantized.py")
ATTENTION = ("programs/latent.py", "kernels/latent.py", "kernels/latent_apart.py")

WRITTEN: Mapping[str, Sequence[str]] = {
    **dict.fromkeys(("linear", "linear_add", "linear_swiglu"), (*PRODUCTS, "kernels/matmul.py")),
    **dict.fromkeys(("grouped_swiglu", "grouped_combine"), (*PRODUCTS, "kernels/grouped.py")),
    **dict.fromkeys(("embedding", "angles", "rms_norm"), ("programs/rows.py", "kernels/rows.py")),
    **dict.fromkeys(("rotary", "append"), ("programs/heads.py", "kernels/heads.py")),
    "attention": ("programs/attention.py", "kernels/attention.py", "kernels/latent.py"),
    "top_k_gate": ("programs/gate.py", "kernels/gate.py"),
    "route": ("programs/gate.py", "kernels/gate.py", "kernels/order.py"),
    "permute": ("programs/gate.py", "kernels/order.py"),
    "mla_decode": ATTENTION,
    "latent_attention": (*ATTENTION, "kernels/latent_project.py", "kernels/latent_prefill.py"),
    "latent_write": ("programs/latent.py", "kernels/latent_project.py"),
}
FAMILIES: Mapping[str, Sequence[str]] = {kind: (*files, SIMULATES) for kind, files in WRITTEN.items()}
