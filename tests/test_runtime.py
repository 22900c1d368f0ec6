"""Configuration, errors as the user sees them, checkpoints, stages, the optimiser step."""

import dataclasses
import errno
import io
import math
import os
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from conftest import ROOT, command, read_lines, tiny_config, tiny_run
from data import load_data
from pretrained.configure import load_config
from runtime import files, interrupt, launch, ranks
from runtime.config import Config
from runtime.files import load, lock, save
from runtime.run import NotFinite, Run, optimizer_step
from runtime.settings import UserError, to_toml


def config_of(folder: Path, text: str, *overrides: str) -> Config:
    path = folder / "c.toml"
    path.write_text(text, encoding="utf-8")
    return load_config(str(path), list(overrides))


# ------------------------------------------------------------------------------ configuration


def test_a_file_and_overrides_on_top_of_the_defaults(tmp_path):
    text = '[run]\nname = "a"\nseed = 3\n[ppo]\nlr = 1\n[eval]\ntemperatures = [1]'
    c = config_of(tmp_path, text,
                  "--run.name=b c", "--model.width=64", "--model.tied=false", "--ppo.clip=0.1",
                  '--data.files=["x", "y"]', "--pit.curriculum=['stage0']", "--run.dir=a=b")
    assert (c.run.name, c.run.seed, c.run.dir) == ("b c", 3, "a=b")
    assert (c.model.width, c.model.tied, c.ppo.clip) == (64, False, 0.1)
    assert (c.data.files, c.pit.curriculum) == (["x", "y"], ["stage0"])
    assert (c.ppo.lr, c.eval.temperatures) == (1.0, [1.0])
    assert type(c.ppo.lr) is float and type(c.eval.temperatures[0]) is float
    untouched = Config()
    assert c.sft == untouched.sft and c.ppo.batch == untouched.ppo.batch
    assert untouched.run.seed == 1  # defaults are not shared


def test_the_configs_of_the_repository_load():
    paths = sorted((ROOT / "configs").glob("*.toml"))
    assert {"tiny.toml", "synthetic.toml"} <= {path.name for path in paths}
    for path in paths:
        whole = ["--model.init_from=", "--lora.rank=0"] * ("init_from" in path.read_text())
        assert load_config(str(path), whole).run.name == path.stem
        if whole:
            with pytest.raises(UserError, match="init_from = 'models/.* there is no such folder"):
                load_config(str(path))


def test_a_written_config_reads_as_the_same(tmp_path):
    text = '[template]\npolicy = "a \\"{x}\\"\\n\\\\"\n[sft]\nlr = 1e-7\n[data]\nfiles = ["ü"]'
    config = config_of(tmp_path, text)
    assert config_of(tmp_path, to_toml(config)) == config
    assert config_of(tmp_path, "\ufeff" + to_toml(config)) == config  # as some editors write it
    sections = tomllib.loads(to_toml(config))
    assert {k: set(v) for k, v in sections.items()} == {
        k: set(v) for k, v in dataclasses.asdict(Config()).items()}


