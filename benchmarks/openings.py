"""What an opening earns before any RL: why courtesy is found on some seeds and lost on others.

    python benchmarks/openings.py --config configs/quick.toml         # a finished run of bills

PPO learns the first word of a response from the mean score of all that follows it. For 400 prompts
of the RL fold we sample a group of eight responses by M_P^SFT, scored by R_P, and of eight rewrites
of a draft of M_P^RL by M_PIT^SFT, scored by r_gap. By the first word (a courtesy, an insult, or
neither) it prints how many responses open so, how many of them the judge finds courteous in the
end, and their mean score less that of their group, with a 95 % interval. As in PPO a score's unit
is the standard deviation of all (train_pit.measure_scale).
"""

import numpy as np
from additive import finished_bills

from corpus import bills
from evaluation.measure import gap_scores, mean_interval, rp_scores
from evaluation.show import with_interval
from report.judge import Judge
from runtime.launch import guard
from runtime.run import Run
from sample import Sampler, answer, improve, restore

PROMPTS, GROUP = 400, 8
KINDS = {"courtesy": bills.COURTESIES, "insult": bills.INSULTS}


def opening(text: str) -> str:
    """Return what a response begins with: "courtesy", "insult" or "neither"."""
    return next((kind for kind, phrases in KINDS.items() if text.startswith(phrases)), "neither")


def table(kinds: np.ndarray, courteous: np.ndarray, scores: np.ndarray) -> list[str]:
    """Return a line for each kind of opening; all are [responses to a prompt, prompts]."""
    advantages, made = (scores - scores.mean(0)) / scores.std(), []
    for kind in (*KINDS, "neither"):
        some = kinds == kind
        if some.sum() > 1:
            made.append(f"{kind}: {some.mean():.3f} of the responses, {courteous[some].mean():.2f} "
                        "courteous, score "
                        + with_interval(mean_interval(advantages[some]), "+.3f"))
    return made


def groups(run: Run, data, models) -> dict[str, tuple]:
    """Return the kinds of opening, the judge's courtesy and the scores, for RLHF and for PIT."""
    x, policies = list(data.folds["rl"].x[:PROMPTS]), models.policies
    sampler = Sampler(run, data, 1.0, run.generator("openings"))
    judge, found = Judge(data, None, x), {}
    y_ref = answer(sampler, policies["M_P^RL"], x)
    answers = [answer(sampler, policies["M_P^SFT"], x) for _ in range(GROUP)]
    rewrites = [improve(sampler, policies["M_PIT^SFT"], x, y_ref) for _ in range(GROUP)]
    for name, tries, score in (
            ("RLHF, by R_P", answers, lambda y: rp_scores(data, models.rp, x, y)),
            ("PIT, by r_gap", rewrites, lambda y: gap_scores(data, models.rpit, x, y, y_ref))):
        kinds = [[opening(data.tokenizer.decode(ids)) for ids in y] for y in tries]
        courteous = [[one["courtesy"] for one in judge.aspects(y)] for y in tries]
        found[name] = tuple(map(np.array, (kinds, courteous, [score(y) for y in tries])))
    return found


def main() -> None:
    run, data = finished_bills(__doc__, "openings are those of bills")
    with run.precision():
        for name, columns in groups(run, data, restore(run, data)).items():
            print("\n".join([name, *(f"  {line}" for line in table(*columns))]))


if __name__ == "__main__":
    guard(main)
