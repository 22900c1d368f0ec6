"""reward.two_scores in less time: two responses in one row share the states of their prompt.

In Eq. 2 each prompt of R_PIT, (x, y_l) and (x, y_w), has both responses. They continue the prompt,
their positions go on from its end, and neither sees the other, so that the scores are those of
rows of their own. A training step is 1.45 x as fast (benchmarks/gap_step.py).
"""

from dataclasses import dataclass

import torch

from model import Rows, pad_rows
from reward import POOLS, RewardModel


@dataclass
class Branches:
    """Prompts with two responses each, in one row."""
    rows: Rows               # prompt, response a, response b
    a: Rows                  # the extent of a
    b: Rows                  # the extent of b
    previous: torch.Tensor   # [B, T] where the token before this one stands
    positions: torch.Tensor  # [B, T]
    bias: torch.Tensor       # [B, 1, T, T] 0 where one may look at the other, else -inf


def make_branches(prompts: list, a: list, b: list, device) -> Branches:
    """Lay out lists of token ids as branches."""
    both = pad_rows(prompts, [x + y for x, y in zip(a, b)], device)
    start, end = both.prompt, both.length                               # [B]
    middle = start + torch.tensor([len(x) for x in a], device=device)   # [B] where b begins
    at = torch.arange(both.tokens.shape[1], device=device)              # [T]
    in_b = at >= middle[:, None]                                        # [B, T]
    positions = at.minimum(end[:, None] - 1) - in_b * (middle - start)[:, None]
    previous = torch.where(at == middle[:, None], start[:, None] - 1, (at - 1).clamp(min=0))
    sees = (at <= at[:, None]) & ~(in_b[:, :, None] & ~in_b[:, None] & (at >= start[:, None, None]))
    # as numbers: torch would turn a mask of booleans into one again in each layer
    bias = torch.zeros(sees.shape, device=device).masked_fill(~sees, -torch.inf)
    return Branches(both, Rows(both.tokens, start, middle), Rows(both.tokens, middle, end),
                    previous, positions, bias[:, None])


def two_scores(model: RewardModel, prompts: list, a: list, b: list):
    """Score two responses to each prompt, as reward.two_scores does."""
    branches = make_branches(prompts, a, b, model.head.weight.device)
    scores, logp = model(branches.rows, branches.previous, branches.positions, branches.bias)
    pool, of_a = POOLS[model.config.pool], branches.a
    return (pool(scores, of_a), pool(scores, branches.b),
            -(logp * of_a.mask).sum(1) / of_a.mask.sum(1))