@pytest.mark.parametrize("override, said", [
    ("--run.nmae=x", "unknown key 'nmae' in [run]; did you mean 'name'?"),
    ("--stage_0.beta=1", "unknown section 'stage_0'; did you mean 'stage0'?"),
    ("--modle.width=64", "unknown section 'modle'; did you mean 'model'?"),
    ("--ppo.zzzzzz=1", "known are: batch, "),
    ("--model.width=wide", "model.width: 'wide' is not of type int"),
    ("--model.width=64.0", "model.width: 64.0 is not of type int"),
    ("--model.layers=true", "model.layers: True is not of type int"),
    ("--model.tied=1", "model.tied: 1 is not of type bool"),
    ("--ppo.lr=fast", "ppo.lr: 'fast' is not of type float"),
    ("--data.files=x", "data.files: 'x' is not of type list[str]"),
    ("--data.files=[1]", "data.files: 1 is not of type str"),
    ("--run.name", "expected --section.key=value"),
    ("--name=x", "expected --section.key=value"),
    ("run.name=x", "expected --section.key=value"),
    ("--model.heads=3", "model.width ... multiple of model.heads"),
    ("--model.width=20", "model.width ... even"),  # 4 heads of width 5
    ("--model.kv_heads=3", "model.heads ... multiple of model.kv_heads"),
    ("--ppo.batch=6", "ppo.batch ... multiple of"),
    ("--rp.batch=0", "rp.batch"),
    ("--sft.steps=0", "sft.steps"),
    ("--stage0.iterations=-1", "stage0.iterations"),
    ("--ppo.temperature=0", "ppo.temperature"),
    ("--ppo.gamma=-0.5", "ppo.gamma"),
    ("--data.valid=0", "data.valid"),
    ("--run.seed=-1", "run.seed"),
    ("--run.log_every=0", "run.log_every"),
    ("--reward.pool=mean", "reward.pool ... 'mean' ... sum, last"),
    ("--run.device=gpu", "run.device ... 'gpu'; did you mean 'cpu'?"),
    ("--eval.split=tset", "eval.split ... 'tset'; did you mean 'test'?"),
    ("--stage1.reference=date", "stage1.reference ... 'date'; did you mean 'data'?"),
    ("--pit.curriculum=['stage3']", "pit.curriculum ... 'stage3'; did you mean"),
    ("--pit.curriculum=[]", "pit.curriculum"),
    ("--pit.score=gpa", "pit.score = 'gpa': expected 'gap', 'difference' or 'file.py:function'"),
    ("--eval.judge=vader", "eval.judge = 'vader': expected 'file.py:function'"),
    ("--reward.terms=['wl>ww', 'wl>lx']", "reward.terms ... 'wl>lx'; did you mean 'wl>l"),
    ("--reward.terms=[]", "reward.terms"),
    ("--eval.temperatures=[1.0, -1]", "eval.temperatures"),
    ("--template.policy=say", "template.policy lacks {x}"),
    ("--template.pit={x} only", "template.pit ... {x} and {y_ref}"),
])
def test_a_wrong_field_is_refused_with_what_to_do(tmp_path, override, said):
    with pytest.raises(UserError) as caught:
        config_of(tmp_path, "", override)
    assert all(part in str(caught.value) for part in said.split(" ... ")), str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("override", [
    "--run.seed=0", "--sft.warmup=0", "--reward.lm_coef=0", "--ppo.critic_warmup=0",
    "--rlhf.beta=0", "--ppo.kl_power=0", "--ppo.no_eos_score=-9", "--eval.temperatures=[0]",
    "--ppo.lam=0"])
def test_values_that_mean_something_are_not_refused(tmp_path, override):
    section, key = override[2:].partition("=")[0].split(".")
    value = getattr(getattr(config_of(tmp_path, "", override), section), key)
    assert value in (0, -9, [0])


def test_rollouts_are_shared_evenly_by_ranks_minibatches_and_references(tmp_path):
    text = "[run]\nranks = 3\n[ppo]\nminibatches = 5\n"
    assert config_of(tmp_path, text, "--ppo.batch=60").ppo.batch == 60
    with pytest.raises(UserError, match="ppo.batch must be even and a multiple of"):
        config_of(tmp_path, text, "--ppo.batch=45")
    with pytest.raises(UserError, match="ppo.batch must be at least 15, a response a rank in each"):
        config_of(tmp_path, text, "--ppo.batch=10")


@pytest.mark.parametrize("cores, quota, fields, wanted", [
    (2, "max 100000", [], 2), (16, "max 100000", [], 8), (1, "max 100000", [], 1),
    (16, "400000 100000", [], 4), (16, "50000 100000", [], 1), (16, None, [], 8),
    (16, None, ["--rp.batch=3"], 3), (16, None, ["--rpit.pairs=3"], 3),
    (16, None, ["--ppo.batch=16"], 4)])  # of four minibatches
def test_as_many_ranks_as_cores_unless_it_is_said(tmp_path, monkeypatch, cores, quota, fields,
                                                  wanted):
    def read(path, encoding):
        if quota is None:
            raise FileNotFoundError
        return quota

    config = config_of(tmp_path, "", *fields)
    assert config.run.ranks == 0
    monkeypatch.setattr(launch.Path, "read_text", read)
    monkeypatch.setattr(torch, "get_num_threads", lambda: cores)
    assert launch.usual_ranks(config, torch.device("cpu")) == wanted
    assert launch.usual_ranks(config, torch.device("cuda")) == 1
    monkeypatch.delattr(sys.modules["__main__"], "__file__")  # a notebook, where argv[0] is a file
    assert launch.usual_ranks(config, torch.device("cpu")) == 1
    monkeypatch.undo()
    assert Run(config_of(tmp_path, f"[run]\ndir = {str(tmp_path)!r}")).config.run.ranks == 1


