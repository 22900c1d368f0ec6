"""Loaders on small files, splits, counts, tokenizer, templates, batches."""

import gzip
import json
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import sentencepiece

import data
from conftest import MARKERS, ROOT, tiny_config, tiny_run, write_lines
from corpus import bills, prepare
from corpus.formats import TextPair, read_pairs
from corpus.prepare import split_keys
from corpus.templates import Template
from corpus.tokens import batches, fold_keys
from data import load_data
from pretrained.vocabulary import Tokenizer
from runtime.config import DataSection, TokenizerSection
from runtime.settings import UserError

SHARED = ROOT.parent / "shared" / "data"
PLAIN = {"prompt": "Say hello", "chosen": "Hello!", "rejected": "No."}


def talk(*turns: str) -> str:
    """Return a conversation of HH-RLHF: human and assistant take turns."""
    who = ("Human", "Assistant")
    return "".join(f"\n\n{who[i % 2]}: {turn}" for i, turn in enumerate(turns))


def summaries(choice, ids="t3_1", post=" A post. ", texts=(" first ", "second")) -> dict:
    return {"info": {"id": ids, "post": post, "article": None},
            "summaries": [{"text": text} for text in texts], "choice": choice}


def read(path) -> tuple[list[TextPair], Counter]:
    dropped = Counter()
    return read_pairs(str(path), dropped), dropped


# ------------------------------------------------------------------------------------ loaders


def test_plain_pairs(tmp_path):
    path = write_lines(tmp_path / "plain.jsonl", [
        PLAIN, "", PLAIN | {"chosen": "No."}, PLAIN | {"rejected": "  "}, PLAIN | {"prompt": "\n"},
        PLAIN | {"more": 1, "chosen": "Grüße\u2028"}])
    pairs, dropped = read(path)
    asked = [("user", "Say hello")]
    assert pairs == [TextPair("Say hello", asked, "Hello!", "No."),
                     TextPair("Say hello", asked, "Grüße\u2028", "No.")]
    assert dropped == {"responses equal": 1, "empty text": 2}


def test_hh_conversations_split_at_the_last_assistant_turn(tmp_path):
    lines = [
        {"chosen": talk("Hi", "Yes?", "A pun?", "Sure: one"), "rejected": talk(
            "Hi", "Yes?", "A pun?", "No")},
        {"chosen": talk("Hi", "Yes"), "rejected": talk("Ho", "No")},           # prompts differ
        {"chosen": talk("Hi", "Yes"), "rejected": talk("Hi", "Yes ")},         # the same response
        {"chosen": talk("Hi", ""), "rejected": talk("Hi", "No")},              # an empty one
        {"chosen": talk("Hi", "Yes", "So?"), "rejected": talk("Hi", "No")}]    # a turn too many
    plain = write_lines(tmp_path / "hh.jsonl", lines)
    zipped = tmp_path / "hh.jsonl.gz"
    zipped.write_bytes(gzip.compress((tmp_path / "hh.jsonl").read_bytes()))
    for path in (plain, zipped):
        pairs, dropped = read(path)
        turns = [("user", "Hi"), ("assistant", "Yes?"), ("user", "A pun?")]
        assert pairs == [TextPair("Hi", turns, "Sure: one", "No")]  # kept with what began so
        assert dropped == {"prompts differ": 1, "responses equal": 1, "empty text": 1,
                           "no response at the end": 1}


def test_summary_comparisons_take_the_chosen_text(tmp_path):
    article = summaries(1, "cnn", post=None)
    article["info"]["article"] = "An article."
    path = write_lines(tmp_path / "batch.json", [summaries(0), summaries(1), article])
    post, story = [("user", "A post.")], [("user", "An article.")]
    assert read(path)[0] == [TextPair("t3_1", post, "first", "second"),
                             TextPair("t3_1", post, "second", "first"),
                             TextPair("cnn", story, "second", "first")]


def without(record: dict, key: str) -> dict:
    return {k: v for k, v in record.items() if k != key}


