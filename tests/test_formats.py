"""Published formats of pairs, prompts of several turns, lists of tokens in one array, and what a
judge outside reads and writes."""

import gzip
import json
import random
from collections import Counter

import numpy as np
import pytest
import sentencepiece

import data
from conftest import MARKERS, ROOT, needs, tiny_config, tiny_run, write_lines
from corpus import bills, prepare
from corpus.formats import ROLES, read_pairs
from corpus.tokens import Column, columns_of, cut_from_left, flattened
from data import load_data
from evaluation.measure import at_equal_length
from evaluation.show import prompt_text
from evaluation.verdicts import as_markdown, read_verdicts, write_pairs
from pretrained.configure import load_config
from runtime import files
from runtime.settings import UserError

SHARED = ROOT.parent / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.exists(), reason="needs the data sets in shared/data")
JUDGED = {"instruction": "q", "response1": "one ", "response2": "two"}


def said(*turns: str) -> list[dict]:
    """Make messages: "s: text" is the system's, "u: text" the user's, "a: text" the assistant's."""
    roles = {"s": "system", "u": "user", "a": "assistant"}
    return [{"role": roles.get(turn[0], turn[0]), "content": turn[3:]} for turn in turns]


def asked(*turns: str, y: str = "y", n: str = "n") -> dict:
    """Return a prompt of these turns with two responses."""
    return {"prompt": said(*turns), "chosen": said(f"a: {y}"), "rejected": said(f"a: {n}")}


def sides(chosen: list, rejected: list, **more) -> dict:
    return {"chosen": chosen, "rejected": rejected} | more


def read(path) -> tuple[list, Counter]:
    dropped = Counter()
    return read_pairs(str(path), dropped), dropped


def refusal(reader, path) -> str:
    """Return the one line that reading a file ends in."""
    with pytest.raises(UserError) as caught:
        reader(path)
    line = str(caught.value)
    assert line.startswith(str(path)) and "\n" not in line
    return line


# --------------------------------------------------------------------------------- conversations


def summarised(post: str, *texts: str) -> dict:
    """Return a comparison of OpenAI's, that chooses the first of these summaries."""
    return {"info": {"post": post, "id": "t3"}, "summaries": [{"text": text} for text in texts],
            "choice": 0}


QY, QN = said("u: q", "a: y"), said("u: q", "a: n")
SYSTEM, LONG = ["s: be brief", "u: q"], ["s: be brief", "u: o", "a: p", "u: q"]


@pytest.mark.parametrize("record, turns", [
    (asked("u: q"), ["u: q"]), (asked(*SYSTEM), SYSTEM), (asked(*LONG), LONG),
    (sides(said(*SYSTEM, "a: y"), said("a: n"), prompt=said(*SYSTEM)), SYSTEM),  # said twice
    (sides(QY, QN), ["u: q"]), (sides(QY, QN, prompt=None), ["u: q"]),
    (sides(said(*LONG, "a: y"), said(*LONG, "a: n")), LONG),
    (sides(QY, QN, prompt="q", prompt_id="5", messages=QY, score_chosen=8.0), ["u: q"]),  # UltraF.
    (sides(said("a: y"), said("a: n"), prompt="q"), ["u: q"]),
    (sides("y", "n", prompt="q"), ["u: q"]),
    (sides("y", "n", prompt="q", system="be brief"), SYSTEM),
    (sides("y", "n", prompt="q", system=float("nan")), ["u: q"]),
    (sides("y", "n", prompt="q", system=" "), ["u: q"]),
    (sides("y", "n", prompt="Human: q\n\nAssistant:", system="be brief"), SYSTEM),
    (sides(" y", " n", prompt="\n\nHuman: o\n\nAssistant: p\n\nHuman: q\n\nAssistant:"), LONG[1:]),
    (sides("y", "n", prompt="Human: what is it?"), ["u: Human: what is it?"])])
def test_conversations_are_read_in_every_form(tmp_path, record, turns):
    (pair,), dropped = read(write_lines(tmp_path / "a.jsonl", [record]))
    assert not dropped and (pair.chosen, pair.rejected) == ("y", "n")
    assert pair.prompt == [(turn["role"], turn["content"]) for turn in said(*turns)]


def test_conversations_that_are_no_pairs_are_counted_by_reason(tmp_path):
    pairs, dropped = read(write_lines(tmp_path / "a.jsonl", [
        sides(QY, said("u: o", "a: n")), sides(QY, said("s: be brief", "u: q", "a: n")),
        sides(QY, said("u: q", "u: q", "a: n")), sides(QY, QY), sides(QY, QN + said("u: so?")),
        sides(QY, []), sides(said("a: y"), said("a: n")), asked("s: be brief"),
        asked("u: q", "a: o"), asked("u:  "), asked("u: q", n=" "),
        sides(QY, QN, score_chosen=7.5, score_rejected=7.5)]))
    assert not pairs and dropped == {
        "prompts differ": 3, "responses equal": 1, "no response at the end": 2,
        "no turn of the user before the response": 3, "empty text": 2, "tie": 1}


