"""Random bytes and random JSON for every loader: what a file holds is read, or refused in one line.

hypothesis is an extra of the tests: pip install hypothesis; without it they are skipped."""

import json
from collections import Counter

import pytest

from conftest import needs, write_lines
from corpus.formats import read_pairs
from pretrained.configure import load_config
from pretrained.vocabulary import Tokenizer
from runtime.files import load
from runtime.settings import UserError

pytest.importorskip("hypothesis", reason="an extra of the tests: pip install hypothesis")
pytestmark = needs("hypothesis")
from hypothesis import HealthCheck, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

KEYS = {  # of each format
    "plain": ("prompt", "chosen", "rejected"), "summaries": ("info", "summaries", "choice"),
    "judge set": ("instruction", "response1", "response2", "votes"),
    "HelpSteer3": ("context", "response1", "response2", "overall_preference"),
    "SHP": ("history", "human_ref_A", "human_ref_B", "labels"), "Nectar": ("prompt", "answers"),
    "Chatbot Arena": ("conversation_a", "conversation_b", "winner", "turn")}
WORDS = st.sampled_from(["user", "assistant", "system", "text", "model_a", "a\nb"])
ANYTHING = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text() | WORDS,
                        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(
                            st.sampled_from(["info", "post", "text", "role", "content", "type",
                                             "rank", "answer", "id", "x"]), inner, max_size=5),
                        max_leaves=12)
quietly = settings(max_examples=150, deadline=None,
                   suppress_health_check=[HealthCheck.function_scoped_fixture])


def may_refuse(read, path) -> None:
    """Check that a file is read, or refused with its name in one line."""
    try:
        read(str(path))
    except UserError as error:
        assert str(path) in str(error) and "\n" not in str(error)


@quietly
@given(st.binary(max_size=300))
def test_random_bytes_are_read_or_refused(tmp_path, content):
    for name, read in (("a.jsonl", lambda p: read_pairs(p, Counter())), ("a.toml", load_config),
                       ("a.jsonl.gz", lambda p: read_pairs(p, Counter())), ("a.model", Tokenizer),
                       ("a.pt", load)):
        (tmp_path / name).write_bytes(content)
        may_refuse(read, tmp_path / name)


@quietly
@given(st.lists(ANYTHING | st.one_of(*(st.fixed_dictionaries({key: ANYTHING for key in keys})
                                       for keys in KEYS.values())), max_size=3))
def test_random_json_is_read_or_refused(tmp_path, records):
    path = tmp_path / "a.jsonl"
    write_lines(path, [json.dumps(record) for record in records])
    may_refuse(lambda p: read_pairs(p, Counter()), path)
