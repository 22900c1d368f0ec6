"""How much of r_gap(x, y, y_ref) is f(x, y) + g(x, y_ref), and is g = -f?

    python benchmarks/additive.py --config configs/quick.toml         # a finished run

For each test question we take six responses: the pair of the data, two samples of M_P^SFT, one of
M_P^RL, and PIT's rewrite of that one. R_PIT scores each as the candidate for each as the draft: a
table of 36 scores, of which row means (candidates, f) and column means (drafts, g) explain a part.
A difference of two pointwise scores would be additive, with a slope of g on f of -1.
"""

import json

import numpy as np
import script  # noqa: F401  (the project's modules are found from here on)

from corpus import bills
from data import Data, load_data
from evaluation.measure import gap_scores
from evaluation.show import prompt_text
from pretrained.configure import command_line
from runtime.launch import guard
from runtime.run import Run
from runtime.settings import UserError
from runtime.stages import title
from sample import Sampler, answer, improve, restore


def tables(run: Run, data, models, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Return r_gap [questions, candidates, drafts], and the responses' gold [questions, responses];
    without questions where two responses are the same."""
    fold, policies = data.folds["test"], models.policies
    some = fold[range(min(number, len(fold)))]
    x, sampler = list(some.x), Sampler(run, data, 1.0, run.generator("additive"))
    sft, y_0 = policies["M_P^SFT"], answer(sampler, policies["M_P^RL"], x)
    each = [list(some.y_w), list(some.y_l), answer(sampler, sft, x), answer(sampler, sft, x), y_0,
            improve(sampler, policies[title(run.config.pit.curriculum[-1])], x, y_0)]
    of_question = [[list(y[q]) for y in each] for q in range(len(x))]
    kept = [q for q, ys in enumerate(of_question) if len(set(map(tuple, ys))) == len(each)]
    if not kept:
        raise UserError("no question has six different responses; train the run longer")
    triples = [(x[q], y, draft) for q in kept for y in of_question[q] for draft in of_question[q]]
    scores = gap_scores(data, models.rpit, *zip(*triples))
    gold = [[bills.grade(prompt_text(data, x[q]), data.tokenizer.decode(y))
             for y in of_question[q]] for q in kept]
    return scores.reshape(-1, len(each), len(each)), np.array(gold)


def parts(r: np.ndarray, gold: np.ndarray) -> dict[str, float]:
    """Return the shares of the variance within questions that f, g and both explain, the slope of g
    on f, and how f and g go with gold (correlations within questions)."""
    r = r - r.mean((1, 2), keepdims=True)
    f, g, gold = r.mean(2), r.mean(1), gold - gold.mean(1, keepdims=True)
    total, k = (r ** 2).sum(), r.shape[1]

    def correlation(a, b):
        return float((a * b).sum() / np.sqrt((a ** 2).sum() * (b ** 2).sum()))
    return {"questions": len(r), "f": float(k * (f ** 2).sum() / total),
            "g": float(k * (g ** 2).sum() / total),
            "f + g": float(k * ((f ** 2).sum() + (g ** 2).sum()) / total),
            "slope of g on f": float((f * g).sum() / (f ** 2).sum()),
            "f, g": correlation(f, g), "f, gold": correlation(f, gold),
            "g, gold": correlation(g, gold)}


def finished_bills(about: str, why: str) -> tuple[Run, Data]:
    """Return a finished run of the command line, on one rank, and its data. Raises UserError, which
    says why, for data that are no bills."""
    _, config = command_line(about)
    if config.data.files:
        raise UserError(f"{why}: leave data.files out")
    run = Run(config, trains=False)
    return run, load_data(run)


def main() -> None:
    run, data = finished_bills(__doc__, "f and g are compared with the hidden judge's grades")
    with run.precision():
        found = parts(*tables(run, data, restore(run, data), run.config.eval.prompts))
    print(json.dumps({name: round(value, 3) for name, value in found.items()}))


if __name__ == "__main__":
    guard(main)
