"""PPO: worked numbers, GAE against a second implementation, the update, a toy that it solves."""

import copy
import dataclasses
import math
from types import SimpleNamespace

import pytest
import torch

import ppo
from conftest import read_lines, tiny_gpt, tiny_run
from evaluation import watch
from evaluation.watch import figures_of, k3
from faster.sampling import sample
from model import pad_rows, token_logprobs
from ppo import (
    Critic,
    Prompts,
    Task,
    compute_gae,
    kl_coefficient,
    kl_penalty,
    policy_loss,
    token_rewards,
    value_loss,
    whiten,
)
from runtime.config import PPOSection, StageSection
from runtime.settings import UserError

EOS = 0


def ragged_mask(rows: int, time: int, seed: int) -> torch.Tensor:
    """Mark one run of tokens in each row, after a prompt of 1 to 4 tokens."""
    generator = torch.Generator().manual_seed(seed)
    start = torch.randint(1, 5, (rows,), generator=generator)
    length = torch.randint(1, time - 4, (rows,), generator=generator)
    at = torch.arange(time)
    return (at >= start[:, None]) & (at < (start + length)[:, None])


# ------------------------------------------------------------------------------- the mathematics


def test_kl_penalty_by_hand():
    logp, ref = torch.tensor([[-1.0, -2.0, 5.0]]), torch.tensor([[-1.5, -1.0, 9.0]])
    mask = torch.tensor([[True, True, False]])
    assert kl_penalty(logp, ref, mask).tolist() == [[0.5, -1.0, 0.0]]


def test_k3_by_hand_never_negative_and_zero_at_equality():
    # lr = log ref - log pi = log 2: exp(log 2) - 1 - log 2 = 1 - log 2
    assert k3(torch.tensor([[-math.log(2)]])).item() == pytest.approx(1 - math.log(2))
    torch.manual_seed(0)
    logp, ref, mask = torch.randn(50, 9) - 2, torch.randn(50, 9) - 2, ragged_mask(50, 9, 0)
    values = k3(kl_penalty(logp, ref, mask))
    assert (values[mask] > 0).all() and (values[~mask] == 0).all()
    assert (k3(torch.zeros(3, 4)) == 0).all()


def test_k3_has_the_mean_of_the_kl():
    # over all 4 outcomes, weighted by pi, both are KL(pi || ref) exactly
    pi, ref = torch.tensor([0.1, 0.2, 0.3, 0.4]), torch.tensor([0.4, 0.3, 0.2, 0.1])
    mask = torch.ones(4, dtype=torch.bool)
    kl = (pi * (pi / ref).log()).sum()
    torch.testing.assert_close((pi * k3(kl_penalty(pi.log(), ref.log(), mask))).sum(), kl)
    torch.testing.assert_close((pi * kl_penalty(pi.log(), ref.log(), mask)).sum(), kl)


def test_score_lands_on_last_response_token():
    mask = torch.tensor([[0, 1, 1, 0], [0, 0, 1, 1], [0, 1, 0, 0]]).bool()
    kl = torch.tensor([[0.0, 1.0, 2.0, 0.0], [0.0, 0.0, -1.0, 3.0], [0.0, 4.0, 0.0, 0.0]])
    rewards = token_rewards(torch.tensor([10.0, 20.0, 30.0]), kl, mask, beta=0.5)
    assert rewards.tolist() == [[0, -0.5, 9, 0], [0, 0, 0.5, 18.5], [0, 28, 0, 0]]


def test_gae_by_hand():
    # gamma = lambda = 1/2. Deltas, from the last: 2 - 1 = 1; 0 + 0.5 - 1 = -0.5; 1 + 0.5 - 0.5 = 1.
    # Advantages: 1; -0.5 + 0.25 * 1 = -0.25; 1 + 0.25 * -0.25 = 0.9375. Returns: plus the values.
    rewards, values = torch.tensor([[1.0, 0.0, 2.0]]), torch.tensor([[0.5, 1.0, 1.0]])
    advantages, returns = compute_gae(rewards, values, torch.ones(1, 3).bool(), 0.5, 0.5)
    assert advantages.tolist() == [[0.9375, -0.25, 1.0]]
    assert returns.tolist() == [[1.4375, 0.75, 2.0]]


