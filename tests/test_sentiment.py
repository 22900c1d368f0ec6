"""Tests of corpus/sentiment.py with a lexicon of three words; VADER is an extra."""

import json
import math
import random
import sys
from collections import Counter
from types import SimpleNamespace

import pytest

from conftest import write_lines
from corpus import sentiment
from corpus.formats import TextPair, read_pairs
from runtime.settings import UserError

WORTH = {"lovely": 1.0, "fine": 0.2, "awful": -1.0}


@pytest.fixture(autouse=True)
def words(monkeypatch):
    """Let the lexicon be the sum of WORTH."""
    monkeypatch.setattr(sentiment, "lexicon", lambda: SimpleNamespace(polarity_scores=lambda text: {
        "compound": sum(worth for word, worth in WORTH.items() if word in text)}))


def pair(chosen, rejected):
    return TextPair("k", [("user", "How is it?"), ("assistant", "It is."), ("user", "How?")],
                    chosen, rejected)


def test_the_lexicon_grades_the_responses():
    assert sentiment.grades(["awful"] * 2, ["a lovely day", "a day"]) == [1.0, 0.0]


def test_a_response_is_the_first_sentence():
    made = sentiment.relabelled(pair(" It cost $3.50, lovely!  So\nawful.", "Is it\nawful? No."),
                                random.Random(1))
    assert made == {
        "prompt": [{"role": "user", "content": "How is it?"},
                   {"role": "assistant", "content": "It is."}, {"role": "user", "content": "How?"}],
        "chosen": [{"role": "assistant", "content": "It cost $3.50, lovely!"}],
        "rejected": [{"role": "assistant", "content": "Is it\nawful?"}]}


@pytest.mark.parametrize("chosen, rejected, why", [
    ("Lovely", "An awful day.", "no sentence"), ("", "Lovely.", "no sentence"),
    ("A day.", "A night. It was lovely.", "grades equal")])
def test_what_gives_no_pair_is_counted(chosen, rejected, why):
    assert sentiment.relabelled(pair(chosen, rejected), random.Random(1)) == why


def test_labels_are_drawn_as_those_of_bills():
    # a margin of 0.2 in favour of the side that people rejected: sigmoid(6 * 0.2) of the labels
    rng, trials = random.Random(1), 4000
    first = [sentiment.relabelled(pair("A day.", "A fine day."), rng)["chosen"][0]["content"]
             for _ in range(trials)].count("A fine day.")
    expected = 1 / (1 + math.exp(-1.2))
    assert abs(first / trials - expected) < 4 * (expected * (1 - expected) / trials) ** 0.5


def test_the_pairs_that_are_written_can_be_read(tmp_path, monkeypatch, capsys):
    source = write_lines(tmp_path / "pairs.jsonl", [
        {"prompt": "How?", "chosen": "A lovely day. Yes.", "rejected": "An awful day."},
        {"prompt": "And now?", "chosen": "Lovely", "rejected": "So so."}])
    made = tmp_path / "made.jsonl"
    monkeypatch.setattr(sys, "argv", ["x", source, "--to", str(made)])
    sentiment.main()
    assert "1 pairs; left out: no sentence 1" in capsys.readouterr().out
    found, = read_pairs(str(made), Counter())
    assert found.prompt == [("user", "How?")]
    assert (found.chosen, found.rejected) == ("A lovely day.", "An awful day.")
    assert set(json.loads(made.read_text())) == {"prompt", "chosen", "rejected"}


@pytest.mark.parametrize("to, said", [(".", "name a new file"), ("pairs.jsonl", "name a new file"),
                                      ("made", "no pair is left; left out: no sentence 1")])
def test_nothing_is_overwritten_and_no_file_is_left_empty(tmp_path, monkeypatch, to, said):
    source = write_lines(tmp_path / "pairs.jsonl", [
        {"prompt": "How?", "chosen": "Lovely", "rejected": "So so."}])
    before = (tmp_path / "pairs.jsonl").read_bytes()
    monkeypatch.setattr(sys, "argv", ["x", source, "--to", str(tmp_path / to)])
    with pytest.raises(UserError, match=said):
        sentiment.main()
    assert [path.name for path in tmp_path.iterdir()] == ["pairs.jsonl"]
    assert (tmp_path / "pairs.jsonl").read_bytes() == before


def test_other_seeds_draw_other_labels(tmp_path, monkeypatch):
    source = write_lines(tmp_path / "pairs.jsonl", [
        {"prompt": f"{i}?", "chosen": "A fine day.", "rejected": "A day."} for i in range(40)])
    found = []
    for seed in ("1", "1", "2"):
        monkeypatch.setattr(sys, "argv", ["x", source, "--to", str(tmp_path / "made"),
                                          "--seed", seed])
        sentiment.main()
        found.append((tmp_path / "made").read_text())
    assert found[0] == found[1] != found[2]


def test_a_missing_lexicon_says_how_to_install_it(monkeypatch):
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "vaderSentiment.vaderSentiment", None)
    sentiment.lexicon.cache_clear()
    with pytest.raises(UserError, match="pip install vaderSentiment"):
        sentiment.lexicon()