@pytest.mark.parametrize("line, said", [
    ('{"prompt": ', "no JSON"),
    ("[1, 2]", "JSON object"),
    ("7", "JSON object"),
    (without(PLAIN, "chosen"), "chosen"),
    (PLAIN | {"chosen": [5]}, "'chosen'"),
    (PLAIN | {"prompt": None}, "'prompt'"),
    ({"text": "x"}, "found text"),
    ({}, "found none"),
    ({"chosen": "\n\nHuman: Hi", "rejected": talk("Hi", "No")}, "'chosen' has no turn"),
    ({"chosen": talk("Hi", "Yes"), "rejected": ["no"]}, "'rejected'"),
    (summaries("0"), "choice, 0 or 1"),
    (summaries(2), "choice, 0 or 1"),
    (summaries(0, texts=("only",)), "two summaries"),
    (summaries(0, post={"text": "x"}), "'post'"),
    (without(summaries(0), "info"), "info"),
    (without(summaries(0), "choice"), "choice"),
    ({"info": {"post": "x"}, "summaries": [{"text": "a"}, {"text": "b"}], "choice": 0}, "id"),
])
def test_a_bad_line_is_named_by_file_and_line(tmp_path, line, said):
    path = write_lines(tmp_path / "bad.jsonl", [PLAIN, PLAIN, line, PLAIN])
    with pytest.raises(UserError) as caught:
        read(path)
    message = str(caught.value)
    assert message.startswith(f"{path}:3: ") and said in message and "\n" not in message
    assert "no JSON (" in message or message.endswith(" (1 of 4 records cannot be used)")


