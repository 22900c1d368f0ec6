"""How many real pairs it takes until reward models know more than the length of a response.

    python benchmarks/agreement.py --config configs/smollm2-helpful.toml --seeds 1 2 \\
        --line="rp.pairs=250 rp.steps=32 rpit.pairs=250 rpit.steps=32"

For each line and seed we train R_P and R_PIT alone, on top of the config's own run of that seed. On
validation pairs we measure how often they agree with people, how often the longer response does,
and the difference, pair by pair. Then, before any RL, what R_P is good for: the best of four
answers of M_P^SFT over one of them, by the report's judge, which learns from the RL fold's pairs,
as win - lose and the same at equal length; likewise the best of four rewrites by r_gap, and one
rewrite, over the answer that they rewrite. Intervals (95 %) are over prompts.

What is finished is a file in --results; two calls at once, with --run.ranks=1 each, share the work.
"""

from dataclasses import replace

import numpy as np
import ablate
import tables
import script  # noqa: F401  (the project's modules are found from here on)

from evaluation import measure
from report.evaluate import once_each
from report.judge import Judge, trained_judge
from report.rivals import chosen_by
from runtime.launch import guard
from runtime.ranks import rank
from runtime.settings import UserError
from sample import Sampler, answer, improve

NUMBER = 4  # responses to choose from


def agreements(data, models, split: str) -> dict[str, list[float]]:
    """Return the shares of a split's pairs that R_P, R_PIT, the judge and the longer response put
    in the right order, a tie as half of one; and by how much each is above the longer response.
    Each is a mean with its 95 % interval."""
    fold = data.folds[split]
    prompts = list(map(tuple, fold.x))
    scores = measure.fold_scores(data, models.rp, models.rpit, fold)
    judge = np.subtract(*measure.pointwise_scores(data, models.judge, fold))
    leads = {"R_P": scores["w"] - scores["l"], "R_PIT": scores["wl"] - scores["lw"],
             "judge": judge, "longer": fold.y_w.lengths - fold.y_l.lengths}
    right = {name: (1 + np.sign(lead)) / 2 for name, lead in leads.items()}
    right |= {f"{name} less longer": right[name] - right["longer"]
              for name in ("R_P", "R_PIT", "judge")}
    return {name: interval(values, prompts) for name, values in right.items()}


def interval(values: np.ndarray, prompts: list) -> list[float]:
    """Return the mean and its 95 % interval (normal), where values of one prompt hang together."""
    mean = float(values.mean())
    half = 1.96 * measure.spread_of_mean(values - mean, prompts)
    return [mean, mean - half, mean + half]


def choices(run, data, models, x: list) -> dict[str, dict]:
    """Return how the best of four answers by R_P, the best of four rewrites by r_gap, and one
    rewrite compare with one answer."""
    sampler = Sampler(run, data, run.config.eval.temperatures[0], run.generator("agreement"))
    policies, judge = models.policies, Judge(data, models, x)
    answers = [answer(sampler, policies["M_P^SFT"], x) for _ in range(NUMBER)]
    y_0 = answers[0]
    rewrites = [improve(sampler, policies["M_PIT^SFT"], x, y_0) for _ in range(NUMBER)]
    made = {"best of 4 by R_P": chosen_by(
                [measure.rp_scores(data, models.rp, x, y) for y in answers], answers),
            "best of 4 by r_gap": chosen_by(
                [measure.gap_scores(data, models.rpit, x, y, y_0) for y in rewrites], rewrites),
            "M_PIT^SFT": rewrites[0]}
    lengths = {name: np.array(list(map(len, y))) for name, y in {**made, "y_0": y_0}.items()}
    return {name: measure.comparison(np.sign(judge.grades(y) - judge.grades(y_0)),
                                     lengths[name] - lengths["y_0"])
            for name, y in made.items()}


def measured(args, line: str, seed: int) -> dict:
    """Train a line's reward models and the judge; return what they know."""
    trained = ablate.trained_to("start", args, line, ablate.run_name(args, line, seed, "start"), {
        "run.seed": seed,
        "run.base": ablate.start_of(args, ablate.OWN, seed) if line else args.base})
    run, data = trained.run, trained.data
    with run.precision():
        models = replace(trained.models, judge=trained_judge(run, data, trained.models))
        asked = once_each(data.folds["valid"], run.config.eval.prompts).x
        return {"agreements": agreements(data, models, "valid"), "prompts": len(asked),
                "wins": choices(run, data, models, asked), "pairs": data.counts["valid"]}


def finish(args, line: str, seed: int) -> None:
    """Make a line's result of a seed."""
    ablate.once(args, line, seed, f"{ablate.slug(line)}-{seed}", lambda: measured(args, line, seed),
                NUMBER=NUMBER)


def main() -> None:
    """Make the results of the lines and seeds that are missing, and print the table."""
    args = ablate.arguments(__doc__, "agreement", bills=False)
    if not ablate.config_of(args, ablate.OWN, {}).data.files:
        raise UserError("agreement with people needs real pairs in data.files; on bills: prices.py")
    failed = ablate.work_through(args, finish)
    if failed:
        raise UserError("; ".join(failed))
    if rank() == 0:
        print(tables.agreement_table(args.results))


if __name__ == "__main__":
    guard(main)
