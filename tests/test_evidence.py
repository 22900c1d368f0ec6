"""The evidence: its statistics, what Self-Refine is taught, its rows, tables and page."""

import subprocess
import sys
from itertools import permutations

import numpy as np
import pytest

from conftest import ROOT, tiny_run
from data import load_data
from tools import bills, rivals, rubric

sys.path.insert(0, str(ROOT / "benchmarks"))

import evidence  # noqa: E402
import tables  # noqa: E402


# ------------------------------------------------------------------------------------ statistics


def test_elo_of_two_players_is_their_odds():
    a, b = np.array([1.0, 1, 1, 0, 0.5]), np.array([0.0, 0, 0, 1, 0.5])
    ratings = evidence.elo([b, a])  # three wins, a loss, a tie: 3.5 to 1.5
    assert ratings[0] == 1000
    assert ratings[1] == pytest.approx(1000 + 400 * np.log10(3.5 / 1.5), abs=1e-6)


def test_elo_solves_the_likelihood_equations():
    rng = np.random.default_rng(0)
    grades = [rng.normal(shift, 1, 300).round(1) for shift in (0, 0.3, 0.5, -0.4)]
    strength = 10 ** ((np.array(evidence.elo(grades)) - 1000) / 400)
    for i, mine in enumerate(grades):
        won = sum((np.sign(mine - other) + 1).sum() / 2
                  for j, other in enumerate(grades) if j != i)
        expected = sum(300 * strength[i] / (strength[i] + strength[j]) for j in range(4) if j != i)
        assert won == pytest.approx(expected, rel=1e-6)


def test_equal_values_share_their_rank():
    assert evidence.ranks_of(np.array([3.0, 1, 3, 2, 3])).tolist() == [3, 0, 3, 1, 3]


def test_rank_correlation_of_all_orders_of_four_is_spearmans():
    fixed = np.arange(4.0)
    for order in permutations(range(4)):
        other = np.array(order, float)
        expected = 1 - 6 * ((fixed - other) ** 2).sum() / (4 * 15)
        assert evidence.rank_correlation(10 ** fixed, other) == pytest.approx(expected)
    assert evidence.rank_correlation(fixed, np.ones(4)) == 0


def test_a_chain_is_kept_up_to_its_first_step_that_is_not_above_the_threshold():
    marks = np.array([[1.0, 0.2, 0.0, 1.0], [1.0, 1.0, 1.0, 0.1], [1.0, 1.0, 1.0, 1.0]])
    assert evidence.kept(marks, 0.2).tolist() == [3, 0, 0, 1]


def test_intervals_are_students():
    assert tables.half_width([1.0, 2.0, 3.0]) == pytest.approx(4.303 / 3 ** 0.5)
    assert tables.cell([1.0, 2.0, 3.0]) == "+2.0 ± 2.5"
    assert tables.cell([4.0, 5.0, 6.0]) == "+5.0 ± 2.5 *"
    assert tables.cell([0.5], ".3f") == "0.500"


# ------------------------------------------------------------------------- a taught Self-Refine


def test_the_refiner_is_taught_answers_notes_and_rewrites(tmp_path):
    run = tiny_run(tmp_path, tokenizer__vocab=200, model__context=208)
    data = load_data(run)
    fold = data.folds["sft"]
    examples = rivals.refiner_examples(run, data)
    show = data.tokenizer.show
    reads = [(show(x), data.tokenizer.decode(y)) for x, y in zip(examples.x, examples.y_w)]
    answers = [(show(data.policy(x)), data.tokenizer.decode(y)) for x, y in zip(fold.x, fold.y_w)]
    assert [pair for pair in reads if "<|draft|>" not in pair[0]] == answers
    notes = [pair for pair in reads if pair[0].endswith("<|assistant|>") and "<|draft|>" in pair[0]]
    rewrites = [pair for pair in reads if pair[0].endswith("<|better|>")]
    assert len(rewrites) == len(fold) and 0.9 * len(fold) < len(notes) <= len(fold)
    for read, written in rewrites:
        question, draft, asked = read.removesuffix("<|better|>").replace(
            "<|draft|>", "<|user|>").split("<|user|>")[1:]
        aspects, said = asked.split("<|assistant|>")
        aspects = aspects.strip().split(", ")
        assert set(aspects) <= set(rubric.ASPECTS)
        assert rubric.notes(question.strip(), draft.strip(), aspects) == said.strip()
        assert rubric.mended(question.strip(), draft.strip(), aspects) == written
        assert all(bills.judge(question.strip(), written)[aspect] == 1 for aspect in aspects)


# ------------------------------------------------------------------------------ rows and tables


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The rows "rubrics" and "iterations" of a tiny run, made twice, and what was said."""
    folder = tmp_path_factory.mktemp("evidence")
    command = [sys.executable, str(ROOT / "benchmarks" / "evidence.py"), "--config",
               str(ROOT / "configs" / "tiny.toml"), "--rows", "rubrics", "iterations", "--seeds",
               "1", "--results", str(folder / "results"), f"--run.dir={folder}"]
    said = [subprocess.run(command, capture_output=True, text=True, check=True).stdout
            for _ in range(2)]
    return folder, said


def test_a_finished_row_is_kept_and_not_made_again(made):
    folder, (first, second) = made
    assert first.count("written:") == 2 and "written:" not in second
    rows = tables.read_rows(folder / "results")
    assert set(rows) == {"rubrics", "iterations"}


def test_a_row_says_what_its_samples_cost(made):
    players = tables.read_rows(made[0] / "results")["iterations"][0]["1.0"]["players"]
    assert players["y_0"]["elo"] == 1000 and players["y_0"]["copies"] is None
    tokens = [players[name]["tokens"] for name in ("y_0", "PIT 1", "PIT 2")]
    assert tokens == sorted(tokens) and players["best of 4"]["tokens"] > 2.5 * tokens[0]
    assert players["Self-Refine 1"]["tokens"] > players["y_0"]["tokens"]


def test_tables_go_between_their_marks_and_leave_the_text(made):
    page = ("# Title\n<!-- table: rubrics --> old <!-- end -->\nText stays.\n"
            "<!-- table: cost --><!-- end -->\n")
    rows = tables.read_rows(made[0] / "results")
    filled = tables.filled(page, rows)
    assert filled.startswith("# Title\n") and "\nText stays.\n" in filled and " old " not in filled
    assert "| without courtesy |" in filled and "Not made yet." in filled
    assert tables.filled(filled, rows) == filled


def test_every_row_has_a_table():
    assert set(tables.TABLES) == set(evidence.ROWS)
