"""Stages that are cut off and go on, and what they warn of."""

import dataclasses
import gc
import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import ppo
import train_reward
from conftest import read_lines, tiny_config, tiny_gpt, tiny_run, write_lines
from data import load_data
from evaluation.measure import held_out_accuracies, share_right
from runtime import checks, files, state
from runtime.run import NotFinite, Run
from runtime.settings import UserError
from train_reward import new_gpt, new_reward_model, train_rp, train_rpit


class CutOff(BaseException):
    """As a kill: nothing is saved on the way out."""


def changing(model, optimizer) -> SimpleNamespace:
    return SimpleNamespace(model=model, optimizer=optimizer, sums=torch.zeros(3))


def walk(run, total: int, stop: int = 0, save_every: float = 0.0) -> dict:
    """Run a stage of random steps with Adam, cut off after step `stop`; return its checkpoint."""
    run.config.run.save_every, run.done = save_every, []

    def work():
        torch.manual_seed(5)
        model = torch.nn.Linear(3, 2)
        course = changing(model, torch.optim.AdamW(model.parameters(), fused=True))
        for step in run.steps("walk", total, course):
            run.done.append(step)
            chance = torch.rand(4, 3, generator=run.generator(f"walk {step}"))
            course.optimizer.param_groups[0]["lr"] = 0.1 / step
            model(chance).square().sum().backward()
            course.optimizer.step()
            course.optimizer.zero_grad()
            course.sums = course.sums + chance.sum()
            run.log("metrics.jsonl", {"stage": "walk", "step": step, "sum": float(course.sums[0])})
            if step == stop:
                raise CutOff
        return {"model": state.weights_of(model), "sums": course.sums}
    return run.stage("walk", ("sft",), work)


def test_a_stage_that_was_cut_off_goes_on_bit_for_bit(tmp_path):
    whole = walk(tiny_run(tmp_path / "whole"), 20)
    for stop in (1, 8, 13, 20):
        with pytest.raises(CutOff):
            walk(tiny_run(tmp_path / "cut"), 20, stop)
        parts = list((tmp_path / "cut" / "tiny").glob("*.pt"))
        assert stop == 1 or files.load(parts[0])["step"] == stop - 1 and len(parts) == 1
    run = tiny_run(tmp_path / "cut")
    again = walk(run, 20)
    assert run.done == [20]  # what was killed in step 20 has only that left
    assert torch.equal(again["sums"], whole["sums"])
    assert all(torch.equal(w, again["model"][name]) for name, w in whole["model"].items())
    one, other = ((tmp_path / name / "tiny" / "metrics.jsonl").read_bytes()
                  for name in ("whole", "cut"))
    assert one == other and one.count(b"\n") == 20
    assert [p.name for p in (tmp_path / "cut" / "tiny").glob("*.pt")] == ["walk.pt"]


def test_a_kill_just_after_a_stage_was_saved_leaves_nothing_behind(tmp_path):
    run = tiny_run(tmp_path)
    walk(run, 5)
    part = run.folder / "walk.part.pt"
    part.touch()  # the kill came before it was removed
    run.lock.close()
    reader = Run(run.config, trains=False)
    reader.stage("walk", ("sft",), None)
    assert part.exists()  # who only reads removes nothing
    mine = tiny_run(tmp_path / "mine", run__base=str(run.folder))
    own = mine.folder / "walk.part.pt"
    own.touch()  # half of another walk, which the base's does not replace
    walk(mine, 5)
    assert own.exists()
    walk(tiny_run(tmp_path), 5)
    assert not part.exists()


def test_lines_of_the_log_that_were_lost_come_back(tmp_path):
    with pytest.raises(CutOff):
        walk(tiny_run(tmp_path), 10, 6)
    path = tmp_path / "tiny" / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-60])  # more than what came after the last save
    walk(tiny_run(tmp_path), 10)
    assert [line["step"] for line in read_lines(path)] == list(range(1, 11))


def test_it_is_saved_as_often_as_asked(tmp_path):
    with pytest.raises(CutOff):
        walk(tiny_run(tmp_path), 10, 9, save_every=3600.0)
    assert not list((tmp_path / "tiny").glob("*.pt"))


def test_a_part_that_was_made_with_another_config_is_refused(tmp_path):
    with pytest.raises(CutOff):
        walk(tiny_run(tmp_path), 10, 5)
    said = re.escape("walk.part.pt was made with other values (or none) of sft.lr;")
    with pytest.raises(UserError, match=said):
        walk(tiny_run(tmp_path, sft__lr=0.5), 10)


