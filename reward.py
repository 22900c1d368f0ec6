"""Reward models: a trunk with a scalar head, pointwise R_P and the gap R_PIT.

R_P(x, y) learns with Bradley and Terry's loss; R_PIT(x, y, y_ref) = r_gap, how much better y is
than y_ref, with Eq. 2. Both read one sequence: the prompt template (x, or x and y_ref), then y,
with hidden states h_t after token t is read. Each token of y has a score (biases left out here)

    s_t = w . h_t  +  (g . h_t) log pi(y_t | before)

whose second part lets the head use how likely the trunk's own language model found the token: a
small trunk that has read y_t has no layers to spare for looking that up. The score of y is the sum
of s_t (`pool` "sum": a small trunk finds local mistakes, but learns only slowly to carry them to
the end), or s_t of the last token ("last", the usual way). Beside either loss the trunk keeps its
supervised loss, y_w given x, or given x and y_l (`lm_coef`; GRM, arXiv 2406.10216), so that it goes
on knowing which token is right while the head learns to use that.

r_gap has no zero: a copy need not score 0, nor swapping y and y_ref flip the sign, since only
differences enter Eq. 2.
"""

import torch
import torch.nn as nn
import torch.nn.functional as F

from model import GPT, Rows, on_grid, pad_rows, scalars
from runtime.batching import by_parts, micro_batches
from runtime.config import Comparison, RewardSection

ORDERED = ("wl", "ww", "ll", "lw")  # candidate, reference: "wl" is r_gap(x, y_w, y_l)


def pair_loss(better, worse):
    """Return -log sigmoid(better - worse), summed over comparisons [B] (Bradley and Terry)."""
    return -F.logsigmoid(better - worse).sum()


def gap_loss(r: dict, terms: list[Comparison]):
    """Return Eq. 2, summed over triples: -log sigmoid(r^{w,l} - r^{w,w}) for the term "wl>ww", and
    so on, by default for the five of config.EQ2; r has a score [B] for each of ORDERED."""
    return sum(pair_loss(r[term[:2]], r[term[3:]]) for term in terms)


class RewardModel(nn.Module):
    """A trunk and a head with two outputs a token: w . h_t and g . h_t."""

    def __init__(self, trunk: GPT, config: RewardSection):
        super().__init__()
        self.trunk, self.config = trunk, config
        self.head = nn.Linear(trunk.config.width, 2)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        if config.pool == "last":  # arXiv 2009.01325; summed over tokens it would start as noise
            nn.init.normal_(self.head.weight[0], std=(trunk.config.width + 1) ** -0.5)

    def forward(self, rows: Rows, previous=None, positions=None, bias=None):
        """Return the scores s_t [B, T] of the responses' tokens, and log pi [B, T]; else 0.

        positions and bias as in GPT.forward; `previous` [B, T] is where the token before each
        stands, if not to its left. No gradient flows from the scores through log pi, which the
        language-model loss alone shapes.
        """
        response, needed = rows.mask, rows.mask | rows.before
        hidden = self.trunk(rows.tokens, positions, bias, at=needed)                # [N, D]
        places = (needed.flatten().cumsum(0) - 1).view_as(needed)  # [B, T] each one's row in hidden
        before = places.roll(1, 1) if previous is None else places.gather(1, previous)
        logits = self.trunk.logits(hidden[before[response]])                        # [N, V]
        logp = -F.cross_entropy(logits, rows.tokens[response], reduction="none")
        own, weight = scalars(self.head, hidden[places[response]]).unbind(-1)
        scores = own + weight * logp.detach() * self.config.logp_feature
        return on_grid(response, scores), on_grid(response, logp)


POOLS = {"sum": lambda scores, rows: (scores * rows.mask).sum(1),  # [B] from tokens' scores [B, T]
         "last": lambda scores, rows: scores.gather(1, rows.length[:, None] - 1)[:, 0]}


@torch.no_grad()
def score(model: RewardModel, rows: Rows):
    """Return the scores [B] of prompts with their responses."""
    parts = micro_batches(rows.length, model.trunk.config.micro_batch)
    scores = by_parts(lambda part: model(part)[0], rows, parts)
    return POOLS[model.config.pool](scores, rows)


def two_scores(model: RewardModel, prompts: list, a: list, b: list):
    """Return, of two responses to each prompt (lists of token ids), the scores [B] of a and of b,
    and the mean language-model loss [B] of a's, with gradients. Training calls faster.branches."""
    rows = pad_rows(prompts + prompts, a + b, model.head.weight.device)
    scores, logp = model(rows)                                                      # [2B, T]
    of_a, of_b = POOLS[model.config.pool](scores, rows).chunk(2)
    lm_loss = -logp.sum(1) / rows.mask.sum(1)                                       # [2B]
    return of_a, of_b, lm_loss[:len(prompts)]
