"""Reward models: a trunk with a scalar head, pointwise R_P and the gap R_PIT.

R_P(x, y) learns with Bradley and Terry's loss; R_PIT(x, y, y_ref) = r_gap, how much better y is than
y_ref, with Eq. 2. Both read one sequence: the prompt template (x, or x and y_ref), then y. The
score is a scalar for each token of y, summed (`pool` "sum": a small trunk finds local mistakes,
but learns only slowly to carry them to the end), or that of the last token ("last", the usual way).
Beside either loss the trunk keeps on learning to predict y (`lm_coef`; GRM, arXiv 2406.10216), which
keeps it knowing which token is right while the head learns to use that.

Left out: nothing makes a gap zero at y = y_ref, nor antisymmetric; only differences enter Eq. 2.
"""

import torch
import torch.nn as nn
import torch.nn.functional as F

from model import GPT, Rows, token_logprobs

PAIRS = ("wl", "ww", "ll", "lw")  # candidate, then reference: "wl" is r_gap(x, y_w, y_l)


class ScalarModel(nn.Module):
    """A trunk and a scalar for each token: a reward model, or PPO's critic."""

    def __init__(self, trunk: GPT):
        super().__init__()
        self.trunk = trunk
        self.head = nn.Linear(trunk.config.width, 1)
        nn.init.normal_(self.head.weight, std=(trunk.config.width + 1) ** -0.5)  # arXiv 2009.01325
        nn.init.zeros_(self.head.bias)

    def forward(self, tokens):
        """Hidden states [B, T, D] and scalars [B, T] of tokens [B, T]."""
        hidden = self.trunk(tokens)
        return hidden, self.head(hidden)[..., 0].float()


def pooled(scalars, rows: Rows, pool: str):
    """Scores [B] of scalars [B, T]: their sum over y's tokens, the end included, or the last."""
    if pool == "sum":
        return (scalars * rows.mask).sum(1)
    return scalars.gather(1, rows.length[:, None] - 1)[:, 0]


@torch.no_grad()
def score(model: ScalarModel, rows: Rows, pool: str):
    """Scores [B] of prompts with their responses."""
    return pooled(model(rows.tokens)[1], rows, pool)


def pair_loss(better, worse):
    """-log sigmoid(better - worse), summed over pairs [B] (Bradley and Terry)."""
    return -F.logsigmoid(better - worse).sum()


def gap_loss(r: dict, terms: list[str]):
    """Eq. 2, summed over triples: r has a score [B] for each of PAIRS; a term such as "wl>ww" asks
    that r^{w,l} exceed r^{w,w}."""
    return sum(pair_loss(*(r[side] for side in term.split(">"))) for term in terms)


def score_and_lm_loss(model: ScalarModel, rows: Rows, pool: str):
    """Scores [B] of the rows, and the mean language-model loss of their responses' tokens [B]."""
    hidden, scalars = model(rows.tokens)
    logp = token_logprobs(model.trunk, hidden, rows.tokens, rows.mask)
    return pooled(scalars, rows, pool), -logp.sum(1) / rows.mask.sum(1)


def pointwise_loss(model: ScalarModel, rows: Rows, pool: str, lm_coef: float):
    """R_P's loss, summed over pairs; rows are all (x, y_w), then all (x, y_l), in the same order.

    Returns the loss and how many pairs are in the right order."""
    scores, lm = score_and_lm_loss(model, rows, pool)  # [2B], [2B]
    r_w, r_l = scores.chunk(2)
    return pair_loss(r_w, r_l) + lm_coef * lm.sum() / 2, (r_w > r_l).sum()


def eq2_loss(model: ScalarModel, rows: Rows, pool: str, lm_coef: float, terms: list[str]):
    """R_PIT's loss, summed over triples; rows hold the four ordered pairs, one after another as in
    PAIRS. Returns the loss and how many triples have r^{w,l} > r^{l,w}."""
    scores, lm = score_and_lm_loss(model, rows, pool)  # [4B], [4B]
    r = dict(zip(PAIRS, scores.chunk(4)))
    return gap_loss(r, terms) + lm_coef * lm.sum() / 4, (r["wl"] > r["lw"]).sum()