def fail(run, at: int, changed=lambda: None) -> None:
    """Run a stage in whose step `at` a number is not finite, after `changed()`."""
    model = torch.nn.Linear(1, 1)
    course = changing(model, torch.optim.SGD(model.parameters(), lr=1.0))

    def work():
        for step in run.steps("x", 5, course):
            if step == at:
                changed()
                raise NotFinite("the gradient of weight is not finite")
    with pytest.raises(NotFinite):
        run.stage("x", ("sft",), work)


def test_what_was_good_is_saved_when_a_number_is_not_finite(tmp_path):
    run = tiny_run(tmp_path)
    fail(run, 3)
    assert files.load(run.folder / "x.part.pt")["step"] == 2


def test_lines_may_hold_any_character(tmp_path):
    path = tmp_path / "a.jsonl"
    for stage in ("x", "y"):
        files.append(path, {"stage": stage, "step": 1, "y": "a\u2028b\u0085c\rd"})
    files.rewrite(path, '{"stage": "x"', ['{"stage": "z"}\n'])
    text = "a\u2028b\u0085c\rd"
    assert read_lines(path) == [{"stage": "y", "step": 1, "y": text}, {"stage": "z"}]


def test_a_half_done_iteration_is_not_taken_for_good(tmp_path):
    run = tiny_run(tmp_path)
    fail(run, 1, lambda: setattr(run, "last_good", None))  # as PPO does before its update
    assert not (run.folder / "x.part.pt").exists()


def test_what_is_kept_is_what_comes_back():
    def learner(seed):
        learner = ppo.critic_learner(tiny_gpt(seed=seed), ppo.Critic(tiny_gpt(seed=seed + 1)),
                                     tiny_config("x").ppo, tiny_config("x").rlhf)
        for model, optimizer in ((learner.policy.model, learner.policy.optimizer),
                                 (learner.critic.model.trunk, learner.critic.optimizer)):
            model(torch.tensor([[1, 2, 3]])).square().sum().backward()
            optimizer.step()
        return learner
    one, other = learner(1), learner(3)
    one.beta, one.scale = 0.5, (1.0, 2.0)
    state.restore(other, state.snapshot(one))
    assert (other.beta, other.scale) == (0.5, (1.0, 2.0))
    earlier = state.snapshot(one)
    del earlier["scale"]  # the file of an earlier version
    one.scale = (3.0, 4.0)
    state.restore(one, earlier)
    assert one.scale == (3.0, 4.0)
    for name in ("policy", "critic"):
        networks = [getattr(learner, name) for learner in (one, other)]
        for a, b in zip(*(network.model.parameters() for network in networks), strict=True):
            assert torch.equal(a, b)
        a, b = (network.optimizer.state_dict()["state"] for network in networks)
        assert a.keys() == b.keys() and all(torch.equal(a[i][key], b[i][key])
                                            for i in a for key in a[i])


# -------------------------------------------------------------------------------------- warnings


QUIET = {"kl": 2.0, "eos_rate": 1.0, "copies": 0.1, "empty": 0.0}


@pytest.mark.parametrize("figures, word", [
    ({}, None), ({"kl": 10.5}, "KL"), ({"kl": -0.6}, "negative"), ({"eos_rate": 0.05}, "ends"),
    ({"copies": 0.6}, "copies"), ({"empty": 0.2}, "empty")])
def test_trouble_is_told(figures, word):
    told = [line.split()[0] for line in checks.troubles(QUIET | figures, 2.0)]
    assert told == [word] * bool(word)


def test_a_reward_model_at_chance_is_told():
    assert list(checks.chance(0.52)) and not list(checks.chance(0.6))


@pytest.mark.parametrize("cpu, device, amp, warns", [
    ({"architecture": "x86_64", "avx512_bf16": False, "amx_bf16": False}, "cpu", "bf16", True),
    ({"architecture": "x86_64", "avx512_bf16": True, "amx_bf16": False}, "cpu", "bf16", False),
    ({"architecture": "x86_64", "avx512_bf16": False, "amx_bf16": True}, "cpu", "bf16", False),
    ({"architecture": "aarch64"}, "cpu", "bf16", False),  # nothing is known
    ({"architecture": "x86_64", "avx512_bf16": False, "amx_bf16": False}, "cpu", "off", False),
    ({"architecture": "x86_64", "avx512_bf16": False, "amx_bf16": False}, "cuda", "bf16", False),
])
def test_emulated_bfloat16_is_told(monkeypatch, cpu, device, amp, warns):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: cpu)
    assert ["--run.amp=off" in line for line in checks.emulated(device, amp)] == [True] * warns


