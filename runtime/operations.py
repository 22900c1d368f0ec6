"""Floating-point operations of matrix products, counted from the shapes that ran.

A trunk's forward pass takes 2 operations for each weight and position, and 4 T S C of each head for
T tokens that look at S. The backward pass takes twice as many again, of frozen weights as many.
Causal attention is counted in full, and what is done again after an interruption again. Left out:
norms, adapters, optimisers.
"""

import time

import torch

done = 0.0  # by this rank, up to now


def watch(gpt):
    """Count a GPT's operations from now on."""
    if count_trunk not in gpt._forward_hooks.values():  # a copy of a watched one has them
        gpt.register_forward_hook(count_trunk, with_kwargs=True)
        gpt.head.register_forward_hook(count_head)
    return gpt


def count_trunk(gpt, args: tuple, kwargs: dict, output: torch.Tensor) -> None:
    """Add the operations of GPT.forward(tokens, positions, bias, cache, at)."""
    global done
    config, (batch, time_) = gpt.config, args[0].shape
    bias = args[2] if len(args) > 2 else kwargs.get("bias")
    seen = time_ if bias is None else bias.shape[-1]
    everywhere, at_last = batch * time_, output.numel() // output.shape[-1]
    heads = config.heads * (config.head_width or config.width // config.heads)
    attention = 2 * config.width * heads * (1 + config.kv_heads / config.heads)  # weights
    mlp = 3 * config.width * config.hidden
    products = 2 * (everywhere * config.layers * attention
                    + (everywhere * (config.layers - 1) + at_last) * mlp)
    looks = 4 * everywhere * seen * heads * config.layers
    trained = next(gpt.blocks.parameters()).requires_grad
    done += products + looks + (products * (1 + trained) + looks * 2) * output.requires_grad


def count_head(head, args: tuple, output: torch.Tensor) -> None:
    """Add the operations of logits."""
    global done
    passes = 1 + (1 + head.weight.requires_grad) * output.requires_grad
    done += 2 * args[0].numel() * output.shape[-1] * passes


@torch.no_grad()
def peak(device: torch.device) -> float:
    """Measure the operations a second of a product of large matrices, under the present autocast:
    the fastest of five, after one to warm up."""
    size = 4096 if device.type == "cuda" else 1024
    a, seconds = torch.rand(size, size, device=device), []
    for _ in range(6):
        start = time.perf_counter()
        (a @ a)[0, 0].item()  # waits for the device
        seconds.append(time.perf_counter() - start)
    return 2 * size ** 3 / min(seconds[1:])
