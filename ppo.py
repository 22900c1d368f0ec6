"""Proximal policy optimisation of a language model against a reward model (arXiv 1707.06347).

One code path serves Eq. 3 (RLHF) and Eqs. 4 and 5 (PIT's stages): they maximise

    E[ r - beta KL(pi || pi_ref) ],   y ~ pi(. | prompt)

and differ only in how the prompt is made (x, or x and y_ref) and what r is (R_P or r_gap). An
iteration: roll out, score, rewards with KL, advantages (GAE), clipped updates, the next beta.

Symbols, all on one grid [B, T] of tokens, right-padded; a mask marks the response's tokens:

    logp[b, t]      log pi(token t | tokens before t), of the policy that sampled
    ref_logp[b, t]  the same of the anchor pi_ref (the supervised model)
    values[b, t]    V of the state before token t, read at position t - 1
    rewards[b, t]   -beta (logp - ref_logp), and the score at the last token
    rho             pi_new / pi_old, 1 in the first minibatch of the first epoch

Rollout, log-probabilities and update share one temperature, and there is no top-k, top-p or
dropout: one behaviour distribution. Left out: early stopping on KL, a critic in the policy.
"""

import math
from dataclasses import dataclass
from typing import Callable

import torch
import torch.nn as nn

from model import (GPT, Rows, by_micro_batches, micro_batches, on_grid, sample, scalars,
                   token_logprobs)
from runtime.checks import troubles, warn_once
from runtime.config import PPOSection, StageSection
from runtime.ranks import all_sum, gather, gather_rows, mine, random_numbers
from runtime.run import NotFinite, Run, optimizer_step


def kl_penalty(logp, ref_logp, mask):
    """log pi - log pi_ref at the response's tokens [B, T]: its mean over samples is the KL."""
    return (logp - ref_logp) * mask


def k3(logp, ref_logp, mask):
    """The low-variance, never negative estimate of the KL, a token [B, T]
    (Schulman, "Approximating KL divergence", joschu.net/blog/kl-approx.html)."""
    log_ratio = (ref_logp - logp) * mask
    return torch.expm1(log_ratio) - log_ratio


def token_rewards(score, kl, mask, beta: float):
    """Rewards [B, T]: -beta times the KL at each token; the score [B] lands on the last token."""
    rewards = -beta * kl
    at = torch.arange(mask.shape[1], device=mask.device)
    last = (mask * at).argmax(1)  # [B]
    rewards[torch.arange(len(score), device=mask.device), last] += score
    return rewards


def compute_gae(rewards, values, mask, gamma: float, lam: float):
    """Generalised advantage estimation (arXiv 1506.02438): advantages and returns, [B, T].

    delta_t = r_t + gamma V_{t+1} - V_t and A_t = delta_t + gamma lam A_{t+1}, where the value and
    the advantage after the last token are 0. Returns are A + V. Everything outside of the mask,
    which must be one run of tokens in each row, is 0.
    """
    advantages = torch.zeros_like(rewards)
    next_value = next_advantage = torch.zeros(len(rewards), device=rewards.device)
    for t in range(rewards.shape[1] - 1, -1, -1):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        next_advantage = (delta + gamma * lam * next_advantage) * mask[:, t]
        next_value = values[:, t] * mask[:, t]
        advantages[:, t] = next_advantage
    return advantages, (advantages + values) * mask


def whiten(x, mask):
    """x [B, T] with mean 0 and variance 1 over the mask, 0 elsewhere."""
    count = mask.sum().float()
    mean = (x * mask).sum() / count
    variance = (((x - mean) * mask) ** 2).sum() / count
    return (x - mean) * torch.rsqrt(variance + 1e-8) * mask


def policy_loss(logp, old_logp, advantages, mask, clip: float):
    """max(-A rho, -A clip(rho, 1 - clip, 1 + clip)), summed over tokens.

    Returns the loss and the number of tokens whose ratio was clipped."""
    rho = ((logp - old_logp) * mask).exp()
    unclipped, clipped = -advantages * rho, -advantages * rho.clamp(1 - clip, 1 + clip)
    return (torch.maximum(unclipped, clipped) * mask).sum(), ((clipped > unclipped) * mask).sum()


