"""Train PIT from nothing to the report; whatever is there already is used as it is.

    python train_pit.py --config configs/synthetic.toml

In order: all of train_reward.py, then with one PPO (ppo.py)

    M_P^RL    Eq. 3: maximise R_P(x, y), y ~ M_P(. | x), anchored to M_P^SFT
    stage 0   Eq. 4: maximise r_gap(x, y, y_ref), y_ref = y_l and y_w, anchored to M_PIT^SFT
    stage 1   Eq. 5: the same, y_ref ~ M_P^RL(. | x) drawn afresh; goes on from stage 0

and the evaluation on held-out prompts: runs/<name>/report.md (of real data, by a judge that is
trained for it: train_reward.train_judge). The paper leaves the RL algorithm, the steps and the KL
open; here it is PPO, whose coefficient of the KL rises above a target in nats a response.
"""

import dataclasses
from functools import partial

import numpy as np

import ppo
import reward
from data import Data, Fold, load_data
from evaluation import report
from evaluation.show import observe
from model import GPT, Rows, pad_rows
from ppo import Critic, Prompts, Task
from pretrained.configure import command_line
from reward import RewardModel
from runtime import checks
from runtime.config import StageSection
from runtime.launch import guard
from runtime.ranks import gather, random_numbers
from runtime.run import Run
from runtime.state import put, weights
from sample import answer, in_batches, title
from train_reward import (POINTWISE, Models, new_gpt, new_reward_model, rl_inputs, train_judge,
                          train_start)


