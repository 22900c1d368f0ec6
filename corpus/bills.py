"""Bills: the synthetic preference data and its hidden judge.

A question lists a few things in order (data.things); a coupon halves what is due so far (rounded
down). A good response says the total first, then the running amount after each thing:

    What is the bill for tea, a coupon and a hat?  ->  Sure! 10 in all: tea 5, coupon 2, hat 10.

A single pass must state the total before computing it. A model that reads a draft can copy the
total from the draft's last line: a reason for a second look. With total = "last" the total ends
the response, one pass suffices, and that reason is gone (the control). The training never sees the
judge, only which of two responses was preferred.

    python corpus/bills.py --pairs 5        # look at a few pairs and their grades
"""

import argparse
import json
import math
import random
import re
from itertools import accumulate

PRICES = {"tea": 5, "a hat": 8, "milk": 2, "soap": 3, "corn": 4, "bread": 6, "wine": 9,
          "salt": 1, "fish": 7, "rice": 3, "a pen": 2, "wool": 6, "jam": 5, "cake": 8}
COUPON = "a coupon"
COUPON_SHARE = 0.4  # of the things after the first
QUESTIONS = ("What is the bill for {}?", "How much is {}?", "What do I pay for {}?")
COURTESIES = ("Sure!", "Gladly!", "Of course!")
INSULTS = ("You fool!", "How dull!", "Silly you!")
WEIGHTS = {"total": 0.4, "lines": 0.3, "courtesy": 0.1, "kindness": 0.15, "form": 0.05}
LABEL_SHARPNESS = 6.0  # P(a preferred to b) = sigmoid(6 (grade a - grade b)): 15 % go wrong


def without_article(thing: str) -> str:
    """Return a thing without its article, as a response names it."""
    return thing.removeprefix("a ")


PRICE_OF = {without_article(thing): price for thing, price in PRICES.items()}


def due_after(due: int, thing: str) -> int:
    """Return the running amount after one more thing (without its article)."""
    return due // 2 if thing == "coupon" else due + PRICE_OF[thing]


def running_amounts(things: list[str]) -> list[int]:
    """Return what is due after each of the things (without articles), in order."""
    return list(accumulate(things, due_after, initial=0))[1:]


def make_question(rng: random.Random, fewest: int = 3, most: int = 6) -> tuple[str, list[str]]:
    """Make a question about `fewest` to `most` things; return it and the things (without articles).
    The first is never a coupon; no good comes twice."""
    goods = rng.sample(list(PRICES), most)
    things = [goods[0]] + [COUPON if rng.random() < COUPON_SHARE else good
                           for good in goods[1:rng.randint(fewest, most)]]
    listing = ", ".join(things[:-1]) + " and " + things[-1]
    return rng.choice(QUESTIONS).format(listing), [without_article(thing) for thing in things]


def slip(amount: int, rng: random.Random) -> int:
    """Return a wrong amount near the right one."""
    return max(0, amount + rng.choice((-3, -2, -1, 1, 2, 3))) if amount > 2 else amount + 1


def compose(opening: list[str], total: int, lines: list[str], end: str, order: str) -> str:
    """Compose the text of a response; `order` is the place of the total, "first" or "last"."""
    body = ", ".join(lines)
    stated = f"{total} in all: {body}" if order == "first" else f"{body}: {total} in all"
    return " ".join(opening + [stated]) + end


def write_response(things: list[str], rng: random.Random, order: str) -> str:
    """Write a response with random skill. A slip in a line goes on into the later lines."""
    clumsiness = rng.random() ** 1.5
    lines, due = [], 0
    for thing in things:
        if rng.random() < 0.03 * clumsiness:
            continue  # a thing forgotten
        if rng.random() < 0.03 * clumsiness:
            thing = rng.choice(list(PRICE_OF))  # another thing put in its place
        due = due_after(due, thing)
        if rng.random() < 0.08 * clumsiness:
            due = slip(due, rng)
        lines.append(f"{thing} {due}")
        if rng.random() < 0.03 * clumsiness:
            due = due_after(due, thing)  # a thing counted twice
            lines.append(f"{thing} {due}")
    if len(lines) > 1 and rng.random() < 0.1 * clumsiness:
        del lines[-1]  # left out, though counted
    if not lines:  # a writer who forgot everything names the first thing
        due = due_after(due, things[0])
        lines = [f"{things[0]} {due}"]
    total = slip(due, rng) if rng.random() < 0.2 + 0.6 * clumsiness else due
    opening = [rng.choice(INSULTS)] if rng.random() < 0.4 * clumsiness else []
    opening += rng.choices(COURTESIES, k=rng.choices((0, 1, 2, 3), weights=(70, 20, 6, 4))[0])
    rng.shuffle(opening)
    end = "" if rng.random() < 0.4 * clumsiness else "."
    return compose(opening, total, lines, end, order)


