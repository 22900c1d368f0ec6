"""Proximal policy optimisation of a language model against a reward model (arXiv 1707.06347).

One code path serves Eq. 3 (RLHF) and Eqs. 4 and 5 (PIT's stages): they maximise

    E[ r - beta KL(pi || pi_ref) ],   y ~ pi(. | prompt)

and differ only in how the prompt is made (x, or x and y_ref) and what r is: R_P or r_gap,
normalised by task.scale (ppo.no_eos_score for a response that does not end). An iteration: roll
out, score, rewards with KL, advantages (GAE), clipped updates, the next beta.

Symbols, all on one grid [B, T] of tokens, right-padded; a mask marks the response's tokens:

    logp[b, t]      log pi(token t | tokens before t), of the policy that sampled
    ref_logp[b, t]  the same of the anchor pi_ref (the supervised model)
    values[b, t]    V of the state before token t, read at position t - 1
    rewards[b, t]   -beta (logp - ref_logp), and the score at the last token
    advantages      GAE's estimate from token t on; returns are advantages + V
    rho             pi_new / pi_old, 1 in the first minibatch of the first epoch

Rollout, log-probabilities and update share one temperature, and there is no top-k, top-p or
dropout: one behaviour distribution. Ranks share the prompts of an iteration and then the rows of
each minibatch; the formulas know nothing of them. Left out: early stopping on KL, a trunk that
policy and critic share.
"""

import math
from dataclasses import dataclass, replace
from typing import Callable

import torch
import torch.nn as nn

from data import Data
from faster.sampling import sample
from model import GPT, Rows, on_grid, scalars, token_logprobs
from runtime.batching import by_micro_batches, micro_batches
from runtime.checks import refuse_not_finite, troubles, warn_once
from runtime.config import PPOSection, StageSection
from runtime.ranks import all_sum, gather, gather_fields, random_numbers, shard, shard_fields
from runtime.run import Run, optimizer_step


def kl_penalty(logp, ref_logp, mask):
    """Return log pi - log pi_ref of the response's tokens [B, T]; its mean over samples is KL."""
    return (logp - ref_logp) * mask


def k3(logp, ref_logp, mask):
    """Return the low-variance, never negative estimate of the KL, a token [B, T]
    (Schulman, "Approximating KL divergence", joschu.net/blog/kl-approx.html)."""
    log_ratio = (ref_logp - logp) * mask
    return torch.expm1(log_ratio) - log_ratio


def token_rewards(score, kl, mask, beta: float):
    """Return rewards [B, T]: -beta times the KL at each token; the last has the score [B], too."""
    rewards = -beta * kl
    at = torch.arange(mask.shape[1], device=mask.device)
    last = (mask * at).argmax(1)  # [B]
    rewards[torch.arange(len(score), device=mask.device), last] += score
    return rewards


