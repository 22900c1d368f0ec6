"""Shares and means with their 95 % intervals, and how often reward models agree with labels."""

import math
from collections import Counter

import numpy as np

from data import Data, Fold, Pairs
from faster.branches import score
from reward import ORDERED, RewardModel
from runtime.config import COMPARISONS
from runtime.ranks import gather, shard


def share_right(right: list[bool], prompts: list | None = None) -> dict:
    """Return the share of true values, with its 95 % interval (Wilson) and the number; `prompts`
    as in `effective_number`."""
    pairs, z = len(right), 1.96
    if not pairs:
        return {"accuracy": 0.5, "ci_low": 0.0, "ci_high": 1.0, "pairs": 0}  # nothing is known
    p, n = float(sum(right)) / pairs, effective_number(pairs, prompts)
    middle, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    low, high = ((middle + sign * half) / (1 + z * z / n) for sign in (-1, 1))
    return {"accuracy": p, "ci_low": low, "ci_high": high, "pairs": pairs}


def effective_number(number: int, prompts: list | None) -> float:
    """Return how many independent values some values are worth, if those of one prompt say the
    same: the square of their number over the sum of the squared numbers of each prompt (Kish).
    Without prompts all are independent."""
    return number if prompts is None else number ** 2 / sum(
        count ** 2 for count in Counter(prompts).values())


def prompts_of(fold: Fold | Pairs) -> list[tuple]:
    """Return the prompt of each pair; equal ones tell that pairs are not independent."""
    return list(map(tuple, fold.x))


def longer_by(fold: Fold) -> np.ndarray:
    """Return by how many tokens y_w is longer than y_l."""
    return np.array([len(y_w) - len(y_l) for y_w, y_l in zip(fold.y_w, fold.y_l)])


def rp_scores(data: Data, rp: RewardModel, x: list, y: list) -> np.ndarray:
    """Return R_P(x, y) for each; the ranks share them."""
    return np.array(gather(score(rp, data.policy_rows(shard(x), shard(y))).tolist()))


def gap_scores(data: Data, rpit: RewardModel, x: list, y: list, y_ref: list) -> np.ndarray:
    """Return r_gap(x, y, y_ref) for each; the ranks share them."""
    rows = data.pit_rows(*map(shard, (x, y_ref, y)))
    return np.array(gather(score(rpit, rows).tolist()))


def pointwise_scores(data: Data, model: RewardModel, fold: Fold | Pairs) -> np.ndarray:
    """Return a pointwise reward model's scores [2, n] of a fold's y_w and y_l."""
    return rp_scores(data, model, fold.x[:] * 2, fold.y_w[:] + fold.y_l[:]).reshape(2, -1)


def fold_scores(data: Data, rp: RewardModel, rpit: RewardModel, fold: Fold | Pairs) -> dict:
    """Return scores of a fold's pairs: R_P's of "w" and "l", R_PIT's of the four ordered pairs."""
    x, y_w, y_l = fold.x[:], fold.y_w[:], fold.y_l[:]
    gaps = gap_scores(data, rpit, x * 4, y_w * 2 + y_l * 2, (y_l + y_w) * 2).reshape(4, -1)
    return dict(zip("wl", pointwise_scores(data, rp, fold))) | dict(zip(ORDERED, gaps))


def pointwise_agreement(data: Data, model: RewardModel, fold: Fold | Pairs) -> dict:
    """Measure how often a pointwise reward model agrees with a fold's labels."""
    w, l = pointwise_scores(data, model, fold)
    return share_right(list(w > l), prompts_of(fold))


def gap_agreement(data: Data, rpit: RewardModel, fold: Fold | Pairs) -> dict:
    """Measure how often r^{w,l} > r^{l,w} in a fold's triples."""
    y_w, y_l = fold.y_w[:], fold.y_l[:]
    wl, lw = gap_scores(data, rpit, fold.x[:] * 2, y_w + y_l, y_l + y_w).reshape(2, -1)
    return share_right(list(wl > lw), prompts_of(fold))


