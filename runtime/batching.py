"""Batches cut into micro-batches of rows of similar length: little padding, little memory."""

import torch

from runtime.ranks import in_step


def micro_batches(length, size: int, groups: list[list[int]] | None = None):
    """Return indices of rows of similar length [B] that together take at most `size` positions (or
    of one row; 0: no limit), so that activations fit a CPU's caches. The rows of a group, by
    default each its own, stay together."""
    lengths = length.tolist()
    groups = groups or [[i] for i in range(len(lengths))]
    most = torch.tensor([len(group) * max(lengths[i] for i in group) for group in groups])
    order = most.argsort(descending=True, stable=True)
    longest, parts, start = most[order].tolist(), [], 0
    while start < len(order):
        end = start + max(1, (size or len(order) * longest[0]) // longest[start])
        parts.append(torch.tensor([i for k in order[start:end].tolist() for i in groups[k]]))
        start = end
    for _ in range(in_step(len(parts)) - len(parts)):
        parts.sort(key=len)
        parts += parts.pop().tensor_split(2)  # two of the fullest
    return parts


def by_parts(function, rows, parts: list):
    """Return function(rows) [B, T] of model.Rows, for parts of them, lists of indices."""
    result = torch.zeros(rows.tokens.shape, device=rows.tokens.device)
    for chosen in parts:
        part = function(rows[chosen])
        result[chosen, :part.shape[1]] = part
    return result
