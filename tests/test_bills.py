"""The synthetic world: amounts by hand, the judge aspect by aspect, and pairs as documented."""

import random
from itertools import islice, pairwise

import pytest

from conftest import ideal_response
from corpus import bills
from corpus.bills import (
    COURTESIES,
    INSULTS,
    LABEL_SHARPNESS,
    WEIGHTS,
    grade,
    judge,
    make_pairs,
    make_question,
    running_amounts,
    things_of,
    write_response,
)

QUESTION = "What is the bill for tea, a coupon, a hat and bread?"  # 5, 5 // 2 = 2, 10, 16
GOOD = {"first": "Sure! 16 in all: tea 5, coupon 2, hat 10, bread 16.",
        "last": "Sure! tea 5, coupon 2, hat 10, bread 16: 16 in all."}
BEST = dict(total=1, lines=1, courtesy=1, kindness=1, form=1)


def test_running_amounts_by_hand():
    # 1; 1 // 2 = 0; 3; 3 // 2 = 1; 1 + 8 = 9; 9 // 2 = 4; 4 // 2 = 2
    things = ["salt", "coupon", "soap", "coupon", "hat", "coupon", "coupon"]
    assert running_amounts(things) == [1, 0, 3, 1, 9, 4, 2]
    assert running_amounts([]) == []


def test_things_are_read_from_the_question():
    assert things_of(QUESTION) == ["tea", "coupon", "hat", "bread"]
    assert things_of(" What do I pay for rice and a coupon? ") == ["rice", "coupon"]
    assert things_of("How much is jam?") == ["jam"]


def test_things_of_inverts_make_question():
    rng, coupons, count = random.Random(3), 0, 0
    for _ in range(300):
        question, things = make_question(rng)
        assert things_of(question) == things and 3 <= len(things) <= 6
        goods = [thing for thing in things if thing != "coupon"]
        assert things[0] != "coupon" and len(set(goods)) == len(goods)
        coupons, count = coupons + len(things) - len(goods), count + len(things) - 1
    assert coupons / count == pytest.approx(bills.COUPON_SHARE, abs=0.06)


@pytest.mark.parametrize("text", [
    "", "Hello", "What is the bill for?", "What is the bill for a yacht?", QUESTION[:-1],
    "What is the bill for tea and a yacht?", "Tell me: " + QUESTION, QUESTION + " " + QUESTION])
def test_text_that_is_no_question_raises(text):
    for use in (things_of, ideal_response, lambda text: judge(text, "tea 5.")):
        with pytest.raises(ValueError, match="no question about a bill"):
            use(text)


@pytest.mark.parametrize("order", ["first", "last"])
def test_the_ideal_response_is_graded_1(order):
    assert ideal_response(QUESTION, order) == GOOD[order]
    for pair in make_pairs(50, 2, order):
        response = ideal_response(pair["prompt"], order)
        assert judge(pair["prompt"], response) == BEST
        assert grade(pair["prompt"], response) == pytest.approx(1)


@pytest.mark.parametrize("changes, response", [
    # the total
    (dict(total=0), "Sure! 15 in all: tea 5, coupon 2, hat 10, bread 16."),
    (dict(total=0), "Sure! tea 5, coupon 2, hat 10, bread 16: 6 in all."),
    (dict(total=0), "Sure! tea 5, coupon 2, hat 10, bread 16."),             # is not said at all
    (dict(total=0), "Sure! 10 in all: tea 5, coupon 2, hat 10, bread 16: 16 in all."),  # two
    # the lines
    (dict(lines=0.75), "Sure! 16 in all: tea 5, coupon 3, hat 10, bread 16."),
    (dict(lines=0.75), "Sure! 16 in all: tea 5, coupon 2, cake 10, bread 16."),
    (dict(lines=0), "Sure! 16 in all: tea 5, coupon 2, hat 10."),  # too few, too many
    (dict(lines=0), "Sure! 16 in all: tea 5, hat 10, bread 16."),
    (dict(lines=0), "Sure! 16 in all: tea 5, coupon 2, hat 10, bread 16, tea 21."),
    (dict(lines=0, form=0), "Sure! 16 in all: ."),
    # courtesy, kindness
    (dict(courtesy=0), "16 in all: tea 5, coupon 2, hat 10, bread 16."),
    (dict(), "Of course! 16 in all: tea 5, coupon 2, hat 10, bread 16."),
    (dict(kindness=0), "Sure! You fool! 16 in all: tea 5, coupon 2, hat 10, bread 16."),
    (dict(kindness=0, courtesy=0), "How dull! tea 5, coupon 2, hat 10, bread 16: 16 in all."),
    # form
    (dict(form=0), "Sure! 16 in all: tea 5, coupon 2, hat 10, bread 16"),
    (dict(form=0), "Sure! 16 in all tea 5, coupon 2, hat 10, bread 16."),
    (dict(form=0, courtesy=0), "Sure 16 in all: tea 5, coupon 2, hat 10, bread 16."),
    (dict(form=0), "Sure! 16 in all: tea 5 coupon 2, hat 10, bread 16."),
    (dict(form=0), "Sure! 16 in all: tea 5, coupon 2, hat 10, bread 16. And more."),
    # everything
    (dict(total=0, lines=0, courtesy=0, kindness=0, form=0), ""),
])
def test_each_aspect_is_judged_apart(changes, response):
    assert judge(QUESTION, response) == BEST | changes


