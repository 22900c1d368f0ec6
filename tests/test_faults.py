"""A few of the faults of benchmarks/faults.py, which has them all."""

import sys

import pytest

from conftest import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
import faults  # noqa: E402


@pytest.fixture(scope="module")
def disturbed(tmp_path_factory) -> faults.Faults:
    return faults.Faults(tmp_path_factory.mktemp("faults"))


@pytest.mark.parametrize("fault", [lambda f: faults.kills(f, 3), faults.signals, faults.disk],
                         ids=["kills", "signals", "disk"])
def test_a_disturbed_run_ends_as_an_undisturbed_one(disturbed, capsys, fault):
    fault(disturbed)
    assert disturbed.survived == disturbed.tried > 0, capsys.readouterr().out