@pytest.mark.parametrize("record, word", [
    (sides(said("u: q", "bot: y"), QN),
     "'chosen' has a role that is none of system, user, assistant, found 'b'"),
    (sides(said("a: y"), None, prompt=said("u: q")), "'rejected' is no list of messages"),
    (sides([5], QN), "'chosen' is no list of messages"),
    (sides([{"role": "user"}], QN), "'content' is missing"),
    (sides([{"role": "user", "content": None}], QN), "'content' is missing"),
    (sides([{"content": "y"}], QN), "'role' is missing"),
    (sides(said("a: y"), said("a: n"), prompt={}), "'prompt' is missing or no string"),
    (sides(said("a: y"), said("a: n"), prompt=["q"]), "'prompt' is no list of messages"),
    (summarised("\ud800", "y", "n"), "'post'"), (summarised("p", "y", "n", "o"), "two summaries")])
def test_a_record_that_is_none_is_named_by_file_and_line(tmp_path, record, word):
    path = write_lines(tmp_path / "a.jsonl", [asked("u: q"), sides(QY, QN), record])
    assert f"{path}:3: " in (line := refusal(read, path)) and word in line


def test_one_prompt_is_one_key_in_whatever_format_it_comes(tmp_path):
    """Check it: else a prompt could be trained on in one fold and held out in another."""
    pairs, _ = read(write_lines(tmp_path / "a.jsonl", [
        sides("y", "n", prompt="q"), JUDGED | {"preference": 1}, sides(QY, QN),
        sides("\n\nHuman: q\n\nAssistant: y", "\n\nHuman: q\n\nAssistant: n"),
        JUDGED | {"preference": 1, "input": ""}, JUDGED | {"preference": 1, "input": "text"}]))
    assert [pair.prompt for pair in pairs] == [[("user", "q")]] * 5 + [[("user", "q\n\ntext")]]
    assert [pair.key == pairs[0].key for pair in pairs] == [True] * 5 + [False]


GOOD = {"plain": sides("y", "n", prompt="q"), "conversations": sides(QY, QN),
        "HH-RLHF": sides("\n\nHuman: q\n\nAssistant: y", "\n\nHuman: q\n\nAssistant: n"),
        "summaries": summarised("q", "y", "n"), "judge set": JUDGED | {"preference": 1},
        "HelpSteer3": {"domain": "stem", "language": "english", "context": said("u: q"),
                       "response1": "n", "response2": "y", "overall_preference": 2,
                       "individual_preference": [{"score": 2, "reasoning": "r", "feedback1": "f"}]},
        "SHP": {"post_id": "p", "history": "q", "human_ref_A": "y", "human_ref_B": "n",
                "labels": 1, "score_A": 9, "score_B": 2},
        "Nectar": {"prompt": "\n\nHuman: q\n\nAssistant: ", "turns": 1, "answers": [
            {"answer": text, "model": "m", "rank": rank}
            for text, rank in (("o", 2.0), ("n", 3.0), ("y", 1.0))]},
        "Chatbot Arena": {"question_id": "5", "model_a": "m", "model_b": "o", "winner": "model_b",
                          "conversation_a": QN, "conversation_b": QY, "turn": 1}}
BAD = {"plain": GOOD["plain"] | {"chosen": None}, "conversations": sides(QY, [{"role": "bot"}]),
       "HH-RLHF": sides("no turn", "no turn"), "summaries": GOOD["summaries"] | {"choice": 2},
       "judge set": JUDGED | {"preference": 7},
       "HelpSteer3": GOOD["HelpSteer3"] | {"overall_preference": None},
       "SHP": GOOD["SHP"] | {"labels": "A"},
       "Nectar": GOOD["Nectar"] | {"answers": [{"answer": "y"}]},
       "Chatbot Arena": GOOD["Chatbot Arena"] | {"winner": "model_c"}}
REASONS = {"plain": "field 'chosen' is missing or no string of text",
           "conversations": "field 'content' is missing or no string of text",
           "HH-RLHF": "field 'chosen' has no turn '\\n\\nAssistant:'",
           "summaries": "no summary comparison",
           "judge set": "expected votes 0, 1 or 2 in annotator..., votes or preference",
           "HelpSteer3": "expected overall_preference from -3 to 3",
           "SHP": "expected labels, 0 or 1", "Nectar": "expected answers, each with a rank",
           "Chatbot Arena": "expected winner model_a, model_b or tie"}


