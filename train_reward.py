"""Train the reward models R_P and R_PIT and the supervised models that they start from.

    python train_reward.py --config configs/quick.toml

In order, each reused if it is there: the data, M_P^SFT (y_w given x), M_PIT^SFT (y_w given x and
y_l; from M_P^SFT), R_P (Bradley-Terry; from M_P^SFT), R_PIT (Eq. 2; from M_PIT^SFT).
"""

import math
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Callable

import numpy as np
import torch

from corpus.tokens import batches
from data import Data, Fold, Pairs, load_data
from evaluation.measure import as_text, gap_agreement, held_out_accuracies, pointwise_agreement
from faster.branches import two_scores
from model import GPT, Rows, token_logprobs
from pretrained import llama
from pretrained.configure import command_line
from pretrained.lora import adapted, frozen_trunk
from reward import RewardModel, gap_loss, pair_loss
from runtime import checks, operations
from runtime.batching import micro_batches
from runtime.config import FitSection
from runtime.launch import guard
from runtime.ranks import all_sum, rank, shard
from runtime.run import Run, optimizer_step
from runtime.stages import inputs_of
from runtime.state import load_weights, weights_of


@dataclass
class Models:
    """The trained models; `policies` by their names in the report, those that there are."""
    rp: RewardModel
    rpit: RewardModel
    policies: dict[str, GPT]


# ------------------------------------------------------------------------------------ the losses
# Each returns a summed loss, the count that it is summed over, and how many of these are right.


def lm_loss(model: GPT, rows: Rows):
    """Return the next-token loss of the responses; of their tokens, those of probability > 1/2 are
    right."""
    logp, mask = token_logprobs(model, rows), rows.mask
    return -logp.sum(), mask.sum(), ((logp > math.log(0.5)) & mask).sum()


def sft_loss(model: GPT, data: Data, pairs: Pairs):
    """Return M_P^SFT's loss, -log M(y_w | x)."""
    return lm_loss(model, data.policy_rows(pairs.x, pairs.y_w))


def pit_sft_loss(model: GPT, data: Data, pairs: Pairs):
    """Return M_PIT^SFT's loss, -log M(y_w | x, y_l)."""
    return lm_loss(model, data.pit_rows(pairs.x, pairs.y_l, pairs.y_w))


def rp_loss(model: RewardModel, data: Data, pairs: Pairs):
    """Return R_P's loss, -log sigmoid(R_P(x, y_w) - R_P(x, y_l)), with the language-model loss of
    y_w given x."""
    y_w, y_l = ([data.add_eos(y) for y in side] for side in (pairs.y_w, pairs.y_l))
    r_w, r_l, lm = two_scores(model, [data.policy_prompt(x) for x in pairs.x], y_w, y_l)
    loss = pair_loss(r_w, r_l) + model.config.lm_coef * lm.sum()
    return loss, torch.tensor(len(pairs)), (r_w > r_l).sum()


def rpit_loss(model: RewardModel, data: Data, pairs: Pairs):
    """Return R_PIT's loss, Eq. 2, with the language-model loss of y_w given x and y_l: the other
    ordered pairs are no improvements."""
    y_w, y_l = ([data.add_eos(y) for y in side] for side in (pairs.y_w, pairs.y_l))
    # 1. Both responses, after x with y_l and after x with y_w.
    given_l = [data.pit_prompt(*pair) for pair in zip(pairs.x, pairs.y_l)]
    given_w = [data.pit_prompt(*pair) for pair in zip(pairs.x, pairs.y_w)]
    r_w, r_l, lm = two_scores(model, given_l + given_w, y_w + y_w, y_l + y_l)
    # 2. r_gap of the four ordered pairs: r_w is wl, then ww; r_l is ll, then lw.
    (wl, ww), (ll, lw) = r_w.chunk(2), r_l.chunk(2)
    r = {"wl": wl, "ww": ww, "ll": ll, "lw": lw}
    # 3. Eq. 2.
    loss = gap_loss(r, model.config.terms) + model.config.lm_coef * lm[:len(pairs)].sum()
    return loss, torch.tensor(len(pairs)), (wl > lw).sum()


@dataclass
class Training:
    """What differs between the supervised trainings."""
    name: str                     # of the stage
    fit: FitSection
    fold: Fold
    loss: Callable                # (model, data, pairs) -> as the losses above
    size: tuple                   # positions of a pair: multiples of the lengths of x, y_w and y_l
    agreement: Callable | None = None  # with validation labels: (data, model, pairs) -> dict


def learning_rate(fit: FitSection, step: int) -> float:
    """Return the rate of a step from 0: a linear warm-up, then a cosine to a twentieth."""
    if step < fit.warmup:
        return fit.lr * (step + 1) / fit.warmup
    progress = (step - fit.warmup) / max(1, fit.steps - fit.warmup)
    return fit.lr * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * progress)))


