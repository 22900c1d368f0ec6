"""Proximal policy optimisation of a language model against a reward model (arXiv 1707.06347).

One code path serves Eq. 3 (RLHF) and Eqs. 4 and 5 (PIT's stages): they maximise

    E[ r - beta KL(pi || pi_ref) ],   y ~ pi(. | prompt)

and differ only in the prompt (x, or x and y_ref), in pi_ref (M_P^SFT or M_PIT^SFT) and in r: R_P or
r_gap, (raw - mean) / std by learner.scale, or ppo.no_eos_score for a response that does not end. An
iteration: roll out, score, rewards with KL, advantages, clipped updates, the next beta. Advantages
are by a critic (GAE), or of a group of responses to one prompt without a critic (ppo.advantage).

Symbols, all on one grid [B, T] of tokens, right-padded; a mask marks the response's tokens:

    logp[b, t]      log pi(token t | tokens before t), of the policy that sampled
    ref_logp[b, t]  the same of the anchor pi_ref (the supervised model)
    values[b, t]    V of the state before token t, read at position t - 1; 0 without a critic
    rewards[b, t]   -beta kl, kl = logp - ref_logp; at the last token the score [B], too
    advantages      reward from t on less what V expected; with groups one number a response
    returns         what V is to learn: GAE's advantages + V
    rho             pi_new / pi_old, 1 in the first minibatch of the first epoch

Rollout, log-probabilities and update share one temperature, and there is no top-k, top-p or
dropout: one behaviour distribution. Ranks share the prompts of an iteration and then the rows of
each minibatch. Left out: early stopping on KL, a trunk that policy and critic share.
"""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Callable

import torch
import torch.nn as nn

from data import Data
from faster.branches import parts_of, token_logprobs
from faster.sampling import sample
from model import GPT, Rows, on_grid, scalars
from runtime.batching import by_parts
from runtime.config import PPOSection, StageSection
from runtime.ranks import all_sum, gather_fields, random_numbers, shard, shard_fields
from runtime.run import Run, optimizer_step


def kl_penalty(logp, ref_logp, mask):
    """Return log pi - log pi_ref [B, T]; summed over a response, the mean over samples is KL."""
    return (logp - ref_logp) * mask


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
    tokens where the clipped one is larger: they get no gradient."""
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
    source: list[str]         # of y_ref, for the log: "y_l", "M_P^RL", ...; "" for RLHF

    def repeated(self, times: int):
        """Return each prompt `times` in a row."""
        return Prompts(**{name: [one for one in column for _ in range(times)]
                          for name, column in vars(self).items()})


@dataclass
class Rollout:
    """Responses as they were sampled, and what is known of each token."""
    rows: Rows
    logp: torch.Tensor        # [B, T]
    sampler_logp: torch.Tensor  # [B, T] the same as the sampler had it, for the log alone
    kl: torch.Tensor          # [B, T]
    values: torch.Tensor      # [B, T]
    rewards: torch.Tensor     # [B, T]
    score: torch.Tensor       # [B] normalised
    ended: torch.Tensor       # [B] whether the response has its end


def critic_advantages(rollout: Rollout, ppo: PPOSection):
    """Return GAE's advantages, with lambda ppo.lam, and the critic's returns, with ppo.critic_lam
    (VC-PPO, arXiv 2503.01491), [B, T] both."""
    known = rollout.rewards, rollout.values, rollout.rows.mask, ppo.gamma
    return compute_gae(*known, ppo.lam)[0], compute_gae(*known, ppo.critic_lam)[1]


def group_advantages(rollout: Rollout, ppo: PPOSection):
    """Return advantages [B, T] with a group's baseline (RLOO, arXiv 2402.14740), and zeros as the
    returns of a critic: A_i = R_i - mean of R_j over the other responses j to the same prompt, at
    each token of response i. R_i is the sum of its rewards, the KL included; a group is ppo.group
    rows one after another. Nothing is divided by the std of a group (2503.20783)."""
    total = rollout.rewards.sum(1).view(-1, ppo.group)
    others = (total.sum(1, keepdim=True) - total) / (ppo.group - 1)
    return (total - others).view(-1, 1) * rollout.rows.mask, rollout.values


@dataclass
class Experience:
    """What an update learns from."""
    rows: Rows
    logp: torch.Tensor        # [B, T] of the policy that sampled
    advantages: torch.Tensor  # [B, T] whitened: the rates assume variance 1
    values: torch.Tensor      # [B, T]
    returns: torch.Tensor     # [B, T]

    def __getitem__(self, chosen):
        """Take some of the rows, cut to the longest of them."""
        rows = self.rows[chosen]
        return Experience(rows, *(grid[chosen, :rows.tokens.shape[1]] for grid in (
            self.logp, self.advantages, self.values, self.returns)))


@dataclass
class Task:
    """What differs between Eqs. 3, 4 and 5."""
    name: str                                              # of the stage
    stage: StageSection
    anchor: GPT                                            # pi_ref, which never changes
    draw: Callable[[GPT, int, int], Prompts]  # policy, iteration, an even number -> so many prompts
    score: Callable[[Prompts, Rows], torch.Tensor]         # -> [B], raw
    observe: Callable[..., dict]           # iteration, prompts, rollout -> figures for the log


class Critic(nn.Module):
    """V(s) for each token: a trunk of its own and a head that starts at zero."""

    def __init__(self, trunk: GPT):
        super().__init__()
        self.trunk, self.config = trunk, trunk.config
        self.head = nn.Linear(trunk.config.width, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, rows: Rows):
        """Return V before each of the response's tokens [B, T], from the position before it."""
        hidden = self.trunk(rows.tokens, at=rows.before)  # [N, D]
        return on_grid(rows.mask, scalars(self.head, hidden)[:, 0])