def test_an_unreadable_file_is_named(tmp_path):
    whole = gzip.compress(b"\n".join([json.dumps(PLAIN).encode()] * 500))
    files = {"cut.jsonl.gz": whole[:len(whole) // 2], "no.jsonl.gz": b"plain text"}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    for name in [*files, "missing.jsonl", "."]:
        with pytest.raises(UserError) as caught:
            read(tmp_path / name)
        assert str(caught.value).startswith(f"{tmp_path / name}: cannot read the data")


@pytest.mark.parametrize("form", (lambda lines: b"\n".join(lines),
                                  lambda lines: b"[" + b",\n".join(lines) + b"]"))
def test_a_line_of_another_encoding_is_named(tmp_path, form):
    lines = [json.dumps(PLAIN).encode()] * 300 + [b'{"prompt": "gr\xfc\xdfe"}']
    (tmp_path / "latin.json").write_bytes(b"\xef\xbb\xbf" + form(lines))
    with pytest.raises(UserError, match="latin.json:301: it is no UTF-8"):
        read(tmp_path / "latin.json")
    (tmp_path / "utf.json").write_bytes(b"\xef\xbb\xbf" + form(lines[:300]))
    assert len(read(tmp_path / "utf.json")[0]) == 300


# ----------------------------------------------------------------------------- splits and counts


def test_splits_are_equal_thirds_beside_valid_and_test():
    keys = [f"key {i}" for i in range(110)]
    fold_of = split_keys(keys * 2, DataSection(valid=7, test=5), seed=3)
    assert list(fold_of) != keys and sorted(fold_of) == sorted(keys)
    sizes = Counter(fold_of.values())  # 98 are left: 33, 33, 32
    assert (sizes["valid"], sizes["test"]) == (7, 5)
    assert sorted([sizes["sft"], sizes["reward"], sizes["rl"]]) == [32, 33, 33]


def test_splits_depend_on_the_seed_but_not_on_the_order():
    keys, section = [f"key {i}" for i in range(50)], DataSection(valid=5, test=5)
    one = split_keys(keys, section, 1)
    assert split_keys(keys[::-1], section, 1) == one != split_keys(keys, section, 2)


def test_too_few_prompts_are_refused():
    section = DataSection(valid=4, test=3)
    assert len(split_keys([str(i) for i in range(10)], section, 1)) == 10
    with pytest.raises(UserError, match="9 distinct prompts are too few"):
        split_keys([str(i) for i in range(9)] * 2, section, 1)


def test_each_rank_has_a_prompt_of_each_fold(monkeypatch):
    monkeypatch.setattr(prepare.ranks, "ranks", lambda: 2)
    keys, section = [str(i) for i in range(13)], DataSection(valid=4, test=3)
    assert set(Counter(split_keys(keys, section, 1).values()).values()) == {2, 3, 4}
    with pytest.raises(UserError, match="12 distinct prompts are too few .* three folds of 2;"):
        split_keys(keys[1:], section, 1)


def test_a_cut_prompt_stays_with_its_equals():
    x = [[1, 2], [3, 4], [3, 4], [5], [5], [6]]
    keys = fold_keys(["a", "long b", "b", "long c", "long d", "e"], x)
    assert keys[:3] == ["a", "b", "b"] and keys[5] == "e"
    assert keys[3] == keys[4] and keys[3] not in keys[:3]


def test_what_links_two_groups_makes_them_one():
    x = [[1], [1], [2], [3], [2], [], [], [4]]  # [1] links a and b, then [2] both to c
    assert fold_keys(["a", "b", "b", "c", "c", "d", "e", "f"], x) == [*"aaaaadef"]
    # a post by its number, and a conversation of another file that begins with it
    keys = fold_keys(["id 7", "q", "r"], [[1], [1, 2], [3]], ["q", "q", "r"])
    assert keys == ["id 7", "id 7", "r"]


def test_a_bill_in_other_words_is_in_the_same_fold(tmp_path):
    loaded = load_data(tiny_run(tmp_path, data__bills=3000, data__valid=100, data__test=200))
    found = {name: [", ".join(bills.things_of(loaded.tokenizer.decode(x))) for x in fold.x]
             for name, fold in loaded.folds.items()}
    asked = sum(map(len, found.values()))
    assert len(set().union(*found.values())) == sum(len(set(one)) for one in found.values()) < asked
    for name, held_out in (("valid", 100), ("test", 200)):  # each bill, then other wordings
        assert len(set(found[name])) == len(set(found[name][:held_out])) == held_out
    assert loaded.counts["read"] == asked == 3000
    assert bills.things_of("How much is tea, a coupon and a hat?") == ["tea", "coupon", "hat"] == (
        bills.things_of("What is the bill for tea, a coupon and a hat?"))


def test_conversations_that_begin_alike_are_in_one_fold(tmp_path):
    lines = [{side: talk(f"Hi {i}", *["So?", "Yes"] * k, text) for side, text in (
        ("chosen", f"Tea {i} {k}"), ("rejected", "No"))} for i in range(30) for k in range(3)]
    loaded = load_data(tiny_run(
        tmp_path, data__files=[write_lines(tmp_path / "a.jsonl", lines)], data__valid=3,
        data__test=4, template__user="<|user|>{x}", template__assistant="<|assistant|>{x}",
        data__max_prompt=200, model__context=500, tokenizer__vocab=80))
    assert {name: len(fold) for name, fold in loaded.folds.items()} == {
        "valid": 9, "test": 12, "sft": 24, "reward": 24, "rl": 21}


def bill_lines(count: int) -> list[dict]:
    """Make pairs on bills; each prompt has two pairs."""
    pairs = list(bills.make_pairs(count, 5, "first"))
    return pairs + [p | {"chosen": "Sure! Sure! " + p["rejected"], "rejected": p["chosen"]}
                    for p in pairs]


def test_loaded_folds_share_no_prompt_and_counts_add_up(tmp_path):
    lines = bill_lines(60)
    lines += [PLAIN | {"chosen": "so " * 60}, PLAIN | {"prompt": "so " * 30}, PLAIN | {
        "chosen": "No."}]
    path = write_lines(tmp_path / "pairs.jsonl", lines)
    loaded = load_data(tiny_run(tmp_path, data__files=[path, path], data__valid=6, data__test=3,
                                data__max_prompt=26, data__max_response=45))
    counts, decode = loaded.counts, loaded.tokenizer.decode
    assert counts["read"] == 2 * len(lines) == sum(n for k, n in counts.items() if k != "read")
    assert counts["dropped, prompt too long"] == counts[
        "dropped, response too long"] == 2 and counts["dropped, responses equal"] == 2
    assert {k: len(fold) for k, fold in loaded.folds.items()} == {k: counts[k] for k in data.FOLDS}
    assert (counts["valid"], counts["test"]) == (4 * 6, 4 * 3)  # four pairs a prompt
    assert {counts[k] for k in ("sft", "reward", "rl")} == {4 * 17}
    prompts = {k: {decode(f.x[i]) for i in range(len(f))} for k, f in loaded.folds.items()}
    assert sum(map(len, prompts.values())) == 60 == len(set().union(*prompts.values()))
    fold = loaded.folds["rl"]
    written = {(p["prompt"], p["chosen"], p["rejected"]) for p in lines}
    assert all((decode(fold.x[i]), decode(fold.y_w[i]), decode(fold.y_l[i])) in written
               for i in range(len(fold)))


def test_length_limits_are_exact(tmp_path, tokenizer):
    lines = bill_lines(40)
    ids = [[tokenizer.encode([p[k]])[0] for k in ("prompt", "chosen", "rejected")] for p in lines]
    longest = [max(len(row[0]) for row in ids), max(len(y) for row in ids for y in row[1:])]
    path, model = write_lines(tmp_path / "p.jsonl", lines), str(tmp_path / "tokenizer.model")
    (tmp_path / "tokenizer.model").write_bytes(tokenizer.pieces.serialized_model_proto())
    for less, dropped in ((0, 0), (1, None)):
        config = tiny_config(tmp_path, data__max_prompt=longest[0], data__valid=2, data__test=2,
                             data__max_response=longest[1] + 1 - less)  # the end included
        counts = Counter()
        pairs, _ = read(path)
        own = Tokenizer(model)
        folds = prepare.encode_pairs(pairs, config, own, counts)
        too_long = sum(max(map(len, row[1:])) > longest[1] - less for row in ids)
        assert counts["response too long"] == too_long and (too_long == 0) == (less == 0)
        assert sum(map(len, folds.values())) == len(lines) - too_long


def test_data_is_the_same_each_time_and_reused(tmp_path):
    first, again = (load_data(tiny_run(tmp_path / name)) for name in ("a", "b"))
    reused = load_data(tiny_run(tmp_path / "a"))
    for other in (again, reused):
        assert other.counts == first.counts
        for name, fold in first.folds.items():
            for side in ("x", "y_w", "y_l"):
                assert list(getattr(fold, side)) == list(getattr(other.folds[name], side))
    assert first.counts["read"] == 300


def test_a_context_too_short_for_the_template_is_refused(tmp_path):
    fields = dict(data__max_prompt=30, data__max_response=30)
    load_data(tiny_run(tmp_path / "fits", model__context=94, **fields))  # 90, three markers, an end
    with pytest.raises(UserError, match="model.context = 93 is too short .*; raise it to 94"):
        load_data(tiny_run(tmp_path / "short", model__context=93, **fields))


def test_each_slot_of_a_template_takes_its_room(tmp_path):
    fields = dict(data__max_prompt=30, data__max_response=20,
                  refine__feedback="<|user|>{x}<|draft|>{y_ref}",
                  refine__rewrite="<|user|>{x}{y_ref}{feedback}<|user|>{x}{feedback}<|better|>")
    load_data(tiny_run(tmp_path / "fits", model__context=144, **fields))  # 60 + 80, 3 markers, end
    with pytest.raises(UserError, match="raise it to 144"):
        load_data(tiny_run(tmp_path / "short", model__context=143, **fields))


def test_a_vocabulary_that_does_not_fit_is_refused(tmp_path):
    with pytest.raises(UserError, match="tokenizer.vocab = 20 does not fit the data"):
        load_data(tiny_run(tmp_path, tokenizer__vocab=20))


# --------------------------------------------------------------------------- tokenizer, templates


def test_markers_and_punctuation_are_single_pieces(tokenizer):
    for marker in MARKERS + list(",.:;!?\n"):
        assert len(tokenizer.fixed(marker)) == 1, marker
    markers = {tokenizer.fixed(marker)[0] for marker in MARKERS}
    assert len(markers) == 4 and not markers & {*tokenizer.encode([" ".join(MARKERS)])[0]}
    number = tokenizer.pieces.encode("12")
    assert all(tokenizer.pieces.encode("12" + mark)[:-1] == number for mark in ",.:")


def test_text_survives_encoding(tokenizer):
    texts = [t for pair in bills.make_pairs(30, 9, "last") for t in pair.values()]
    texts += ["tea\nsalt", "tea  and   salt", "Sure!", "\ntea\n".strip()]
    assert [tokenizer.decode(ids) for ids in tokenizer.encode(texts)] == texts
    newline, = tokenizer.pieces.encode("\n")
    assert newline in tokenizer.encode(["tea\nsalt"])[0]


def test_a_word_is_the_same_piece_first_and_later(tokenizer):
    first, later = tokenizer.encode(["tea", "salt tea"])
    assert first == later[-len(first):]
    for word in ("bread", "What"):  # What is always the first of a text
        assert len(tokenizer.encode([word])[0]) == 1


def test_decode_stops_at_the_end(tokenizer):
    one, two = tokenizer.encode(["tea", "salt"])
    assert tokenizer.decode(one + [tokenizer.eos] + two) == "tea"
    assert tokenizer.decode([tokenizer.eos]) == "" == tokenizer.decode([])


def test_a_tokenizer_that_is_none_is_refused(tmp_path):
    (tmp_path / "no.model").write_bytes(b"no model")
    for name in ("no.model", "missing.model"):
        with pytest.raises(UserError, match=f"{name}: no SentencePiece model"):
            Tokenizer(tmp_path / name)


def test_bytes_spell_unknown_characters_if_asked(tmp_path):
    texts = [t for pair in bills.make_pairs(200, 1, "first") for t in pair.values()]
    prepare.train_tokenizer(texts, MARKERS, TokenizerSection(vocab=450, byte_fallback=True),
                         tmp_path / "t.model")
    spelling = Tokenizer(tmp_path / "t.model")
    text = "tea ☕ ü ½ ﬁsh"  # and nothing is normalised
    assert spelling.decode(spelling.encode([text])[0]) == text


def test_template_joins_parts_and_segments_as_ids(tokenizer):
    encode = tokenizer.pieces.encode
    template = Template("<|user|>{x}<|draft|>{y_ref}<|better|>", tokenizer)
    user, _, draft, better = (tokenizer.fixed(marker)[0] for marker in MARKERS)
    assert template([7, 8], [9]) == [user, 7, 8, draft, 9, better]
    assert template([7], []) == [user, 7, draft, better]
    x = [5]
    assert Template("{x}", tokenizer)(x) == [5] and x == [5]
    words = Template("Sure! {y_ref}, then {x}:", tokenizer)
    assert words([7], [8, 9]) == encode("Sure!") + [8, 9] + encode(", then") + [7] + encode(":")
    assert words.spaced == {"{y_ref}": True, "{x}": True, "": False}  # the spaces are the texts'


def test_the_end_of_a_line_at_the_end_of_a_template_is_no_part_of_its_own():
    parts = []
    letters = SimpleNamespace(fixed=lambda text, first: parts.append(text) or [*map(ord, text)])
    lines = Template("{x}:\n\n", letters)
    assert parts == [":\n\n"] and lines([1]) == [1, 58, 10, 10] and lines.spaced[""] is False


def test_a_tokenizer_of_somebody_elses_serves_as_well(tmp_path):
    texts = [t for pair in bills.make_pairs(200, 1, "first") for t in pair.values()]
    sentencepiece.SentencePieceTrainer.train(  # the defaults: it adds a space before a text itself
        sentence_iterator=iter(texts), model_prefix=str(tmp_path / "other"), vocab_size=150,
        model_type="bpe", minloglevel=2, num_threads=1)
    other = Tokenizer(tmp_path / "other.model")
    assert (other.bos, other.eos, other.vocab) == (1, 2, 150)
    assert other.encode(["tea 5"])[0] == other.pieces.encode("tea 5")  # no second space
    assert other.decode(other.encode(["tea 5"])[0] + [2]) == "tea 5"
    begin = Template("{x}!", other, [other.bos])([7])
    assert begin == [1, 7, *other.pieces.encode("!")]
    marked = Template("{x}</s><s>!", other)([7])  # control pieces are single tokens in a template,
    assert marked == [7, 2, 1, *other.pieces.encode("!")]
    assert not {1, 2} & {*other.encode(["tea</s><s>5"])[0]}  # and text in a text


def test_responses_get_and_lose_their_end(bills_run):
    _, loaded = bills_run
    eos = loaded.tokenizer.eos
    assert loaded.add_eos([5, 6]) == [5, 6, eos]
    assert loaded.strip_eos([5, 6, eos]) == [5, 6] and loaded.strip_eos([5, 6]) == [5, 6]
    assert loaded.strip_eos([eos]) == [] == loaded.strip_eos([])


# ------------------------------------------------------------------------------ texts and batches


def test_batches_take_every_index_at_most_once_an_epoch():
    lengths = np.random.default_rng(0).integers(1, 50, 103)
    made = list(batches(lengths, 2, 255, np.random.default_rng(1)))
    assert len(made) == 255 and {len(batch) for batch in made} == {2}
    epochs = [np.concatenate(made[i:i + 51]).tolist() for i in range(0, 255, 51)]
    for epoch in epochs:  # 51 full batches, one index is left out
        assert len(set(epoch)) == len(epoch) == 102
    assert epochs[0] != epochs[1] and len(set(map(frozenset, epochs))) > 1
    assert set(sum(epochs, [])) == set(range(103))


def test_batches_hold_similar_lengths_in_random_order():
    lengths = np.random.default_rng(0).integers(1, 50, 320)
    made = list(batches(lengths, 10, 32, np.random.default_rng(1)))
    assert np.mean([np.ptp(lengths[batch]) for batch in made]) < 3  # at random it is about 41
    means = [lengths[batch].mean() for batch in made]
    assert sorted(means) != means and abs(np.corrcoef(means, range(32))[0, 1]) < 0.5


def test_stretches_keep_batches_random_over_a_large_fold():
    lengths = np.arange(3200)
    first = next(iter(batches(lengths, 10, 1, np.random.default_rng(1))))
    assert np.ptp(first) > 20  # sorted as a whole it would be 9


def test_a_fold_smaller_than_a_batch_is_one_batch():
    made = list(batches(np.array([3, 1, 2]), 10, 2, np.random.default_rng(1)))
    assert [sorted(batch.tolist()) for batch in made] == [[0, 1, 2]] * 2


# ---------------------------------------------------------------------------- the real files


@pytest.mark.skipif(not SHARED.exists(), reason="needs the data sets in shared/data")
def test_published_files_load():
    pairs, dropped = read(SHARED / "hh-rlhf" / "helpful-base" / "test.jsonl.gz")
    assert len(pairs) + dropped.total() == 2354 and len(pairs) > 2300
    assert all(p.prompt[-1][0] == "user" and "\n\nHuman:" not in p.chosen for p in pairs)
    pairs, dropped = read(SHARED / "summarize_from_feedback" / "batch13.json")
    first = json.loads((SHARED / "summarize_from_feedback" / "batch13.json").open().readline())
    assert pairs[0].chosen == first["summaries"][first["choice"]]["text"].strip()
    assert pairs[0].key == first["info"]["id"] and len(pairs) > 10 * dropped.total()