@pytest.mark.parametrize("kind", GOOD)
def test_every_format_gives_the_same_pair_of_the_same_key(tmp_path, kind):
    (pair,), dropped = read(write_lines(tmp_path / "a.jsonl", [GOOD[kind] | {"info": {
        "post": "q", "id": "q"}} if kind == "summaries" else GOOD[kind]]))
    texts = ("one", "two") if kind == "judge set" else ("y", "n")
    assert not dropped and (pair.key, pair.prompt) == ("q", [("user", "q")])
    assert (pair.chosen, pair.rejected) == texts


BEFORE, SYSTEM = said("u: o", "a: p"), [{"role": "system", "content": "be"}]


def in_parts(messages):
    """Return messages as Arena's sets of 2025 have them."""
    return [{"role": m["role"], "content": [{"type": "text", "text": m["content"]}]}
            for m in messages]


NO_USER = "no turn of the user before the response"


@pytest.mark.parametrize("kind, more, found", [
    ("HelpSteer3", {"overall_preference": -1}, "ny"),
    ("HelpSteer3", {"overall_preference": 0}, {"tie": 1}),
    ("HelpSteer3", {"context": BEFORE}, {NO_USER: 1}),
    ("SHP", {"labels": 0}, "ny"), ("Nectar", {"prompt": "q"}, {
        "no turn 'Human:' before the response": 1}),
    ("Nectar", {"answers": [{"answer": text, "rank": 1.0} for text in "yn"]}, {"tie": 1}),
    ("Chatbot Arena", {"winner": "model_a"}, "ny"),
    *(("Chatbot Arena", {"winner": winner}, {"tie": 1})
      for winner in ("tie", "tie (bothbad)", "both_bad")),
    ("Chatbot Arena", {"conversation_a": QN + said("u: so?", "a: r"),  # MT-bench: both turns, one
                       "conversation_b": QY + said("u: so?", "a: s")}, "yn"),  # of them judged
    ("Chatbot Arena", {"conversation_a": SYSTEM + QN + said("u: so?"),
                       "conversation_b": SYSTEM + QY}, "yn"),
    ("Chatbot Arena", {"conversation_a": [], "conversation_b": []}, {"no response at the end": 1}),
    ("Chatbot Arena", {"conversation_a": in_parts(QN), "conversation_b": in_parts(QY)}, "yn"),
    ("plain", {"answers": ["one"], "overall_preference": 2}, "yn"),  # of other columns
    ("conversations", {"answers": None}, "yn"), ("plain", {"answers": [{"rank": 1.0}]}, "yn"),
    ("HelpSteer3", {"response1": " n\n"}, "yn"),
    ("SHP", {"human_ref_A": "y ", "history": "q "}, "yn"),
    ("Chatbot Arena", {"conversation_a": said("u: o", "a: r") + QN}, {"prompts differ": 1})])
def test_published_preferences_are_read_as_they_are_meant(tmp_path, kind, more, found):
    pairs, dropped = read(write_lines(tmp_path / "a.jsonl", [GOOD[kind] | more]))
    assert "".join(pair.chosen + pair.rejected for pair in pairs) == found or dropped == found


@pytest.mark.parametrize("kind, more", [
    ("HelpSteer3", {"overall_preference": 4}), ("HelpSteer3", {"overall_preference": "2"}),
    ("Nectar", {"answers": []}), ("Nectar", {"answers": ["y", "n"]})])
def test_preferences_that_say_none_are_refused(tmp_path, kind, more):
    path = write_lines(tmp_path / "a.jsonl", [GOOD[kind] | more])
    assert f"{path}:1: {REASONS[kind]}" in refusal(read, path)


def test_several_files_are_mixed_and_a_fold_begins_with_pairs_of_all(tmp_path):
    made = list(bills.make_pairs(400, 5, "first"))
    paths = [write_lines(tmp_path / f"{name}.jsonl", [
        pair | {"chosen": f"{name} {pair['chosen']}", "rejected": f"{name} {pair['rejected']}"}
        for pair in half]) for name, half in (("tea", made[:200]), ("hat", made[200:]))]
    loaded = load_data(tiny_run(tmp_path, data__files=paths, data__valid=2, data__test=2))
    names = [loaded.tokenizer.decode(y).split()[0] for y in loaded.folds["reward"].y_w[:40]]
    assert 10 < names.count("tea") < 30


@pytest.mark.parametrize("kind, more", [
    ("HelpSteer3", {"context": BEFORE + said("u: q")}),
    ("Nectar", {"prompt": "\n\nHuman: o\n\nAssistant: p\n\nHuman: q\n\nAssistant: "}),
    ("Chatbot Arena", {"conversation_a": BEFORE + QN, "conversation_b": BEFORE + QY, "turn": 2})])
