"""What is logged of PPO: the figures of each rollout (docs/metrics.md), one of its samples, and the
scores before it begins. Nothing is trained on any of it."""

import numpy as np
import torch

from corpus import bills
from data import Data
from evaluation.show import prompt_text
from model import pad_rows
from ppo import Prompts, Rollout, Task, compute_gae
from runtime import checks
from runtime.ranks import gather, shard, shard_fields
from runtime.run import Run


def k3(kl):
    """Return the low-variance, never negative estimate of the KL from log pi - log pi_ref [B, T]
    (Schulman, "Approximating KL divergence", joschu.net/blog/kl-approx.html)."""
    return torch.expm1(-kl) + kl


def explained_variance(rollout: Rollout, gamma: float) -> float:
    """Return the share of the variance over tokens, of the discounted rewards that really followed,
    that V explained: 1 - Var(outcome - V) / Var(outcome)."""
    mask, nothing = rollout.rows.mask, torch.zeros_like(rollout.rewards)
    outcome = compute_gae(rollout.rewards, nothing, mask, gamma, 1.0)[1][mask]
    left = outcome - rollout.values[mask]
    return float(1 - left.var(correction=0) / outcome.var(correction=0).clamp_min(1e-8))


def lengths_in_groups(score: torch.Tensor, lengths: list[int], group: int) -> dict:
    """Return the mean length of the best and of the worst response to each prompt, by their scores
    [B], `group` responses one after another."""
    scores, lengths = score.view(-1, group), torch.tensor(lengths, dtype=torch.float)
    lengths = lengths.to(score.device).view(-1, group)
    return {f"length_{name}": lengths.gather(1, at[:, None]).mean().item()
            for name, at in (("best", scores.argmax(1)), ("worst", scores.argmin(1)))}


def figures_of(rollout: Rollout, prompts: Prompts, responses: list[list[int]]) -> dict:
    """Return means over the responses, token ids without their ends: reward, KL in nats a response,
    lengths, degenerate ones, and in stage 0 the copies of y_l and of y_w. Over all tokens: the
    entropy, as the mean of -log pi, and how far log pi is from what the sampler had."""
    copied = [y == y_ref and source != ""
              for y, y_ref, source in zip(responses, prompts.y_ref, prompts.source)]
    means = {
        "reward": rollout.score.sum(), "kl": rollout.kl.sum(), "k3": k3(rollout.kl).sum(),
        "eos_rate": rollout.ended.sum(), "length": sum(map(len, responses)),
        "copies": sum(copied), "empty": sum(not y for y in responses)}
    of_each = {side: [copy for copy, source in zip(copied, prompts.source) if source == side]
               for side in ("y_l", "y_w") if side in prompts.source}
    mask = rollout.rows.mask
    gap = (rollout.sampler_logp - rollout.logp)[mask].abs()
    return {name: float(total) / len(responses) for name, total in means.items()} | {
        "entropy": -float(rollout.logp[mask].mean()), "sampler_gap": float(gap.mean()),
        "sampler_gap_max": float(gap.max())} | {
        f"copies {side}": sum(same) / len(same) for side, same in of_each.items()}


def observe(run: Run, data: Data, name: str, kl_target: float, iteration: int, prompts: Prompts,
            rollout: Rollout) -> dict:
    """Return the figures of a rollout, with the gold quality where there is a judge, log one of its
    samples, and warn of what experience calls trouble. Raises NotFinite where a figure is not
    finite."""
    responses = [data.strip_eos(ids) for ids in rollout.rows.responses()]
    figures, ppo = figures_of(rollout, prompts, responses), run.config.ppo
    figures |= ({"explained_variance": explained_variance(rollout, ppo.gamma)}
                if ppo.advantage == "critic" else
                lengths_in_groups(rollout.score, list(map(len, responses)), ppo.group))
    checks.refuse_not_finite(figures, f"{name}, iteration {iteration}")
    checks.warn_once(run.told, name, checks.troubles(figures, kl_target))
    texts = [data.tokenizer.decode(ids) for ids in responses]
    i = -(iteration % 2)  # the first row and the last in turn: in stage 0 these have y_l and y_w
    run.log("samples.jsonl", {
        "stage": name, "step": iteration, "x": prompt_text(data, prompts.x[i]),
        "source": prompts.source[i],
        "y_ref": data.tokenizer.decode(prompts.y_ref[i]), "y": texts[i],
        "reward": rollout.score[i].item(), "kl": rollout.kl.sum(1)[i].item()})
    if run.config.data.files:
        return figures
    grades = [bills.grade(prompt_text(data, x), y) for x, y in zip(prompts.x, texts)]
    return figures | {"gold": sum(grades) / len(grades)}


def observe_scale(run: Run, task: Task, scale: tuple[float, float], ended: np.ndarray,
                  copies: np.ndarray) -> None:
    """Log what a stage's scores look like before RL: their scale (mean, std), those of responses
    that have their end (ppo.no_eos_score should lie below, but for outliers), and those of copies,
    (x, y_ref, y_ref), for RLHF of empty responses."""
    mean, std = scale
    normalised = (ended - mean) / std
    run.log("metrics.jsonl", {
        "stage": task.name, "step": 0, "score_mean": mean, "score_std": std,
        "copy_mean": float(copies.mean()), "copy_std": float(copies.std()),
        "score_min": float(normalised.min()) if len(normalised) else None})
    checks.warn_once(run.told, task.name,
                     checks.within_range(run.config.ppo.no_eos_score, normalised))


def raw_scores(run: Run, task: Task, prompts: Prompts, responses: list) -> np.ndarray:
    """Return the task's scores of responses (token ids, with their ends)."""
    own = shard_fields(prompts)
    rows = pad_rows(own.ids, shard(responses), run.device)
    return np.array(gather(task.score(own, rows).tolist()))
