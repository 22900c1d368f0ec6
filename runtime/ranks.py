"""What ranks do with each other. Each works on its share of a batch; losses, counts and gradients
are summed over all."""

from dataclasses import is_dataclass

import torch
import torch.distributed as dist
from torch.nn.utils.rnn import pad_sequence

_together = False  # whether ranks have to make forward passes together, see in_step


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def ranks() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def shard(items):
    """Return this rank's share of a sequence that all ranks hold: every n-th item, with n ranks."""
    return items[rank()::ranks()]


def shard_fields(items):
    """Return this rank's share of a dataclass of sequences that all ranks hold."""
    return type(items)(**{name: shard(value) for name, value in vars(items).items()})


def random_numbers(count: int, length: int, generator: torch.Generator) -> torch.Tensor:
    """Draw this rank's share of `count` rows of [0, 1) numbers, equal for any number of ranks."""
    return shard(torch.rand(count, length, generator=generator))


def all_sum(tensor: torch.Tensor) -> torch.Tensor:
    """Sum the tensor in place over all ranks, and return it."""
    if dist.is_initialized():
        dist.all_reduce(tensor)
    return tensor


def gather(items: list) -> list:
    """Join the lists of all ranks, in the order that `shard` dealt them from."""
    if not dist.is_initialized():
        return items
    parts = [None] * ranks()
    dist.all_gather_object(parts, items)
    return [part[i] for i in range(len(parts[0])) for part in parts if i < len(part)]


def gather_rows(tensor: torch.Tensor, group: int = 1) -> torch.Tensor:
    """Join the rows [b] or [b, t] of all ranks in one tensor, in the order that `shard` dealt them
    from, `group` rows at once; shorter rows are padded with zeros."""
    if ranks() == 1:
        return tensor
    own = tensor.detach().cpu().numpy()
    dealt = gather([own[i:i + group] for i in range(0, len(own), group)])
    rows = [torch.as_tensor(row) for some in dealt for row in some]
    whole = torch.stack(rows) if tensor.dim() == 1 else pad_sequence(rows, batch_first=True)
    return whole.to(tensor.device)


def gather_fields(share, group: int = 1):
    """Return a dataclass of tensors, or of such dataclasses, with the rows of all ranks."""
    return type(share)(**{
        name: (gather_fields if is_dataclass(value) else gather_rows)(value, group)
        for name, value in vars(share).items()})


def in_step(count: int) -> int:
    """Return the greatest count of all ranks where weights are sharded, since a forward pass then
    needs every rank; else the count as it is."""
    if not _together:
        return count
    greatest = torch.tensor(count)
    dist.all_reduce(greatest, dist.ReduceOp.MAX)
    return int(greatest)


def barrier() -> None:
    if dist.is_initialized():
        dist.barrier()


def step_together() -> None:
    """Note that from now on a forward pass needs every rank."""
    global _together
    _together = True