def test_their_prompts_may_have_several_turns(tmp_path, kind, more):
    (pair,), _ = read(write_lines(tmp_path / "a.jsonl", [GOOD[kind] | more]))
    assert pair.prompt == [("user", "o"), ("assistant", "p"), ("user", "q")]
    assert (pair.key, pair.chosen, pair.rejected) == ("o", "y", "n")


@pytest.mark.parametrize("kind", GOOD)
def test_a_few_records_that_cannot_be_used_are_left_out_counted_and_shown(tmp_path, capsys, kind):
    good, bad = GOOD[kind], BAD[kind]
    path = write_lines(tmp_path / "a.jsonl", [bad, *[good] * 96, bad, bad, 5, bad])
    pairs, dropped = read(path)
    assert len(pairs) == 96 and dropped == {REASONS[kind]: 4, "expected a JSON object a line": 1}
    shown = capsys.readouterr().err.splitlines()
    assert [line.split(": ")[:2] for line in shown] == [["data", "left out"]] * 3
    assert [f"{path}:{n}: {REASONS[kind]}" in line for n, line in zip((1, 98, 99), shown)] == (
        [True] * 3)
    path = write_lines(tmp_path / "a.jsonl", [good] * 94 + [bad] * 5)
    line = refusal(read, path)
    assert f"{path}:95: {REASONS[kind]}" in line
    assert line.endswith("(5 of 99 records cannot be used)")
    assert not capsys.readouterr().err


def test_numbers_and_truth_values_are_taken_as_text(tmp_path):
    pairs, dropped = read(write_lines(tmp_path / "a.jsonl", [
        {"instruction": 5, "response1": True, "response2": 2.5, "annotator1": 1},
        sides(7, False, prompt="q"),
        sides(said("u: q") + [{"role": "assistant", "content": 1}], QN)]))
    assert not dropped and [(p.prompt[0][1], p.chosen, p.rejected) for p in pairs] == [
        ("5", "True", "2.5"), ("q", "7", "False"), ("q", "1", "n")]


# ------------------------------------------------------------------------------------ judge sets


@pytest.mark.parametrize("votes, order", [
    ({"annotator1": 1, "annotator2": 2, "annotator3": 1}, ["one", "two"]),
    ({"annotator1": 2, "annotator2": 0, "annotator3": 0}, ["two", "one"]),
    ({"annotator1": 1, "annotator2": 2, "annotator3": 0}, []), ({"votes": [0]}, []),
    ({"votes": [2, 2, 1]}, ["two", "one"]), ({"votes": ["1", "0"]}, ["one", "two"]),
    ({"preference": 2}, ["two", "one"]), ({"preference": "1"}, ["one", "two"]),
    ({"preference": 0}, []), ({"votes": [1], "preference": 2}, [])])
def test_the_majority_of_votes_decides_and_ties_are_counted(tmp_path, votes, order):
    pairs, dropped = read(write_lines(tmp_path / "a.jsonl", [JUDGED | votes]))
    assert [text for p in pairs for text in (p.chosen, p.rejected)] == order
    assert dropped == ({} if order else {"tie": 1})


@pytest.mark.parametrize("votes", [
    {}, {"votes": []}, {"votes": [3]}, {"votes": [None]}, {"votes": [[1]]}, {"votes": 1},
    {"votes": "12"}, {"preference": 1.5}, {"preference": None}, {"annotator1": "first"},
    {"votes": [1], "input": [7]}, {"votes": [1], "response1": None}])
def test_malformed_votes_are_refused(tmp_path, votes):
    path = write_lines(tmp_path / "a.jsonl", [JUDGED | {"preference": 1}, JUDGED | votes])
    assert f"{path}:2: " in refusal(read, path)


# ----------------------------------------------------------------------------------------- files


def test_one_list_in_a_file_is_as_good_as_a_record_a_line_also_where_it_is_zipped(tmp_path):
    path, records = tmp_path / "a.json", [JUDGED | {"preference": k} for k in (1, 2, 0)]
    lines = "\n".join(map(json.dumps, records))
    for text in (json.dumps(records), "\n" + json.dumps(records, indent=1),
                 gzip.compress(lines.encode())):
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        pairs, dropped = read(path)
        assert [p.chosen for p in pairs] == ["one", "two"] and dropped == {"tie": 1}
    path.write_text(json.dumps(records + [JUDGED], indent=1))
    assert f"{path}, item 4: expected votes" in refusal(read, path)
    path.write_text(json.dumps(records[0]) + "\n[1, 2]\n")
    assert f"{path}:2: expected a JSON object" in refusal(read, path)
    path.write_text(json.dumps(records)[:-1])
    assert f"{path}: no JSON" in refusal(read, path)