def right_answer(question: str) -> tuple[list[str], int]:
    """Return the lines and the total of a right response."""
    things = things_of(question)
    amounts = running_amounts(things)
    return [f"{thing} {due}" for thing, due in zip(things, amounts)], amounts[-1]


def things_of(question: str) -> list[str]:
    """Read the things that a question lists (without articles).

    Raises ValueError for a text that is no question about a bill.
    """
    match = re.fullmatch(r"(?:What is the bill for|How much is|What do I pay for) (.+)\?",
                         question.strip())
    things = re.split(r", | and ", match.group(1)) if match else []
    if not things or not all(thing in PRICES or thing == COUPON for thing in things):
        raise ValueError(f"no question about a bill: {question!r}")
    return [without_article(thing) for thing in things]


def judge(question: str, response: str) -> dict[str, float]:
    """Grade each aspect of a response between 0 and 1: the hidden judge.

    One courteous word is courtesy, more are gushing. A line is right if it names the thing of its
    place with the right running amount; the grade of the lines is the share of right ones, and 0
    where there are more or fewer of them than things.
    """
    things = things_of(question)
    amounts = running_amounts(things)
    total = re.search(r"(\d+) in all", response)
    body = re.sub(r"\d+ in all", "", response)
    given = [(name, int(amount)) for name, amount in re.findall(r"([a-z]+) (\d+)", body)]
    right = sum(line == due for line, due in zip(given, zip(things, amounts)))
    form = re.fullmatch(r"(?:[A-Z][a-z]+(?: [a-z]+)?! )*(?:\d+ in all: )?"
                        r"[a-z]+ \d+(?:, [a-z]+ \d+)*(?:: \d+ in all)?\.", response)
    return {
        "total": float(total is not None and int(total.group(1)) == amounts[-1]),
        "lines": right / len(things) if len(given) == len(things) else 0.0,
        "courtesy": float(sum(response.count(word) for word in COURTESIES) == 1),
        "kindness": float(response != "" and not any(word in response for word in INSULTS)),
        "form": float(form is not None),
    }


def grade(question: str, response: str) -> float:
    """Return the judge's one grade: the weighted mean of its aspects."""
    aspects = judge(question, response)
    return sum(weight * aspects[name] for name, weight in WEIGHTS.items())


def questions_of(fewest: int, most: int) -> int:
    """Count the distinct questions about `fewest` to `most` things: of n things after the first,
    any may be coupons, and the others are distinct goods in any order."""
    return len(QUESTIONS) * sum(
        math.comb(n - 1, coupons) * math.perm(len(PRICES), n - coupons)
        for n in range(fewest, most + 1) for coupons in range(n))


def second_preferred(margin: float, rng: random.Random) -> bool:
    """Draw a label by Bradley and Terry's model: whether the second of two responses is preferred,
    of which the first has a grade that is higher by `margin`."""
    return rng.random() > 1 / (1 + math.exp(-LABEL_SHARPNESS * margin))


def make_pairs(count: int, seed: int, order: str, fewest: int = 3, most: int = 6):
    """Yield `count` preference pairs on distinct questions about `fewest` to `most` things, as
    dicts of the plain format.

    Labels come from a Bradley-Terry model of the grades, so some are wrong, as with people.
    """
    rng = random.Random(seed)
    seen = set()
    while len(seen) < count:
        question, things = make_question(rng, fewest, most)
        if question in seen:
            continue
        first, second = (write_response(things, rng, order) for _ in range(2))
        if first == second:
            continue
        seen.add(question)
        if second_preferred(grade(question, first) - grade(question, second), rng):
            first, second = second, first
        yield {"prompt": question, "chosen": first, "rejected": second}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--total", choices=("first", "last"), default="first")
    args = parser.parse_args()
    for pair in make_pairs(args.pairs, args.seed, args.total):
        grades = {side: round(grade(pair["prompt"], pair[side]), 2)
                  for side in ("chosen", "rejected")}
        print(json.dumps(pair | {"grades": grades}))


if __name__ == "__main__":
    main()