def value_loss(values, old_values, returns, mask, clip: float):
    """Half the larger of the clipped and the unclipped square, summed over tokens (the clip of
    OpenAI's baselines). The critic has its own optimiser, so the loss needs no coefficient."""
    near = old_values + (values - old_values).clamp(-clip, clip)
    squares = torch.maximum((values - returns) ** 2, (near - returns) ** 2)
    return 0.5 * (squares * mask).sum()


def kl_coefficient(beta: float, kl: float, target: float, power: float, most: float) -> float:
    """beta, and (kl / target)^power of it where the KL (nats a response) is above its target; at
    most `most` times beta, so that after one wild iteration the KL does not drown the score.

    A wall, which is there at once. A beta that adapts step by step (arXiv 1909.08593) lags behind
    the policy: over the few dozen iterations of a stage the KL swings around its target."""
    return beta * min(max(1.0, kl / target) ** power, most)


@dataclass
class Prompts:
    """What a rollout starts from. `x` and `y_ref` are kept as token ids."""
    ids: list[list[int]]      # B prompts, as the policy reads them
    x: list[list[int]]
    y_ref: list[list[int]]    # empty lists for RLHF
    source: list[str]         # of y_ref: "y_w", "y_l", "M_P^RL", or "" for RLHF

    def mine(self):
        """This rank's share."""
        return Prompts(mine(self.ids), mine(self.x), mine(self.y_ref), mine(self.source))


@dataclass
class Rollout:
    rows: Rows                # prompts with sampled responses
    mask: torch.Tensor        # [B, T] the responses' tokens
    logp: torch.Tensor        # [B, T]
    kl: torch.Tensor          # [B, T]
    values: torch.Tensor      # [B, T]
    advantages: torch.Tensor  # [B, T] whitened
    returns: torch.Tensor     # [B, T]
    score: torch.Tensor       # [B] in spreads of the reward
    ended: torch.Tensor       # [B] whether the response has its end

    def __getitem__(self, chosen):
        """Return some of the rows, cut to the longest of them."""
        rows = self.rows[chosen]
        grids = {name: getattr(self, name)[chosen, :rows.tokens.shape[1]] for name in (
            "mask", "logp", "kl", "values", "advantages", "returns")}
        return Rollout(rows=rows, score=self.score[chosen], ended=self.ended[chosen], **grids)


@dataclass
class Task:
    """What tells Eqs. 3, 4 and 5 apart."""
    name: str                                              # of the stage
    draw: Callable[[int, int], Prompts]                    # iteration, number -> prompts
    score: Callable[[Prompts, Rows], torch.Tensor]         # -> [B], raw
    observe: Callable[..., dict]  # iteration, prompts, rows, score, KL [B] -> more figures to log


class Critic(nn.Module):
    """V(s) for each token: a trunk of its own and a head that starts at zero."""

    def __init__(self, trunk: GPT):
        super().__init__()
        self.trunk = trunk
        self.head = nn.Linear(trunk.config.width, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, rows: Rows):
        """V before each of the response's tokens [B, T]: the scalar at the position before it."""
        hidden = self.trunk(rows.tokens, at=rows.before)  # [N, D]
        return on_grid(rows.mask, scalars(self.head, hidden)[:, 0])


@dataclass
class Learner:
    """Everything that PPO changes."""
    policy: GPT
    critic: Critic
    policy_optimizer: torch.optim.Optimizer
    critic_optimizer: torch.optim.Optimizer
    beta: float


def make_learner(policy: GPT, critic: Critic, ppo: PPOSection, stage: StageSection) -> Learner:
    """Optimisers for a policy and a critic (Adam's eps 1e-5, as in OpenAI's baselines)."""
    optimizers = [torch.optim.Adam(model.parameters(), lr=lr * stage.lr_scale, eps=1e-5, fused=True)
                  for model, lr in ((policy, ppo.lr), (critic, ppo.critic_lr))]
    return Learner(policy, critic, *optimizers, beta=stage.beta)


