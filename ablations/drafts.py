"""Other drafts for Eq. 5 than samples of M_P^RL (stage1.reference), in the place of
train_pit.policy_drafts."""

from model import GPT
from report.rivals import best_of
from sample import Sampler, answer, improve
from train_reward import Models


def best(sampler: Sampler, models: Models, policy: GPT, x: list, number: int):
    """Return of each x the best by R_P of `number` samples of M_P^RL, as iGRPO refines its best
    draft (arXiv 2602.09000), and their source."""
    return best_of(sampler, models, x, number), ["best of M_P^RL"] * len(x)


def improved(sampler: Sampler, models: Models, policy: GPT, x: list, number: int):
    """Return samples of M_P^RL, the second half of them rewritten by the policy that learns, so
    that the second iteration is trained, too; and their sources."""
    y, half = answer(sampler, models.policies["M_P^RL"], x), len(x) // 2
    return (y[:half] + improve(sampler, policy, x[half:], y[half:]),
            ["M_P^RL"] * half + ["PIT"] * (len(x) - half))
