"""What tools/memory.py reckons, against the bytes of the tensors that are alive at once."""

import weakref

import pytest
import torch
from conftest import tiny_config
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from model import GPT, Cache, adapted
from reward import RewardModel, eq2_loss, make_branches
from tools import memory

VOCAB, PROMPT, RESPONSE, BATCH = 4000, 134, 50, 2  # the prompt has y_ref in it


class Alive(TorchDispatchMode):
    """The most bytes of tensors, not a model's own, that lived at the same time in here."""

    def __init__(self, model):
        super().__init__()
        own = (*model.parameters(), *model.buffers())
        self.sizes = {tensor.untyped_storage()._cdata: 0 for tensor in own}
        self.now = self.most = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self.sizes:
                    self.sizes[storage._cdata] = storage.nbytes()
                    self.now += storage.nbytes()
                    weakref.finalize(storage, self.end, storage._cdata)
        self.most = max(self.most, self.now)
        return made

    def end(self, key):
        self.now -= self.sizes.pop(key)


def setting(tmp_path, rank: int, amp: str):
    """A config and its trunk, wide enough that tensors outweigh what is small and not counted."""
    config = tiny_config(tmp_path, model__layers=4, model__heads=8, model__kv_heads=2,
                         model__width=256, model__hidden=704, model__context=512,
                         model__tied=False, model__portion=BATCH * (PROMPT + 2 * RESPONSE),
                         data__max_prompt=PROMPT - RESPONSE - 16, data__max_response=RESPONSE,
                         lora__rank=rank, ppo__batch=BATCH, run__amp=amp)
    model = GPT(config.model, VOCAB)
    if rank:
        model = adapted(model.bfloat16() if amp == "bf16" else model, config.lora)
    return config, model


@pytest.mark.parametrize("rank", [0, 16])
@pytest.mark.parametrize("amp", ["off", "bf16"])
@pytest.mark.filterwarnings("ignore:Mismatch dtype")
def test_what_is_reckoned_is_what_is_alive(tmp_path, rank, amp):
    config, trunk = setting(tmp_path, rank, amp)
    model = RewardModel(trunk, config.reward)
    ids = [[token] * length for token, length in ((1, PROMPT), (2, RESPONSE), (3, RESPONSE))]
    branches = make_branches(*([one] * BATCH for one in ids), "cpu")
    with torch.autocast("cpu", torch.bfloat16, amp == "bf16", cache_enabled=False):
        with torch.no_grad(), Alive(trunk) as reading:
            trunk(torch.tensor([ids[0]] * BATCH), cache=Cache(PROMPT + RESPONSE))
        with Alive(model) as training:
            eq2_loss(model, branches)[0].backward()
    reckoned = memory.training(config, VOCAB, gpu=False)
    assert sum(reckoned.values()) == pytest.approx(training.most, rel=0.15)
    reckoned = memory.sampling(config, VOCAB)
    draw = 4 * 4 * BATCH * VOCAB  # nothing is drawn here
    assert sum(reckoned.values()) - draw == pytest.approx(reading.most, rel=0.1)


def test_one_billion_parameters_take_what_they_took_on_a_gpu(tmp_path):
    """Of TinyLlama's shape with a vocabulary of 49,152, LoRA and bfloat16, on an H100
    (torch.cuda.max_memory_allocated): R_PIT 9.6 GB, with two of the eight sets of adapters, and an
    iteration of stage 1 13.9."""
    config = tiny_config(tmp_path, model__layers=22, model__heads=32, model__kv_heads=4,
                         model__width=2048, model__hidden=5632, model__tied=False,
                         model__portion=2048, data__max_prompt=512, data__max_response=192,
                         lora__rank=16, ppo__batch=128, run__amp="bf16")
    parts = memory.needed(config, 49_152, 1, gpu=True)
    assert sum(parts.values()) / 1e9 == pytest.approx(13.9, rel=0.1)
    portion = sum(memory.training(config, 49_152, gpu=True).values())
    assert (parts["weights"] + portion) / 1e9 == pytest.approx(9.6, rel=0.1)
