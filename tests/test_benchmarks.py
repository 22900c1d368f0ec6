"""What the speed benchmarks share, and how additive r_gap is."""

import sys

import numpy as np
import pytest

from conftest import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))

import additive  # noqa: E402
import common  # noqa: E402


def test_forward_operations_are_two_for_each_weight_of_the_products():
    model = common.ours("W")
    weights = [p for name, p in model.named_parameters() if p.dim() == 2]  # tied: the table once
    assert common.forward_flops("W") == 2 * sum(p.numel() for p in weights)


def test_sides_take_turns_after_a_warm_up():
    calls = []
    seconds = common.alternate({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 5)
    assert calls == ["a", "b"] * 6 and set(seconds) == {"a", "b"}
    assert all(0 <= s < 1 for s in seconds.values())


def test_a_difference_of_scores_is_additive_and_an_interaction_is_not():
    f = np.random.default_rng(0).normal(size=(5, 4))
    difference = f[:, :, None] - f[:, None]
    found = additive.parts(difference + 3, f)  # r_gap has no zero
    assert found["f + g"] == pytest.approx(1) and found["f"] == pytest.approx(0.5)
    assert found["slope of g on f"] == pytest.approx(-1) and found["f, gold"] == pytest.approx(1)
    assert found["questions"] == 5
    crossed = np.array([[[1.0, -1.0], [-1.0, 1.0]]])  # each draft has its own best candidate
    assert additive.parts(difference[:1, :2, :2] * 1e-9 + crossed, f[:1, :2])["f + g"] < 1e-6
