"""Reward models: a trunk with a scalar head, pointwise R_P and the gap R_PIT.

R_P(x, y) learns with Bradley and Terry's loss; R_PIT(x, y, y_ref) = r_gap, how much better y is
than y_ref, with Eq. 2. Both read one sequence: the prompt template (x, or x and y_ref), then y,
with hidden states h_t. Each token of y has a score

    s_t = w . h_t  +  (g . h_t) log pi(y_t | before)

whose second part is how likely the trunk's own language-model head finds the token, weighed by the
state: what the state before y_t expected is hard to look up once y_t is read, and a small trunk
has no layers to spare for it. The score of y is the sum of s_t (`pool` "sum": a small trunk finds
local mistakes, but learns only slowly to carry them to the end), or s_t of the last token ("last",
the usual way). Beside either loss the trunk keeps its supervised loss, y_w given x, or given x and
y_l (`lm_coef`; GRM, arXiv 2406.10216), so that it goes on knowing which token is right while the
head learns to use that.

Left out: nothing makes a gap zero at y = y_ref, nor antisymmetric; only differences enter Eq. 2.
"""

from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F

from model import GPT, Rows, by_micro_batches, on_grid, pad_rows, scalars
from runtime.config import RewardSection

PAIRS = ("wl", "ww", "ll", "lw")  # candidate, then reference: "wl" is r_gap(x, y_w, y_l)


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

    def forward(self, rows: Rows, previous=None, positions=None, mask=None):
        """Of the responses' tokens the scores s_t [B, T] and log pi [B, T].

        `previous` [B, T] is where the token before each stands, if not to its left; positions and
        mask as in GPT.forward. No gradient flows from the scores through log pi, which the
        language-model loss alone shapes.
        """
        response, needed = rows.mask, rows.mask | rows.before
        hidden = self.trunk(rows.tokens, positions, mask, at=needed)                # [N, D]
        places = (needed.flatten().cumsum(0) - 1).view_as(needed)  # [B, T] in hidden, of a position
        before = places.roll(1, 1) if previous is None else places.gather(1, previous)
        logits = self.trunk.logits(hidden[before[response]])                        # [N, V]
        logp = -F.cross_entropy(logits, rows.tokens[response], reduction="none")
        own, weight = scalars(self.head, hidden[places[response]]).unbind(-1)
        scores = own + weight * logp.detach() * self.config.logp_feature
        return on_grid(response, scores), on_grid(response, logp)


POOLS = {
    "sum": lambda scores, rows: (scores * rows.mask).sum(1),
    "last": lambda scores, rows: scores.gather(1, rows.length[:, None] - 1)[:, 0],
}  # scores of responses [B] from scores of tokens [B, T]


@torch.no_grad()
def score(model: RewardModel, rows: Rows):
    """Scores [B] of prompts with their responses."""
    scores = by_micro_batches(lambda part: model(part)[0], rows, model.trunk.config.portion)
    return POOLS[model.config.pool](scores, rows)


def pair_loss(better, worse):
    """-log sigmoid(better - worse), summed over pairs [B] (Bradley and Terry)."""
    return -F.logsigmoid(better - worse).sum()


def gap_loss(r: dict, terms: list[str]):
    """Eq. 2, summed over triples: r has a score [B] for each of PAIRS; a term such as "wl>ww" asks
    that r^{w,l} exceed r^{w,w}."""
    return sum(pair_loss(*(r[side] for side in term.split(">"))) for term in terms)


@dataclass
class Branches:
    """Prompts with two responses each, in one row: the prompt's states are computed once.

    Both responses continue the prompt: their positions go on from its end, and neither sees the
    other.
    """
    rows: Rows               # prompt, response a, response b
    a: Rows                  # the extent of a
    b: Rows                  # the extent of b
    previous: torch.Tensor   # [B, T] where the token before this one stands
    positions: torch.Tensor  # [B, T]
    mask: torch.Tensor       # [B, 1, T, T] 0 where one may look at the other, else -inf


def make_branches(prompts: list, a: list, b: list, device) -> Branches:
    """Branches of lists of token ids."""
    both = pad_rows(prompts, [x + y for x, y in zip(a, b)], device)
    start, end = both.prompt, both.length                               # [B]
    middle = start + torch.tensor([len(x) for x in a], device=device)   # [B] where b begins
    at = torch.arange(both.tokens.shape[1], device=device)              # [T]
    in_b = at >= middle[:, None]                                        # [B, T]
    positions = at.minimum(end[:, None] - 1) - in_b * (middle - start)[:, None]
    previous = torch.where(at == middle[:, None], start[:, None] - 1, (at - 1).clamp(min=0))
    sees = (at <= at[:, None]) & ~(in_b[:, :, None] & ~in_b[:, None] & (at >= start[:, None, None]))
    # as numbers: torch would turn a mask of booleans into one again in each layer
    mask = torch.zeros(sees.shape, device=device).masked_fill(~sees, -torch.inf)
    return Branches(both, Rows(both.tokens, start, middle), Rows(both.tokens, middle, end),
                    previous, positions, mask[:, None])


def branch_scores(model: RewardModel, branches: Branches):
    """Scores of response a and of b, [B] each, and the language-model loss of a, [B], a token."""
    scores, logp = model(branches.rows, branches.previous, branches.positions, branches.mask)
    pool, a = POOLS[model.config.pool], branches.a
    return pool(scores, a), pool(scores, branches.b), -(logp * a.mask).sum(1) / a.mask.sum(1)


def pointwise_loss(model: RewardModel, branches: Branches):
    """R_P's loss, summed over branches (x; y_w, y_l), and how many are in the right order."""
    r_w, r_l, lm_loss = branch_scores(model, branches)
    return pair_loss(r_w, r_l) + model.config.lm_coef * lm_loss.sum(), (r_w > r_l).sum()


def eq2_loss(model: RewardModel, branches: Branches):
    """R_PIT's loss, summed over triples: branches (x, y_l; y_w, y_l), then as many (x, y_w; y_w,
    y_l). The language-model loss is that of y_w given y_l: the other pairs are no improvements.
    Returns the loss and how many triples have r^{w,l} > r^{l,w}."""
    r_w, r_l, lm_loss = branch_scores(model, branches)  # [2B] each
    (wl, ww), (ll, lw) = r_w.chunk(2), r_l.chunk(2)
    loss = gap_loss({"wl": wl, "ww": ww, "ll": ll, "lw": lw}, model.config.terms)
    return loss + model.config.lm_coef * lm_loss[:len(wl)].sum(), (wl > lw).sum()
