"""How many real pairs it takes until reward models know more than the length of a response.

    python benchmarks/agreement.py --config configs/smollm2-helpful.toml --seeds 1 2 \\
        --line="rp.pairs=250 rp.steps=32 rpit.pairs=250 rpit.steps=32"

For each line and seed we train R_P and R_PIT alone, on top of the config's own run of that seed. On
validation pairs we measure how often they agree with people, how often the longer response does,
and the difference, pair by pair. Then, before any RL, we compare what they choose with one answer
of M_P^SFT: the best of four answers by R_P, a rewrite by M_PIT^SFT, and the best of four rewrites
by r_gap. The judge is the report's, which learns from the RL fold's pairs, if eval.judge names no
other. Intervals are 95 %, and take the pairs of one prompt for copies of each other. One of the
four answers is the one that they are compared with: a quarter of the comparisons or more are ties.

What is finished is a file in --results; two calls at once, with --run.ranks=1 each, share the work.
"""

import numpy as np
import ablate
import tables

from data import Data
from evaluation import measure
from prices import NUMBER, tries
from report.evaluate import held_out
from report.judge import Judge, judge_of
from runtime.launch import guard
from runtime.run import Run
from runtime.settings import UserError
from sample import Sampler
from train_reward import Models


def agreements(data: Data, models: Models, grader) -> dict[str, list[float]]:
    """Return the shares of the validation pairs that R_P, R_PIT, the judge and the longer response
    put in the right order, a tie as half of one, and how much each is above the longer response:
    means with their intervals."""
    fold = data.folds["valid"]
    scores = measure.fold_scores(data, models.rp, models.rpit, fold)
    judge = Judge(data, grader, list(fold.x))
    leads = {"R_P": scores["w"] - scores["l"], "R_PIT": scores["wl"] - scores["lw"],
             "judge": judge.grades(list(fold.y_w)) - judge.grades(list(fold.y_l)),
             "longer": measure.longer_by(fold)}
    right = {name: (1 + np.sign(lead)) / 2 for name, lead in leads.items()}
    right |= {f"{name} less longer": right[name] - right["longer"]
              for name in ("R_P", "R_PIT", "judge")}
    prompts = measure.prompts_of(fold)
    return {name: list(map(float, measure.mean_interval(values, prompts)))
            for name, values in right.items()}


def choices(run: Run, data: Data, models: Models, grader, x: list) -> dict[str, dict]:
    """Return how what is chosen by a reward model, and a rewrite, compare with one answer."""
    sampler = Sampler(run, data, run.config.eval.temperatures[0], run.generator("agreement"))
    judge, made = Judge(data, grader, x), tries(sampler, models, x)
    first = made.pop("M_P^SFT")
    return {name: measure.comparison(np.sign(judge.grades(y) - judge.grades(first)),
                                     np.array([len(a) - len(b) for a, b in zip(y, first)]))
            for name, y in made.items()}


def measured(args, line: str, seed: int) -> dict:
    """Train a line's reward models and the judge, which the config's own run has where the line
    leaves it alone; return what they know."""
    run, data, models = ablate.reward_models(args, line, seed)
    x = held_out(run, data, "valid").x
    with run.precision():
        grader = judge_of(run, data, models)
        return {"agreements": agreements(data, models, grader), "pairs": data.counts["valid"],
                "wins": choices(run, data, models, grader, x), "prompts": len(x)}


def main() -> None:
    args = ablate.arguments(__doc__, "agreement", bills=False)
    if not ablate.config_of(args, ablate.OWN, {}).data.files:
        raise UserError("agreement with people needs real pairs in data.files; on bills: prices.py")
    ablate.each_once(args, measured, "wins", tables.agreement_table, NUMBER=NUMBER)


if __name__ == "__main__":
    guard(main)