THREE_RANKS = """
import os, torch
from runtime import launch, ranks
from runtime.settings import UserError

def main():
    launch.start_ranks(3, torch.device("cpu"))
    if os.environ["ENDING"] == "error of all":
        raise RuntimeError("what is wrong here")
    if ranks.rank() == 1:
        if os.environ["ENDING"] == "kill":
            os.kill(os.getpid(), 9)
        raise UserError("what only the second rank knows")
    ranks.all_sum(torch.ones(1))

if __name__ == "__main__":
    launch.guard(main)
"""


@pytest.mark.parametrize("ending, line", [
    ("refusal", "error: what only the second rank knows"),
    ("kill", "error: another rank has died; the same command goes on from the last save")])
def test_what_ended_another_rank_is_told(tmp_path, ending, line):
    path = tmp_path / "three.py"
    path.write_text(THREE_RANKS, encoding="utf-8")
    done = command(path, ENDING=ending, PYTHONPATH=str(ROOT))
    assert (done.returncode, done.stdout) == (2, "")
    assert line in done.stderr.splitlines() and "Traceback" not in done.stderr


def test_an_error_of_all_ranks_is_no_death_of_another(tmp_path):
    path = tmp_path / "three.py"
    path.write_text(THREE_RANKS, encoding="utf-8")
    done = command(path, ENDING="error of all", PYTHONPATH=str(ROOT))
    assert done.returncode == 1 and "another rank" not in done.stderr
    assert "RuntimeError: what is wrong here" in done.stderr


def test_a_start_that_fails_leaves_no_environment(monkeypatch, tmp_path):
    for name in ("RANK", "WORLD_SIZE", "PIT_MEETING"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(launch.tempfile, "mkdtemp", lambda: str(tmp_path / "meeting"))
    (tmp_path / "meeting").mkdir()
    threads = torch.get_num_threads()

    def refuse(*arguments, **more):
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(launch.subprocess, "Popen", refuse)
    with pytest.raises(BlockingIOError):
        launch.start_ranks(2, torch.device("cpu"))
    torch.set_num_threads(threads)
    assert not {"RANK", "WORLD_SIZE", "PIT_MEETING"} & os.environ.keys()
    assert not (tmp_path / "meeting").exists()


# ------------------------------------------------------------------------ other operating systems


def test_a_folder_is_locked_on_windows_too(tmp_path, monkeypatch):
    held, calls = set(), []

    def locking(number, mode, count):  # as the C library's
        calls.append((mode, count, os.lseek(number, 0, os.SEEK_CUR)))
        inode = os.fstat(number).st_ino
        if inode in held:
            raise PermissionError(errno.EACCES, "Permission denied")
        held.add(inode)

    monkeypatch.setattr(files, "WINDOWS", True)
    monkeypatch.setitem(sys.modules, "fcntl", None)
    monkeypatch.setitem(sys.modules, "msvcrt", SimpleNamespace(LK_NBLCK=2, locking=locking))
    file = lock(tmp_path / "run")
    with pytest.raises(UserError, match="another run is at work there"):
        lock(tmp_path / "run")
    assert calls == [(2, 1, 0)] * 2
    file.close()


def test_windows_opens_no_folder_and_replaces_no_mapped_file(tmp_path, monkeypatch):
    def opened(path, flags, *more, real=os.open):
        if os.path.isdir(path):
            raise PermissionError(errno.EACCES, "Permission denied")
        return real(path, flags, *more)

    monkeypatch.setattr(files, "WINDOWS", True)
    monkeypatch.setattr(os, "open", opened)
    save(tmp_path / "a.pt", {"inputs": {}, "w": torch.ones(2)})
    loaded, mapped = torch.load, []
    monkeypatch.setattr(torch, "load", lambda *a, **k: mapped.append(k["mmap"]) or loaded(*a, **k))
    assert load(tmp_path / "a.pt")["w"].tolist() == [1, 1] and mapped == [False]


@pytest.mark.parametrize("windows", [False, True])
def test_ranks_meet_at_a_file_whatever_its_name(tmp_path, monkeypatch, windows):
    from urllib.parse import urlparse
    from urllib.request import url2pathname
    monkeypatch.setattr(files, "WINDOWS", windows)
    path = tmp_path / "a b%c" / "ranks"
    url = launch.meeting_url(path)
    read = urlparse(url).path  # as torch.distributed.rendezvous reads it
    assert (url2pathname(read) if windows else read) == str(path)


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="needs a signal for a stand-in")
def test_ctrl_break_is_taken_where_there_is_one(monkeypatch):
    stand_in = signal.SIGUSR1
    handlers = {number: signal.getsignal(number) for number in (
        signal.SIGINT, signal.SIGTERM, stand_in)}
    monkeypatch.setattr(signal, "SIGBREAK", stand_in, raising=False)
    try:
        for of_another, wanted in ((False, interrupt.handle), (True, signal.SIG_IGN)):
            interrupt.install(of_another)
            assert [signal.getsignal(number) for number in handlers] == [wanted] * 3
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("seconds", [0.7, 3.0])
def test_a_signal_to_all_ranks_ends_them_at_once(tmp_path, seconds):
    """Send it as Ctrl-C in a terminal: while they start, and in the first stage."""
    process = subprocess.Popen(
        [sys.executable, "train_reward.py", "--config", "configs/tiny.toml", "--run.ranks=2",
         f"--run.dir={tmp_path}", "--sft.steps=100000"], cwd=ROOT, start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, encoding="utf-8",
        env=os.environ | {"OMP_NUM_THREADS": "1"})
    time.sleep(seconds)
    while not Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text():
        time.sleep(0.01)  # until the second rank is there
    time.sleep(seconds / 2)
    os.killpg(process.pid, signal.SIGINT)
    said = process.communicate(timeout=20)[1]
    assert process.returncode == 130 and "interrupted" in said and "error" not in said


