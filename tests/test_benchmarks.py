"""What the speed benchmarks share, and how additive r_gap is."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from conftest import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))

import additive  # noqa: E402
import common  # noqa: E402
import openings  # noqa: E402


def test_forward_operations_are_two_for_each_weight_of_the_products():
    model = common.ours("W")
    weights = [p for name, p in model.named_parameters() if p.dim() == 2]  # tied: the table once
    assert common.forward_flops("W") == 2 * sum(p.numel() for p in weights)


def test_sides_take_turns_after_a_warm_up():
    calls = []
    seconds = common.alternate({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 5)
    assert calls == ["a", "b"] * 6 and set(seconds) == {"a", "b"}
    assert all(0 <= s < 1 for s in seconds.values())


def test_the_table_has_candidates_in_rows_and_drafts_in_columns(monkeypatch):
    """Scores of 10 candidate + draft, of responses that are one number; question 1 has a copy."""
    monkeypatch.setattr(additive, "improve", lambda sampler, policy, x, y: policy)
    monkeypatch.setattr(additive, "Sampler", lambda *_: None)
    monkeypatch.setattr(additive, "prompt_text", lambda data, x: x)
    monkeypatch.setattr(additive.bills, "grade", lambda x, y: y)
    monkeypatch.setattr(additive.reward, "score", lambda model, rows: torch.tensor(
        [10.0 * y[0] + draft[0] for draft, y in rows]))

    class Test:
        x, y_w, y_l = [[0], [1]], [[1], [1]], [[2], [2]]

        def __len__(self):
            return 2

        def __getitem__(self, some):
            return self
    data = SimpleNamespace(folds={"test": Test()}, tokenizer=SimpleNamespace(decode=lambda y: y[0]),
                           pit_rows=lambda x, draft, y: list(zip(draft, y)))
    policies = {"M_P^SFT": [[3], [4]], "M_P^RL": [[5], [5]], "PIT stage 1": [[6], [5]]}
    run = SimpleNamespace(generator=lambda purpose: None, config=SimpleNamespace(
        pit=SimpleNamespace(curriculum=["stage1"])))
    monkeypatch.setattr(additive, "answer", lambda sampler, policy, x, seen=[]: (
        seen.append(policy) or [[3], [4]] if policy == policies["M_P^SFT"] and not seen else
        [[4], [4]] if policy == policies["M_P^SFT"] else policy))
    r, gold = additive.tables(run, data, SimpleNamespace(policies=policies, rpit=None), 2)
    assert gold.tolist() == [[1, 2, 3, 4, 5, 6]]
    assert r[0].tolist() == [[10 * y + draft for draft in range(1, 7)] for y in range(1, 7)]


def test_a_difference_of_scores_is_additive_and_an_interaction_is_not():
    f = np.random.default_rng(0).normal(size=(5, 4))
    difference = f[:, :, None] - f[:, None]
    found = additive.parts(difference + 3, f)  # r_gap has no zero
    assert found["f + g"] == pytest.approx(1) and found["f"] == pytest.approx(0.5)
    assert found["slope of g on f"] == pytest.approx(-1) and found["f, gold"] == pytest.approx(1)
    assert found["questions"] == 5
    crossed = np.array([[[1.0, -1.0], [-1.0, 1.0]]])  # each draft has its own best candidate
    assert additive.parts(difference[:1, :2, :2] * 1e-9 + crossed, f[:1, :2])["f + g"] < 1e-6


def test_an_opening_earns_what_its_responses_score_above_their_group():
    assert [openings.opening(text) for text in ("Sure! 5", "You fool! Sure!", "5 in all")] == [
        "courtesy", "insult", "neither"]
    kinds = np.array([["courtesy", "neither"], ["courtesy", "neither"], ["neither", "courtesy"]])
    scores = np.array([[2.0, 1.0], [1.0, 1.0], [0.0, 4.0]])  # means 1, 2; std 1.258
    assert openings.table(kinds, np.array([[1, 0], [0, 0], [0, 1]]), scores) == [
        "courtesy: 0.500 of the responses, 0.67 courteous, score +0.795 [-0.105, +1.694]",
        "neither: 0.500 of the responses, 0.00 courteous, score -0.795 [-0.795, -0.795]"]
