"""LoRA: adapters and heads on one frozen trunk, instead of full training."""

import copy
from typing import TypeVar

import torch
import torch.nn as nn
import torch.nn.functional as F

from pretrained import llama
from runtime.config import LoRASection
from runtime.run import Run
from runtime.state import load_weights

Model = TypeVar("Model", bound=nn.Module)


class LoRA(nn.Module):
    """A change of rank r to a frozen weight W: W + alpha / r B A (arXiv 2106.09685); B starts at 0.
    Of queries, keys and values, or gate and up, which are one W, there is one A."""

    def __init__(self, outputs: int, inputs: int, config: LoRASection):
        super().__init__()
        self.a = nn.Parameter(torch.randn(config.rank, inputs) * inputs ** -0.5)
        self.b = nn.Parameter(torch.zeros(outputs, config.rank))
        self.scale = config.alpha / config.rank

    def forward(self, x):
        return F.linear(F.linear(x, self.a), self.scale * self.b)


def frozen_trunk(run: Run, model: Model) -> Model:
    """Give a model the weights of model.init_from, which all models of the run share and none
    changes; under run.amp = "bf16" in bfloat16, as its products would read them anyway."""
    load_weights(model, llama.read_weights(run.config.model.init_from, run.config.model))
    for module in model.modules():
        if run.config.run.amp == "bf16" and (
                isinstance(module, nn.Embedding) or hasattr(module, "lora")):
            module.bfloat16()
    return run.placed(model)


def adapted(trunk: Model, config: LoRASection) -> Model:
    """Return a model that shares the weights of a frozen trunk and has adapters of its own."""
    trunk.requires_grad_(False)
    shared = {id(tensor): tensor for tensor in (*trunk.parameters(), *trunk.buffers())}
    model = copy.deepcopy(trunk, shared)
    for name, module in list(model.named_modules()):
        if name.rpartition(".")[2] in config.linears:
            module.lora = LoRA(*module.weight.shape, config)
    return model


@torch.no_grad()
def merged(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return the weights of a model in float32, adapters added to what they adapt."""
    weights = {name: tensor.float() for name, tensor in model.state_dict().items()
               if ".lora." not in name}
    with torch.autocast(model.embedding.weight.device.type, enabled=False):
        for name, module in model.named_modules():
            if isinstance(module, LoRA):
                name = name.removesuffix("lora") + "weight"
                weights[name] = weights[name] + module.scale * module.b @ module.a
    return weights
