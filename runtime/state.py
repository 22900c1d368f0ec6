"""What a training holds, as tensors and plain values, and back; also where each rank has a shard.

A shard is torch's DTensor, made by FSDP2 (`fully_shard`). What is kept is whole and on the CPU, so
that it can go on with any number of ranks, sharded or not.
"""

from dataclasses import is_dataclass

import torch


def shard_model(model: torch.nn.Module, device: str, ranks: int) -> torch.nn.Module:
    """Split a model over the ranks, in place. A block of a ModuleList is put together when its turn
    comes, forward and backward; the rest (embedding, head) stays together after the first forward
    pass, in a training until the next backward one."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    mesh = init_device_mesh(device, (ranks,))
    for part in list(model.modules()):
        if isinstance(part, torch.nn.ModuleList):
            for block in part:
                fully_shard(block, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def whole(tensor: torch.Tensor) -> bool:
    """Return whether a weight or its gradient is here as a whole, not as this rank's shard."""
    return type(tensor) in (torch.Tensor, torch.nn.Parameter)


def gathered(tensor: torch.Tensor) -> torch.Tensor:
    """Return the whole tensor, on the CPU; from shards a collective operation."""
    return (tensor if whole(tensor) else tensor.full_tensor()).detach().cpu()


def as_here(tensor: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Return a whole tensor as `like` is here: on its device, or this rank's shard."""
    tensor = tensor.to(like.device)
    if whole(like) or tensor.shape != like.shape:  # an optimiser's step counts are not split
        return tensor
    from torch.distributed.tensor import distribute_tensor
    return distribute_tensor(tensor, like.device_mesh, like.placements)


def frozen(model: torch.nn.Module) -> set[str]:
    """Return the names of the weights that no training changes: those of LoRA's trunk."""
    return {name for name, p in model.named_parameters(remove_duplicate=False)
            if not p.requires_grad}


def weights_of(model: torch.nn.Module) -> dict:
    """Return a model's whole weights, but for the frozen ones, on the CPU."""
    left_out = frozen(model)
    return {name: gathered(tensor) for name, tensor in model.state_dict().items()
            if name not in left_out}


def load_weights(model: torch.nn.Module, content: dict) -> torch.nn.Module:
    """Put into a model what `weights_of` took from one like it, before it is sharded. Raises
    RuntimeError where that does not fit."""
    stays = frozen(model)
    model.load_state_dict(content | {name: tensor for name, tensor in model.state_dict().items()
                                     if name in stays})
    return model


def snapshot(state) -> dict:
    """Return the attributes of `state`: of models the weights, of optimisers the moments, of
    dataclasses their attributes, of others their values; but no functions, and no learning rates,
    which each step sets."""
    content = {}
    for name, value in vars(state).items():
        if isinstance(value, torch.nn.Module):
            content[name] = weights_of(value)
        elif isinstance(value, torch.optim.Optimizer):
            content[name] = {number: {key: gathered(t) for key, t in moments.items()}
                             for number, moments in value.state_dict()["state"].items()}
        elif is_dataclass(value):
            content[name] = snapshot(value)
        elif not callable(value):
            content[name] = value
    return content


def restore(state, content: dict) -> None:
    """Put into `state` what `snapshot` took from one like it; a value that is newer than the
    snapshot stays."""
    for name, value in vars(state).items():
        if isinstance(value, torch.nn.Module):
            tensors = value.state_dict()
            for key, tensor in content[name].items():
                tensors[key].copy_(as_here(tensor, tensors[key]))
        elif isinstance(value, torch.optim.Optimizer):
            params = [p for group in value.param_groups for p in group["params"]]
            value.load_state_dict(value.state_dict() | {"state": {
                number: {key: as_here(t, params[number]) for key, t in moments.items()}
                for number, moments in content[name].items()}})
        elif is_dataclass(value):
            restore(value, content[name])
        elif not callable(value):
            setattr(state, name, content.get(name, value))