@needs("pyarrow")
def test_a_parquet_table_is_read_and_a_damaged_one_refused_in_one_line(tmp_path):
    import pyarrow
    from pyarrow import parquet
    path, chance, refused = tmp_path / "train.parquet", random.Random(0), 0
    rows = [sides(said(f"u: q{i}", f"a: y{i}"), said(f"u: q{i}", f"a: {'yn'[i > 2]}{i}"),
                  prompt=f"q{i}", score=i / 2) for i in range(200)]
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    pairs, dropped = read(path)
    assert dropped == {"responses equal": 3} and [(p.prompt, p.chosen, p.rejected) for p in pairs] \
        == [([("user", f"q{i}")], f"y{i}", f"n{i}") for i in range(3, 200)]
    whole = path.read_bytes()
    parquet.write_table(pyarrow.Table.from_pylist(rows[:4] + [{"prompt": "q"}]), path)
    assert f"{path}, row 5: field 'chosen'" in refusal(read, path)
    for trial in range(120):  # half of them cut off, half of them with wrong bytes
        content = bytearray(whole if trial % 2 else whole[:chance.randrange(4, len(whole))])
        for _ in range(40 * (trial % 2)):
            content[chance.randrange(4, len(content))] = chance.randrange(256)
        path.write_bytes(content)
        try:
            read(path)
        except UserError as error:
            assert str(error).startswith(str(path)) and "\n" not in str(error)
            refused += 1
    assert refused > 100


# ---------------------------------------------------------------------- prompts of several turns


@pytest.mark.parametrize("first, whole", [
    (0, {22: range(6), 13: (0, 3, 4, 5), 5: (0, 5), 0: ()}),  # what is kept, by its length
    (1, {19: range(1, 6), 10: (3, 4, 5), 2: (5,), 0: ()}),    # without a system turn
    (2, {14: range(2, 6), 10: (3, 4, 5), 2: (5,), 0: ()})])
def test_a_long_conversation_is_cut_at_a_turn_of_the_user_with_the_system_kept(first, whole):
    turns, roles = [[0] * 3, [1] * 5, [2] * 4, [3] * 2, [4] * 6, [5] * 2], [
        "system", "user", "assistant", "user", "assistant", "user"]
    for limit in range(25):
        kept = whole[max(size for size in whole if size <= limit)]
        assert cut_from_left(turns[first:], roles[first:], limit) == [i for k in kept
                                                                      for i in turns[k]]


def conversations(tmp_path, *more: dict, **fields):
    """Load the data of a tiny run on 60 conversations of a single turn and more."""
    records = [asked(f"u: {p['prompt']}", y=p["chosen"], n=p["rejected"])
               for p in bills.make_pairs(60, 5, "first")]
    path = write_lines(tmp_path / "a.jsonl", [*records, *more])
    return load_data(tiny_run(tmp_path, data__files=[path], data__valid=2, data__test=2, **fields))


def test_turns_are_read_in_their_templates_and_what_is_cut_off_is_counted(tmp_path, tokenizer):
    long, model = "u:" + " salt" * 30, tmp_path / "t.model"
    model.write_bytes(tokenizer.pieces.serialized_model_proto())
    loaded = conversations(
        tmp_path, asked("s: tea", "u: bread", "a: a hat", "u: salt"), asked(long, "a: tea", "u: 5"),
        asked("s: bread", long, "a: tea", "u: a coupon"), asked("u: tea", long + long[2:]),
        asked(long, "a: tea", "u: 7", y="tea " * 50),  # first turns too long, and a response
        *[asked(long, f"a: {i}", "u: 9") for i in range(8)],
        tokenizer__model=str(model), template__system="<|draft|>{x}",
        template__user="<|user|>{x}", template__assistant="<|assistant|>{x}")
    user, assistant, draft, _ = (tokenizer.fixed(marker)[0] for marker in MARKERS)
    tea, bread, hat, salt, five, coupon = tokenizer.encode(["tea", "bread", "a hat", "salt", "5",
                                                            "a coupon"])
    found = [x for fold in loaded.folds.values() for x in fold.x]
    assert [draft, *tea, user, *bread, assistant, *hat, user, *salt] in found
    assert [user, *five] in found and [draft, *bread, user, *coupon] in found
    assert len(found) == 71 and loaded.counts["dropped, prompt too long"] == 1
    assert loaded.counts["dropped, response too long"] == 1
    assert loaded.counts["prompts without their first turns"] == 10  # of those that are kept
    nine = [user, *tokenizer.encode(["9"])[0]]  # of eight that were cut to this: all in one fold
    assert sorted(list(fold.x).count(nine) for fold in loaded.folds.values()) == [0, 0, 0, 0, 8]


@pytest.mark.parametrize("policy, count", [
    ("<|s|>be kind{x}", 3), ("{x}", 0), ("{x}<|s|>", 0)])
