"""Other ways to a better response, for the report: best of n, and Self-Refine."""

import numpy as np

from data import Data
from model import GPT
from runtime import Run
from sample import answer, generate
from tools.measure import rp_scores
from train_reward import Models


def best_of(run: Run, data: Data, models: Models, x: list, temperature: float, generator) -> list:
    """The best by R_P of eval.best_of responses of M_P^RL."""
    tries = [answer(run, data, models.policies["M_P^RL"], x, temperature, generator)
             for _ in range(run.config.eval.best_of)]
    scores = [rp_scores(data, models.rp, x, y) for y in tries]
    return [tries[k][i] for i, k in enumerate(np.argmax(scores, axis=0))]


def self_refine(run: Run, data: Data, policy: GPT, x: list, y_ref: list, temperature: float,
                generator) -> list:
    """The rival by prompting (arXiv 2303.17651): the policy is asked for feedback on y_ref, then
    for a rewrite."""
    prompts = [data.feedback(*pair) for pair in zip(x, y_ref)]
    feedback = generate(run, data, policy, prompts, temperature, generator)
    prompts = [data.rewrite(*triple) for triple in zip(x, y_ref, feedback)]
    return generate(run, data, policy, prompts, temperature, generator)
