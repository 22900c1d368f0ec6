"""Operations counted from shapes, against torch's own counter, which looks at each product."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from conftest import tiny_gpt
from faster.branches import joined
from faster.sampling import sample
from model import pad_rows
from runtime import operations


def counted(work, trained: bool) -> tuple[float, float]:
    """Return what torch counts and what we count of a GPT's work."""
    before = operations.done
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        with torch.set_grad_enabled(trained):
            result = work()
            if trained:
                result.sum().backward()
    return counter.get_total_flops(), operations.done - before


@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("trained", [False, True])
def test_passes_forward_and_backward(kv_heads, trained):
    model = operations.watch(tiny_gpt(kv_heads=kv_heads, tied=False))
    tokens, at = torch.randint(0, 11, (3, 7)), torch.rand(3, 7) > 0.5
    theirs, ours = counted(lambda: model.logits(model(tokens, at=at)), trained)
    assert theirs == ours > 0


def test_a_frozen_trunk_has_no_gradients_of_weights():
    model = operations.watch(tiny_gpt(tied=False))
    tokens = torch.randint(0, 11, (3, 7))
    model.blocks.requires_grad_(False)  # the gradient goes on to the embedding
    theirs, ours = counted(lambda: model(tokens), True)
    assert theirs == ours


def test_branches_look_at_whole_rows():
    model = operations.watch(tiny_gpt())
    b = joined(pad_rows([[1, 2], [3]] * 2, [[4, 5, 6], [7], [8], [9, 10]]), [[0, 2], [1, 3]])
    theirs, ours = counted(lambda: model(b.rows.tokens, b.positions, b.bias), True)
    assert theirs == ours


def test_sampling_reads_a_token_a_step():
    model, prompts = operations.watch(tiny_gpt()), [[1, 2, 3], [4]]
    theirs, ours = counted(lambda: sample(model, prompts, torch.rand(2, 6), 1.0, -1), False)
    assert theirs == ours


def test_the_peak_is_that_of_a_product():
    assert 1e8 < operations.peak(torch.device("cpu")) < 1e14