def test_a_second_system_message_is_told(tmp_path, capsys, policy, count):
    fields = {f"template__{name}": f"<|{name[0]}|>{{x}}" for name in ROLES}
    loaded = conversations(tmp_path, *[asked("s: tea", f"u: {i}") for i in range(3)],
                           template__policy=policy, **fields)
    assert loaded.counts.get("prompts with two system messages", 0) == count
    assert capsys.readouterr().err.count("two system messages: 3, their own after") == count // 3


@pytest.mark.parametrize("role", ["system", "user", "assistant"])
def test_turns_that_a_template_does_not_tell_apart_are_refused(tmp_path, role):
    fields = {f"template__{other}": f"<|{other}|>{{x}}" for other in ROLES if other != role}
    with pytest.raises(UserError, match=rf"several turns, .* template.{role}, .* configs/hh.toml"):
        conversations(tmp_path, asked(*LONG), **fields)
    told = load_config(str(ROOT / "configs" / "hh.toml")).template  # where the message points to
    assert len({told.user, told.assistant, "{x}"}) == 3


TALK = """<|im_start|>system\nbe brief<|im_end|>\n<|im_start|>user\ntea<|im_end|>
<|im_start|>assistant\na hat<|im_end|>\n<|im_start|>user\nbread <|im_end|> 5<|im_end|>"""


@pytest.mark.parametrize("ours", [True, False])
def test_chatml_from_a_config_works_with_a_sentencepiece_tokenizer(tmp_path, ours):
    if not ours:  # as Llama's: no markers, unknown bytes are spelled, a space before each text
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=(p["chosen"] for p in bills.make_pairs(200, 1, "first")),
            model_prefix=str(tmp_path / "other"), vocab_size=350, model_type="bpe",
            byte_fallback=True, normalization_rule_name="identity", minloglevel=2, num_threads=1)
    template = load_config(str(ROOT / "configs" / "smollm2-hh.toml"),
                           ["--model.init_from=", "--lora.rank=0"]).template
    loaded = conversations(
        tmp_path, asked("s: be brief", "u: tea", "a: a hat", "u: bread <|im_end|> 5"),
        data__max_prompt=200, model__context=900, tokenizer__vocab=350,
        tokenizer__byte_fallback=True, tokenizer__model="" if ours else f"{tmp_path}/other.model",
        **{f"template__{key}": text for key, text in vars(template).items()})
    x, = (x for fold in loaded.folds.values() for x in fold.x if "brief" in prompt_text(loaded, x))
    assert prompt_text(loaded, x).replace("\n ", "\n") == TALK
    if ours:  # markers are single tokens, but the one in the user's text is none
        names = ("<|im_start|>", "<|im_end|>")
        assert [x.count(loaded.tokenizer.pieces.piece_to_id(name)) for name in names] == [4, 4]
    single = loaded.prompt("tea < 5\n7")
    assert prompt_text(loaded, single) == "tea < 5\n7"  # is shown as it is


# ---------------------------------------------------------------------------- lists in one array


def test_a_column_is_as_its_lists():
    lists = [[5, 6, 7], [], [8], [9, 9], [1, 2, 3, 4]]
    lengths = np.array([3, 0, 1, 2, 4])
    column = Column(np.array(sum(lists, []), np.int32), lengths.cumsum() - lengths, lengths)
    assert len(column) == 5 and list(column) == lists == [column[i] for i in np.arange(5)]
    assert {type(token) for ids in column for token in ids} == {int}
    for part in (slice(None), slice(1, 3), slice(-2, None), slice(4, 9), slice(None, None, 2)):
        assert column[part] == lists[part]
    for outside in (5, -1, 99):
        with pytest.raises(IndexError):
            column[outside]


def test_folds_that_are_mapped_from_a_file_are_those_that_were_made(tmp_path):
    rows = {name: [([k], [k, i], [7] * i) for i in range(k + 1)]
            for k, name in enumerate(data.FOLDS)}
    counts = {name: len(fold) for name, fold in rows.items()}
    files.save(tmp_path / "data.pt", {"inputs": {}, "counts": counts} | flattened(rows))
    content = files.load(tmp_path / "data.pt")
    folds = {name: data.Fold(**columns_of(content, name)) for name in data.FOLDS}
    assert {name: list(zip(*vars(fold).values())) for name, fold in folds.items()} == rows
    assert np.shares_memory(folds["sft"].x.flat, folds["test"].y_l.flat)  # none was copied
    assert list(zip(*vars(folds["rl"][[2, 0]]).values())) == [rows["rl"][2], rows["rl"][0]]


# ------------------------------------------------------------------------------ a judge outside