@pytest.mark.parametrize("cuda, mps, wanted", [(True, True, "cuda"), (False, True, "cpu"),
                                               (False, False, "cpu")])
def test_mps_is_taken_only_where_it_is_asked_for(monkeypatch, cuda, mps, wanted):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert launch.pick_device("auto").type == wanted
    if mps:
        assert launch.pick_device("mps").type == "mps"


def test_output_is_utf_8_whatever_the_machine_prefers():
    done = guarded("print('Gr\u00fc\u00dfe \u2192')", '"$PY" -c "$MAIN"', PYTHONIOENCODING="cp1252",
                   PYTHONUTF8="0")
    assert done.stdout == "Gr\u00fc\u00dfe \u2192\n" and done.returncode == 0


@pytest.mark.parametrize("text, said", [
    ("[run]\nnmae = 1", "unknown key 'nmae' in [run]; did you mean 'name'?"),
    ("[rnu]\nname = 1", "unknown section 'rnu'; did you mean 'run'?"),
    ("name = 1", "'name' stands outside of any [section]"),
    ("[run]\nname = 1", "run.name: 1 is not of type str"),
    ("[run\n", "cannot read the config"),
])
def test_a_wrong_file_is_named(tmp_path, text, said):
    with pytest.raises(UserError) as caught:
        config_of(tmp_path, text)
    assert str(caught.value).startswith(f"{tmp_path / 'c.toml'}: ") and said in str(caught.value)


def test_a_retired_field_of_an_older_run_is_passed_over_unless_it_meant_something(tmp_path):
    assert config_of(tmp_path, "[run]\ncompile = false\nname = 'x'").run.name == "x"
    with pytest.raises(UserError, match="unknown key 'compile' in .run."):
        config_of(tmp_path, "[run]\ncompile = true")


@pytest.mark.parametrize("name, content", [("missing.toml", None), ("latin.toml", b"a = '\xfc'")])
def test_an_unreadable_config_is_named(tmp_path, name, content):
    if content:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=f"{name}: cannot read the config"):
        load_config(str(tmp_path / name))


@pytest.mark.parametrize("script, arguments, said", [
    ("train_pit.py", ["--config", "missing.toml"], "missing.toml: cannot read the config"),
    ("train_pit.py", ["--config", "configs/tiny.toml", "--run.nmae=x"], "did you mean 'name'?"),
    ("train_reward.py", ["--config", "configs/tiny.toml", "--model.heads=3"], "multiple of model"),
    ("train_reward.py", ["--config", "configs/tiny.toml", "--data.files=['no.jsonl']"], "no.jsonl"),
    ("sample.py", ["--config", "configs/tiny.toml", "--ref=x"], "--ref needs the --prompt"),
])
def test_scripts_end_with_code_2_and_one_line(tmp_path, script, arguments, said):
    done = command(script, *arguments, f"--run.dir={tmp_path}")
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: ") and said in done.stderr
    assert done.stderr.count("\n") == 1 and "Traceback" not in done.stderr


