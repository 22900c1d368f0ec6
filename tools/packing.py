"""Weights in the order that oneDNN's products of few rows want, while a CPU samples."""

from contextlib import contextmanager

import torch
import torch.nn as nn

from tools.state import whole


@contextmanager
def packed_weights(model: nn.Module, rows: int):
    """Lend each linear layer a packed copy of its weight, for products of `rows` rows; on other
    devices than a CPU, or of shards, nothing happens. Gradients do not flow meanwhile."""
    linears = [m for m in model.modules() if hasattr(m, "packed")]
    weight, fits = linears[0].weight, torch.backends.mkldnn.is_available()
    fits &= whole(weight) and weight.device.type == "cpu"
    dtype = torch.bfloat16 if torch.is_autocast_enabled("cpu") else torch.float32
    fits &= dtype == torch.float32 or torch.ops.mkldnn._is_mkldnn_bf16_supported()
    try:
        for linear in linears if fits else []:
            linear.packed = torch.ops.mkldnn._reorder_linear_weight(
                linear.weight.detach().to(dtype), rows)
        yield
    finally:
        for linear in linears:
            linear.packed = None