def judged(path, names: tuple, verdict, number: int = 100, temperatures=(0.5,), seed: int = 1):
    """Write pairs of responses of each two of these systems, "system i..." to "x i", and fill in
    verdict(i, the system that stands first); returns the entries."""
    write_pairs(path, [{"x": [f"x {i}" for i in range(number)], "temperature": temperature,
                        "system": b, "y": [f"{b} {i}" + "!" * (i % 7) for i in range(number)],
                        "against": a, "y_other": [f"{a} {i}" for i in range(number)]}
                       for temperature in temperatures
                       for k, a in enumerate(names) for b in names[k + 1:]], seed)
    entries = json.loads(path.read_text())
    for i, entry in enumerate(entries):
        entry |= {"preference": verdict(i, entry["generator_1"])}
    path.write_text(json.dumps(entries))
    return entries


def test_verdicts_count_for_the_system_in_whatever_order(tmp_path):
    def verdict(i, first):  # of 100: 50 for B, two of them weakly, 20 ties, 20 for A, 10 open
        weak = 0.1 * (i < 2)
        won, lost = (1 + 4 * weak, 2) if first == "B" else (2 - 4 * weak, 1)
        return won if i < 50 else 1.5 if i < 60 else 0 if i < 70 else lost if i < 90 else None
    entries = judged(tmp_path / "a.json", ("A", "B"), verdict)
    for i, entry in enumerate(entries):  # each text beside its name and what it answers
        assert entry["instruction"] == f"x {i}" and all(
            entry[f"output_{k}"].rstrip("!") == f"{entry[f'generator_{k}']} {i}" for k in (1, 2))
    row, = read_verdicts(tmp_path / "a.json")
    assert (row["system"], row["against"], row["dataset"]) == ("B", "A", "T = 0.5")
    assert row["pairs"] == 90
    assert [row[key] for key in ("win", "tie", "lose", "delta")] == pytest.approx(
        [5000 / 90, 2000 / 90, 2000 / 90, 3000 / 90])
    assert row["ci_low"] < row["delta"] < row["ci_high"]
    better = np.repeat([1.0, 0.0, -1.0], [50, 20, 20])
    assert row["equal_length"] == pytest.approx(
        [100 * value for value in at_equal_length(better, np.arange(90) % 7)])
    table = as_markdown([row]).splitlines()
    assert len(table) == 3 and table[2].startswith("| T = 0.5 | B | A | 90 | 55.6 | 22.2 | 22.2 |")


def test_the_order_is_shuffled_with_a_seed(tmp_path):
    first, same, other = ([e["generator_1"] for e in judged(
        tmp_path / "a.json", ("A", "B"), lambda *_: 1, seed=seed)] for seed in (1, 1, 2))
    assert first == same != other and 35 < first.count("A") < 65
    row, = read_verdicts(tmp_path / "a.json")  # always liking the first place favours neither
    assert row["ci_low"] < 0 < row["ci_high"] and row["tie"] == 0


def test_several_systems_and_temperatures_are_told_apart(tmp_path):
    path = tmp_path / "a.json"
    entries = judged(path, ("C", "A", "B"), lambda *_: 0, 4, (1.0, 0.5))
    for entry in entries[:12]:  # at T = 1 the later letter wins
        entry["preference"] = 1 + (entry["generator_1"] < entry["generator_2"])
    path.write_text(json.dumps(entries))
    assert {(r["dataset"], r["system"], r["against"]): (r["pairs"], r["delta"], r["tie"])
            for r in read_verdicts(path)} == {
                (f"T = {t}", *pair): (4, 100 * (t == 1), 100 * (t < 1))
                for t in (1.0, 0.5) for pair in ("BA", "CA", "CB")}


ENTRY = {"output_1": "a", "generator_1": "A", "output_2": "b", "generator_2": "B", "preference": 1}


@pytest.mark.parametrize("content, word", [
    (None, "FileNotFound"), (b"{no", "JSONDecodeError"), (b"5", "TypeError"), (b"[1]", "Attribute"),
    (b"[" * 100_000, "RecursionError"), (b"\xff", "UnicodeDecodeError"),
    ([], "holds no verdicts yet"), ([ENTRY | {"preference": None}] * 3, "holds no verdicts yet"),
    ([ENTRY, ENTRY | {"preference": 3}], "item 1: preference = 3 is no number from 1 to 2"),
    ([ENTRY | {"preference": 0.5}], "item 0: preference = 0.5"), ([{"preference": 1}], "KeyError"),
    ([ENTRY | {"preference": float("nan")}], "preference = nan"),
    ([ENTRY | {"preference": True}], "item 0: preference = True is no number"),
    ([ENTRY | {"preference": "A"}], "item 0: preference = 'A' is no number"),
    ([ENTRY | {"output_1": None}], "TypeError")])
def test_a_judged_file_that_is_none_is_refused_in_one_line(tmp_path, content, word):
    path = tmp_path / "a.json"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    assert word in refusal(read_verdicts, path)


# ------------------------------------------------------------------------------- at equal length


