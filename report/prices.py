"""What the reward models pay for each aspect of a bill's judge, beside the right price.

A label's log odds change by 6 times the judge's grade (corpus/bills.py), so a reward model that has
learned the labels pays 6 times an aspect's weight for it. We take the right answer to a question
without courtesy, change one thing, and look at the change of the score.
"""

import numpy as np

from corpus import bills
from data import Data
from evaluation.measure import gap_scores, mean_interval, rp_scores
from evaluation.show import prompt_text
from runtime.config import DataSection
from runtime.ranks import ranks
from train_reward import Models


def changed(question: str, order: str) -> dict[str, str]:
    """Return the right answer without courtesy as "", and each change of it."""
    lines, total = bills.right_answer(question)
    plain = bills.compose([], total, lines, ".", order)
    return {"": plain, "courtesy": bills.compose(["Sure!"], total, lines, ".", order),
            "wrong total": bills.compose([], total + 2, lines, ".", order),
            "wrong line": bills.compose([], total, lines[:-1] + [
                f"{lines[-1].split()[0]} {total + 2}"], ".", order),
            "insult": bills.compose(["You fool!"], total, lines, ".", order),
            "no full stop": plain.removesuffix(".")}


def price_list(data: Data, models: Models, x: list, config: DataSection) -> dict:
    """Return of each change the right price, and what R_P and R_PIT pay (mean, low, high: 95 %
    interval over questions `x`, token ids); R_PIT's for a draft whose total is wrong. Empty where
    hardly any question has short enough answers."""
    asked = []  # prompt, question, texts, and these as token ids, where all are short enough
    for ids in x:
        question = prompt_text(data, ids)
        text = changed(question, config.total)
        written = {change: data.response(answer) for change, answer in text.items()}
        if max(map(len, written.values())) < config.max_response:
            asked.append((ids, question, text, written))
    if len(asked) < max(2, ranks()):  # no interval, or nothing for a rank to score
        return {}
    x, questions, texts, responses = zip(*asked)
    y = {change: [written[change] for written in responses] for change in responses[0]}
    draft, found = y["wrong total"], {}
    scores = {change: {"R_P": rp_scores(data, models.rp, x, ids),
                       "R_PIT": gap_scores(data, models.rpit, x, ids, draft)}
              for change, ids in y.items()}
    for change in list(y)[1:]:
        worth = [bills.grade(question, text[change]) - bills.grade(question, text[""])
                 for question, text in zip(questions, texts)]
        found[change] = {"right": bills.LABEL_SHARPNESS * float(np.mean(worth))} | {
            model: list(map(float, mean_interval(paid - scores[""][model])))
            for model, paid in scores[change].items()}
    return found
