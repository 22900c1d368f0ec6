"""Whether a prompt is said to be unlike the data."""

from types import SimpleNamespace

import pytest

import sample
from conftest import needs
from evaluation.familiar import Familiar, neighbours
from pretrained.vocabulary import JSONTokenizer


def test_neighbours_are_pairs_with_both_ends():
    assert neighbours([5, 6]) == [(-1, 5), (5, 6), (6, -1)]
    assert neighbours([]) == [(-1, -1)]


def test_the_share_of_new_neighbours_by_hand():
    folds = {"sft": [[1, 2, 3]], "reward": [[3, 1]], "rl": [[2]], "valid": [[1, 2, 3]],
             "test": [[3, 1, 2], [1, 4, 3]]}
    data = SimpleNamespace(tokenizer=SimpleNamespace(unknown=lambda text: ""), folds={
        name: SimpleNamespace(x=x) for name, x in folds.items()})
    familiar = Familiar(data)
    # known are -1 1 2 3 -1, -1 3 1 -1 and -1 2 -1. New in the last test prompt: 1 4, 4 3, of four
    assert familiar.usual == pytest.approx(0.49)  # nearly that one's, of three
    assert familiar.share_new([1, 2]) == 0.0 and familiar.share_new([2, 1]) == pytest.approx(1 / 3)
    assert familiar.share_new([9]) == 1.0
    assert not list(familiar.doubts([2, 1], ""))
    said, = familiar.doubts([4], "")
    assert "100% of its neighbouring pieces" in said
    assert "99% of the held-out prompts at most 49%" in said
    said, = familiar.doubts([1, 2, 3, 1, 2], "")  # longer than any, of known neighbours
    assert "has 5 tokens, those that the models were trained on 1 to 3" in said


def test_one_odd_held_out_prompt_excuses_nothing():
    x = [[1, 2, 3]] * 400
    folds = dict.fromkeys(("sft", "reward", "rl"), x) | {"valid": x, "test": [*x, [9, 8, 7]]}
    familiar = Familiar(SimpleNamespace(tokenizer=SimpleNamespace(unknown=lambda text: ""), folds={
        name: SimpleNamespace(x=x) for name, x in folds.items()}))
    assert familiar.usual == 0.0 and list(familiar.doubts([7, 8, 9], ""))


def test_only_what_is_unlike_the_data_is_told(bills_run, monkeypatch, capsys):
    run, data = bills_run
    shown = []
    monkeypatch.setattr(sample, "show_improvements", lambda run, data, models, prompt, *_:
                        shown.append(prompt))
    for prompt, words in (("What is the bill for tea, a coupon and a hat?", []),
                          ("Write a poem", ["unlike the data"]), ("tea", ["unlike the data"]),
                          ("How much is tea and a ☕?", ["'☕'", "unlike the data"])):
        sample.respond(run, data, None, SimpleNamespace(
            prompt=prompt, ref=None, seed=None, temperature=1.0))
        said = capsys.readouterr().err.splitlines()
        assert [line[:9] for line in said] == ["warning: "] * len(words)
        assert all(word in line for word, line in zip(words, said)), said
    assert len(shown) == 4  # each is answered all the same


@needs("tokenizers")
@pytest.mark.parametrize("unk_token, known", [(None, "bc"), ("<unk>", "bc")])
def test_a_tokenizer_json_knows_what_it_cannot_spell(tmp_path, unk_token, known):
    import tokenizers
    vocabulary = {"</s>": 0, "<unk>": 1, "b": 2, "c": 3}
    made = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, [], unk_token=unk_token))
    made.save(str(tmp_path / "t.json"))
    read = JSONTokenizer(tmp_path / "t.json", "</s>")
    assert read.unknown(f"{known}ab ") == "a"
    assert (read.piece(2), read.piece(9)) == ("b", "<9>")  # a row of the embedding, but no piece
