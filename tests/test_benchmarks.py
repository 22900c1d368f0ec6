"""The table over seeds."""

import sys

from conftest import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))

import common  # noqa: E402
from seeds import table  # noqa: E402


def one_report(delta, low, high, gold):
    row = {"system": "PIT stage 1", "against": "M_P^RL", "temperature": 0.5, "iteration": 1,
           "delta": delta, "ci_low": low, "ci_high": high, "gold": gold, "aspects": {"total": gold}}
    return {"rows": [row], "reward": {"R_P": {"accuracy": gold}}, "seconds": {"sft": 10, "rp": 20}}


def test_a_row_has_the_mean_each_seed_and_a_star_where_all_intervals_exclude_zero():
    sure = table([one_report(10, 5, 15, 0.8), one_report(20, 1, 39, 0.6)])
    assert "| PIT stage 1 | 0.5 | 1 | M_P^RL | 0.700 | +15.0 (+10.0, +20.0) * |" in sure
    assert "| R_P | 0.700 (0.800, 0.600) |" in sure and "| all | 30 (30, 30) |" in sure
    unsure = table([one_report(10, 5, 15, 0.8), one_report(20, -1, 41, 0.6)])
    assert "+15.0 (+10.0, +20.0) |" in unsure
    apart = table([one_report(10, 5, 15, 0.8), one_report(-10, -15, -5, 0.6)])
    assert "+0.0 (+10.0, -10.0) |" in apart


def test_forward_operations_are_two_for_each_weight_of_the_products():
    model = common.ours("W")
    weights = [p for name, p in model.named_parameters() if p.dim() == 2]  # tied: the table once
    assert common.forward_flops("W") == 2 * sum(p.numel() for p in weights)


def test_sides_take_turns_after_a_warm_up():
    calls = []
    seconds = common.alternate({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 5)
    assert calls == ["a", "b"] * 6 and set(seconds) == {"a", "b"}
    assert all(0 <= s < 1 for s in seconds.values())
