"""Bad input of every kind ends in one line that says what, where and how to fix it, and exit code
2; never in a traceback, never in silence. `python -m pytest tests/test_bad_input.py`"""

import gzip
import json
import os
import pickle
import random
import signal
import sys
import zipfile
from collections import Counter

import pytest
import sentencepiece
import torch

import sample
import train_reward
from conftest import needs, tiny_config, tiny_run, write_lines
from corpus import bills
from corpus.formats import read_pairs
from data import load_data
from runtime import checks, launch
from runtime.config import Config, RefineSection, TemplateSection
from runtime.files import save
from runtime.run import Run
from runtime.settings import UserError

GOOD = [{"prompt": f"What is {i}?", "chosen": f"It is {i}.", "rejected": f"No {i}"}
        for i in range(60)]


@pytest.fixture
def refused(tmp_path, monkeypatch, capsys):
    """Run a script's main function with arguments on the tiny config: the line it ends in."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def run(*arguments, main=train_reward.main, config="configs/tiny.toml") -> str:
        start = [f"--config={config}", f"--run.dir={tmp_path / 'runs'}"] * bool(config)
        monkeypatch.setattr(sys, "argv", ["script", *start, *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            launch.guard(main)
        said = capsys.readouterr()
        assert end.value.code == 2 and said.out == ""
        line = "".join(one for one in said.err.splitlines(True) if not one.startswith("data: "))
        assert line.startswith("error: ") and line.count("\n") == 1, said.err
        return line
    yield run
    for number, handler in handlers.items():
        signal.signal(number, handler)


# --------------------------------------------------------------------------------------- configs


@pytest.mark.parametrize("override, said", [
    ("--run.nmae=x", "did you mean 'name'?"),
    ("--rnu.name=x", "did you mean 'run'?"),
    ("--model.width=wide", "not of type int"),
    ("--model.width=1.5", "not of type int"),
    ("--ppo.lr='1e-4'", "not of type float"),
    ("--model.tied=1", "not of type bool"),
    ("--reward.terms=wl>lw", "not of type list[str], such as"),
    ("--reward.terms=['wl<lw']", "reward.terms: 'wl<lw'"),
    ("--reward.terms=[]", "must not be empty"),
    ("--pit.curriculum=['stage2']", "did you mean 'stage1'?"),
    ("--pit.curriculum=[]", "must not be empty"),
    ("--pit.curriculum=['stage0', 'stage0']", "must not have anything twice"),
    ("--eval.temperatures=[1.0, 1]", "must not have anything twice"),
    ("--eval.temperatures=[]", "must not be empty"),
    ("--eval.temperatures=0.5", "such as '[0.5, 1.0]'"),
    ("--eval.temperatures=[-1.0]", "it must be finite and 0 or more"),
    ("--sft.steps=0", "it must be finite and above 0"),
    ("--run.device=gpu", "(all are auto, cuda, mps, cpu)"),
    ("--eval.prompts=1", "at least 2"),
    ("--data.test=1", "at least 2"),
    ("--run.seed=-1", "run.seed = -1 is out of range"),
    ("--run.device=tpu", "run.device: 'tpu'"),
    ("--run.device=cuda", "this machine has none; try --run.device=cpu"),
    ("--run.amp=fp8", "run.amp: 'fp8'"),
    ("--run.name=", "run.name"),
    ("--run.name=../x", "run.name"),
    ("--run.base=/nowhere", "there is no such run folder"),
    ("--run.base=configs", "there is no such run folder"),
    ("--template.policy={x}{y_ref}", "template.policy: {y_ref} is filled by nothing there"),
    ("--template.pit={x}{y_ref}{feedback}", "template.pit: {feedback} is filled by nothing there"),
    ("--refine.feedback={x}{y_ref}{feedback}", "refine.feedback: {feedback} is filled by nothing"),
    ("--run.ranks=-1", "run.ranks = -1 is out of range"),
    ("--model.heads=3", "multiple of model.heads"),
    ("--model.kv_heads=3", "multiple of model.kv_heads"),
    ("--model.context=10", "model.context = 10 is too short for"),
    ("--ppo.batch=15", "ppo.batch must be even"),
    ("--refine.rewrite=x", "refine.feedback and refine.rewrite belong together"),
    ("--ppo.group=1", "ppo.group = 1 is out of range: it must be finite and 2 or more"),
    ("--data.things=[3]", "data.things needs two numbers"),
    ("--data.things=[4, 3]", "data.things needs two numbers"),
    ("--data.things=[1, 3]", "data.things = 1 is out of range: it must be finite and 2 or more"),
    ("--data.things=[2, 2]", "data.bills = 600 of the 588 questions"),
    ("--ppo.lr=nan", "ppo.lr = nan is out of range"),
    ("--ppo.clip=-0.1", "ppo.clip = -0.1 is out of range"),
    ("--ppo.no_eos_score=nan", "ppo.no_eos_score = nan is out of range: it must be finite\n"),
    ("--ppo.no_eos_score=-inf", "ppo.no_eos_score = -inf is out of range"),
    ("--ppo.gamma=1.1", "ppo.gamma = 1.1 is out of range: it must be finite and 0 or more and 1"),
    ("--ppo.lam=2", "ppo.lam = 2.0 is out of range"),
    ("--sft.lr=inf", "sft.lr = inf is out of range"),
    ("--sft.steps=0", "sft.steps = 0 is out of range"),
    ("--template.policy=Hello", "lacks {x}"),
    ("--template.pit={x} better:", "needs both {x} and {y_ref}"),
    ("--tokenizer.vocab=100000", "100000 does not fit the data: at most "),
    ("--tokenizer.vocab=5", "tokenizer.vocab = 5 does not fit the data"),
    ("--data.valid=100000", "too few"),
    ("--data.max_prompt=2", "longer than data.max_prompt"),
    ("--sft", "expected --section.key=value"),
    ("rubbish", "expected --section.key=value"),
    ("--sft.lr", "expected --section.key=value"),
    ("--run.name=\udcff", "is not UTF-8"),
])
def test_a_config_that_cannot_work(refused, override, said):
    assert said in refused(override)


def test_each_rank_needs_a_prompt(refused):
    assert "must be at least 3, one for each rank" in refused(
        "--data.test=2", "--run.ranks=3", "--ppo.batch=6", "--ppo.minibatches=1")
    assert "at least 6, a response a rank in each of" in refused(
        "--run.ranks=3", "--ppo.batch=4", "--ppo.minibatches=2")
    for fields in (["--rp.batch=1"], ["--rp.pairs=1"]):
        assert "a batch, or pairs, is smaller than run.ranks" in refused("--run.ranks=2", *fields)


def test_each_rank_has_a_prompt_of_each_half(refused):
    few = "--ppo.batch=8", "--ppo.minibatches=1", "--run.ranks=3"
    assert "ppo.batch must have at least 3 prompts, one for each rank: ppo.batch / ppo.group" in (
        refused("--ppo.advantage=group", *few))
    assert "at least 10 prompts, one for each rank of either half" in refused(
        "--stage1.reference=improved", "--ppo.batch=8", "--ppo.minibatches=1", "--run.ranks=5")


def test_a_batch_has_whole_groups_of_either_reference(refused):
    assert "must be a multiple of twice ppo.group (3)" in refused(
        "--ppo.advantage=group", "--ppo.group=3", "--ppo.batch=8", "--ppo.minibatches=2")


@pytest.mark.parametrize("content, said", [
    (None, "cannot read the config"),
    (b"[run\n", "cannot read the config"),
    (b"[run]\nname = '\xfc'\n", "cannot read the config"),
    (b"\x00\x01\x02", "cannot read the config"),
    (b"name = 'x'\n", "stands outside of any [section]"),
    (b"[run]\nname = 1\n", "run.name: 1 is not of type str"),
])
def test_a_config_file_that_is_none(refused, tmp_path, content, said):
    path = tmp_path / "c.toml"
    if content is not None:
        path.write_bytes(content)
    line = refused(config=path)
    assert said in line and str(path) in line


def test_a_config_that_is_a_folder_or_forgotten(refused, tmp_path):
    assert "cannot read the config" in refused(config=tmp_path)
    assert "required: --config; --help" in refused(config=None)


# ------------------------------------------------------------------------------------ data files


def line(**record) -> bytes:
    return json.dumps(record).encode() + b"\n"


PAIR = line(**GOOD[0])


@pytest.mark.parametrize("content, said", [
    (b"", "no usable pair"),
    (b"\n\n  \n", "no usable pair"),
    (PAIR + b"{no json}\n", "double quotes: column 2); formats: docs/data.md"),
    (PAIR + b'{"prompt": "x", ', ":2: no JSON"),
    (PAIR + b'{"prompt": "x", \r\n', ":2: no JSON (Expecting property name enclosed in double "
                                     "quotes: column 1"),
    (b"[1, 2]\n", ", item 1: expected a JSON object"),
    (b'"text"\n', ":1: expected a JSON object"),
    (b"[" * 100_000, "no JSON"),
    (line(prompt="x", chosen="y"), ":1: "),
    (line(question="x", answer="y"), ":1: "),
    (line(prompt={"x": 1}, chosen="y", rejected="z"), ":1: "),
    (line(prompt="x", chosen=None, rejected="z"), ":1: "),
    (line(prompt="x", chosen=["y"], rejected="z"), ":1: "),
    (line(chosen="no turns", rejected="here"), ":1: "),
    (line(chosen="\n\nHuman: hi", rejected="\n\nHuman: hi"), ":1: "),
    (line(info={}, summaries=[], choice=0), ":1: "),
    (line(info={"post": "p"}, summaries=[{"text": "a"}, {"text": "b"}], choice=2), ":1: "),
    (line(info={"post": "p"}, summaries=[{"text": "a"}, {"text": "b"}], choice="0"), ":1: "),
    (line(prompt="", chosen="", rejected=""), "no usable pair of 1 read"),
    (line(prompt="x", chosen=" ", rejected="\n"), "no usable pair of 1 read"),
    (line(prompt="x", chosen="y", rejected="y"), "'responses equal': 1"),
    (PAIR * 50, "too few"),
    (PAIR + b'{"prompt": "\xfc", "chosen": "a", "rejected": "b"}\n', ":2: it is no UTF-8"),
    ("\n".join(map(json.dumps, GOOD)).encode("utf-16"), "(invalid start byte); save it as such"),
    (PAIR + b"\x00\x00\x00\n", ":2: no JSON"),
    (line(prompt="\ud800", chosen="y", rejected="z"), ":1: "),
    (gzip.compress(PAIR * 9, mtime=0)[:-3], "cannot read the data"),
    (b'{"prompt": ' + b"9" * 5000 + b"}", ":1: no JSON"),
])
def test_a_data_file_that_cannot_be_used(refused, tmp_path, content, said):
    path = tmp_path / "pairs.jsonl"
    path.write_bytes(content)
    assert said in refused(f"--data.files=['{path}']", "--tokenizer.vocab=30")


@pytest.mark.parametrize("content", [gzip.compress(PAIR * 99, mtime=0)[:-9], PAIR, b"",
                                     bytes(random.Random(0).randbytes(99))])
def test_a_gzip_file_that_is_none_or_cut_short(refused, tmp_path, content):
    path = tmp_path / "pairs.jsonl.gz"
    path.write_bytes(content)
    line = refused(f"--data.files=['{path}']")
    assert str(path) in line and ("cannot read the data" in line or "no usable pair" in line)


def test_a_data_file_that_is_missing_or_a_folder(refused, tmp_path):
    for path in (tmp_path / "none.jsonl", tmp_path):
        assert f"{path}: cannot read the data" in refused(f"--data.files=['{path}']")


def test_data_that_changed_since_they_were_prepared_are_refused(tmp_path):
    path = tmp_path / "a.jsonl"
    write_lines(path, GOOD)
    run = tiny_run(tmp_path, data__files=[str(path)], tokenizer__vocab=50)
    assert load_data(run).counts == load_data(run).counts
    write_lines(path, GOOD + GOOD[:1])
    with pytest.raises(UserError, match="a.jsonl: has changed since"):
        load_data(run)
    load_data(Run(run.config, trains=False))  # sampling does not need it
    path.unlink()  # nor does the run any more
    load_data(run)


def test_who_does_not_train_reads_the_tokenizer_of_the_base(tmp_path):
    base = tiny_run(tmp_path)
    load_data(base)
    run = Run(tiny_config(tmp_path / "other", run__base=str(base.folder)), trains=False)
    assert load_data(run).tokenizer.path.parent == base.folder
    assert not run.folder.exists()


def test_data_that_changed_but_not_in_size_are_refused(tmp_path):
    path = tmp_path / "a.jsonl"
    write_lines(path, GOOD)
    run = tiny_run(tmp_path, data__files=[str(path)], tokenizer__vocab=50)
    load_data(run)
    size = path.stat().st_size
    write_lines(path, [{"prompt": p["prompt"], "rejected": p["chosen"], "chosen": p["rejected"]}
                       for p in GOOD])  # the worse is now the better
    assert path.stat().st_size == size
    with pytest.raises(UserError, match="a.jsonl: has changed since"):
        load_data(run)


def test_an_end_that_stands_inside_of_responses_is_refused(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", GOOD)
    run = tiny_run(tmp_path, data__files=[path], tokenizer__vocab=50)
    load_data(run)
    model = tmp_path / "tiny" / "tokenizer.model"
    letter = sentencepiece.SentencePieceProcessor(model_file=str(model)).encode(
        " " + GOOD[0]["chosen"], out_type=str)[-1]
    other = tiny_run(tmp_path, run__name="other", data__files=[path], tokenizer__eos=letter,
                     tokenizer__model=str(model))
    with pytest.raises(UserError, match=r"tokenizer.eos: .* stands inside of \d+ of"):
        load_data(other)


@pytest.mark.parametrize("name", ("a.jsonl", "a.jsonl.gz", "a.parquet"))
def test_a_pointer_of_git_lfs_is_told(tmp_path, name):
    (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\n")
    with pytest.raises(UserError, match="Git LFS pointer; run git lfs pull"):
        read_pairs(str(tmp_path / name), Counter())


def test_markers_that_the_tokenizer_spells_out_are_told(tokenizer):
    template = TemplateSection(policy="<|user|>{x}<|im_end|>", pit="{x}{y_ref}</s>")
    said, = checks.odd_markers(Config(template=template), tokenizer)
    assert said.startswith("<|im_end|>: not single") and not list(
        checks.odd_markers(Config(), tokenizer))
    said, = checks.odd_markers(Config(refine=RefineSection(rewrite="<|user|><|mend|>")), tokenizer)
    assert said.startswith("<|mend|>: not single")
    said, = checks.odd_markers(Config(template=TemplateSection(user="{name}: {x}")), tokenizer)
    assert said.startswith("{name}: no slot")


def test_a_line_end_outside_of_quotes_is_no_line_end(refused):
    said = refused("--template.user=\\n\\nHuman: {x}")
    assert "write it as TOML" in said


def test_a_file_inside_of_a_checkpoints_folder_is_not_the_checkpoint(refused, tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"x" * 100)
    assert "name the folder that it lies in" in refused(
        f"--model.init_from={tmp_path / 'model.safetensors'}")


def test_a_gigantic_line_is_dropped_and_counted(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", [GOOD[0] | {"prompt": "long " * 1_000_000}] + GOOD)
    run = tiny_run(tmp_path, data__files=[path], tokenizer__vocab=50)
    assert load_data(run).counts["dropped, prompt too long"] == 1


def test_windows_line_ends_and_a_byte_order_mark_do_no_harm(tmp_path):
    text = "\r\n".join(map(json.dumps, GOOD)) + "\r\n"
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + text.encode())
    pairs = read_pairs(str(tmp_path / "a.jsonl"), Counter())
    assert [pair.chosen for pair in pairs] == [pair["chosen"] for pair in GOOD]


# ------------------------------------------------------------------- tokenizers and checkpoints


@pytest.mark.parametrize("content", [None, b"", b"no model", b"\x0a\x0b" * 500,
                                     pytest.param(b"{}", marks=needs("tokenizers"))])
def test_a_tokenizer_that_is_none(refused, tmp_path, content):
    path = tmp_path / "t.model"
    if content is not None:
        path.write_bytes(content)
    line = refused(f"--tokenizer.model={path}")
    assert f"{path}: " in line and ("no SentencePiece model" in line or "no tokenizer.json" in line
                                    or "cannot read the tokenizer" in line)


@pytest.mark.parametrize("library, name, said", [
    ("tokenizers", "t.json", "t.json: needs an extra: pip install tokenizers"),
    ("pyarrow", "t.parquet", "t.parquet: Parquet needs an extra: pip install pyarrow")])
def test_an_extra_that_is_not_installed_is_named(refused, tmp_path, monkeypatch, library, name,
                                                 said):
    monkeypatch.setitem(sys.modules, library, None)  # as if it were not there
    (tmp_path / name).write_bytes(b"{}" if name.endswith("json") else b"PAR1")
    field = "tokenizer.model" if name.endswith("json") else "data.files"
    path = tmp_path / name
    assert said in refused(f"--{field}={path if field[0] == 't' else [str(path)]}")


class Malicious:
    def __reduce__(self):
        return os.mkdir, (os.environ["PIT_TEST_MADE"],)


@pytest.mark.parametrize("kind", ["empty", "text", "list", "pickle", "malicious", "malicious zip",
                                  "other config"])
def test_a_checkpoint_that_is_none(refused, tmp_path, monkeypatch, kind):
    made = tmp_path / "made"
    monkeypatch.setenv("PIT_TEST_MADE", str(made))
    path = tmp_path / "runs" / "tiny" / "data.pt"
    path.parent.mkdir(parents=True)
    if kind == "other config":
        save(path, {"inputs": {"data.bills": 7}})
    elif kind == "malicious zip":
        torch.save({"inputs": Malicious()}, path)
    elif kind == "list":
        torch.save([1, 2], path)
    else:
        path.write_bytes({"empty": b"", "text": b"hello", "pickle": pickle.dumps({"inputs": {}}),
                          "malicious": pickle.dumps(Malicious())}.get(kind))
    line = refused()
    assert str(path) in line and not made.exists()
    assert ("was made with other values" if kind == "other config" else
            "cannot read the checkpoint") in line
    if kind == "malicious zip":
        assert "more than tensors and plain values" in line and zipfile.is_zipfile(path)


@pytest.mark.parametrize("arguments, said", [
    (["--prompt=tea"], "no such checkpoint; run train_pit.py first"),
    (["--ref=x"], "--ref needs the --prompt"),
    (["--prompt=x", "--temperature=-1"], "must be numbers from 0"),
    (["--prompt=x", "--temperature=nan"], "must be numbers from 0"),
    (["--prompt=x", "--temperature=hot"], "invalid float value"),
    (["--prompt=x", "--iters=-1"], "must be numbers from 0"),
    (["--prompt=x", "--iters=1.5"], "invalid int value"),
    (["--prompt"], "expected one argument"),
    (["--prompt=\udcff"], "is not UTF-8"),
])
def test_what_cannot_be_sampled(refused, arguments, said):
    assert said in refused(*arguments, main=sample.main)


def test_the_pairs_that_these_tests_spoil_are_good(tmp_path):
    dropped = Counter()
    assert len(read_pairs(write_lines(tmp_path / "a.jsonl", GOOD), dropped)) == 60 and not dropped
    pairs = list(bills.make_pairs(5, 1, "first"))
    assert len(read_pairs(write_lines(tmp_path / "b.jsonl", pairs), dropped)) == 5