def train(run: Run, data: Data, model, training: Training) -> dict:
    """Train a model. At the end training.agreement, if there is one, measures how often it agrees
    with the labels of validation pairs; return that, or {}."""
    name, fit, fold = training.name, training.fit, training.fold
    lengths = np.array(training.size) @ np.stack([
        fold.x.lengths, fold.y_w.lengths, fold.y_l.lengths])[:, :fit.pairs or None]
    rng = np.random.default_rng([run.config.run.seed, len(name), sum(map(ord, name))])
    optimizer = torch.optim.AdamW(model.parameters(), lr=fit.lr, betas=(0.9, 0.95),
                                  weight_decay=fit.weight_decay, fused=True)
    course = SimpleNamespace(model=model, optimizer=optimizer, found={},
                             sums=torch.zeros(3))  # since the last line of the log
    drawn = list(batches(lengths, fit.batch, fit.steps, rng))
    for step in (bar := run.steps(name, fit.steps, course)):
        # 1. The gradients of a batch, which the ranks share.
        own, sums = shard(drawn[step - 1]), torch.zeros(3)
        for part in micro_batches(torch.tensor(lengths[own]), run.config.model.micro_batch):
            loss, count, right = training.loss(model, data, fold[own[part.tolist()]])
            loss.backward()
            sums += torch.tensor([loss.item(), float(count), float(right)])
        # 2. A step of AdamW, on the sums divided by the count.
        rate = optimizer.param_groups[0]["lr"] = learning_rate(fit, step - 1)
        norm = optimizer_step(model, optimizer, sums[1], fit.clip, name)
        # 3. What to look at: means since the last line of the log.
        course.sums = course.sums + all_sum(sums)
        if step % run.config.run.log_every == 0 or step == fit.steps:
            total, seen, good = course.sums.tolist()
            course.sums, figures = torch.zeros(3), {"loss": total / seen, "accuracy": good / seen}
            bar.set_postfix(figures)
            if step == fit.steps and training.agreement:
                valid = data.folds["valid"]
                some = valid[range(min(run.config.data.valid, len(valid)))]  # one a question
                course.found = training.agreement(data, model, some)
                figures |= {f"valid_{key}": value for key, value in course.found.items()}
            run.log("metrics.jsonl", {"stage": name, "step": step} | figures | {
                "grad_norm": norm, "lr": rate})
            if step > fit.steps // 2 and training.agreement:
                checks.warn_once(run.told, name, checks.chance(figures["accuracy"]))
    return course.found


def new_gpt(run: Run, data: Data, seed: int | None = None) -> GPT:
    """Make a model of random weights, or with LoRA the trunk with adapters that change nothing."""
    torch.manual_seed(run.config.run.seed if seed is None else seed)
    model = (adapted(data.trunk, run.config.lora) if data.trunk else
             GPT(run.config.model, data.vocab))
    return operations.watch(model)


def new_reward_model(run: Run, data: Data, seed: int | None = None) -> RewardModel:
    """Make a reward model on a new trunk."""
    return RewardModel(new_gpt(run, data, seed), run.config.reward)


def train_sft(run: Run, data: Data) -> dict:
    """Train M_P^SFT."""
    model, source = new_gpt(run, data), run.config.model.init_from
    if source and not data.trunk:
        load_weights(model, llama.read_weights(source, run.config.model))
    model = run.placed(model)
    train(run, data, model, Training("sft", run.config.sft, data.folds["sft"], sft_loss, (1, 1, 0)))
    return {"model": weights_of(model)}


def train_pit_sft(run: Run, data: Data, policy: GPT) -> dict:
    """Train M_PIT^SFT, from M_P^SFT."""
    model = run.placed(new_gpt(run, data), weights_of(policy))
    train(run, data, model, Training(
        "pit_sft", run.config.pit_sft, data.folds["sft"], pit_sft_loss, (1, 1, 1)))
    return {"model": weights_of(model)}


def train_rp(run: Run, data: Data, policy: GPT) -> dict:
    """Train R_P, from M_P^SFT."""
    return train_reward_model(run, data, policy, Training(
        "rp", run.config.rp, data.folds["reward"], rp_loss, (1, 1, 1), pointwise_agreement))


def train_rpit(run: Run, data: Data, pit_policy: GPT) -> dict:
    """Train R_PIT, from M_PIT^SFT."""
    return train_reward_model(run, data, pit_policy, Training(
        "rpit", run.config.rpit, data.folds["reward"], rpit_loss,
        (2, 3, 3), gap_agreement))  # two prompts with x; a response in its draft, and after both


def train_reward_model(run: Run, data: Data, start: GPT, training: Training,
                       seed: int | None = None) -> dict:
    """Train a reward model whose trunk starts from a supervised model."""
    model = new_reward_model(run, data, seed)
    load_weights(model.trunk, weights_of(start))
    model = run.placed(model)
    found = train(run, data, model, training)
    return {"model": weights_of(model), "valid": found}


def train_start(run: Run, data: Data) -> Models:
    """Train or restore M_P^SFT, M_PIT^SFT, R_P and R_PIT."""
    inputs = inputs_of(run.config)
    if run.config.lora.rank:
        data.trunk = operations.watch(frozen_trunk(run, GPT(run.config.model, data.vocab)))
    sft = run.stage("sft", inputs["sft"], lambda: train_sft(run, data))
    policy = run.placed(new_gpt(run, data), sft["model"])
    pit_sft = run.stage("pit_sft", inputs["pit_sft"], lambda: train_pit_sft(run, data, policy))
    pit_policy = run.placed(new_gpt(run, data), pit_sft["model"])
    rp = run.stage("rp", inputs["rp"], lambda: train_rp(run, data, policy))
    rpit = run.stage("rpit", inputs["rpit"], lambda: train_rpit(run, data, pit_policy))
    for name, content in (("rp", rp), ("rpit", rpit)) if run.trains else ():
        checks.warn_once(run.told, name, checks.unproven(content["valid"]))
    rp, rpit = (run.placed(new_reward_model(run, data), one["model"]) for one in (rp, rpit))
    trunk = {"pretrained": data.trunk} if data.trunk else {}
    return Models(rp, rpit, trunk | {"M_P^SFT": policy, "M_PIT^SFT": pit_policy})


def main() -> None:
    _, config = command_line(__doc__)
    run = Run(config)
    data = load_data(run)
    with run.precision():
        models = train_start(run, data)
        accuracies = held_out_accuracies(data, models.rp, models.rpit, config.eval.split)
    run.write_config()
    if rank() == 0:
        print(as_text(data.counts, accuracies, config.eval.split))


if __name__ == "__main__":
    guard(main)