def draw_pairs(run: Run, data: Data, name: str, iteration: int, number: int) -> Fold:
    """`number` pairs of the RL fold for one iteration: the fold is gone through in a random order,
    another one each time."""
    fold, start = data.folds["rl"], iteration * number
    size, name_seed = len(fold), sum(map(ord, name))
    turns = range(start // size, (start + number - 1) // size + 1)
    order = np.concatenate([np.random.default_rng([run.config.run.seed, name_seed, turn])
                            .permutation(size) for turn in turns])
    return fold[order[start % size:start % size + number].tolist()]


def draw_prompts(run: Run, data: Data, name: str, iteration: int, number: int) -> Prompts:
    """Eq. 3: the policy reads x."""
    x = draw_pairs(run, data, name, iteration, number).x
    ids = [data.policy(one) for one in x]
    return Prompts(ids, x, [[]] * number, [""] * number)


def draw_data_references(run: Run, data: Data, name: str, iteration: int, number: int) -> Prompts:
    """Eq. 4: PIT reads x with y_l, and x with y_w."""
    pairs = draw_pairs(run, data, name, iteration, number // 2)
    x, y_ref = pairs.x * 2, pairs.y_l + pairs.y_w
    ids = [data.pit(*pair) for pair in zip(x, y_ref)]
    source = ["y_l"] * len(pairs) + ["y_w"] * len(pairs)
    return Prompts(ids, x, y_ref, source)


def draw_policy_references(run: Run, data: Data, name: str, policy: GPT, iteration: int,
                           number: int) -> Prompts:
    """Eq. 5: PIT reads x with a response that M_P^RL gives now."""
    x = draw_pairs(run, data, name, iteration, number).x
    generator = run.generator(f"{name} references {iteration}")
    y_ref = answer(run, data, policy, x, run.config.ppo.temperature, generator)
    ids = [data.pit(*pair) for pair in zip(x, y_ref)]
    return Prompts(ids, x, y_ref, ["M_P^RL"] * number)


def difference_score(data: Data, rp: RewardModel, prompts: Prompts, rows: Rows):
    """The ablation R_P(x, y) - R_P(x, y_ref)."""
    y = [data.strip_eos(ids) for ids in rows.responses()]
    return (reward.score(rp, data.policy_rows(prompts.x, y))
            - reward.score(rp, data.policy_rows(prompts.x, prompts.y_ref)))


def measure_spread(run: Run, data: Data, task: Task, anchor: GPT) -> list:
    """Mean and spread of the raw score on the anchor's samples, before RL: r_gap has no natural
    zero or unit. The shift lets the critic, whose head starts at 0, begin near the returns. Logged
    beside: the lowest score of a response with its end (ppo.no_eos_score should lie below, but for
    outliers), and mean and spread of (x, y_ref, y_ref), for RLHF of an empty response."""
    number = run.config.ppo.batch * max(1, min(4, 256 // run.config.ppo.batch))
    prompts = task.draw(0, number).mine()
    uniforms = random_numbers(number, run.config.data.max_response,
                             run.generator(f"{task.name} spread"))
    responses = in_batches(run, data, anchor, prompts.ids, uniforms, run.config.ppo.temperature)
    rows = pad_rows(prompts.ids, responses, run.device)
    copies = pad_rows(prompts.ids, [data.add_eos(ids) for ids in prompts.y_ref], run.device)
    scores = np.array(gather(task.score(prompts, rows).tolist()))
    same = np.array(gather(task.score(prompts, copies).tolist()))
    ended = np.array(gather([ids[-1] == data.tokenizer.eos for ids in responses]))
    mean, spread = float(scores.mean()), max(float(scores.std()), 1e-6)
    whole = (scores[ended] - mean) / spread
    run.log("metrics.jsonl", {"stage": task.name, "step": 0, "score_mean": mean,
                              "score_spread": spread, "same_mean": float(same.mean()),
                              "same_spread": float(same.std()),
                              "score_min_in_spreads": float(whole.min()) if len(whole) else None})
    checks.warn_once(run.told, task.name, checks.within_range(run.config.ppo.no_eos_score, whole))
    return [mean, spread]


def fresh_start(run: Run, data: Data, task: Task, anchor: GPT, model: RewardModel) -> dict:
    """What a first stage starts from: the anchor's weights, and a critic on the trunk of the reward
    model, which reads the same tokens; in the form of a stage's checkpoint."""
    critic = Critic(new_gpt(run, data))
    put(critic.trunk, weights(model.trunk))
    return {"model": weights(anchor), "critic": weights(critic),
            "spread": measure_spread(run, data, task, anchor)}


def train_stage(run: Run, data: Data, task: Task, stage: StageSection, start: dict,
                anchor: GPT) -> dict:
    """One run of PPO from a fresh start or from another stage's checkpoint; what its own holds."""
    policy = run.placed(new_gpt(run, data), start["model"])
    critic = run.placed(Critic(new_gpt(run, data)), start["critic"])
    learner = ppo.make_learner(policy, critic, run.config.ppo, stage)
    ppo.train(run, task, learner, anchor, start["spread"], stage, run.config.data.max_response,
              data.tokenizer.eos, data.strip_eos)
    return {"model": weights(policy), "critic": weights(critic), "spread": start["spread"]}


def train_rlhf(run: Run, data: Data, name: str, sft: GPT, rp: RewardModel,
               before: dict | None = None) -> dict:
    """M_P^RL, Eq. 3; from its checkpoint `before`, as many more samples as PIT's stages take."""
    stage = run.config.rlhf
    task = Task(name, partial(draw_prompts, run, data, name),
                lambda _, rows: reward.score(rp, rows), partial(observe, run, data, name))
    if before is None:
        return train_stage(run, data, task, stage, fresh_start(run, data, task, sft, rp), sft)
    others = [getattr(run.config, one) for one in run.config.pit.curriculum]
    budget = sum(one.iterations * (1 + (one.reference == "policy")) for one in others)
    stage = dataclasses.replace(stage, iterations=budget)
    return train_stage(run, data, task, stage, before, sft)


def train_pit_stage(run: Run, data: Data, name: str, models: Models, before: dict | None) -> dict:
    """Stage 0 or 1, Eqs. 4 and 5. Goes on from the policy, the critic and the scale of the stage
    `before`; the first stage starts from M_PIT^SFT. The anchor is M_PIT^SFT throughout."""
    stage, anchor = getattr(run.config, name), models.policies["M_PIT^SFT"]
    draw = (partial(draw_data_references, run, data, name) if stage.reference == "data" else
            partial(draw_policy_references, run, data, name, models.policies["M_P^RL"]))
    score = (partial(difference_score, data, models.rp) if run.config.pit.score == "difference" else
             lambda _, rows: reward.score(models.rpit, rows))  # it reads the rollout's very tokens
    task = Task(name, draw, score, partial(observe, run, data, name))
    start = before or fresh_start(run, data, task, anchor, models.rpit)
    return train_stage(run, data, task, stage, start, anchor)


def train_all(run: Run, data: Data) -> Models:
    """Every model of the method, trained or restored, in order."""
    models, inputs, before = train_start(run, data), rl_inputs(run.config), None
    sft, rp = models.policies["M_P^SFT"], models.rp
    rlhf = run.stage("rlhf", inputs["rlhf"], lambda: train_rlhf(run, data, "rlhf", sft, rp))
    models.policies[title("rlhf")] = run.placed(new_gpt(run, data), rlhf["model"])
    for name in run.config.pit.curriculum:
        before = run.stage(name, inputs[name],
                           lambda: train_pit_stage(run, data, name, models, before))
        models.policies[title(name)] = run.placed(new_gpt(run, data), before["model"])
    if run.config.eval.equal_budget:
        content = run.stage("rlhf_more", inputs["rlhf_more"],
                            lambda: train_rlhf(run, data, "rlhf_more", sft, rp, rlhf))
        models.policies[title("rlhf_more")] = run.placed(new_gpt(run, data), content["model"])
    if run.config.data.files:
        content = run.stage("judge", POINTWISE + ("judge",), lambda: train_judge(run, data, sft))
        models.judge = run.placed(new_reward_model(run, data), content["model"])
    return models


def main() -> None:
    _, config = command_line(__doc__.splitlines()[0])
    run = Run(config)
    data = load_data(run)
    with run.precision():
        models = train_all(run, data)
        run.write_config()
        report.write(run, report.evaluate(run, data, models))


if __name__ == "__main__":
    guard(main)