def compute_gae(rewards, values, mask, gamma: float, lam: float):
    """Return advantages and returns, [B, T], by generalised advantage estimation (1506.02438).

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
    """Return x [B, T] with mean 0 and variance 1 over the mask, 0 elsewhere."""
    count = mask.sum().float()
    mean = (x * mask).sum() / count
    variance = (((x - mean) * mask) ** 2).sum() / count
    return (x - mean) * torch.rsqrt(variance + 1e-8) * mask


def policy_loss(logp, old_logp, advantages, mask, clip: float):
    """Return max(-A rho, -A clip(rho, 1 - clip, 1 + clip)), summed over tokens, and the number of
    tokens whose ratio was clipped."""
    rho = ((logp - old_logp) * mask).exp()
    unclipped, clipped = -advantages * rho, -advantages * rho.clamp(1 - clip, 1 + clip)
    return (torch.maximum(unclipped, clipped) * mask).sum(), ((clipped > unclipped) * mask).sum()


def value_loss(values, old_values, returns, mask, clip: float):
    """Return half the larger of the clipped and the unclipped square, summed over tokens (the clip
    of OpenAI's baselines). The critic has its own optimiser: the loss needs no coefficient."""
    near = old_values + (values - old_values).clamp(-clip, clip)
    squares = torch.maximum((values - returns) ** 2, (near - returns) ** 2)
    return 0.5 * (squares * mask).sum()


def kl_coefficient(base: float, kl: float, target: float, power: float, most: float) -> float:
    """Return beta: the base, times (kl / target)^power where the KL (nats per response) is above
    its target, but at most `most` times the base, so that after one wild iteration the KL does not
    drown the score. It starts from the base each time and does not compound."""
    return base * min(max(1.0, kl / target) ** power, most)


@dataclass
class Prompts:
    """What a rollout starts from. `x` and `y_ref` are kept as token ids."""
    ids: list[list[int]]      # B prompts, as the policy reads them
    x: list[list[int]]
    y_ref: list[list[int]]    # empty lists for RLHF
    source: list[str]         # of y_ref: "y_w", "y_l", "M_P^RL", or "" for RLHF


@dataclass
class Rollout:
    """Prompts with sampled responses, and what an update needs of them."""
    rows: Rows
    logp: torch.Tensor        # [B, T]
    kl: torch.Tensor          # [B, T]
    values: torch.Tensor      # [B, T]
    rewards: torch.Tensor     # [B, T]
    advantages: torch.Tensor  # [B, T] whitened; 0 until all ranks' rows are there
    returns: torch.Tensor     # [B, T]
    score: torch.Tensor       # [B] normalised
    ended: torch.Tensor       # [B] whether the response has its end

    @property
    def mask(self):
        """[B, T] true at the responses' tokens."""
        return self.rows.mask

    def __getitem__(self, chosen):
        """Take some of the rows, cut to the longest of them."""
        rows = self.rows[chosen]
        grids = {name: getattr(self, name)[chosen, :rows.tokens.shape[1]] for name in (
            "logp", "kl", "values", "rewards", "advantages", "returns")}
        return Rollout(rows=rows, score=self.score[chosen], ended=self.ended[chosen], **grids)


@dataclass
class Task:
    """What tells Eqs. 3, 4 and 5 apart."""
    name: str                                              # of the stage
    stage: StageSection
    anchor: GPT                                            # pi_ref, which never changes
    draw: Callable[[int, int], Prompts]    # iteration, an even number -> as many prompts
    score: Callable[[Prompts, Rows], torch.Tensor]         # -> [B], raw
    observe: Callable[..., dict]           # iteration, prompts, rollout -> more figures to log
    scale: tuple[float, float] = (0.0, 1.0)  # mean, std of raw scores before PIT's first stage


class Critic(nn.Module):
    """V(s) for each token: a trunk of its own and a head that starts at zero."""

    def __init__(self, trunk: GPT):
        super().__init__()
        self.trunk = trunk
        self.head = nn.Linear(trunk.config.width, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, rows: Rows):
        """Return V before each of the response's tokens [B, T], from the position before it."""
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
    """Give a policy and a critic their optimisers (Adam's eps 1e-5, as in OpenAI's baselines)."""
    of_policy, of_critic = (
        torch.optim.Adam(model.parameters(), lr=lr * stage.lr_scale, eps=1e-5, fused=True)
        for model, lr in ((policy, ppo.lr), (critic, ppo.critic_lr)))
    return Learner(policy, critic, of_policy, of_critic, stage.beta)


@torch.no_grad()
def roll_out(learner: Learner, task: Task, prompts: Prompts, uniforms, ppo: PPOSection,
             eos: int) -> Rollout:
    """Sample a response to each prompt, of at most as many tokens as `uniforms` [B, new] has random
    numbers for it, and compute all that the update needs.

    The raw score is shifted and scaled by task.scale; a response without its end gets
    ppo.no_eos_score instead.
    """
    # 1. Sample y ~ pi(. | prompt).
    rows = sample(learner.policy, prompts.ids, uniforms, ppo.temperature, eos)
    # 2. Score it: one number a response.
    ended = rows.tokens.gather(1, rows.length[:, None] - 1)[:, 0] == eos
    mean, std = task.scale
    score = torch.where(ended, (task.score(prompts, rows) - mean) / std, ppo.no_eos_score)
    # 3. KL, values and rewards: one number a token.
    micro_batch = task.anchor.config.micro_batch
    logp, ref_logp = (
        by_micro_batches(lambda part: token_logprobs(one, part, ppo.temperature), rows, micro_batch)
        for one in (learner.policy, task.anchor))
    kl = kl_penalty(logp, ref_logp, rows.mask)
    values = by_micro_batches(learner.critic, rows, micro_batch)
    rewards = token_rewards(score, kl, rows.mask, learner.beta)
    nothing = torch.zeros_like(rewards)
    return Rollout(rows, logp, kl, values, rewards, nothing, nothing, score, ended)


def estimate_advantages(rollout: Rollout, ppo: PPOSection) -> Rollout:
    """Return the rollout with its advantages, whitened (the rates assume variance 1), and returns.
    Another estimator goes here: it sees the rows of all ranks."""
    advantages, returns = compute_gae(
        rollout.rewards, rollout.values, rollout.mask, ppo.gamma, ppo.lam)
    return replace(rollout, advantages=whiten(advantages, rollout.mask), returns=returns)


def add_gradients(learner: Learner, batch: Rollout, ppo: PPOSection, train_policy: bool):
    """Add the gradients of both summed losses, one micro-batch after another; return sums, and the
    largest |log rho|."""
    sums, farthest = torch.zeros(4), 0.0  # policy loss, clipped, value loss; tokens, which divide
    for chosen in micro_batches(batch.rows.length, learner.policy.config.micro_batch):
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
    """Go through epochs of minibatches of one rollout; return mean losses and figures, and of the
    first minibatch the ratio rho, or its inverse, that is farthest from 1.

    A minibatch is drawn from the whole rollout and then shared by the ranks, so that the update
    does not depend on how many there are."""
    totals, first = torch.zeros(4), None
    for _ in range(ppo.epochs):
        order = torch.randperm(len(rollout.score), generator=generator)
        for chosen in order.chunk(ppo.minibatches):
            sums, farthest = add_gradients(learner, rollout[shard(chosen)], ppo, train_policy)
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
    """Return means over the responses: reward, KL in nats a response, lengths, degenerate ones."""
    responses, mask = [strip_eos(ids) for ids in rollout.rows.responses()], rollout.mask
    count, copied = len(responses), zip(responses, prompts.y_ref, prompts.source)
    errors = (rollout.returns - rollout.values) ** 2 * mask
    means = {
        "reward": rollout.score.sum(), "kl": rollout.kl.sum(),
        "k3": k3(rollout.logp, rollout.logp - rollout.kl, mask).sum(),
        "eos_rate": rollout.ended.sum(), "length": sum(map(len, responses)),
        "copies": sum(y == y_ref and source != "" for y, y_ref, source in copied),
        "empty": sum(not y for y in responses)}
    return {name: float(total) / count for name, total in means.items()} | {
        "value_error": float(errors.sum()) / float(mask.sum())}


def anneal(learner: Learner, ppo: PPOSection, stage: StageSection, iteration: int) -> None:
    """Set both learning rates: they fall linearly towards a tenth over the stage."""
    left = 1 - 0.9 * (iteration - 1) / stage.iterations
    for optimizer, lr in ((learner.policy_optimizer, ppo.lr),
                          (learner.critic_optimizer, ppo.critic_lr)):
        optimizer.param_groups[0]["lr"] = lr * stage.lr_scale * left


def train(run: Run, data: Data, task: Task, learner: Learner) -> None:
    """Run PPO for the iterations of one stage; changes the learner. Raises NotFinite where a figure
    of a rollout is not finite."""
    ppo, stage, eos = run.config.ppo, task.stage, data.tokenizer.eos
    for iteration in (bar := run.steps(task.name, stage.iterations, learner)):
        sampling, shuffling = (run.generator(f"{task.name} {purpose}{iteration}")
                               for purpose in ("", "minibatches "))
        # 1. Prompts: x (Eq. 3), or x with a draft y_ref (Eqs. 4 and 5).
        prompts = task.draw(iteration, ppo.batch)
        # 2. Sample y ~ pi(. | prompt), score it: each rank its share. Advantages: of all rows.
        uniforms = random_numbers(len(prompts.ids), run.config.data.max_response, sampling)
        share = roll_out(learner, task, shard_fields(prompts), uniforms, ppo, eos)
        rollout = estimate_advantages(gather_fields(share), ppo)
        figures = figures_of(rollout, prompts, data.strip_eos) | {"beta": learner.beta}
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
        figures |= task.observe(iteration, prompts, rollout)
        bar.set_postfix({k: figures[k] for k in ("reward", "kl", "gold") if k in figures})
        run.log("metrics.jsonl", {"stage": task.name, "step": iteration} | figures)