@dataclass
class Network:
    """A model that PPO changes, with its loss and its optimiser."""
    model: Any           # a GPT or a Critic
    loss: Callable       # model, experience, ppo -> summed loss, figures
    lr: float            # of the first iteration
    waits: int           # iterations before it learns
    optimizer: torch.optim.Optimizer = field(init=False)

    def __post_init__(self):
        self.optimizer = torch.optim.Adam(
            self.model.parameters(), lr=self.lr, eps=1e-5, fused=True)  # eps of OpenAI's baselines


@dataclass
class Learner:
    """What learns in a stage, the policy and perhaps a critic, and from which advantages."""
    policy: Network
    critic: Network | None
    advantages: Callable  # rollout, ppo -> advantages and returns
    group: int           # responses to one prompt
    beta: float          # coefficient of the KL
    scale: tuple[float, float]  # mean, std of the anchor's raw scores, before RL

    def networks(self) -> dict[str, Network]:
        """Return the networks that there are, by their names."""
        return {"policy": self.policy} | ({"critic": self.critic} if self.critic else {})

    def values(self, rows: Rows):
        """Return V [B, T], or 0 without a critic."""
        zeros = torch.zeros_like(rows.tokens, dtype=torch.float)
        return self.critic.model(rows) if self.critic else zeros


def critic_learner(policy: GPT, critic: Critic, ppo: PPOSection, stage: StageSection,
                   scale=(0.0, 1.0)) -> Learner:
    """Let a policy learn with a critic, which learns alone for some iterations."""
    return Learner(Network(policy, policy_objective, ppo.lr * stage.lr_scale, ppo.critic_warmup),
                   Network(critic, critic_objective, ppo.critic_lr * stage.lr_scale, 0),
                   critic_advantages, 1, stage.beta, scale)


def group_learner(policy: GPT, ppo: PPOSection, stage: StageSection, scale=(0.0, 1.0)) -> Learner:
    """Let a policy learn without a critic."""
    return Learner(Network(policy, policy_objective, ppo.lr * stage.lr_scale, 0), None,
                   group_advantages, ppo.group, stage.beta, scale)


@torch.no_grad()
def roll_out(learner: Learner, task: Task, prompts: Prompts, uniforms, ppo: PPOSection,
             eos: int) -> Rollout:
    """Sample a response to each prompt, of at most as many tokens as `uniforms` [B, new] has random
    numbers for it, and compute all that the update needs.

    The raw score is shifted and scaled by learner.scale; a response without its end gets
    ppo.no_eos_score instead.
    """
    # 1. Sample y ~ pi(. | prompt).
    policy, anchor = learner.policy.model, task.anchor
    rows, sampler_logp = sample(policy, prompts.ids, uniforms, ppo.temperature, eos)
    # 2. Score it: one number a response.
    ended = rows.tokens.gather(1, rows.length[:, None] - 1)[:, 0] == eos
    mean, std = learner.scale
    score = torch.where(ended, (task.score(prompts, rows) - mean) / std, ppo.no_eos_score)
    # 3. KL, values and rewards: one number a token.
    parts = parts_of(rows, anchor.config.micro_batch)
    logp = by_parts(lambda part: token_logprobs(policy, part, ppo.temperature), rows, parts)
    ref_logp = by_parts(lambda part: token_logprobs(anchor, part, ppo.temperature), rows, parts)
    kl = kl_penalty(logp, ref_logp, rows.mask)
    values = by_parts(learner.values, rows, parts)
    rewards = token_rewards(score, kl, rows.mask, learner.beta)
    return Rollout(rows, logp, sampler_logp, kl, values, rewards, score, ended)


