"""Edges that once broke: one test for each bug that was found and fixed."""

import gzip
import json

import numpy as np
import pytest

from conftest import tiny_gpt, tiny_run
from corpus.formats import read_pairs
from corpus.tokens import batches
from data import load_data
from faster.branches import two_scores
from pretrained.configure import load_config
from reward import RewardModel
from runtime.config import RewardSection
from runtime.settings import UserError


def test_padding_behind_branches_stays_in_the_context():
    model = RewardModel(tiny_gpt(context=100), RewardSection())
    scores = two_scores(model, [[1] * 60, [1] * 5], [[2] * 30, [2]], [[3] * 30, [3]])
    assert scores[0].isfinite().all()


def test_a_stale_tokenizer_is_not_used(tmp_path):
    load_data(tiny_run(tmp_path / "a"))
    other = tiny_run(tmp_path / "b", tokenizer__vocab=120)
    load_data(other)
    (tmp_path / "a" / "tiny" / "data.pt").unlink()
    model = str(other.folder / "tokenizer.model")
    assert load_data(tiny_run(tmp_path / "a", tokenizer__model=model)).tokenizer.vocab == 120


def test_a_torn_last_line_of_the_metrics_is_no_crash(tmp_path):
    run = tiny_run(tmp_path)
    (run.folder / "metrics.jsonl").write_text('{"stage": "sft", "step": 1}\n{"stage": "rp", "st')
    run.stage("rp", ("rp",), dict)


@pytest.mark.parametrize("override", [["--eval.temperatures=[]"], ["--ppo.lr=nan"],
                                      ["--sft.batch=1", "--run.ranks=2"]])
def test_more_values_that_cannot_work_are_refused(tmp_path, override):
    (tmp_path / "c.toml").write_text("")
    with pytest.raises(UserError):
        load_config(str(tmp_path / "c.toml"), override)


def test_more_bad_lines_are_named(tmp_path):
    from collections import Counter
    raw = bytearray(gzip.compress(json.dumps({"prompt": list(range(9999))}).encode()))
    raw[len(raw) // 3] ^= 255
    contents = [b'{"prompt": ' + b"9" * 5000 + b"}", b"[" * 100_000]
    for content in contents:
        (tmp_path / "x.jsonl").write_bytes(content)
        with pytest.raises(UserError):
            read_pairs(str(tmp_path / "x.jsonl"), Counter())
    (tmp_path / "x.jsonl.gz").write_bytes(bytes(raw))
    with pytest.raises(UserError):
        read_pairs(str(tmp_path / "x.jsonl.gz"), Counter())


def test_the_longest_rows_of_a_small_fold_are_trained_on_too():
    seen = set()
    for batch in batches(np.arange(100), 32, 300, np.random.default_rng(0)):
        seen |= set(batch.tolist())
    assert seen == set(range(100))
