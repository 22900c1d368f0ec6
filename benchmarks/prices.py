"""What brings a reward model's prices right: steps, rate, pairs, the form of the score.

    python benchmarks/prices.py --config configs/quick.toml --seeds 1 2 \\
        --line="rp.steps=3800 rpit.steps=2400" --line="reward.lm_coef=0"

For each line and seed we train R_P and R_PIT alone, on top of the config's own run of that seed.
On validation questions we measure what they pay for one change of the right answer
(report/prices.py), how often they agree with labels, and what they are good for before any RL: the
gold of the best of four answers of M_P^SFT by R_P, and of the best of four rewrites of such an
answer by M_PIT^SFT, by r_gap. Responses are sampled at temperature 1.

What is finished is a file in --results; two calls at once, with --run.ranks=1 each, share the work.
"""

import numpy as np
import ablate
import tables

from evaluation import measure
from report.judge import Judge
from report.prices import price_list
from report.rivals import chosen_by
from runtime.launch import guard
from sample import Sampler, answer, improve
from train_reward import Models

NUMBER = 4  # responses to choose from


def tries(sampler: Sampler, models: Models, x: list) -> dict[str, list]:
    """Return an answer of M_P^SFT to each x, the best of four by R_P, a rewrite of the first answer
    by M_PIT^SFT, and the best of four rewrites by r_gap."""
    data, policies = sampler.data, models.policies
    answers = [answer(sampler, policies["M_P^SFT"], x) for _ in range(NUMBER)]
    y_ref = answers[0]
    rewrites = [improve(sampler, policies["M_PIT^SFT"], x, y_ref) for _ in range(NUMBER)]
    scores = [measure.rp_scores(data, models.rp, x, y) for y in answers]
    gaps = [measure.gap_scores(data, models.rpit, x, y, y_ref) for y in rewrites]
    return {"M_P^SFT": y_ref, "best of 4 by R_P": chosen_by(scores, answers),
            "M_PIT^SFT": rewrites[0], "best of 4 by r_gap": chosen_by(gaps, rewrites)}


def measured(args, line: str, seed: int) -> dict:
    """Train a line's reward models; return prices, agreements and the gold of their choices."""
    run, data, models = ablate.reward_models(args, line, seed)
    x = data.folds["valid"].x[:run.config.eval.prompts]
    judge = Judge(data, None, x)
    with run.precision():
        best = tries(Sampler(run, data, 1.0, run.generator("prices")), models, x)
        agreements = measure.held_out_accuracies(data, models.rp, models.rpit, "valid")
        prices = price_list(data, models, x, run.config.data)
    return {"prices": prices, "gold": {name: float(np.mean(judge.grades(y)))
                                       for name, y in best.items()},
            "agreements": {name: one["accuracy"] for name, one in agreements.items()}}


def main() -> None:
    ablate.each_once(ablate.arguments(__doc__, "prices"), measured, "gold", tables.price_table,
                     NUMBER=NUMBER)


if __name__ == "__main__":
    guard(main)
