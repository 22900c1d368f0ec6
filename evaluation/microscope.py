"""One response of PPO token by token: what the last stage of PIT learns from it.

The rollout is ppo.roll_out's own, of a whole group where advantages are those of groups. Shown is
its first response, for an x and a y_ref of the user's.
"""

import copy

import torch

import ppo
import reward
from data import Data
from model import GPT
from reward import RewardModel
from runtime import files
from runtime.run import Run
from runtime.settings import UserError


def last_stage(run: Run, policies: dict[str, GPT],
               rpit: RewardModel) -> tuple[ppo.Task, ppo.Learner]:
    """Return the task and the learner of PIT's last stage, with the weights at its end and the base
    of beta. Raises UserError where it was trained on another score than r_gap."""
    config, name = run.config, run.config.pit.curriculum[-1]
    if config.pit.score != "gap":
        raise UserError(f"--explain shows what r_gap pays, but pit.score is {config.pit.score!r}; "
                        "leave --explain out")
    stage, made, anchor = getattr(config, name), files.load(run.used[name]), policies["M_PIT^SFT"]
    task = ppo.Task(name, stage, anchor, draw=None, observe=None,
                    score=lambda prompts, rows: reward.score(rpit, rows))
    policy = run.placed(copy.deepcopy(anchor), made["model"])
    if config.ppo.advantage == "group":
        return task, ppo.group_learner(policy, config.ppo, stage, made["scale"])
    critic = run.placed(ppo.Critic(copy.deepcopy(anchor)), made["critic"])
    return task, ppo.critic_learner(policy, critic, config.ppo, stage, made["scale"])


@torch.no_grad()
def columns_of(run: Run, data: Data, rpit: RewardModel, learner: ppo.Learner,
               rollout: ppo.Rollout) -> dict[str, list]:
    """Return what is known of each token of the first response, by the symbols of ppo.py, and
    R_PIT's score s_t of it, raw."""
    section, rows = run.config.ppo, rollout.rows
    advantages, _ = learner.advantages(rollout, section)
    grids = {"log pi": rollout.logp, "log pi_ref": rollout.logp - rollout.kl,
             "-beta KL": -learner.beta * rollout.kl, "reward": rollout.rewards}
    if learner.critic:
        known = rollout.rewards, rollout.values, rows.mask, section.gamma
        grids |= {"V": rollout.values, "delta": ppo.compute_gae(*known, lam=0.0)[0]}
    grids |= {"A": advantages, "R_PIT": rpit(rows)[0]}
    tokens = {"token": [data.tokenizer.piece(i) for i in rows.responses()[0]]}
    return tokens | {name: grid[0][rows.mask[0]].tolist() for name, grid in grids.items()}


def as_lines(columns: dict[str, list]) -> list[str]:
    """Return the columns as lines of text, a token a line."""
    wide = max(map(len, columns["token"]))
    names = list(columns)[1:]
    return [" ".join([" " * wide, *(f"{name:>11}" for name in names)])] + [
        " ".join([f"{token:<{wide}}", *(f"{number:>+11.3f}" for number in numbers)])
        for token, *numbers in zip(*columns.values())]


def examined(run: Run, data: Data, models, draft: tuple[list, list], generator: torch.Generator):
    """Roll out the last stage of PIT on one prompt, (x, y_ref); return its learner, the rollout,
    and the columns of the first response. `models` are train_reward.Models."""
    task, learner = last_stage(run, models.policies, models.rpit)
    x, y_ref = draft
    prompts = ppo.Prompts([data.pit_prompt(x, y_ref)], [x], [y_ref], [""]).repeated(learner.group)
    uniforms = torch.rand(learner.group, run.config.data.max_response, generator=generator)
    rollout = ppo.roll_out(learner, task, prompts, uniforms, run.config.ppo, data.tokenizer.eos)
    return learner, rollout, columns_of(run, data, models.rpit, learner, rollout)


def explained(run: Run, data: Data, models, draft: tuple, generator: torch.Generator) -> str:
    """Return the first response of that rollout as text."""
    learner, rollout, columns = examined(run, data, models, draft, generator)
    (mean, std), config = learner.scale, run.config
    others = rollout.rewards.sum(1)[1:]
    baseline = [f"the others of its group got {others.mean():+.3f}: A is the difference"] * bool(
        len(others))
    made = (f"(r_gap {rollout.score[0] * std + mean:+.2f} - ({mean:+.2f})) / {std:.2f} = "
            if rollout.ended[0] else "(ppo.no_eos_score: it does not end) ")
    return "\n".join([
        f"a rewrite as {config.pit.curriculum[-1]} sampled it, T = {config.ppo.temperature}: "
        + data.tokenizer.decode(rollout.rows.responses()[0]), *as_lines(columns),
        f"score {made}{rollout.score[0]:+.3f}, with the KL {rollout.rewards[0].sum():+.3f}",
        *baseline])
