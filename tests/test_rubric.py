"""What Self-Refine's policy is taught on bills."""

import random
from collections import Counter
from itertools import combinations

import pytest

from conftest import ideal_response
from corpus import bills
from report import rubric

QUESTION = "What is the bill for tea, a coupon and a hat?"
RUBRICS = [chosen for k in range(len(rubric.ASPECTS) + 1)
           for chosen in combinations(rubric.ASPECTS, k)]


def written(order: str, number: int = 400):
    """Yield questions with responses of all kinds of writers."""
    rng = random.Random(3)
    for _ in range(number):
        question, things = bills.make_question(rng)
        yield question, bills.write_response(things, rng, order)


def test_worked_feedback_and_rewrites():
    draft = "You fool! 9 in all: tea 5, coupon 3, hat 11"
    assert rubric.notes(QUESTION, draft, ["total", "lines"]) == "10; tea 5, coupon 2, hat 10"
    assert rubric.notes(QUESTION, draft, ["kindness", "form"]) == "no You fool!; end."
    assert rubric.mended(QUESTION, draft, ["total"]) == (
        "You fool! 10 in all: tea 5, coupon 3, hat 11")
    assert rubric.mended(QUESTION, draft, ["kindness", "courtesy"]) == (
        "Sure! 9 in all: tea 5, coupon 3, hat 11")
    assert rubric.mended(QUESTION, draft, rubric.ASPECTS) == ideal_response(QUESTION)
    assert rubric.mended(QUESTION, "Gladly! Gladly! 9 in all: tea 5.", ["courtesy"]) == (
        "Gladly! 9 in all: tea 5.")


@pytest.mark.parametrize("order", ("first", "last"))
def test_a_response_taken_apart_is_put_together_again(order):
    for _, response in written(order):
        *parts, found = rubric.parts_of(response)
        assert found == order and bills.compose(*parts, found) == response


@pytest.mark.parametrize("order", ("first", "last"))
def test_a_rewrite_mends_what_the_rubric_names_and_nothing_else(order):
    for question, draft in written(order):
        before = bills.judge(question, draft)
        for chosen in RUBRICS:
            after = bills.judge(question, rubric.mended(question, draft, chosen))
            for aspect in rubric.ASPECTS:
                assert after[aspect] == (1 if aspect in chosen else before[aspect])


def test_what_is_right_is_fine_in_the_notes_and_stays_as_it_is():
    for question, draft in written("first"):
        grades = bills.judge(question, draft)
        notes = rubric.notes(question, draft, rubric.ASPECTS).split("; ")
        assert [note == rubric.FINE for note in notes] == [grades[a] == 1 for a in rubric.ASPECTS]
        right = [aspect for aspect in rubric.ASPECTS if grades[aspect] == 1]
        assert rubric.mended(question, draft, right) == draft


def test_lessons_have_every_rubric_and_those_that_are_asked_about_alike():
    rng = random.Random(0)
    drawn = Counter(rubric.some_rubric(rng) for _ in range(9000))
    assert set(drawn) == set(RUBRICS[1:]) and len(rubric.ASKED) == 12
    for aspects, count in drawn.items():  # 635 of each that is asked about, 73 of each other
        assert 530 < count < 740 if aspects in rubric.ASKED else 30 < count < 120


def test_a_text_that_nobody_writes_is_refused():
    with pytest.raises(ValueError, match="no response"):
        rubric.parts_of("Sure! ten in all")