def policy_objective(policy: GPT, experience: Experience, ppo: PPOSection):
    """Return the policy's summed loss, with figures (sums, too)."""
    logp, mask = token_logprobs(policy, experience.rows, ppo.temperature), experience.rows.mask
    loss, clipped = policy_loss(logp, experience.logp, experience.advantages, mask, ppo.clip)
    return loss, {"policy_loss": loss, "clipped": clipped}


def critic_objective(critic: Critic, experience: Experience, ppo: PPOSection):
    """Return the critic's summed loss, with figures."""
    values = critic(experience.rows)
    loss = value_loss(values, experience.values, experience.returns, experience.rows.mask, ppo.clip)
    return loss, {"value_loss": loss}


def add_gradients(network: Network, experience: Experience, ppo: PPOSection) -> Counter:
    """Add the gradients of a summed loss, in micro-batches; return sums of tokens and figures."""
    sums = Counter(tokens=0)
    for chosen in parts_of(experience.rows, network.model.config.micro_batch):
        part = experience[chosen]
        loss, figures = network.loss(network.model, part, ppo)
        loss.backward()
        figures["tokens"] = part.rows.mask.sum()
        sums.update({name: figure.item() for name, figure in figures.items()})
    return sums


def update(network: Network, experience: Experience, ppo: PPOSection, generator, name: str) -> dict:
    """Go through epochs of minibatches, which the ranks share; return means a token."""
    totals = Counter(tokens=0)
    for _ in range(ppo.epochs):
        order = torch.randperm(len(experience.rows.length), generator=generator)
        for chosen in order.chunk(ppo.minibatches):
            sums = add_gradients(network, experience[shard(chosen)], ppo)
            totals.update(sums)
            count = torch.tensor(sums["tokens"])
            optimizer_step(network.model, network.optimizer, count, ppo.grad_clip, f"PPO {name}")
    summed = dict(zip(totals, all_sum(torch.tensor(list(totals.values()))).tolist()))
    return {name: total / summed["tokens"] for name, total in summed.items() if name != "tokens"}


def train(run: Run, data: Data, task: Task, learner: Learner) -> None:
    """Run PPO for the iterations of one stage; changes the learner."""
    ppo, stage, eos = run.config.ppo, task.stage, data.tokenizer.eos
    for iteration in (bar := run.steps(task.name, stage.iterations, learner)):
        # 1. Prompts: x (Eq. 3), or x with a draft y_ref (Eqs. 4 and 5); one for each group.
        count = ppo.batch // learner.group
        prompts = task.draw(learner.policy.model, iteration, count)
        # 2. Sample y ~ pi(. | prompt), score it: each rank its share of the groups. Look at it.
        group, longest = learner.group, run.config.data.max_response
        uniforms = random_numbers(count, group * longest, run.generator(f"{task.name} {iteration}"))
        own, uniforms = shard_fields(prompts).repeated(group), uniforms.reshape(-1, longest)
        rollout = gather_fields(roll_out(learner, task, own, uniforms, ppo, eos), group)
        figures = task.observe(iteration, prompts.repeated(group), rollout) | {"beta": learner.beta}
        # 3. Advantages, of all ranks' rows, whitened together.
        advantages, returns = learner.advantages(rollout, ppo)
        experience = Experience(rollout.rows, rollout.logp, whiten(advantages, rollout.rows.mask),
                                rollout.values, returns)
        # 4. Clipped updates, at rates that fall linearly towards a tenth.
        run.last_good = None  # a learner that an error leaves half-updated is not saved
        for name, network in learner.networks().items():
            left = 1 - 0.9 * (iteration - 1) / stage.iterations
            network.optimizer.param_groups[0]["lr"] = network.lr * left
            if iteration > network.waits:
                shuffling = run.generator(f"{task.name} minibatches {iteration}")
                figures |= update(network, experience, ppo, shuffling, name)
        # 5. The next iteration's coefficient: the wall around the target KL.
        kl = rollout.kl.sum().item() / len(rollout.score)  # nats a response
        learner.beta = kl_coefficient(stage.beta, kl, stage.kl_target, ppo.kl_power, ppo.kl_wall)
        bar.set_postfix({k: figures[k] for k in ("reward", "kl", "gold") if k in figures})
        run.log("metrics.jsonl", {"stage": task.name, "step": iteration} | figures)