def test_a_run_on_emulated_bfloat16_warns(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"architecture": "x86_64"})
    tiny_run(tmp_path, run__amp="bf16")
    assert "warning: config: run.amp: this CPU only emulates" in capsys.readouterr().err


@pytest.mark.parametrize("fields, said", [
    ({}, []),
    ({"sft__steps": 20, "sft__warmup": 20}, ["sft.warmup = 20 is not below sft.steps = 20"]),
    ({"judge__steps": 50}, []),
    ({"judge__steps": 50, "data__files": ["a"]},
     ["judge.warmup = 50 is not below judge.steps = 50"]),
    ({"judge__steps": 50, "data__files": ["a"], "eval__judge": "a.py:b"}, []),
    ({"ppo__critic_warmup": 3, "rlhf__iterations": 3, "stage0__iterations": 4,
      "stage1__iterations": 3},
     [f"{name}.iterations = 3 are not above ppo.critic_warmup" for name in ("rlhf", "stage1")]),
    ({"ppo__critic_warmup": 3, "stage0__iterations": 3, "stage1__iterations": 3,
      "pit__curriculum": ["stage0"]}, ["stage0.iterations = 3 are not"])])
def test_stages_that_would_end_before_they_begin_are_told(tmp_path, fields, said):
    config = tiny_config(tmp_path, **fields)
    lines = list(checks.doubts("cpu", config, trains=True))
    assert len(lines) == len(said) and all(map(str.startswith, lines, said))
    assert not list(checks.doubts("cpu", config, trains=False))


PAIRS = {"read": 900, "sft": 200, "reward": 200, "rl": 200, "valid": 100, "test": 100}
FEW = {f"{name}__{key}": value for name in checks.FITS for key, value in (
    ("steps", 20), ("batch", 20))}  # twice over a fold


@pytest.mark.parametrize("counts, fields, said", [
    ({}, {}, []), ({"dropped, prompt too long": 300}, {}, []),
    ({"dropped, prompt too long": 301, "dropped, tie": 302}, {}, [
        "prompt too long: 301 of 900 pairs are dropped; raise data.max_prompt and with it "
        "model.context", "tie: 302 of 900 pairs are dropped; is it the file that you meant?"]),
    ({"dropped, response too long": 1731, "read": 2749}, {}, [
        "response too long: 1,731 of 2,749 pairs are dropped; raise data.max_response"]),
    ({"prompts without their first turns": 900}, {}, []),  # which are not dropped
    ({"valid": 300, "test": 300}, {}, []),
    ({"valid": 300, "test": 301}, {}, ["held out are 601 pairs, more than the 600 that are trained "
                                       "on: lower data.test and data.valid"]),
    ({}, {"sft__steps": 100}, []),  # ten times
    ({}, {"sft__steps": 101, "rpit__steps": 150}, [
        "sft.steps = 101 go 10 times over 200 pairs", "rpit.steps = 150 go 15 times over"]),
    ({"reward": 10}, {"rp__steps": 11}, ["rp.steps = 11 go 11 times over 10 pairs of their "
                                         "fold", "rpit.steps = 20 go 20 times"]),  # whole folds
    ({}, {"rp__pairs": 10, "rp__steps": 11}, ["rp.steps = 11 go 11 times over 10 pairs"]),
    ({}, {"rp__pairs": 201}, ["rp.pairs = 201, but its fold has 200: it reads these"]),
    ({"rl": 20}, {"judge__steps": 11}, []),
    ({"rl": 20}, {"judge__steps": 11, "data__files": ["a"]}, ["judge.steps = 11 go 11 times"]),
    ({"rl": 20}, {"judge__steps": 11, "data__files": ["a"], "eval__judge": "a.py:b"}, [])])
def test_data_that_are_hardly_what_was_meant_are_told(tmp_path, counts, fields, said):
    config = tiny_config(tmp_path, **FEW | fields)
    lines = list(checks.scarce(config, PAIRS | counts))
    assert len(lines) == len(said) and all(map(str.startswith, lines, said)), lines


