"""A few of the faults of tests/faults.py, which has them all. They wait for processes most of
the time, so two are tried at once."""

import copy
from concurrent.futures import ThreadPoolExecutor

import pytest

import faults

SMALL = ("--sft.steps=120", "--rlhf.iterations=6", "--pit.curriculum=['stage0']",
         "--eval.equal_budget=false", "--eval.prompts=2", "--eval.temperatures=[1.0]",
         "--eval.iterations=1", "--eval.best_of=1")
TRIED = {"kills": lambda f: faults.kills(f, 3), "signals": faults.signals, "disk": faults.disk}


def tried(fault: str, whole: faults.Faults) -> faults.Faults:
    """Return the same undisturbed run, and what came of this fault."""
    own = copy.copy(whole)
    TRIED[fault](own)
    return own


@pytest.fixture(scope="module")
def disturbed(tmp_path_factory) -> dict:
    whole = faults.Faults(tmp_path_factory.mktemp("faults"), SMALL)
    with ThreadPoolExecutor(2) as pool:
        return {fault: pool.submit(tried, fault, whole) for fault in TRIED}


@pytest.mark.parametrize("fault", TRIED)
def test_a_disturbed_run_ends_as_an_undisturbed_one(disturbed, fault):
    found = disturbed[fault].result()
    assert found.survived == found.tried > 0