def held_out_accuracies(data: Data, rp: RewardModel, rpit: RewardModel, split: str) -> dict:
    """Measure how often R_P and each comparison of Eq. 2 agree with the labels of held-out pairs,
    beside the longer response as a guess (not counting equal lengths), and the majority's answer,
    which is right in half of the pairs, as they come in either order."""
    fold = data.folds[split]
    s, prompts, more = fold_scores(data, rp, rpit, fold), prompts_of(fold), longer_by(fold)
    result = {"R_P": share_right(list(s["w"] > s["l"]), prompts)}
    result |= {f"R_PIT {term}": share_right(list(s[term[:2]] > s[term[3:]]), prompts)
               for term in COMPARISONS}
    longer = share_right(list(more[more != 0] > 0),
                         [x for x, differ in zip(prompts, more) if differ])
    coin = {"accuracy": 0.5, "ci_low": 0.5, "ci_high": 0.5, "pairs": len(fold)}
    return result | {"longer response": longer, "majority (either order)": coin}


def as_text(counts: dict, accuracies: dict, split: str) -> str:
    """Return what train_reward.py prints."""
    lines = [f"{name}: {count}" for name, count in counts.items()]
    lines += ["", f"agreement with the labels of held-out pairs ({split}):"]
    return "\n".join(lines + [f"  {name:24} {a['accuracy']:.3f}  [{a['ci_low']:.3f}, "
                              f"{a['ci_high']:.3f}] of {a['pairs']}"
                              for name, a in accuracies.items()])


def pair_agreement(first, second, better) -> dict:
    """Measure how often first - second has the sign of the judge's `better`, ties left out."""
    told = better != 0
    return share_right(list((np.sign(first - second) == np.sign(better))[told]))


def at_equal_length(better: np.ndarray, longer: np.ndarray) -> tuple[float, float, float]:
    """Estimate win - lose at equal length, with its 95 % interval: 2 P(win) - 1 at difference 0
    of a logistic regression of the wins on the difference of lengths, squashed as in AlpacaEval 2
    (arXiv 2404.04475), whose term for the difficulty of a prompt is left out. `better` is the sign
    of each comparison, a tie is half a win; a weak prior keeps the fit finite. The interval is
    robust (Huber and White's sandwich): ties scatter less than the wins and losses of a coin."""
    z = np.tanh(longer / max(longer.std(), 1e-9))
    design, wins = np.stack([np.ones(len(z)), z], 1), (1 + better) / 2        # [n, 2], [n]
    prior, at = np.diag([1e-3, 0.1]), np.zeros(2)
    for _ in range(50):  # Newton's steps
        p = 1 / (1 + np.exp(-design @ at))
        curvature = design.T @ (design * (p * (1 - p))[:, None]) + prior
        at = at + np.linalg.solve(curvature, design.T @ (wins - p) - prior @ at)
    n, gradients, inverse = len(z), design * (wins - p)[:, None], np.linalg.inv(curvature)
    spread = inverse @ (gradients.T @ gradients + prior) @ inverse
    half = 1.96 * math.sqrt(spread[0, 0] * n / (n - 2)) if n > 2 else math.inf
    return tuple(math.tanh(a / 2) for a in (at[0], at[0] - half, at[0] + half))


def comparison(better: np.ndarray, longer: np.ndarray) -> dict:
    """Return win, tie, lose and win - lose, plain and at equal length, with intervals, in %."""
    delta, low, high = mean_interval(better)
    shares = {"win": (better > 0).mean(), "tie": (better == 0).mean(), "lose": (better < 0).mean(),
              "delta": delta, "ci_low": max(low, -1.0), "ci_high": min(high, 1.0)}
    return {name: 100 * float(share) for name, share in shares.items()} | {
        "equal_length": [100 * value for value in at_equal_length(better, longer)]}


def mean_interval(values: np.ndarray, prompts: list | None = None) -> tuple[float, float, float]:
    """Return the mean with its 95 % interval (normal); of a single value nothing is known.
    `prompts` as in `effective_number`."""
    n = effective_number(len(values), prompts)
    half = 1.96 * values.std(ddof=1) / math.sqrt(n) if len(values) > 1 else math.inf
    return values.mean(), values.mean() - half, values.mean() + half