@torch.no_grad()
def roll_out(learner: Learner, anchor: GPT, prompts: Prompts, task: Task, ppo: PPOSection,
             max_new: int, eos: int, spread: list[float], generator) -> Rollout:
    """Sample responses and compute all that the update needs, each rank for its share of the
    prompts. Every rank gets the whole rollout.

    The raw score is shifted and scaled by `spread`, the (mean, std) of scores before training; a
    response without its end gets ppo.no_eos_score instead.
    """
    # 1. Sample y ~ pi(. | prompt).
    portion, own = anchor.config.portion, prompts.mine()
    uniforms = random_numbers(len(prompts.ids), max_new, generator)
    rows = sample(learner.policy, own.ids, uniforms, ppo.temperature, eos)
    # 2. Score it: one number a response.
    ended = rows.tokens.gather(1, rows.length[:, None] - 1)[:, 0] == eos
    mean, std = spread
    score = torch.where(ended, (task.score(own, rows) - mean) / std, ppo.no_eos_score)
    # 3. KL and values: one number a token.
    logp, ref_logp = (
        by_micro_batches(lambda part: token_logprobs(one, part, ppo.temperature), rows, portion)
        for one in (learner.policy, anchor))
    kl = kl_penalty(logp, ref_logp, rows.mask)
    values = by_micro_batches(learner.critic, rows, portion)
    # 4. From here on every rank has all rows.
    rows = Rows(*map(gather_rows, (rows.tokens, rows.prompt, rows.length)))
    logp, kl, values, score, ended = map(gather_rows, (logp, kl, values, score, ended))
    mask = rows.mask
    # 5. Rewards, advantages and returns: one number a token.
    rewards = token_rewards(score, kl, mask, learner.beta)
    advantages, returns = compute_gae(rewards, values, mask, ppo.gamma, ppo.lam)
    return Rollout(rows, mask, logp, kl, values, whiten(advantages, mask), returns, score, ended)


def add_gradients(learner: Learner, batch: Rollout, ppo: PPOSection, train_policy: bool):
    """Add the gradients of both summed losses, portion by portion; returns sums, and the largest
    |log rho|."""
    sums, farthest = torch.zeros(4), 0.0  # policy loss, clipped tokens, value loss, tokens
    for chosen in micro_batches(batch.rows.length, learner.policy.config.portion):
        part = batch[chosen]
        if train_policy:
            logp = token_logprobs(learner.policy, part.rows, ppo.temperature)
            loss, clipped = policy_loss(logp, part.logp, part.advantages, part.mask, ppo.clip)
            loss.backward()
            sums[:2] += torch.tensor([loss.item(), clipped.item()])
            farthest = max(farthest, (logp - part.logp).abs().max().item())
        loss = value_loss(learner.critic(part.rows), part.values, part.returns, part.mask,
                          ppo.clip)
        loss.backward()
        sums[2:] += torch.tensor([loss.item(), part.mask.sum()])
    return sums, farthest


def update(learner: Learner, rollout: Rollout, ppo: PPOSection, train_policy: bool,
           generator) -> dict:
    """Epochs of minibatches over one rollout; returns mean losses and figures, and of the first
    minibatch the ratio rho, or its inverse, that is farthest from 1.

    A minibatch is drawn from the whole rollout and then shared by the ranks, so that the update
    does not depend on how many there are."""
    totals, first = torch.zeros(4), None
    for _ in range(ppo.epochs):
        order = torch.randperm(len(rollout.score), generator=generator)
        for chosen in order.chunk(ppo.minibatches):
            sums, farthest = add_gradients(learner, rollout[mine(chosen)], ppo, train_policy)
            first = farthest if first is None else first
            totals += sums
            if train_policy:
                optimizer_step(learner.policy, learner.policy_optimizer, sums[3], ppo.grad_clip,
                               "PPO policy")
            optimizer_step(learner.critic, learner.critic_optimizer, sums[3], ppo.grad_clip,
                           "PPO critic")
    means = all_sum(totals) / totals[3].clamp_min(1)
    return {"policy_loss": means[0].item(), "clipped": means[1].item(),
            "value_loss": means[2].item(), "first_ratio": math.exp(max(gather([first])))}


