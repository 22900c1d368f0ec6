"""What the speed benchmarks share, how additive r_gap is, and a linear reward model."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from conftest import ROOT
from model import GPT

sys.path.insert(0, str(ROOT / "benchmarks"))

import additive  # noqa: E402
import common  # noqa: E402
import openings  # noqa: E402
import probe  # noqa: E402


def test_forward_operations_are_two_for_each_weight_of_the_products():
    model, vocab = common.WORKLOADS["W"]
    width = model.width // model.heads
    layer = model.width * (2 * model.heads + 2 * model.kv_heads) * width
    products = layer + 3 * model.width * model.hidden
    assert common.forward_flops("W") == 2 * (model.layers * products + vocab * model.width)


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
    monkeypatch.setattr(additive, "gap_scores", lambda data, rpit, x, y, y_ref: np.array(
        [10.0 * one[0] + draft[0] for one, draft in zip(y, y_ref)]))

    class Test:
        x, y_w, y_l = [[0], [1]], [[1], [1]], [[2], [2]]

        def __len__(self):
            return 2

        def __getitem__(self, some):
            return self
    data = SimpleNamespace(folds={"test": Test()}, tokenizer=SimpleNamespace(decode=lambda y: y[0]))
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


def test_the_probe_reads_the_states_of_each_response_alone(bills_run):
    """Compare with rows of one response each, and with the mean written out."""
    run, data = bills_run
    fold, trunk = data.folds["valid"][range(6)], GPT(run.config.model, data.vocab)
    found, sides = probe.differences(data, trunk, fold), []
    for y in (fold.y_w, fold.y_l):
        rows = data.policy_rows(fold.x, y)
        states = trunk(rows.tokens)
        sides.append(torch.stack([torch.cat([
            one[end - 1], one[start:end].mean(0), torch.tensor([float(end - start)])])
            for one, start, end in zip(states, rows.prompt, rows.length)]))
    torch.testing.assert_close(found, sides[0] - sides[1], atol=1e-5, rtol=1e-5)


def test_the_linear_model_is_at_the_minimum_of_its_loss():
    x = torch.randn(400, 30, generator=torch.Generator().manual_seed(0))
    w = probe.fitted(x, 10.0)
    gradient = -(x * (-(x @ w)).sigmoid()[:, None]).sum(0) + 10.0 * w
    assert gradient.abs().max() < 1e-2 * 10.0 * w.norm()


def test_the_ridge_is_the_one_that_is_best_on_pairs_that_it_was_not_fitted_to(monkeypatch):
    """Let a fit be the sum of its 8 pairs of 10, which are 1, 2, 4, ...: what is left out shows."""
    seen = []
    monkeypatch.setattr(probe, "fitted", lambda x, ridge: seen.append(int(x.sum())) or
                        torch.tensor([1.0 if ridge == 100.0 else -1.0]))
    assert probe.chosen_ridge(2.0 ** torch.arange(10)[:, None]) == 100.0
    assert {1023 - total for total in seen} == {2 ** k + 2 ** (k + 5) for k in range(5)}


def test_the_curve_finds_what_tells_and_has_no_more_than_there_is(monkeypatch):
    """The first feature has the right sign in three pairs of four, at any scale; others are noise.
    The longer response is right in half of the pairs."""
    monkeypatch.setattr(probe, "SIZES", (20, 1000))
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1200, 5, generator=generator)
    x[:, 0] = 1000 * torch.where(torch.arange(1200) % 4 > 0, 1.0, -1.0)
    longer = np.arange(200) % 2 / 1.0
    lines = probe.curve(x[:1000], x[1000:], longer, list(range(200)), generator)
    assert [line[0] for line in lines] == ["the longer response", "20 pairs", "1,000 pairs"]
    assert lines[0][1].startswith("0.500 [0.4") and lines[2][1].startswith("0.750 [0.6")
    assert lines[2][2].startswith("+0.250 [+0.1") and lines[2][3] == "0.750"
    assert len(lines[1][3].split(", ")) == len(lines[1][4].split(", ")) == probe.DRAWS
    same = probe.curve(x[:1000], x[1000:], longer, [0, 1] * 100, generator)
    assert same[2][1].startswith("0.750 [0.") and same[2][1] != lines[2][1]  # two prompts in all


def test_what_is_learned_does_not_depend_on_the_scale_of_the_features():
    x = torch.randn(300, 4, generator=torch.Generator().manual_seed(0)) + 0.1
    factors = torch.tensor([1.0, 100.0, 0.01, 7.0])
    (w, ridge), (other, same) = probe.learned(x), probe.learned(x * factors)
    torch.testing.assert_close(other * factors, w, rtol=1e-3, atol=1e-4)
    assert same == ridge
