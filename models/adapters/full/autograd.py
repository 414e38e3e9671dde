"""Autograd functions of layers whose weight trains: ``y = (W + D) x + b``, W the model's frozen weight.

Autograd would keep ``W + D`` of every layer for backward, a second copy of the model. These functions keep the layer,
the difference D and the input, and compute the sum again.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...backbone.frozen_layers import WeightAccess, without_view


class TrainedLinear(torch.autograd.Function):
    """``y = x (W + D)^T + b``; ``dL/dx = dL/dy (W + D)``, ``dL/dD = dL/dy^T x``, with D ``[out, in]``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, diff: Tensor, layer: nn.Linear, access_weight: WeightAccess) -> Tensor:
        ctx.save_for_backward(x, diff)
        ctx.layer, ctx.access_weight = layer, access_weight
        with access_weight(layer, x) as (weight, bias):
            return without_view(F.linear(x, weight + diff.to(x.dtype), bias))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        x, diff = ctx.saved_tensors
        to_input = to_diff = None
        if ctx.needs_input_grad[0]:
            with ctx.access_weight(ctx.layer, gradient) as (weight, _):
                to_input = gradient @ (weight + diff.to(gradient.dtype))
        if ctx.needs_input_grad[1]:
            to_diff = (gradient.flatten(0, -2).t() @ x.flatten(0, -2)).to(diff.dtype)
        return to_input, to_diff, None, None


class TrainedConvolution(torch.autograd.Function):
    """``y = conv(x, W + D) + b`` with D ``[out, in kh kw]``, differentiated with respect to x and D."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, diff: Tensor, layer: nn.Conv2d, access_weight: WeightAccess) -> Tensor:
        ctx.save_for_backward(x, diff)
        ctx.layer, ctx.access_weight = layer, access_weight
        with access_weight(layer, x) as (weight, bias):
            return without_view(layer._conv_forward(x, weight + diff.to(x.dtype).view_as(weight), bias))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        x, diff = ctx.saved_tensors
        layer, needs = ctx.layer, ctx.needs_input_grad
        with ctx.access_weight(layer, gradient) as (weight, _):
            to_input, to_weight, _ = torch.ops.aten.convolution_backward(
                gradient, x, weight + diff.to(gradient.dtype).view_as(weight), None, layer.stride, layer.padding,
                layer.dilation, False, [0], layer.groups, (needs[0], needs[1], False),
            )  # fmt: skip
        return to_input, None if to_weight is None else to_weight.flatten(1).to(diff.dtype), None, None
