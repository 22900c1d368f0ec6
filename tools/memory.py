"""How much memory a training will take, against what is free: an error now, not after hours.

PPO holds the most: policy and critic with gradients and Adam's two moments, beside the anchor, both
reward models and the other policies. To that comes either a portion, forward and backward, of which
R_PIT's is the largest, or a batch that is sampled: a layer over all prompts, and the cache.
"""

from pathlib import Path

import torch

WEIGHTS_ONLY = 6        # models that are only read while PPO trains two


def parameters(model, vocab: int) -> int:
    """Of a GPT of this section [model] and vocabulary."""
    block = 2 * model.width + sum(outputs * inputs for outputs, inputs in linears(model).values())
    return model.layers * block + model.width + vocab * model.width * (1 if model.tied else 2)


def head_width(model) -> int:
    return model.head_width or model.width // model.heads


def linears(model) -> dict[str, tuple[int, int]]:
    """Outputs and inputs of the linear layers of a block, by name."""
    q, kv = model.heads * head_width(model), model.kv_heads * head_width(model)
    return {"qkv": (q + 2 * kv, model.width), "out": (model.width, q),
            "gate_up": (2 * model.hidden, model.width), "down": (model.width, model.hidden)}


def adapters(config) -> int:
    """Parameters of LoRA's adapters of one model."""
    return config.model.layers * config.lora.rank * sum(
        sum(linears(config.model)[name]) for name in config.lora.linears)


def needed(config, vocab: int, ranks: int, gpu: bool = False) -> dict[str, float]:
    """Bytes that a rank needs at most, by what they hold."""
    shares = ranks if config.run.shard else 1
    trunk = 4 * parameters(config.model, vocab) / shares
    weight = 4 * adapters(config) if config.lora.rank else trunk  # what each model has of its own
    shared = trunk / per_float32(config) if config.lora.rank else 0
    return {"weights": shared + (2 + WEIGHTS_ONLY) * weight,
            "gradients and optimisers": 2 * 3 * weight + weight,
            **max(training(config, vocab, gpu), sampling(config, vocab),
                  key=lambda parts: sum(parts.values()))}


def per_float32(config) -> int:
    """How many of the numbers that products are made of take the place of one in float32."""
    return 1 if config.run.amp == "off" else 2


def training(config, vocab: int, gpu: bool) -> dict[str, float]:
    """Bytes of R_PIT's portion, forward and backward: x and y_ref with two responses in a row. They
    need a mask, with which a GPU keeps the weights of the attention."""
    model, data = config.model, config.data
    columns = data.max_prompt + 3 * data.max_response + 16
    portion = max(model.portion, 2 * columns)
    layer = 9 * model.width + 4 * model.hidden + gpu * model.heads * columns  # kept, of a position
    logits = 3 * vocab * portion * 2 * data.max_response / columns
    cast = 0 if config.lora.rank else parameters(model, vocab) * (per_float32(config) - 1) / 2
    return {"activations and logits":
            4 * (portion * layer * model.layers / per_float32(config) + logits + cast)}


def sampling(config, vocab: int) -> dict[str, float]:
    """Bytes of a batch whose prompts are read, in the largest layer, and of its cache."""
    model, data, rows = config.model, config.data, config.ppo.batch
    read = data.max_prompt + (2 if config.refine.rewrite else 1) * data.max_response + 16
    copies = 3 if config.lora.rank else 2  # of gate and up: what adapters add is another
    layer = 3 * model.width + copies * 2 * model.hidden / per_float32(config)  # of a position
    kept = 2 * head_width(model) * model.kv_heads * model.layers / per_float32(config)
    return {"prompts that are read": 4 * rows * read * layer,
            "cache": 4 * rows * ((read + data.max_response) * kept + 4 * vocab)}


def free(device: torch.device) -> float:
    """Bytes that are free on the device; infinite where nobody says."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    found = [float("inf")]
    try:
        lines = Path("/proc/meminfo").read_text("ascii").splitlines()
        found += [1024.0 * int(line.split()[1]) for line in lines if line.startswith("MemAvail")]
        group = Path("/sys/fs/cgroup")  # a container's own limit
        limit = (group / "memory.max").read_text("ascii").strip()
        if limit != "max":
            stat = (group / "memory.stat").read_text("ascii").splitlines()
            stat = dict(line.split() for line in stat)
            cached = float(stat["active_file"]) + float(stat["inactive_file"])  # given up if needed
            used = float((group / "memory.current").read_text("ascii"))
            found.append(float(limit) - used + cached)
    except (OSError, ValueError, KeyError):
        pass  # another system
    return min(found)


def size(model: torch.nn.Module) -> int:
    """Bytes of a model's weights."""
    return sum(p.nbytes for p in model.parameters())


def shortage(config, vocab: int, device: torch.device, ranks: int, held: int = 0) -> str:
    """What is wrong where the training needs more memory than is free; else nothing. Of what it
    needs each rank has `held` bytes already."""
    parts = needed(config, vocab, ranks, device.type == "cuda")
    here = 1 if device.type == "cuda" else ranks  # a CPU's ranks share its memory
    total, there = here * sum(parts.values()), free(device) + here * held
    if total <= there:
        return ""
    most = ", ".join(f"{name} {here * size / 1e9:.1f}" for name, size in parts.items())
    return (f"this training needs about {total / 1e9:.1f} GB of memory ({most}), but "
            f"{there / 1e9:.1f} GB are free on {device}; lower model.portion, ppo.batch or the "
            "model's size" + (", or share it out over more devices with run.shard = true"
                              if not config.lora.rank else ""))