@pytest.mark.parametrize("gamma, lam", [(1.0, 0.95), (0.9, 0.8), (1.0, 1.0), (0.7, 0.0)])
def test_gae_is_the_sum_of_discounted_deltas_and_garbage_does_not_leak(gamma, lam):
    torch.manual_seed(1)
    mask = ragged_mask(20, 12, seed=1)
    garbage = 1e6 * torch.randn(20, 12)
    rewards, values = (torch.where(mask, torch.randn(20, 12), garbage) for _ in range(2))
    advantages, returns = compute_gae(rewards, values, mask, gamma, lam)
    assert (advantages[~mask] == 0).all() and (returns[~mask] == 0).all()
    for b in range(20):
        r, v = rewards[b][mask[b]].tolist(), values[b][mask[b]].tolist() + [0.0]
        deltas = [r[t] + gamma * v[t + 1] - v[t] for t in range(len(r))]
        plain = [sum((gamma * lam) ** (s - t) * deltas[s] for s in range(t, len(r)))
                 for t in range(len(r))]
        assert advantages[b][mask[b]].tolist() == pytest.approx(plain, abs=1e-4)
        assert returns[b][mask[b]].tolist() == pytest.approx(
            [a + value for a, value in zip(plain, v)], abs=1e-4)


def test_returns_with_lambda_one_are_the_sums_of_rewards():
    mask, generator = ragged_mask(10, 9, seed=2), torch.Generator().manual_seed(2)
    rewards, values = torch.randn(2, 10, 9, generator=generator).unbind()
    _, returns = compute_gae(rewards, values, mask, 1.0, 1.0)
    later = (rewards * mask).flip(1).cumsum(1).flip(1) * mask
    torch.testing.assert_close(returns, later, atol=1e-5, rtol=1e-5)


def test_whiten_over_the_mask_only():
    # 1, 2, 3: mean 2, variance 2/3
    x, mask = torch.tensor([[99.0, 1.0, 2.0], [3.0, -99.0, 77.0]]), torch.tensor(
        [[False, True, True], [True, False, False]])
    side = 1.5 ** 0.5
    torch.testing.assert_close(whiten(x, mask), torch.tensor([[0, -side, 0], [side, 0, 0]]))


def test_policy_loss_by_hand_and_its_gradient_is_zero_where_clipped():
    # A, rho -> loss: the larger of -A rho and -A clip(rho, 0.8, 1.2)
    cases = [(2.0, 1.1, -2.2, False), (2.0, 1.5, -2.4, True), (2.0, 0.5, -1.0, False),
             (-2.0, 0.9, 1.8, False), (-2.0, 0.5, 1.6, True), (-2.0, 1.5, 3.0, False)]
    advantages, rho, losses, clipped = (torch.tensor([column]) for column in zip(*cases))
    old = torch.full_like(rho, -1.3)
    logp = (old + rho.log()).requires_grad_()
    for i in range(len(cases)):
        mask = torch.arange(len(cases))[None] == i
        loss, count = policy_loss(logp, old, advantages, mask, 0.2)
        assert loss.item() == pytest.approx(losses[0, i].item(), abs=1e-5)
        assert count.item() == clipped[0, i]
    loss, count = policy_loss(logp, old, advantages, torch.ones_like(rho).bool(), 0.2)
    loss.backward()
    assert loss.item() == pytest.approx(losses.sum().item(), abs=1e-5) and count.item() == 2
    expected = torch.where(clipped, 0.0, -advantages * rho)  # d rho / d logp = rho
    torch.testing.assert_close(logp.grad, expected)