def test_guard_lets_other_errors_through(capsys):
    launch.guard(lambda: None)
    with pytest.raises(ZeroDivisionError):
        launch.guard(lambda: 1 / 0)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("error", [
    RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to ..."),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nMore.")])
def test_guard_says_what_to_lower_where_memory_is_short(capsys, error):
    def main():
        raise error

    with pytest.raises(SystemExit) as ended:
        launch.guard(main)
    line = capsys.readouterr().err
    assert ended.value.code == 2 and line.count("\n") == 1
    assert line.startswith("error: out of memory; lower model.micro_batch (activations), ppo.batch")


@pytest.mark.parametrize("number, said", [
    (errno.ENOSPC, "make room"), (errno.EACCES, "choose a place that you may read and write")])
def test_guard_says_what_to_do_where_a_file_cannot_be_written(capsys, number, said):
    def main():
        raise OSError(number, "no", "a.json")

    with pytest.raises(SystemExit) as ended:
        launch.guard(main)
    assert ended.value.code == 2 and capsys.readouterr().err == f"error: a.json: no; {said}\n"


def guarded(code: str, shell: str, **environment: str) -> subprocess.CompletedProcess:
    """Run a shell pipeline around a guarded main function, $MAIN."""
    main = f"from runtime.launch import guard\nimport sys, os, signal, time\nguard(lambda: {code})"
    return subprocess.run(["bash", "-c", f"set -o pipefail; {shell}"], cwd=ROOT, text=True,
                          capture_output=True, encoding="utf-8", env=os.environ | {
                              "PY": sys.executable, "MAIN": main,
                              "PYTHONUNBUFFERED": ""} | environment)


@pytest.mark.parametrize("code, reader, read", [
    ("[print('line') for _ in range(100_000)]", "head -1", "line\n"),
    ("[time.sleep(0.5), print('line')]", "true", "")])  # which stands in a buffer at the end
def test_a_reader_that_leaves_early_ends_the_output(code, reader, read):
    done = guarded(code, f'"$PY" -c "$MAIN" | {reader}')
    assert (done.stdout, done.stderr, done.returncode) == (read, "", 128 + 13)


def test_what_is_typed_may_be_no_utf_8():
    done = guarded("print(sys.stdin.readline().encode())", 'printf "z\\xfcri" | "$PY" -c "$MAIN"')
    assert done.stdout == f"{'z�ri'.encode()}\n" and done.returncode == 0


def test_a_signal_outside_of_a_training_is_told():
    done = guarded("os.kill(os.getpid(), signal.SIGINT)", '"$PY" -c "$MAIN"')
    assert done.returncode == 130 and done.stderr.splitlines() == [
        "", "interrupted; what is finished is kept, and the same command goes on"]


# -------------------------------------------------------------------------------- checkpoints


def test_a_checkpoint_is_read_as_it_was_written(tmp_path):
    save(tmp_path / "a.pt", {"model": {"w": torch.arange(3)}, "beta": 0.1, "names": ["x"],
                             "inputs": {}})
    content = load(tmp_path / "a.pt")
    assert torch.equal(content["model"]["w"], torch.arange(3))
    assert (content["beta"], content["names"]) == (0.1, ["x"])
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]


def test_a_write_takes_nobodys_file_and_clears_what_a_kill_left(tmp_path, monkeypatch):
    names = [".tmp", ".json.tmp", ".json~", ".json.part"]
    for name in names:
        (tmp_path / f"pairs{name}").write_text("mine")
    files.write_whole(tmp_path / "pairs.json", lambda file: file.write(b"[]"))
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {
        "pairs.json": "[]"} | {f"pairs{name}": "mine" for name in names}
    monkeypatch.setattr(files.Path, "unlink", lambda *_, **__: None)  # as if it were killed

    def half(file):
        file.write(b"half of")
        raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            files.write_whole(tmp_path / "pairs.json", half)
    monkeypatch.undo()
    assert len(list(tmp_path.iterdir())) == 7  # two more, each with a name of its own
    lock(tmp_path).close()  # a run that takes up the folder
    assert {p.name for p in tmp_path.iterdir()} == {"pairs.json", "lock"} | {
        f"pairs{name}" for name in names}


