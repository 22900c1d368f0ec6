"""The hidden judge of bills as a score for PPO (pit.score), for one arm of the evidence only: what
errors are left with a perfect r_gap?"""

from corpus import bills


def gain(x: list[str], y_ref: list[str], y: list[str]) -> list[float]:
    """Return by how much the judge grades each y above y_ref, in log odds of a label."""
    return [bills.LABEL_SHARPNESS * (bills.grade(question, after) - bills.grade(question, before))
            for question, before, after in zip(x, y_ref, y)]
