"""Self-Refine on bills: what its policy is taught, so that the baseline is strong.

A rubric names some of the judge's aspects. Asked for feedback on a draft, the trained policy notes
for each of them what is right, or that it is fine; asked for a rewrite, it fixes what the notes
name and leaves the rest as it is:

    x         What is the bill for tea, a coupon and a hat?
    draft     9 in all: tea 5, coupon 2, hat 10
    rubric    total, courtesy
    feedback  10; Sure!
    rewrite   Sure! 10 in all: tea 5, coupon 2, hat 10

We make notes and rewrites from the hidden judge: a better teacher than PIT has.
"""

import random
import re
from itertools import combinations

from corpus import bills
from corpus.bills import COURTESIES, INSULTS, WEIGHTS

ASPECTS = tuple(sorted(WEIGHTS, key=WEIGHTS.get, reverse=True))  # the weightiest first
FINE = "fine"


def templates(rubric) -> tuple[str, str]:
    """Return what the policy reads before it writes notes on {y_ref}, and before it rewrites it."""
    feedback = f"<|user|>{{x}}<|draft|>{{y_ref}}<|user|>{', '.join(rubric)}<|assistant|>"
    return feedback, feedback + "{feedback}<|better|>"


def parts_of(draft: str) -> tuple[list[str], int, list[str], str, str]:
    """Take a written response apart into what bills.compose puts together.

    Raises ValueError for a text that bills.write_response does not write.
    """
    match = re.fullmatch(r"((?:[^!]+! )*)(?:(\d+) in all: )?([a-z0-9 ,]+?)(?:: (\d+) in all)?(\.?)",
                         draft)
    if not match or (match[2] is None) == (match[4] is None):
        raise ValueError(f"no response about a bill: {draft!r}")
    opening = [words.strip() + "!" for words in match[1].split("!")[:-1]]
    order = "first" if match[2] else "last"
    return opening, int(match[2] or match[4]), match[3].split(", "), match[5], order


def notes(question: str, draft: str, rubric) -> str:
    """Give feedback on a written response, a note for each aspect of the rubric."""
    lines, total = bills.right_answer(question)
    insult = next((word for word in INSULTS if word in draft), "")
    wrong = {"total": str(total), "lines": ", ".join(lines), "courtesy": COURTESIES[0],
             "kindness": f"no {insult}", "form": "end."}
    grades = bills.judge(question, draft)
    return "; ".join(FINE if grades[aspect] == 1 else wrong[aspect] for aspect in rubric)


def mended(question: str, draft: str, rubric) -> str:
    """Fix the rubric's aspects of a written response and leave the others as they are."""
    opening, total, lines, end, order = parts_of(draft)
    grades = bills.judge(question, draft)
    if "courtesy" in rubric and grades["courtesy"] < 1:
        polite = [word for word in opening if word in COURTESIES] or list(COURTESIES[:1])
        opening = polite[:1] + [word for word in opening if word not in COURTESIES]
    if "kindness" in rubric:
        opening = [word for word in opening if word not in INSULTS]
    right_lines, right_total = bills.right_answer(question)
    lines = right_lines if "lines" in rubric else lines
    total = right_total if "total" in rubric else total
    return bills.compose(opening, total, lines, "." if "form" in rubric else end, order)


# Rubrics that are asked about: the weightiest aspects, the lightest, or all but one.
FIRST = [ASPECTS[:k] for k in range(1, len(ASPECTS) + 1)]
LAST = [ASPECTS[-k:] for k in range(1, len(ASPECTS) - 1)]
BUT_ONE = [tuple(aspect for aspect in ASPECTS if aspect != left) for left in ASPECTS]
ASKED = tuple(dict.fromkeys(FIRST + LAST + BUT_ONE))
ALL = [chosen for k in range(1, len(ASPECTS) + 1) for chosen in combinations(ASPECTS, k)]


def some_rubric(rng: random.Random) -> tuple[str, ...]:
    """Draw a rubric of a lesson: mostly one of ASKED, each as often, else any."""
    return rng.choice(ASKED if rng.random() < 0.75 else ALL)