@pytest.mark.parametrize("failing", ["torch.save", "os.fsync", "os.replace"])
def test_a_failing_write_leaves_the_old_file_whole(tmp_path, monkeypatch, failing):
    save(tmp_path / "a.pt", {"step": 1, "inputs": {}})
    def fail(*arguments):
        if failing == "torch.save":
            arguments[1].write(b"half of")
        raise OSError("no space left")
    monkeypatch.setattr(failing, fail)
    with pytest.raises(UserError, match=r"a.pt: cannot write it \(no space left\); make room"):
        save(tmp_path / "a.pt", {"step": 2, "inputs": {}})
    monkeypatch.undo()
    assert load(tmp_path / "a.pt") == {"step": 1, "inputs": {}}
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]


def test_a_damaged_or_missing_checkpoint_is_named(tmp_path):
    save(tmp_path / "a.pt", {"w": torch.randn(1000), "inputs": {}})
    whole = (tmp_path / "a.pt").read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1  # of a weight: torch.load alone does not see it
    other = io.BytesIO()
    torch.save([1], other)
    for content in (whole[:len(whole) // 2], flipped, b"", b"no checkpoint", other.getvalue()):
        (tmp_path / "a.pt").write_bytes(content)
        with pytest.raises(UserError) as caught:
            load(tmp_path / "a.pt")
        assert str(caught.value).startswith(f"{tmp_path / 'a.pt'}: cannot read the checkpoint")
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="b.pt: no such checkpoint"):
        load(tmp_path / "b.pt")


@pytest.mark.parametrize("error", (
    PermissionError(errno.EACCES, "Permission denied"), OSError(errno.EIO, "Input/output error"),
    MemoryError(), RuntimeError("unable to mmap 8 bytes: Cannot allocate memory (12)")))
def test_nobody_is_told_to_delete_a_good_checkpoint(tmp_path, monkeypatch, error):
    save(tmp_path / "a.pt", {"inputs": {}})

    def failing(*_, **__):
        raise error

    monkeypatch.setattr(torch, "load", failing)
    with pytest.raises(UserError, match="a.pt: cannot read it .*; fix that and run") as caught:
        load(tmp_path / "a.pt")
    assert "delete it" not in str(caught.value)


# -------------------------------------------------------------------------------------- stages


def make(calls: list, **content):
    """Return a stage's maker that notes its calls."""
    return lambda: calls.append(1) or dict(content)


def test_a_stage_is_made_once_and_reused(tmp_path):
    calls = []
    made = tiny_run(tmp_path).stage("sft", ("sft", "model"), make(calls, w=torch.ones(2)))
    run = tiny_run(tmp_path, ppo__lr=1.0)  # no section of the stage
    again = run.stage("sft", ("sft", "model"), make(calls, w=torch.zeros(2)))
    assert len(calls) == 1 and torch.equal(again["w"], torch.ones(2))
    assert made["inputs"] == again["inputs"] and again["seconds"] >= 0
    run.stage("rp", ("sft", "model"), make(calls))
    assert len(calls) == 2
    assert tomllib.loads((run.folder / "config.toml").read_text())["ppo"]["lr"] == 1.0


def test_a_stage_of_other_values_is_refused_with_the_fields_that_differ(tmp_path):
    calls = []
    tiny_run(tmp_path).stage("sft", ("sft", "model"), make(calls))
    for fields, differ in ((dict(sft__lr=0.5, model__width=32), "sft.lr, model.width"),
                           (dict(run__seed=2), "run.seed")):
        run = tiny_run(tmp_path, **fields)
        with pytest.raises(UserError) as caught:
            run.stage("sft", ("sft", "model"), make(calls))
        said = str(caught.value).replace("model.width, sft.lr", "sft.lr, model.width")
        assert said.startswith(f"{run.folder / 'sft.pt'} was made with other values (or none) of "
                               f"{differ};")
    assert len(calls) == 1


@pytest.mark.parametrize("name", ["rp.pt", "rp.part.pt"])
def test_a_stage_that_will_refuse_does_so_before_anything_is_made(tmp_path, name):
    """Check it of a run on a base, in whose folder the first stages are not."""
    stages = {"data": ("data",), "rp": ("rp",)}
    run = tiny_run(tmp_path)
    run.stage("rp", ("rp",), make([]))
    (run.folder / "rp.pt").rename(run.folder / name)
    tiny_run(tmp_path).refuse_others(stages)
    before = (run.folder / "config.toml").read_bytes()
    with pytest.raises(UserError, match=f"{name} was made with other values .* rp.lr; take its"):
        tiny_run(tmp_path, rp__lr=0.5).refuse_others(stages)
    with pytest.raises(UserError, match=f"{name} was made with other values"):
        load_data(tiny_run(tmp_path, rp__lr=0.5))
    assert (run.folder / "config.toml").read_bytes() == before
    assert not (run.folder / "data.pt").exists()


def test_a_file_of_the_users_that_has_changed_is_named_as_that(tmp_path):
    run = tiny_run(tmp_path, pit__score="mine.py:f", pit__score_file="1")
    run.stage("stage0", ("pit.score", "pit.score_file"), make([]))
    run.config.pit.score_file = "2"
    with pytest.raises(UserError, match=r"of pit.score \(its file has changed\);"):
        run.stage("stage0", ("pit.score", "pit.score_file"), make([]))


def test_who_only_reads_is_told_why_a_checkpoint_of_the_base_does_not_fit(tmp_path):
    base = tiny_run(tmp_path / "base")
    base.stage("sft", ("sft",), make([]))
    reader = Run(tiny_config(tmp_path, sft__lr=0.5, run__base=str(base.folder)), trains=False)
    with pytest.raises(UserError, match=r"^\S+sft.pt was made with other values \(or none\) of "
                                        r"sft.lr$"):
        reader.stage("sft", ("sft",), None)


@pytest.mark.parametrize("lacking, fields, refused", [
    ("sft.clip", {}, False), ("sft.clip", {"sft__clip": 0.5}, True), ("model.", {}, True)])
def test_a_field_that_is_newer_than_a_checkpoint_has_its_default(tmp_path, lacking, fields,
                                                                 refused):
    """Check that a section on which the stage did not depend is no such field."""
    calls = []
    run = tiny_run(tmp_path)
    content = run.stage("sft", ("sft", "model"), make(calls))
    content["inputs"] = {key: value for key, value in content["inputs"].items()
                         if not key.startswith(lacking)}
    files.save(run.folder / "sft.pt", content)
    run = tiny_run(tmp_path, **fields)
    if refused:
        with pytest.raises(UserError, match=f"of .*{lacking}"):
            run.stage("sft", ("sft", "model"), make(calls))
    else:
        run.stage("sft", ("sft", "model"), make(calls))
    assert len(calls) == 1


def test_a_base_folder_is_used_where_it_fits(tmp_path):
    calls = []
    base = tiny_run(tmp_path, run__name="base")
    base.stage("sft", ("sft",), make(calls, beta=1.0))
    base.stage("rp", ("rp",), make(calls, beta=2.0))
    run = tiny_run(tmp_path, run__name="new", run__base=str(base.folder), rp__lr=0.5)
    assert run.stage("sft", ("sft",), make(calls, beta=3.0))["beta"] == 1.0
    assert not (run.folder / "sft.pt").exists()
    assert run.stage("rp", ("rp",), make(calls, beta=4.0))["beta"] == 4.0  # made anew, not refused
    assert run.stage("rp", ("rp",), make(calls))["beta"] == 4.0 and len(calls) == 3
    assert load(base.folder / "rp.pt")["beta"] == 2.0
    run.write_config()
    third = tiny_run(tmp_path, run__name="third", run__base=str(run.folder), rp__lr=0.5)
    before = len(calls)
    assert third.stage("sft", ("sft",), make(calls, beta=9.0))["beta"] == 1.0  # of the base's base
    assert third.stage("rp", ("rp",), make(calls, beta=9.0))["beta"] == 4.0  # of its own base
    assert len(calls) == before and third.folders == [third.folder, run.folder, base.folder]


def test_weights_that_do_not_fit_are_refused_in_one_short_line(tmp_path):
    many = {f"blocks.{i}.weight": torch.zeros(1) for i in range(500)}
    with pytest.raises(UserError, match=r"does not fit the model: .*blocks.0.weight") as caught:
        tiny_run(tmp_path).placed(torch.nn.Linear(1, 1, bias=False), many)
    message = str(caught.value)
    assert len(message) < 300 and "\n" not in message and message.endswith("--run.name")


def test_metrics_of_a_stage_that_starts_again_are_not_doubled(tmp_path):
    run = tiny_run(tmp_path)
    def stage(name, fail=False):
        def work():
            for step in (1, 2):
                for file in ("metrics.jsonl", "samples.jsonl"):
                    run.log(file, {"stage": name, "step": step, "note": "ü"})
            if fail:
                raise KeyboardInterrupt
            return {}
        return run.stage(name, ("sft",), work)
    stage("sft")
    with pytest.raises(KeyboardInterrupt):
        stage("rp", fail=True)
    stage("rp")
    stage("sft")  # reused, so its lines stay
    for name in ("metrics.jsonl", "samples.jsonl"):
        lines = read_lines(run.folder / name)
        assert [(line["stage"], line["step"]) for line in lines] == [
            ("sft", 1), ("sft", 2), ("rp", 1), ("rp", 2)]
    assert lines[1] == {"stage": "sft", "step": 2, "note": "ü"}


def test_a_run_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write the run folder"):
        tiny_run(tmp_path / "file")


def test_only_a_lock_that_is_held_is_another_run(tmp_path, monkeypatch):
    run = Run(tiny_config(tmp_path))
    with pytest.raises(UserError, match="another run is at work there"):
        lock(run.folder)
    run.lock.close()

    def unable(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", unable)
    with pytest.raises(UserError, match="or lock it .No locks available.; choose another --run.d"):
        lock(run.folder)


def test_an_absent_device_is_refused():
    absent = next(kind for kind, there in (("mps", torch.backends.mps.is_available()),
                                           ("cuda", torch.cuda.is_available())) if not there)
    with pytest.raises(UserError, match=f"run.device = '{absent}'"):
        launch.pick_device(absent)
    assert launch.pick_device("cpu") == torch.device("cpu")


def test_generators_of_two_purposes_are_independent(tmp_path):
    run = tiny_run(tmp_path)
    draws = [torch.rand(3, generator=run.generator(purpose)).tolist()
             for purpose in ("a", "a", "b")]
    assert draws[0] == draws[1] != draws[2]
    assert torch.rand(3, generator=run.generator("a", seed=2)).tolist() != draws[0]


# ----------------------------------------------------------------------------- the optimiser step


def test_optimizer_step_divides_by_the_count_and_clips_by_hand():
    # summed gradients (6, 8) and (0, 0) over 2 things: mean (3, 4), norm 5. Unclipped and with
    # lr 1 the weights fall by (3, 4); clipped to 1, by (0.6, 0.8).
    for clip, fall in ((10.0, [3.0, 4.0]), (1.0, [0.6, 0.8])):
        one, two = (torch.nn.Parameter(torch.zeros(2)) for _ in range(2))
        unused = torch.nn.Parameter(torch.ones(1))
        optimizer = torch.optim.SGD([one, two, unused], lr=1.0)
        (one * torch.tensor([6.0, 8.0])).sum().backward()
        (two * 0).sum().backward()
        model = torch.nn.ParameterList([one, two, unused])
        norm = optimizer_step(model, optimizer, torch.tensor(2), clip, "test")
        assert norm == pytest.approx(5)
        torch.testing.assert_close(-one.data, torch.tensor(fall), atol=1e-5, rtol=0)
        assert two.tolist() == [0, 0] and unused.item() == 1
        assert one.grad is None  # the next gradients do not add up to these


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_stops_and_leaves_the_weights(bad):
    weights = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.Adam([weights], lr=1.0)
    (weights * torch.tensor([1.0, bad])).sum().backward()
    model = torch.nn.ParameterDict({"good": torch.nn.Parameter(torch.ones(1)), "head": weights})
    model["good"].sum().backward()
    with pytest.raises(NotFinite, match="R_P: the gradient of head is not finite"):
        optimizer_step(model, optimizer, torch.tensor(2), 1.0, "R_P")
    assert weights.tolist() == [1, 1]


def test_shares_of_ranks_are_gathered_in_order(monkeypatch):
    items = list(range(7))
    shares = []
    assert ranks.shard(items) == items  # one rank has all
    monkeypatch.setattr(ranks.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(ranks.dist, "get_world_size", lambda: 3)
    for number in range(3):
        monkeypatch.setattr(ranks, "rank", lambda: number)
        shares.append(ranks.shard(items))
    assert shares == [[0, 3, 6], [1, 4], [2, 5]]

    def gather_object(parts, mine):
        parts[:] = shares
    monkeypatch.setattr(ranks.dist, "all_gather_object", gather_object)
    assert ranks.gather(shares[0]) == items
    assert np.array_equal(ranks.shard(np.arange(4)), [2])  # rank 2 of 3
    # Groups of two rows: of three groups each rank has one, of rows of unequal length.
    shares = [[np.full((2, 1 + number), number)] for number in range(3)]
    rows = ranks.gather_rows(torch.zeros(2, 1), group=2)
    assert rows.tolist() == [[0, 0, 0]] * 2 + [[1, 1, 0]] * 2 + [[2, 2, 2]] * 2