def test_scarce_data_are_told_before_a_training_and_not_by_sample_py(tmp_path, capsys):
    pairs = [{"prompt": f"tea {i}", "chosen": "a hat", "rejected": "salt"} for i in range(60)]
    path = write_lines(tmp_path / "a.jsonl", pairs)
    fields = dict(data__files=[path], tokenizer__vocab=30, data__valid=20, data__test=21)
    load_data(tiny_run(tmp_path, **fields))
    assert "warning: data: held out are 41 pairs, more than the 19" in capsys.readouterr().err
    load_data(Run(tiny_config(tmp_path, **fields), trains=False))
    assert "held out" not in capsys.readouterr().err


@pytest.mark.parametrize("right, told", [(60, False), (59, True), (50, True), (20, True)])
def test_a_reward_model_that_may_know_nothing_is_told(right, told):
    """Check that of 100 pairs 60 are the fewest whose interval excludes one half."""
    lines = list(checks.unproven(share_right([i < right for i in range(100)])))
    assert [line.startswith(f"validation pairs: agreement 0.{right}") for line in lines] == (
        [True] * told)


def test_a_reward_model_is_asked_about_the_validation_pairs_before_rl(bills_run, tmp_path, capsys):
    """Ask by its last step: R_P w > l, R_PIT r^{w,l} > r^{l,w}; of each group one pair."""
    run, data = tiny_run(tmp_path, rp__steps=2, rpit__steps=2, data__valid=15), bills_run[1]
    policy, fold = new_gpt(run, data), data.folds["valid"][range(15)]
    few = dataclasses.replace(data, folds=data.folds | {"valid": fold})
    for name, train, asked in (("rp", train_rp, "R_P"), ("rpit", train_rpit, "R_PIT wl>lw")):
        content = run.stage(name, (name,), lambda: train(run, data, policy))
        model = new_reward_model(run, data)
        model.load_state_dict(content["model"])
        wanted = held_out_accuracies(few, model, model, "valid")[asked]
        first, last = read_lines(run.folder / "metrics.jsonl")[-2:]
        assert last["stage"] == name and wanted["pairs"] == len(fold)
        assert {key: last[f"valid_{key}"] for key in wanted} == pytest.approx(wanted)
        assert not any(key.startswith("valid") for key in first)
        assert content["valid"] == wanted


def test_an_unproven_reward_model_is_told_also_where_it_is_restored(bills_run, tmp_path, capsys,
                                                                    monkeypatch):
    low = share_right([True, False] * 10)
    monkeypatch.setattr(train_reward, "pointwise_agreement", lambda *_: low)
    monkeypatch.setattr(train_reward, "gap_agreement", lambda *_: low)
    fields = {f"{name}__steps": 1 for name in checks.FITS}
    for trains, told in ((True, 2), (True, 2), (False, 0)):
        run = Run(tiny_config(tmp_path, **fields), trains)
        train_reward.train_start(run, bills_run[1])
        said = capsys.readouterr().err
        assert said.count(": validation pairs: agreement 0.500 [") == told, said
        del run
        gc.collect()  # its lock goes


@pytest.mark.parametrize("scores, said", [
    ([-4.9] * 200, []), ([], []), ([-5.0] * 2 + [0.0] * 198, []),
    ([-5.0, -6.04, -7.0] + [0.0] * 97, ["no lower than what 3% of the responses get that end (from "
                                       "-7.0 on): lower it"]),
    ([-5.0] * 3 + [0.0] * 197, ["2% of the responses get that end (from -5.0 on)"])])
def test_a_score_of_cut_responses_within_the_others_is_told(scores, said):
    lines = list(checks.within_range(-5.0, np.array(scores)))
    assert len(lines) == len(said) and all(text in line for text, line in zip(said, lines))


def test_a_warning_comes_once_a_stage(tmp_path, capsys):
    run = tiny_run(tmp_path)
    for stage, kl in (("rlhf", 12), ("rlhf", 13), ("stage0", 12)):
        checks.warn_once(run.told, stage, checks.troubles(QUIET | {"kl": kl}, 2.0))
    checks.warn_once(None, "stage1", ["KL of another rank"])
    checks.warn_once(run.told, "data", ["no end: 4 of 9", "no turn: 4 of 9", "no turn: 5 of 9"])
    said = capsys.readouterr().err
    assert said.count("warning: rlhf: KL") == said.count("warning: stage0: KL") == 1
    assert said.count("warning: data: no end: 4") == said.count("data: no turn: 4") == 1
    assert said.count("warning") == 4


def test_the_log_is_json(tmp_path):
    line = files.append(tmp_path / "a.jsonl", {"stage": "ü", "step": 1})
    assert json.loads(line) == {"stage": "ü", "step": 1} == read_lines(tmp_path / "a.jsonl")[0]
