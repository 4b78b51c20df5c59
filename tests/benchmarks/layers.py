"""Models of one layer, for what only one layer shows."""

from __future__ import annotations

from typing import Any

import torch
from transformers import DeepseekV2Config, DeepseekV3Config
from transformers.models.deepseek_v2.modeling_deepseek_v2 import DeepseekV2Experts, DeepseekV2TopkRouter
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3MoE

from .shapes import V2_LITE

HIDDEN, WIDTH, CHOSEN = 1024, 1408, 6


def moe(experts: int) -> tuple[Any, tuple[Any, ...]]:
    """One MoE feed-forward of DeepSeek-V3, six experts chosen of `experts`, and two tokens for it."""
    config = DeepseekV3Config(
        hidden_size=HIDDEN,
        moe_intermediate_size=WIDTH,
        n_routed_experts=experts,
        num_experts_per_tok=CHOSEN,
        n_shared_experts=1,
        n_group=1,
        topk_group=1,
    )
    config._experts_implementation = "grouped_mm"
    torch.manual_seed(0)
    layer = DeepseekV3MoE(config).eval()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn_like(parameter) * parameter.shape[-1] ** -0.5)
    return layer, (torch.randn(2, 1, HIDDEN),)


def moe_8() -> tuple[Any, tuple[Any, ...]]:
    """Of 8 experts."""
    return moe(8)


def moe_64() -> tuple[Any, tuple[Any, ...]]:
    """Of 64 experts."""
    return moe(64)


class Routed(torch.nn.Module):
    """What onnxruntime's QMoE does: gate and routed experts of a DeepSeek-V2, without shared experts."""

    def __init__(self, config: DeepseekV2Config) -> None:
        super().__init__()
        self.gate = DeepseekV2TopkRouter(config)
        self.experts = DeepseekV2Experts(config)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [B, T, H] through the chosen experts."""
        _, weights, chosen = self.gate(x)
        return self.experts(x.view(-1, x.shape[-1]), chosen, weights).view(x.shape)


def routed_experts() -> tuple[Any, tuple[Any, ...]]:
    """Those of a DeepSeek-V2-Lite layer: 64 experts of width 1408, six chosen; and two tokens for it."""
    config = DeepseekV2Config(**V2_LITE)
    config._experts_implementation = "grouped_mm"
    torch.manual_seed(0)
    layer = Routed(config).eval()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(std=parameter.shape[-1] ** -0.5)
    return layer, (torch.randn(2, 1, config.hidden_size),)
