"""Rows that begin with the same prompt, in less time: one row reads it once, then each response.

In Eq. 2 each prompt of R_PIT, (x, y_l) and (x, y_w), has both responses; in PPO with groups each
prompt has several. In the joined row they all continue the prompt: their positions go on from its
end, and none sees another. So the results are those of rows of their own. What it brings:
benchmarks/README.md.
"""

from dataclasses import dataclass
from itertools import chain

import torch
import torch.nn.functional as F

import model as plain
from model import GPT, Rows, on_grid, pad_rows
from reward import POOLS, RewardModel
from runtime.batching import by_parts, micro_batches

MOST = 4  # responses in one row: attention costs the square of their number


@dataclass
class Branches:
    """P rows, each a prompt and the responses of several rows, and how GPT.forward reads them."""
    rows: Rows               # [P, L] prompt, then one response after the other
    positions: torch.Tensor  # [P, L]
    previous: torch.Tensor   # [P, L] where the token before this one stands
    bias: torch.Tensor       # [P, 1, L, L] 0 where a query (row) may see a key (column), else -inf
    places: torch.Tensor     # [B, T] where the responses' tokens stand in the flat [P * L]; else 0


def by_prompt(rows: Rows) -> list[list[int]]:
    """Return the indices of rows that begin with the same prompt, at most MOST of them together, in
    the order of their first ones."""
    found: dict[tuple, list[int]] = {}
    for i, (row, end) in enumerate(zip(rows.tokens.tolist(), rows.prompt.tolist())):
        found.setdefault(tuple(row[:end]), []).append(i)
    return sorted(group[k:k + MOST] for group in found.values()
                  for k in range(0, len(group), MOST))


def joined(rows: Rows, groups: list[list[int]]) -> Branches:
    """Join rows that begin with the same prompt, each group of them in one row."""
    # 1. The tokens: a prompt, then its responses.
    tokens, starts, device = rows.tokens.tolist(), rows.prompt.tolist(), rows.tokens.device
    responses = rows.responses()
    both = pad_rows([tokens[group[0]][:starts[group[0]]] for group in groups],
                    [list(chain(*(responses[i] for i in group))) for group in groups], device)
    # 2. Where each response begins in its new row, and where its tokens stand.
    width = both.tokens.shape[1]
    begin, places = torch.zeros(both.tokens.shape).long(), torch.zeros(rows.tokens.shape).long()
    for row, group in enumerate(groups):
        first = starts[group[0]]
        for i in group:
            last = first + len(responses[i])
            begin[row, first:last] = first
            places[i, starts[i]:starts[i] + last - first] = torch.arange(first, last) + row * width
            first = last
    begin, places = begin.to(device), places.to(device)
    # 3. All responses go on from the prompt's end, and see it and themselves.
    at, end = torch.arange(width, device=device), both.prompt[:, None]           # [L], [P, 1]
    positions = torch.where(begin > 0, at - begin + end, at.minimum(end - 1))
    previous = torch.where((at == begin) & (begin > 0), end - 1, (at - 1).clamp(min=0))
    sees = (at <= at[:, None]) & ((at < end)[:, None] | (begin[:, :, None] == begin[:, None]))
    # as numbers: torch would turn a mask of booleans into one again in each layer
    bias = torch.zeros(sees.shape, device=device).masked_fill(~sees, -torch.inf)
    return Branches(both, positions, previous, bias[:, None], places)


def token_logprobs(model: GPT, rows: Rows, temperature: float = 1.0):
    """Return log pi(token | what stands before it) [B, T], as model.token_logprobs does."""
    groups = by_prompt(rows)
    if len(groups) == len(rows.length):  # nothing to share
        return plain.token_logprobs(model, rows, temperature)
    b = joined(rows, groups)
    row, place = b.rows.mask.nonzero(as_tuple=True)                              # [N] each
    hidden = model(b.rows.tokens, b.positions, b.bias)                           # [P, L, D]
    logits = model.logits(hidden[row, b.previous[row, place]]) / temperature     # [N, V]
    logp = -F.cross_entropy(logits, b.rows.tokens[row, place], reduction="none")
    return on_grid(b.rows.mask, logp).flatten()[b.places]  # place 0 is of a prompt: 0


def token_scores(model: RewardModel, rows: Rows, groups: list[list[int]]):
    """Return the scores and log pi [B, T] of the responses' tokens, as the model itself does, of
    rows that begin with the same prompt in each group."""
    if len(groups) == len(rows.length):
        return model(rows)
    b = joined(rows, groups)
    return [grid.flatten()[b.places]
            for grid in model(b.rows, b.previous, b.positions, b.bias)]


def two_scores(model: RewardModel, prompts: list, a: list, b: list):
    """Score two responses to each prompt, as reward.two_scores does."""
    rows = pad_rows(prompts + prompts, a + b, model.head.weight.device)
    groups = [[i, len(prompts) + i] for i in range(len(prompts))]
    scores, logp = token_scores(model, rows, groups)                             # [2B, T]
    of_a, of_b = POOLS[model.config.pool](scores, rows).chunk(2)
    return of_a, of_b, (-logp.sum(1) / rows.mask.sum(1))[:len(prompts)]


def parts_of(rows: Rows, size: int) -> list:
    """Return indices of rows, as runtime.batching.micro_batches does; those of one prompt stay
    together. A prompt counts for each of its rows, since a critic reads it so."""
    return micro_batches(rows.length, size, by_prompt(rows))


@torch.no_grad()
def score(model: RewardModel, rows: Rows):
    """Return the scores [B] of prompts with their responses, as reward.score does."""
    scores = by_parts(lambda part: token_scores(model, part, by_prompt(part))[0], rows,
                      parts_of(rows, model.trunk.config.micro_batch))
    return POOLS[model.config.pool](scores, rows)
