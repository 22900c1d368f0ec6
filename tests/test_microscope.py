"""The microscope: one response of PPO in groups, token by token."""

from types import SimpleNamespace

import pytest
import torch

import ppo
import reward
from conftest import tiny_run
from data import load_data
from evaluation import microscope
from runtime.settings import UserError
from runtime.state import weights_of
from train_reward import new_gpt, new_reward_model


@pytest.fixture
def looked_at(tmp_path, monkeypatch):
    """Return a run in groups of three with what the microscope shows of it."""
    run = tiny_run(tmp_path, ppo__advantage="group", ppo__group=3, ppo__batch=12,
                   ppo__minibatches=2)
    data = load_data(run)
    anchor, policy = new_gpt(run, data), new_gpt(run, data, seed=5)
    rpit = new_reward_model(run, data, seed=6)
    torch.nn.init.normal_(rpit.head.weight, std=0.1)
    run.used["stage1"] = "stage1.pt"
    monkeypatch.setattr(microscope.files, "load", {
        "stage1.pt": {"model": weights_of(policy), "scale": (0.5, 2.0)}}.get)
    return run, data, SimpleNamespace(rpit=rpit, policies={"M_PIT^SFT": anchor}), policy


def test_advantages_are_those_of_the_group(looked_at):
    run, data, models, _ = looked_at
    task, learner = microscope.last_stage(run, models.policies, models.rpit)
    assert learner.group == 3 and learner.critic is None and learner.scale == (0.5, 2.0)
    prompts = ppo.Prompts([[1, 2, 3]], [[2]], [[3]], [""]).repeated(3)
    uniforms = torch.rand(3, 8, generator=torch.Generator().manual_seed(0))
    rollout = ppo.roll_out(learner, task, prompts, uniforms, run.config.ppo, data.tokenizer.eos)
    found = microscope.columns_of(run, data, models.rpit, learner, rollout)
    assert "V" not in found and "delta" not in found
    total = rollout.rewards.sum(1).tolist()
    assert found["A"] == pytest.approx([total[0] - (total[1] + total[2]) / 2] * len(found["A"]),
                                       abs=1e-5)
    assert sum(found["R_PIT"]) == pytest.approx(reward.score(models.rpit, rollout.rows)[0].item(),
                                                rel=1e-4)
    assert found["token"] == list(map(data.tokenizer.piece, rollout.rows.responses()[0]))
    for numbers in zip(found["-beta KL"], found["log pi"], found["log pi_ref"]):
        assert numbers[0] == pytest.approx(-0.03 * (numbers[1] - numbers[2]), abs=1e-6)


def test_the_text_says_what_the_others_of_the_group_got(looked_at):
    run, data, models, policy = looked_at
    text, same, other = (microscope.explained(
        run, data, models, ([2], [3]), torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert text == same != other
    first, heads, *_, paid, others = text.splitlines()
    assert first.startswith("a rewrite as stage1 sampled it, T = 1.0: ")
    assert heads.split() == ["log", "pi", "log", "pi_ref", "-beta", "KL", "reward", "A", "R_PIT"]
    assert others.startswith("the others of its group got ")
    task, learner = microscope.last_stage(run, models.policies, models.rpit)
    assert all(map(torch.equal, weights_of(learner.policy.model).values(),
                   weights_of(policy).values()))


def test_another_score_than_r_gap_is_refused(looked_at):
    run, _, models, _ = looked_at
    run.config.pit.score = "difference"
    with pytest.raises(UserError, match="--explain shows what r_gap pays, but pit.score is 'diff"):
        microscope.last_stage(run, models.policies, models.rpit)