def test_the_grade_is_the_weighted_mean():
    assert sum(WEIGHTS.values()) == pytest.approx(1)
    # all but the total (0.4) and a quarter of the lines (0.3)
    assert grade(QUESTION, "Sure! 9 in all: tea 5, coupon 2, hat 10, bread 15.") == pytest.approx(
        1 - 0.4 - 0.3 / 4)
    assert grade(QUESTION, "") == 0


@pytest.mark.parametrize("order", ["first", "last"])
def test_written_responses_are_of_the_order_and_of_every_quality(order):
    rng, grades, forms = random.Random(0), [], 0
    for _ in range(400):
        question, things = make_question(rng)
        response = write_response(things, rng, order)
        grades.append(grade(question, response))
        forms += judge(question, response)["form"] > 0
        body = response.rstrip(".")
        for opening in COURTESIES + INSULTS:
            body = body.replace(opening + " ", "")
        assert body.split(":")[0 if order == "first" else -1].endswith(" in all")
    assert 0.55 < sum(grades) / 400 < 0.85 and min(grades) < 0.3 and max(grades) == pytest.approx(1)
    assert 200 < forms < 400


def test_some_writers_count_a_thing_twice_and_some_leave_the_last_out():
    rng, twice, left_out = random.Random(0), 0, 0
    for _ in range(2000):
        response = write_response(["tea", "hat", "milk"], rng, "first")
        total, lines = response.rstrip(".").split(" in all: ")
        lines = lines.split(", ")
        twice += any(one.split()[0] == other.split()[0] for one, other in pairwise(lines))
        left_out += total.endswith("15") and lines == ["tea 5", "hat 13"]
    assert 40 < twice < 110     # 3 lines x 3 % of clumsiness, which is 0.4 in the mean: 72
    assert 15 < left_out < 60   # 10 % of clumsiness is 80, of which somewhat less than half are


def test_a_slip_is_never_the_right_amount_nor_below_zero():
    rng = random.Random(0)
    for amount in range(12):
        slips = {bills.slip(amount, rng) for _ in range(60)}
        assert amount not in slips and min(slips) >= 0 and max(slips) <= amount + 3


def test_pairs_are_distinct_questions_and_reproducible():
    pairs = list(make_pairs(500, 7, "first"))
    assert len(pairs) == 500 == len({pair["prompt"] for pair in pairs})
    assert all(pair["chosen"] != pair["rejected"] for pair in pairs)
    assert set(pairs[0]) == {"prompt", "chosen", "rejected"}
    assert list(islice(make_pairs(900, 7, "first"), 500)) == pairs
    assert [p["prompt"] for p in make_pairs(500, 8, "first")] != [p["prompt"] for p in pairs]


def test_questions_list_as_many_things_as_asked():
    sizes = {len(things_of(pair["prompt"])) for pair in make_pairs(200, 7, "first", 2, 4)}
    assert sizes == {2, 3, 4}
    assert {len(things_of(pair["prompt"])) for pair in make_pairs(30, 7, "first", 9, 9)} == {9}


def test_distinct_questions_are_counted():
    # two things: a good, then a coupon or another good, in three wordings
    assert bills.questions_of(2, 2) == 3 * 14 * (1 + 13)
    assert len({p["prompt"] for p in make_pairs(580, 1, "first", 2, 2)}) == 580 < 588
    # a third: two coupons, one in either place with 13 goods, or 13 x 12 goods
    assert bills.questions_of(2, 3) == 588 + 3 * 14 * (1 + 2 * 13 + 13 * 12)


def test_a_sixth_of_the_labels_is_wrong_as_bradley_and_terry_say():
    pairs = list(make_pairs(4000, 1, "first"))
    margins = [grade(p["prompt"], p["chosen"]) - grade(p["prompt"], p["rejected"]) for p in pairs]
    told = [m for m in margins if abs(m) > 1e-9]
    wrong = sum(m < 0 for m in told) / len(told)
    assert wrong == pytest.approx(1 / 6, abs=0.025)
    # by the model itself: P(wrong) = sigmoid(-6 |margin|)
    expected = sum(1 / (1 + 2.718281828 ** (LABEL_SHARPNESS * abs(m))) for m in told) / len(told)
    assert wrong == pytest.approx(expected, abs=0.02)  # three standard errors


def test_gushing_is_no_courtesy():
    question = "What is the bill for tea, a coupon and a hat?"
    body = "10 in all: tea 5, coupon 2, hat 10."
    assert [bills.judge(question, opening + body)["courtesy"] for opening in
            ("", "Sure! ", "Sure! Gladly! ", "Sure! Sure! Sure! ")] == [0, 1, 0, 0]