def figures_of(rollout: Rollout, prompts: Prompts, strip_eos: Callable) -> dict:
    """Means over the responses: reward, KL in nats a response, lengths, degenerate ones."""
    responses = [strip_eos(ids) for ids in rollout.rows.responses()]
    ref_logp = rollout.logp - rollout.kl
    error = ((rollout.returns - rollout.values) ** 2 * rollout.mask).sum()
    sums = torch.tensor([
        len(responses), rollout.score.sum(), rollout.kl.sum(),
        k3(rollout.logp, ref_logp, rollout.mask).sum(),
        rollout.ended.sum(), sum(map(len, responses)),
        sum(y == y_ref and source != "" for y, y_ref, source in
            zip(responses, prompts.y_ref, prompts.source)),
        sum(not y for y in responses), rollout.mask.sum(), error])
    count, *sums, tokens, error = sums.tolist()
    names = ("reward", "kl", "k3", "eos_rate", "length", "copies", "empty")
    return dict(zip(names, (s / count for s in sums))) | {"value_error": error / tokens}


def anneal(learner: Learner, ppo: PPOSection, stage: StageSection, iteration: int) -> None:
    """Set both learning rates: they fall linearly towards a tenth over the stage."""
    left = 1 - 0.9 * (iteration - 1) / stage.iterations
    for optimizer, lr in ((learner.policy_optimizer, ppo.lr),
                          (learner.critic_optimizer, ppo.critic_lr)):
        optimizer.param_groups[0]["lr"] = lr * stage.lr_scale * left


def refuse_not_finite(figures: dict, where: str) -> None:
    """Raise NotFinite, naming them, if some figures are not finite."""
    bad = [name for name, value in figures.items() if not math.isfinite(value)]
    if bad:
        raise NotFinite(f"{where}: {', '.join(bad)} not finite; what was good is saved; lower "
                        "ppo.lr under another --run.name")


def train(run: Run, task: Task, learner: Learner, anchor: GPT, spread: list[float],
          stage: StageSection, max_new: int, eos: int, strip_eos: Callable) -> None:
    """Run PPO for the iterations of one stage; changes the learner. Raises NotFinite where a figure
    of a rollout is not finite."""
    ppo = run.config.ppo
    for iteration in (bar := run.steps(task.name, stage.iterations, learner)):
        sampling, shuffling = (run.generator(f"{task.name} {purpose}{iteration}")
                               for purpose in ("", "minibatches "))
        # 1. Prompts: x (Eq. 3), or x with a draft y_ref (Eqs. 4 and 5).
        prompts = task.draw(iteration, ppo.batch)
        # 2. Sample y ~ pi(. | prompt) and score it; KL, values, advantages.
        rollout = roll_out(learner, anchor, prompts, task, ppo, max_new, eos, spread, sampling)
        figures = figures_of(rollout, prompts, strip_eos) | {"beta": learner.beta}
        refuse_not_finite(figures, f"{task.name}, iteration {iteration}")
        warn_once(run.told, task.name, troubles(figures, stage.kl_target))
        # 3. Clipped updates. In the first iterations only the critic learns.
        anneal(learner, ppo, stage, iteration)
        run.last_good = None  # from here on the learner changes; what was saved before is good
        figures |= update(learner, rollout, ppo, iteration > ppo.critic_warmup, shuffling)
        # 4. The next iteration's coefficient: the wall around the target KL.
        learner.beta = kl_coefficient(stage.beta, figures["kl"], stage.kl_target, ppo.kl_power,
                                      ppo.kl_wall)
        # 5. What to look at (docs/metrics.md).
        figures |= task.observe(iteration, prompts, rollout.rows, rollout.score, rollout.kl.sum(1))
        bar.set_postfix({k: figures[k] for k in ("reward", "kl", "gold") if k in figures})
        run.log("metrics.jsonl", {"stage": task.name, "step": iteration} | figures)
