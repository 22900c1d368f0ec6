"""What the speed benchmarks share."""

import sys

from conftest import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))

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