def compared(seed: int, number: int, quality: float, length: float, ties: float = 0.1):
    """Draw signs of wins, some of them ties, and differences of length: the log-odds of a win
    are quality + length tanh(difference)."""
    chance = np.random.default_rng(seed)
    longer = chance.normal(5, 20, number).round()
    odds = quality + length * np.tanh(longer / longer.std())
    better = np.where(chance.random(number) < 1 / (1 + np.exp(-odds)), 1.0, -1.0)
    return better * (chance.random(number) > ties), longer


@pytest.mark.parametrize("quality, length", [(0.0, 0.0), (0.8, 0.0), (0.0, 2.0), (-0.5, 1.0)])
def test_at_equal_length_only_the_quality_counts(quality, length):
    better, longer = compared(2, 3000, quality, length)
    delta, low, high = at_equal_length(better, longer)
    true = 0.9 * np.tanh(quality / 2)
    assert low < true < high and high - low < 0.12
    if length:  # which wins something by itself, as most are longer
        assert better.mean() > high
    else:
        assert delta == pytest.approx(better.mean(), abs=0.02)
    assert at_equal_length(-better, -longer) == pytest.approx((-delta, -high, -low))


@pytest.mark.parametrize("seed, number, quality, length", [
    (1, 40, 0.3, 1.0), (2, 150, -1.0, 3.0), (3, 25, 2.0, 0.0)])
def test_at_equal_length_agrees_with_plain_descent(seed, number, quality, length):
    better, longer = compared(seed, number, quality, length)
    z, a, b = np.tanh(longer / longer.std()), 0.0, 0.0
    for _ in range(5000):  # up the log-likelihood, less 1e-3 a^2 / 2 + 0.1 b^2 / 2
        error = (1 + better) / 2 - 1 / (1 + np.exp(-a - b * z))
        a, b = (a + (error.sum() - 1e-3 * a) * 2 / number,
                b + ((error * z).sum() - 0.1 * b) * 2 / number)
    assert at_equal_length(better, longer)[0] == pytest.approx(np.tanh(a / 2), abs=1e-6)


@pytest.mark.parametrize("ties", [0.0, 0.3, 0.8])
def test_at_equal_length_the_interval_is_as_wide_as_estimates_scatter(ties):
    at, _, high = 2 * np.arctanh([at_equal_length(*compared(seed, 300, 0.8, 1.0, ties))
                                  for seed in range(400)]).T  # log-odds
    assert np.mean((high - at) / 1.96) == pytest.approx(at.std(), rel=0.1)


@pytest.mark.parametrize("number", [1, 2, 3, 500])
def test_at_equal_length_is_always_a_number(number):
    longer = np.random.default_rng(0).integers(-30, 30, number).astype(float)
    for lengths in (longer, 0 * longer, 0 * longer + 3, longer * 1e6, np.abs(longer)):
        for better in (0 * longer + 1, 0 * longer - 1, 0 * longer, np.sign(lengths)):
            delta, low, high = at_equal_length(better, lengths)
            assert -1 <= low <= delta <= high <= 1
    delta, low, _ = at_equal_length(0 * longer + 1, longer)
    assert delta > 0.9 and (low == -1.0 or number > 2)  # of one or two nothing is known


# ---------------------------------------------------------------------------------- real files


@needs_shared
def test_the_traps_of_hh_are_counted_as_a_plain_reading_counts_them():
    total, differ = Counter(), 0
    for name in ("helpful-base", "helpful-online", "harmless-base"):
        path = SHARED / "hh-rlhf" / name / "test.jsonl.gz"
        pairs, dropped = read(path)
        total += dropped + Counter(kept=len(pairs))
        assert all(p.chosen != p.rejected and p.prompt[-1][0] == "user" for p in pairs)
        for line in gzip.decompress(path.read_bytes()).splitlines():
            a, b = (json.loads(line)[key].split("\n\nAssistant:") for key in ("chosen", "rejected"))
            differ += [t.strip() for t in a[:-1]] != [t.strip() for t in b[:-1]]
    assert total == {"kept": 5772, "prompts differ": 14, "responses equal": 4, "empty text": 11,
                     "no response at the end": 2}
    assert differ == 14


@needs_shared
def test_comparisons_of_one_post_stay_in_one_fold(tmp_path, tokenizer):
    pairs, _ = read(SHARED / "summarize_from_feedback" / "batch13.json")
    config = tiny_config(tmp_path, data__max_prompt=4000, data__max_response=600)
    folds = prepare.encode_pairs(pairs, config, tokenizer, Counter())
    posts = {name: {tuple(x) for x, _, _ in rows} for name, rows in folds.items()}
    assert sum(map(len, folds.values())) == len(pairs) == 1097
    assert sum(map(len, posts.values())) == 905 == len(set().union(*posts.values()))
    assert (len(posts["valid"]), len(posts["test"])) == (20, 20)  # posts, not pairs