def test_value_loss_by_hand():
    # old 0, clip 0.2. Value 1, return 2: clipped (0.2 - 2)^2 = 3.24 beats 1. Value 1, return 0:
    # unclipped 1 beats 0.04. Value -1, return -2: 3.24 again. Halves: 1.62, 0.5, 1.62.
    values, returns = torch.tensor([[1.0, 1.0, -1.0, 50.0]]), torch.tensor([[2.0, 0.0, -2.0, 0.0]])
    mask = torch.tensor([[True, True, True, False]])
    loss = value_loss(values, torch.zeros(1, 4), returns, mask, 0.2)
    assert loss.item() == pytest.approx(3.74)


def test_value_clip_is_around_the_old_value():
    # old 3, value 4 -> 3.2; return 5: (3.2 - 5)^2 / 2 = 1.62
    one = torch.ones(1, 1)
    assert value_loss(4 * one, 3 * one, 5 * one, one.bool(), 0.2).item() == pytest.approx(1.62)


def test_the_kl_costs_more_above_its_target():
    assert kl_coefficient(0.1, 3.0, 2.0, 4.0, 16.0) == pytest.approx(0.1 * 81 / 16)  # 1.5^4
    assert kl_coefficient(0.1, 2.2, 2.0, 1.0, 16.0) == pytest.approx(0.11)
    for low in (-0.3, 0.0, 1.0, 2.0):
        assert kl_coefficient(0.1, low, 2.0, 4.0, 16.0) == 0.1
    assert kl_coefficient(0.1, 9.0, 2.0, 0.0, 16.0) == 0.1
    assert kl_coefficient(0.1, 8.0, 2.0, 4.0, 16.0) == 1.6  # not 256 times as much


# -------------------------------------------------------------------------------- rolling out


def critic_of(seed: int) -> Critic:
    """Make a critic whose values are not zero any more."""
    critic = Critic(tiny_gpt(8, seed=seed))
    torch.nn.init.normal_(critic.head.weight, std=0.3)
    torch.nn.init.constant_(critic.head.bias, 0.1)
    return critic


def look(iteration, prompts, rollout):
    """Return what PPO needs to be told of a rollout, and more."""
    return figures_of(rollout, prompts, rollout.rows.responses())


def toy(count: int = 16):
    """Return a policy, an anchor, a critic that knows something, prompts, and a task: score is 2 x
    the share of token 3."""
    policy, anchor = tiny_gpt(8, seed=1), tiny_gpt(8, seed=2)
    critic = critic_of(3)
    ids = [[1 + i % 7] * (1 + i % 3) for i in range(count)]

    def score(prompts, rows):
        return torch.tensor([2 * r.count(3) / len(r) for r in rows.responses()])

    prompts = Prompts(ids, ids, [[]] * count, [""] * count)
    task = Task("toy", StageSection(), anchor, lambda policy, i, n: prompts, score, look)
    return policy, anchor, critic, prompts, task


def roll(policy, anchor, critic, prompts, task, section, beta=0.3, max_new=6):
    learner = ppo.critic_learner(policy, critic, section, StageSection(beta=beta), (0.5, 0.25))
    task = dataclasses.replace(task, anchor=anchor)
    uniforms = torch.rand(len(prompts.ids), max_new, generator=torch.Generator().manual_seed(0))
    rollout = ppo.roll_out(learner, task, prompts, uniforms, section, EOS)
    return learner, rollout, experience_of(learner, rollout, section)


def experience_of(learner, r, section):
    """Return what an update learns from, as ppo.train makes it."""
    advantages, returns = learner.advantages(r, section)
    return ppo.Experience(r.rows, r.logp, whiten(advantages, r.rows.mask), r.values, returns)


def update(learner, experience, section, names=("policy", "critic"), seed=0):
    """Update networks, each with minibatches of the same order; return all their figures."""
    figures = {}
    for name in names:
        figures |= ppo.update(getattr(learner, name), experience, section,
                              torch.Generator().manual_seed(seed), name)
    return figures


