"""Train the reward models R_P and R_PIT and the supervised models that they start from.

    python train_reward.py --config configs/synthetic.toml

In order, each reused if it is there: the data, M_P^SFT (y_w given x), M_PIT^SFT (y_w given x and
y_l; from M_P^SFT), R_P (Bradley-Terry; from M_P^SFT), R_PIT (Eq. 2; from M_PIT^SFT). Then reports
how often each agrees with held-out pairs, with 95 % intervals.
"""

import math
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import torch

import reward
from corpus.tokens import batches
from data import Data, Fold, load_data
from evaluation import measure
from evaluation.measure import as_text, held_out_accuracies
from model import GPT, Linear, Rows, adapted, micro_batches, token_logprobs
from pretrained import llama
from pretrained.configure import command_line
from reward import RewardModel, make_branches
from runtime import checks
from runtime.config import FitSection
from runtime.launch import guard
from runtime.ranks import all_sum, mine, rank
from runtime.run import Run, optimizer_step
from runtime.state import put, weights

BASE = ("data", "tokenizer", "template", "model", "lora")  # what every model depends on
POINTWISE = BASE + ("sft", "reward.pool", "reward.logp_feature", "reward.lm_coef")
R_P = POINTWISE + ("rp",)
SUPERVISED = BASE + ("sft", "pit_sft", "reward", "rp", "rpit")


@dataclass
class Models:
    """The trained models; `policies` by their names in the report, those that there are."""
    rp: RewardModel
    rpit: RewardModel
    policies: dict[str, GPT]
    judge: RewardModel | None = None  # of real data, held out from all training


def rl_inputs(config) -> dict[str, tuple[str, ...]]:
    """Return what each stage of RL depends on, as Run.stage takes it: sections of the config, or
    single fields. A stage of PIT depends on those before it, too."""
    inputs, before = {"rlhf": R_P + ("ppo", "rlhf")}, SUPERVISED + ("ppo", "pit.score")
    for name in config.pit.curriculum:
        before += (name,) if getattr(config, name).reference == "data" else ("rlhf", name)
        inputs[name] = before
    if config.eval.equal_budget:
        inputs["rlhf_more"] = inputs["rlhf"] + tuple(
            f"{name}.{what}" for name in config.pit.curriculum
            for what in ("iterations", "reference"))
    return inputs


def learning_rate(fit: FitSection, step: int) -> float:
    """Linear warm-up, then a cosine to a twentieth."""
    if step < fit.warmup:
        return fit.lr * (step + 1) / fit.warmup
    progress = (step - fit.warmup) / max(1, fit.steps - fit.warmup)
    return fit.lr * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * progress)))


def train(run: Run, name: str, model, fit: FitSection, fold: Fold, width, loss_of,
          held_out=dict) -> None:
    """A supervised training. `loss_of(pairs)` returns a summed loss, its count, and how many of
    `accuracy`'s things were right; `width` of the lengths of x, y_w and y_l is about how many
    positions a pair takes; `held_out()` measures what was trained, for the log's last line."""
    lengths = width(fold.x.lengths, fold.y_w.lengths, fold.y_l.lengths)
    rng = np.random.default_rng([run.config.run.seed, len(name), sum(map(ord, name))])
    optimizer = torch.optim.AdamW(model.parameters(), lr=fit.lr, betas=(0.9, 0.95),
                                  weight_decay=fit.weight_decay, fused=True)
    course = SimpleNamespace(model=model, optimizer=optimizer,
                             sums=torch.zeros(3))  # since the last line of the log
    drawn = list(batches(lengths, fit.batch, fit.steps, rng))
    for step in (bar := run.steps(name, fit.steps, course)):
        optimizer.param_groups[0]["lr"] = learning_rate(fit, step - 1)
        own, sums = mine(drawn[step - 1]), torch.zeros(3)
        for part in micro_batches(torch.tensor(lengths[own]), run.config.model.portion):
            loss, count, right = loss_of(fold[own[part.tolist()]])
            loss.backward()
            sums += torch.tensor([loss.item(), float(count), float(right)])
        norm = optimizer_step(model, optimizer, sums[1], fit.clip, name)
        course.sums = course.sums + all_sum(sums)
        if step % run.config.run.log_every == 0 or step == fit.steps:
            total, seen, good = course.sums.tolist()
            figures = {"loss": total / seen, "accuracy": good / seen}
            bar.set_postfix(figures)
            if step == fit.steps:
                figures |= held_out()
            run.log("metrics.jsonl", {"stage": name, "step": step} | figures | {
                "grad_norm": norm, "lr": learning_rate(fit, step - 1)})
            course.sums = torch.zeros(3)
            if step > fit.steps // 2 and name in ("rp", "rpit", "judge"):
                checks.warn_once(run.told, name, checks.chance(figures["accuracy"]))


def lm_loss(model: GPT, rows: Rows):
    """Next-token loss of the responses, summed; its count; the tokens with probability > 1/2."""
    logp, mask = token_logprobs(model, rows), rows.mask
    return -logp.sum(), mask.sum(), ((logp > math.log(0.5)) & mask).sum()


def load_trunk(run: Run, data: Data) -> GPT | None:
    """With LoRA, model.init_from as it came: the frozen weights that all models share."""
    if not run.config.lora.rank:
        return None
    trunk = GPT(run.config.model, data.vocab)
    put(trunk, llama.read_weights(run.config.model.init_from, run.config.model))
    for module in trunk.modules():
        if isinstance(module, (Linear, torch.nn.Embedding)) and run.config.run.amp == "bf16":
            module.bfloat16()  # as its products would read it anyway, in half the memory
    return run.placed(trunk)