def test_a_new_critic_values_everything_at_zero():
    critic, rows = Critic(tiny_gpt(8)), pad_rows([[1, 2], [3]], [[4, 0], [5, 6, 0]])
    assert (critic(rows) == 0).all() and critic(rows).dtype == torch.float32


def test_a_value_is_read_before_its_token():
    critic, rows = critic_of(0), pad_rows([[1, 2], [3]], [[4, 0], [5, 6, 0]])
    values, scalars = critic(rows), critic.head(critic.trunk(rows.tokens))[:, :, 0]
    torch.testing.assert_close(values[0], torch.cat([torch.zeros(2), scalars[0, 1:3]]))
    torch.testing.assert_close(values[1], torch.cat([torch.zeros(1), scalars[1, :3]]))
    changed = copy.deepcopy(rows)
    changed.tokens[0, 3] = 5  # the last token is not known when its value is read
    torch.testing.assert_close(critic(changed), values)


def test_rollout_holds_what_the_update_needs():
    policy, anchor, critic, prompts, task = toy()
    section = PPOSection(temperature=0.7, gamma=0.9, lam=0.8, critic_lam=0.8)
    _, r, experience = roll(policy, anchor, critic, prompts, task, section)
    numbers = torch.rand(16, 6, generator=torch.Generator().manual_seed(0))
    same = sample(policy, prompts.ids, numbers, 0.7, EOS)[0]
    assert r.rows.responses() == same.responses()
    mask = r.rows.mask
    logp, ref = torch.zeros(2, *mask.shape)
    for b, tokens in enumerate(r.rows.tokens.tolist()):
        for t in range(int(r.rows.prompt[b]), int(r.rows.length[b])):
            for model, table in ((policy, logp), (anchor, ref)):
                logits = model.logits(model(torch.tensor([tokens[:t]])))[0, -1] / 0.7
                table[b, t] = torch.log_softmax(logits, 0)[tokens[t]].item()
    torch.testing.assert_close(r.logp, logp, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(r.sampler_logp, logp, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(r.kl, logp - ref, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(r.values, critic(r.rows))
    rewards = token_rewards(r.score, logp - ref, mask, 0.3)
    advantages, _ = compute_gae(rewards, r.values, mask, 0.9, 0.8)
    torch.testing.assert_close(experience.advantages, whiten(advantages, mask), atol=1e-4,
                               rtol=1e-4)
    torch.testing.assert_close(experience.returns, (advantages + r.values) * mask, atol=1e-4,
                               rtol=1e-4)


def test_scores_are_normalised_and_a_response_without_eos_gets_no_eos_score():
    section = PPOSection(no_eos_score=-7.0)
    _, r, _ = roll(*toy(60), section)
    responses = r.rows.responses()
    assert 5 < r.ended.sum() < 55  # both kinds are there
    for response, score, ended in zip(responses, r.score.tolist(), r.ended.tolist()):
        assert ended == (response[-1] == EOS)
        raw = 2 * response.count(3) / len(response)
        assert score == pytest.approx((raw - 0.5) / 0.25 if ended else -7.0)


def test_figures_by_hand():
    rows = pad_rows([[1], [1], [1, 1]], [[4, 5, EOS], [EOS], [6, 7, 5]])
    zeros = torch.zeros(rows.mask.shape)
    kl = torch.where(rows.mask, 0.5, 0.0)  # 7 tokens: 3.5 in all
    logp = torch.where(rows.mask, -2.0, 9.0)
    drawn = logp.clone()
    drawn[0, 1], drawn[2, 2] = -2.5, -1.8
    rollout = ppo.Rollout(rows, logp, drawn, kl, zeros + 1, zeros,
                          torch.tensor([1.0, 2.0, 6.0]), torch.tensor([True, True, False]))
    prompts = Prompts([[1], [1], [1, 1]], [[1], [1], [1, 1]], [[4, 5], [4], [6, 7]],
                      ["y_l", "y_w", "y_l"])
    assert figures_of(rollout, prompts, [[4, 5], [], [6, 7, 5]]) == pytest.approx({
        "reward": 3.0, "kl": 3.5 / 3, "k3": 7 * (math.exp(-0.5) - 1 + 0.5) / 3,
        "eos_rate": 2 / 3, "length": 5 / 3,
        "copies": 1 / 3, "empty": 1 / 3, "copies y_l": 0.5, "copies y_w": 0.0,
        "entropy": 2.0, "sampler_gap": 0.7 / 7, "sampler_gap_max": 0.5})


def test_explained_variance_by_hand():
    """What follows each token, gamma 0.5: 1 + 0.5 * 2 = 2 and 2; 4."""
    rows = pad_rows([[1]] * 2, [[4, EOS], [EOS]])
    rewards = torch.tensor([[0.0, 1.0, 2.0], [0.0, 4.0, 0.0]])
    zeros = torch.zeros_like(rewards)

    def explained(values):
        return watch.explained_variance(ppo.Rollout(rows, zeros, zeros, zeros, torch.tensor(values),
                                                    rewards, zeros[:, 0], zeros[:, 0]), 0.5)
    assert explained([[9.0, 2.0, 2.0], [9.0, 4.0, 9.0]]) == pytest.approx(1)
    assert explained([[9.0, 0.0, 0.0], [9.0, 0.0, 9.0]]) == pytest.approx(0)
    assert explained([[9.0, 7.0, 7.0], [9.0, 9.0, 9.0]]) == pytest.approx(1)  # a shift explains it
    # left over: 0, 0, 1, its variance 2/9; of the outcomes 2, 2, 4 it is 8/9
    assert explained([[9.0, 2.0, 2.0], [9.0, 3.0, 9.0]]) == pytest.approx(0.75)


def test_lengths_of_the_best_and_the_worst_of_each_group():
    score = torch.tensor([1.0, 3.0, 2.0, 5.0, 4.0, 6.0])
    assert watch.lengths_in_groups(score, [10, 20, 30, 1, 2, 3], 3) == {
        "length_best": 11.5, "length_worst": 6.0}


# --------------------------------------------------------------------------------- the update


def test_the_first_minibatch_finds_no_change_and_the_update_changes_policy_and_critic():
    policy, anchor, critic, prompts, task = toy()
    section = PPOSection(temperature=0.7, epochs=3, minibatches=2)
    learner, _, experience = roll(policy, anchor, critic, prompts, task, section)
    before = copy.deepcopy(policy.state_dict()), copy.deepcopy(critic.state_dict())
    again = token_logprobs(policy, experience.rows, 0.7)
    torch.testing.assert_close(again, experience.logp, atol=1e-5, rtol=1e-5)  # rho is 1
    _, figures = ppo.policy_objective(policy, experience, section)
    assert figures["clipped"] == 0
    squares = (experience.values - experience.returns) ** 2 * experience.rows.mask
    loss, _ = ppo.critic_objective(critic, experience, section)
    assert loss.item() == pytest.approx(squares.sum().item() / 2, rel=1e-5)
    update(learner, experience, section)
    for model, old in zip((policy, critic), before):
        assert all(not torch.equal(new, old[name]) for name, new in model.state_dict().items())
    for one in learner.networks().values():  # epochs x minibatches
        assert {int(state["step"]) for state in one.optimizer.state.values()} == {6}


def test_a_later_policy_is_clipped():
    policy, anchor, critic, prompts, task = toy()
    section = PPOSection(lr=1e-2, critic_lr=1e-2, epochs=1, minibatches=1, clip=0.3)
    learner, _, r = roll(policy, anchor, critic, prompts, task, section)
    update(learner, r, section)
    with torch.no_grad():
        logp, mask = token_logprobs(policy, r.rows, 1.0), r.rows.mask
        values = critic(r.rows)
    loss, clipped = policy_loss(logp, r.logp, r.advantages, mask, 0.3)
    value = value_loss(values, r.values, r.returns, mask, 0.3)
    figures = update(learner, r, section)
    count = mask.sum().item()
    assert figures == pytest.approx({
        "policy_loss": loss.item() / count, "clipped": clipped.item() / count,
        "value_loss": value.item() / count}, rel=1e-4)
    assert 0 < figures["clipped"] < 0.8


def test_learners_have_the_configured_rates():
    policy, _, critic, _, _ = toy()
    section, stage = PPOSection(lr=2e-3, critic_lr=3e-3), StageSection(lr_scale=0.5, beta=0.7)
    learner = ppo.critic_learner(policy, critic, section, stage)
    groups = [one.optimizer.param_groups[0] for one in learner.networks().values()]
    assert [group["lr"] for group in groups] == [1e-3, 1.5e-3] and learner.beta == 0.7
    assert {group["eps"] for group in groups} == {1e-5}
    learner = ppo.group_learner(policy, section, stage)
    assert list(learner.networks()) == ["policy"] and learner.beta == 0.7
    assert learner.policy.optimizer.param_groups[0]["lr"] == 1e-3


@pytest.mark.parametrize("micro_batch", [0, 20])
def test_first_step_follows_the_gradient_of_the_token_mean(micro_batch):
    # one minibatch, plain SGD: the step is -lr times the gradient of the loss a token
    policy, anchor, critic, prompts, task = toy()
    policy.config.micro_batch = micro_batch  # 20: gradients of many micro-batches add up
    section = PPOSection(epochs=1, minibatches=1, grad_clip=1e9)
    learner, _, rollout = roll(policy, anchor, critic, prompts, task, section)
    for one in learner.networks().values():
        one.optimizer = torch.optim.SGD(one.model.parameters(), lr=0.5)
    twin, critic_twin = copy.deepcopy(policy), copy.deepcopy(critic)
    figures = update(learner, rollout, section)
    logp = token_logprobs(twin, rollout.rows, 1.0)
    mask = rollout.rows.mask
    loss = -((logp - rollout.logp).exp() * rollout.advantages)[mask].mean()
    errors = critic_twin(rollout.rows) - rollout.returns
    value = 0.5 * (errors[mask] ** 2).mean()
    for after, before, wanted in ((policy, twin, loss), (critic, critic_twin, value)):
        wanted.backward()
        for new, old in zip(after.parameters(), before.parameters()):
            torch.testing.assert_close(new, old - 0.5 * old.grad, atol=1e-5, rtol=1e-4)
    assert figures["value_loss"] == pytest.approx(value.item(), rel=1e-4)
    assert figures["policy_loss"] == pytest.approx(loss.item(), abs=1e-5)


# -------------------------------------------------------------------------------- whole stages


DATA = SimpleNamespace(tokenizer=SimpleNamespace(eos=EOS))


def train(folder, policy, anchor, critic, task, stage, **fields):
    run = tiny_run(folder, ppo__batch=32, data__max_response=6, **fields)
    learner = ppo.critic_learner(policy, critic, run.config.ppo, stage)
    ppo.train(run, DATA, dataclasses.replace(task, stage=stage, anchor=anchor), learner)
    history = read_lines(run.folder / "metrics.jsonl")
    assert [(line["stage"], line["step"]) for line in history] == [
        ("toy", i) for i in range(1, stage.iterations + 1)]
    return learner, history


def test_ppo_solves_a_toy(tmp_path):
    policy, _, _, _, task = toy(32)
    anchor, critic = copy.deepcopy(policy), Critic(tiny_gpt(8, seed=3))
    _, history = train(tmp_path, policy, anchor, critic, task,
                       StageSection(iterations=70, beta=0.02, kl_target=10.0), ppo__lr=1e-2,
                       ppo__critic_lr=1e-2, ppo__no_eos_score=-1.0,
                           ppo__epochs=2, ppo__minibatches=2)
    first, last = history[0], history[-1]
    assert first["kl"] == pytest.approx(0, abs=1e-4)
    assert first["reward"] < 0.3 and last["reward"] > 1.2  # 2 is the supremum
    assert first["eos_rate"] < 0.7 and last["eos_rate"] > 0.9
    assert last["kl"] > 1 and last["k3"] > 1
    assert all(figures["sampler_gap_max"] == pytest.approx(0, abs=1e-4) for figures in history)


def test_without_a_score_the_policy_goes_to_its_anchor(tmp_path):
    policy, anchor, critic, _, task = toy(32)  # two different models
    task.score = lambda prompts, rows: torch.zeros(len(rows.length))
    _, history = train(tmp_path, policy, anchor, critic, task, StageSection(
        iterations=35, beta=1.0), ppo__lr=1e-2, ppo__kl_power=0.0, ppo__no_eos_score=0.0)
    assert history[0]["kl"] > 2 and history[-1]["k3"] < history[0]["k3"] / 3
    assert {figures["beta"] for figures in history} == {1.0}


@pytest.mark.parametrize("wall", [1e9, 2.0])
def test_a_stage_warms_up_anneals_and_adapts(tmp_path, wall):
    policy, anchor, critic, _, task = toy(32)
    seen, start = [], policy.embedding.weight.clone()
    task.observe = lambda *all: seen.append(policy.embedding.weight.clone()) or look(*all)
    stage = StageSection(iterations=4, beta=0.1, kl_target=1e-3, lr_scale=0.5)
    learner, history = train(tmp_path, policy, anchor, critic, task, stage, ppo__critic_warmup=2,
                             ppo__lr=1e-3, ppo__critic_lr=4e-3, ppo__kl_power=2.0,
                             ppo__kl_wall=wall)
    assert [torch.equal(weight, start) for weight in seen] == [True, True, True, False]
    assert ["policy_loss" in figures for figures in history] == [False, False, True, True]
    # in the last of 4 iterations 1 - 0.9 * 3 / 4 = 0.325 of the rate is left
    assert learner.policy.optimizer.param_groups[0]["lr"] == pytest.approx(0.5e-3 * 0.325)
    assert learner.critic.optimizer.param_groups[0]["lr"] == pytest.approx(2e-3 * 0.325)
    # above its target the KL of an iteration makes the beta of the next one
    after = [0.1 * min(max(1.0, h["kl"] / 1e-3) ** 2, wall) for h in history]
    assert [h["beta"] for h in history] + [learner.beta] == pytest.approx([0.1] + after)
    assert after[0] > 1 or wall == 2.0  # the policy is far from this anchor from the start


def test_the_update_gets_whitened_advantages(tmp_path, monkeypatch):
    policy, anchor, critic, _, task = toy(32)
    seen = []
    monkeypatch.setattr(ppo, "update", lambda one, experience, *_: seen.append(experience) or {})
    train(tmp_path, policy, anchor, critic, task, StageSection(iterations=1))
    advantages = seen[0].advantages[seen[0].rows.mask]
    assert advantages.mean().item() == pytest.approx(0, abs=1e-5)
    assert advantages.square().mean().item() == pytest.approx(1, abs=1e-4)


def test_a_score_that_is_not_finite_stops_the_stage(tmp_path):
    policy, anchor, critic, _, task = toy(32)
    task.score = lambda prompts, rows: torch.full((len(rows.length),), math.nan)
    start = copy.deepcopy(policy.state_dict())
    with pytest.raises(UserError, match="PPO critic: the gradient of .* is not finite"):
        train(tmp_path, policy, anchor, critic, task, StageSection(iterations=2))
    assert all(torch.equal(new, start[name]) for name, new in policy.state_dict().items())


# ---------------------------------------------------------------------- advantages without a critic


def test_group_advantages_by_hand():
    # two groups of three, rewards of each row's tokens: 1 + 2, 0 + 0, 6; then 1, 1, 1
    rows = pad_rows([[1]] * 6, [[4, 5], [4, 5], [5], [4], [5], [6]])
    rewards = torch.zeros(rows.mask.shape)
    rewards[0, 1:] = torch.tensor([1.0, 2.0])
    rewards[2, 1], rewards[3:, 1] = 6.0, 1.0
    zeros = torch.zeros_like(rewards)
    rollout = ppo.Rollout(rows, *[zeros] * 4, rewards, zeros[:, 0], zeros[:, 0] == 0)
    advantages, returns = ppo.group_advantages(rollout, PPOSection(group=3))
    assert advantages.tolist() == [[0, 0, 0], [0, -4.5, -4.5], [0, 4.5, 0]] + [[0, 0, 0]] * 3
    assert (returns == 0).all()


def test_a_group_reads_its_prompt_once():
    policy, anchor, _, prompts, task = toy(4)
    section, sizes = PPOSection(minibatches=1), {policy: [], anchor: []}
    for model, seen in sizes.items():
        model.register_forward_hook(lambda model, given, _: sizes[model].append(len(given[0])))
    learner = ppo.group_learner(policy, section, StageSection())
    rollout = ppo.roll_out(learner, task, prompts.repeated(3), torch.rand(12, 6), section, EOS)
    assert sizes[policy][0] == sizes[policy][-1] == sizes[anchor][0] == 4
    assert 1 < len(sizes[policy]) and sizes[policy][1] == 12  # a token of each response
    update(learner, experience_of(learner, rollout, PPOSection(group=3)), section, ["policy"])
    assert sizes[policy][-1] == 4


def test_prompts_are_repeated_one_after_another():
    prompts = Prompts([[1], [2]], [[3], [4]], [[5], [6]], ["y_l", "y_w"]).repeated(2)
    assert prompts == Prompts([[1], [1], [2], [2]], [[3], [3], [4], [4]], [[5], [5], [6], [6]],
                              ["y_l", "y_l", "y_w", "y_w"])


def test_groups_solve_the_toy_without_a_critic(tmp_path):
    policy, _, _, prompts, task = toy(32)
    drawn = []

    def draw(policy, iteration, number):
        drawn.append(number)
        return Prompts(*(column[:number] for column in vars(prompts).values()))
    run = tiny_run(tmp_path, ppo__batch=32, data__max_response=6, ppo__lr=1e-2, ppo__group=8,
                   ppo__no_eos_score=-1.0, ppo__epochs=2, ppo__minibatches=2)
    stage = StageSection(iterations=70, beta=0.02, kl_target=10.0)
    task = dataclasses.replace(task, stage=stage, anchor=copy.deepcopy(policy), draw=draw)
    ppo.train(run, DATA, task, ppo.group_learner(policy, run.config.ppo, stage))
    history = read_lines(run.folder / "metrics.jsonl")
    assert set(drawn) == {4} and "value_loss" not in history[-1]
    assert history[0]["reward"] < 0.3 and history[-1]["reward"] > 1.2


def test_the_critic_may_learn_with_a_lambda_of_its_own():
    policy, anchor, critic, prompts, task = toy()
    section = PPOSection(lam=0.3, critic_lam=1.0)
    learner, r, experience = roll(policy, anchor, critic, prompts, task, section)
    mask = r.rows.mask
    advantages, _ = compute_gae(r.rewards, r.values, mask, 1.0, 0.3)
    torch.testing.assert_close(experience.advantages, whiten(advantages, mask))
    left = r.rewards.flip(1).cumsum(1).flip(1) * mask  # the sum of what is left
    torch.testing.assert_close(experience.returns, left, atol=1e-5, rtol=1e-5)