def new_gpt(run: Run, data: Data, seed: int | None = None) -> GPT:
    """A model with random weights, or with LoRA the trunk with adapters that change nothing yet."""
    torch.manual_seed(run.config.run.seed if seed is None else seed)
    model = (adapted(data.trunk, run.config.lora) if data.trunk else
             GPT(run.config.model, data.vocab))
    return model.compile_blocks() if run.config.run.compile else model


def new_reward_model(run: Run, data: Data, seed: int | None = None) -> RewardModel:
    return RewardModel(new_gpt(run, data, seed), run.config.reward)


def train_sft(run: Run, data: Data) -> dict:
    """M_P^SFT: maximise log M(y_w | x)."""
    model, fold, source = new_gpt(run, data), data.folds["sft"], run.config.model.init_from
    if source and not data.trunk:
        put(model, llama.read_weights(source, run.config.model))
    model = run.placed(model)
    train(run, "sft", model, run.config.sft, fold, lambda x, y_w, y_l: x + y_w,
          lambda pairs: lm_loss(model, data.policy_rows(pairs.x, pairs.y_w)))
    return {"model": weights(model)}


def train_pit_sft(run: Run, data: Data, policy: GPT) -> dict:
    """M_PIT^SFT: maximise log M(y_w | x, y_l), from M_P^SFT."""
    model, fold = run.placed(new_gpt(run, data), weights(policy)), data.folds["sft"]
    train(run, "pit_sft", model, run.config.pit_sft, fold, lambda x, y_w, y_l: x + y_w + y_l,
          lambda pairs: lm_loss(model, data.pit_rows(pairs.x, pairs.y_l, pairs.y_w)))
    return {"model": weights(model)}


def train_rp(run: Run, data: Data, policy: GPT) -> dict:
    """R_P: -log sigmoid(R_P(x, y_w) - R_P(x, y_l)), from M_P^SFT."""
    return train_pointwise(run, data, "rp", policy, data.folds["reward"], run.config.run.seed)


def train_judge(run: Run, data: Data, policy: GPT) -> dict:
    """The judge of real data, which no training asks: as R_P, but from the pairs of the RL fold,
    whose labels nobody else learns from; what starts at random starts otherwise."""
    return train_pointwise(run, data, "judge", policy, data.folds["rl"], run.config.run.seed + 1)


def train_pointwise(run: Run, data: Data, name: str, policy: GPT, fold: Fold, seed: int) -> dict:
    """A reward model of x and y."""
    def branches(pairs, y_w, y_l):
        return make_branches([data.policy(x) for x in pairs.x], y_w, y_l, run.device)

    return train_reward_model(run, data, name, policy, fold, seed,
                              lambda x, y_w, y_l: x + y_w + y_l, branches, reward.pointwise_loss,
                              measure.pointwise_agreement)


def train_rpit(run: Run, data: Data, pit_policy: GPT) -> dict:
    """R_PIT: Eq. 2 over the four ordered pairs of each triple, from M_PIT^SFT."""
    def branches(pairs, y_w, y_l):
        prompts = [data.pit(*pair) for y_ref in (pairs.y_l, pairs.y_w)
                   for pair in zip(pairs.x, y_ref)]
        return make_branches(prompts, y_w * 2, y_l * 2, run.device)

    return train_reward_model(run, data, "rpit", pit_policy, data.folds["reward"],
                              run.config.run.seed, lambda x, y_w, y_l: 2 * x + 3 * (y_w + y_l),
                              branches, reward.eq2_loss, measure.gap_agreement)


def train_reward_model(run: Run, data: Data, name: str, start: GPT, fold: Fold, seed: int, width,
                       branches, loss, agreement) -> dict:
    """Train a reward model from a supervised model. At the end it is asked about validation pairs,
    of which it has learned nothing by heart; one of each group that the split keeps together."""
    model = new_reward_model(run, data, seed)
    put(model.trunk, weights(start))
    model = run.placed(model)

    def loss_of(pairs):
        ended = ([data.add_eos(y) for y in side] for side in (pairs.y_w, pairs.y_l))
        total, right = loss(model, branches(pairs, *ended))
        return total, torch.tensor(len(pairs)), right

    found = {}

    def held_out():
        some = data.folds["valid"][range(min(run.config.data.valid, len(data.folds["valid"])))]
        found.update(agreement(data, model, some))
        return {f"valid_{key}": value for key, value in found.items()}

    train(run, name, model, getattr(run.config, name), fold, width, loss_of, held_out)
    return {"model": weights(model), "valid": found}


def train_start(run: Run, data: Data) -> Models:
    """M_P^SFT, M_PIT^SFT, R_P and R_PIT, trained or restored."""
    data.trunk = load_trunk(run, data)
    sft = run.stage("sft", BASE + ("sft",), lambda: train_sft(run, data))
    policy = run.placed(new_gpt(run, data), sft["model"])
    pit_sft = run.stage("pit_sft", BASE + ("sft", "pit_sft"),
                        lambda: train_pit_sft(run, data, policy))
    pit_policy = run.placed(new_gpt(run, data), pit_sft["model"])
    rp = run.stage("rp", R_P, lambda: train_rp(run, data, policy))
    rpit = run.stage("rpit", BASE + ("sft", "pit_sft", "reward", "rpit"),
                     lambda: train_rpit(run, data, pit_policy))
    for name, content in (("rp", rp), ("rpit", rpit)) if run.trains else ():
        checks.warn_once(run.told, name, checks.unproven(content["valid"]))
    rp, rpit = (run.placed(new_reward_model(run, data), one["model"]) for one in (rp, rpit))
    trunk = {"pretrained": data.trunk} if data.trunk else {}
    return Models(rp, rpit, trunk | {"M_P^SFT": policy, "M_PIT^SFT": pit_policy})


def main() -> None:
    _, config = command_line(__doc__.splitlines()[0])
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
