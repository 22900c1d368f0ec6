"""Train PIT from nothing to the report; what is trained already is used as it is.

    python train_pit.py --config configs/quick.toml

In order: all of train_reward.py, then with one PPO (ppo.py)

    M_P^RL    Eq. 3: maximise R_P(x, y) - beta KL(M_P^RL || M_P^SFT), y ~ M_P^RL(. | x)
    stage 0   Eq. 4: maximise r_gap(x, y, y_ref) - beta KL(M_PIT^RL || M_PIT^SFT), y_ref = y_l, y_w
    stage 1   Eq. 5: the same, y_ref ~ M_P^RL(. | x) drawn afresh; goes on from stage 0

and then, each time, the evaluation on held-out prompts: runs/<name>/report.md. That the RL is PPO
is our choice.
"""

from dataclasses import replace
from functools import partial

import ppo
from ablations import drafts
from ablations.scores import load_functions, other_score, try_functions
from corpus.tokens import turn_by_turn
from data import Data, Pairs, load_data
from evaluation.watch import observe, observe_scale, raw_scores
from faster import branches
from model import GPT, Rows
from ppo import Critic, Learner, Prompts, Task
from pretrained.configure import command_line
from report.evaluate import evaluate
from report.page import write
from report.rivals import refiner_data, train_sft_more
from reward import RewardModel
from runtime.launch import guard
from runtime.run import Run
from runtime.stages import inputs_of, title
from runtime.state import load_weights, weights_of
from sample import Sampler, answer, responses_to
from train_reward import Models, new_gpt, train_start


def draw_pairs(run: Run, data: Data, name: str, iteration: int, number: int) -> Pairs:
    """Draw `number` pairs of the RL fold for one iteration: we go through the fold in a random
    order, another one in each pass and stage."""
    fold, seeds = data.folds["rl"], [run.config.run.seed, sum(map(ord, name))]
    return fold[turn_by_turn(len(fold), seeds, iteration * number, number)]


def draw_prompts(run: Run, data: Data, name: str, policy: GPT, iteration: int,
                 number: int) -> Prompts:
    """Make the prompts of Eq. 3: the policy reads x."""
    x = draw_pairs(run, data, name, iteration, number).x
    return Prompts([data.policy_prompt(one) for one in x], x, [[]] * number, [""] * number)


def draw_data_references(run: Run, data: Data, name: str, policy: GPT, iteration: int,
                         number: int) -> Prompts:
    """Make the prompts of Eq. 4: PIT reads x with y_l, and x with y_w."""
    pairs = draw_pairs(run, data, name, iteration, number // 2)
    x, y_ref = pairs.x * 2, pairs.y_l + pairs.y_w
    ids = [data.pit_prompt(*pair) for pair in zip(x, y_ref)]
    return Prompts(ids, x, y_ref, ["y_l"] * len(pairs) + ["y_w"] * len(pairs))


def draw_new_references(run: Run, data: Data, name: str, models: Models, policy: GPT,
                        iteration: int, number: int) -> Prompts:
    """Make the prompts of Eq. 5: PIT reads x with a new draft, by default a sample of M_P^RL."""
    x, stage = draw_pairs(run, data, name, iteration, number).x, getattr(run.config, name)
    sampler = Sampler(run, data, run.config.ppo.temperature,
                      run.generator(f"{name} references {iteration}"))
    draft = {"policy": policy_drafts, "best": drafts.best, "improved": drafts.improved}
    y_ref, source = draft[stage.reference](sampler, models, policy, x, stage.best_of)
    ids = [data.pit_prompt(*pair) for pair in zip(x, y_ref)]
    return Prompts(ids, x, y_ref, source)


def policy_drafts(sampler: Sampler, models: Models, policy: GPT, x: list, number: int):
    """Return samples of M_P^RL, which is finished, and their source."""
    return answer(sampler, models.policies["M_P^RL"], x), ["M_P^RL"] * len(x)


def model_score(model: RewardModel, prompts: Prompts, rows: Rows):
    """Return R_P(x, y), or r_gap(x, y, y_ref): the model reads the rollout's very tokens."""
    return branches.score(model, rows)


def measure_scale(run: Run, data: Data, task: Task) -> tuple[float, float]:
    """Return mean and std of the raw score on the anchor's samples, before RL: r_gap has no natural
    zero or unit. The shift lets the critic, whose head starts at 0, begin near the returns."""
    section = run.config.ppo
    prompts = task.draw(task.anchor, 0, section.batch * max(1, min(4, 256 // section.batch)))
    sampler = Sampler(run, data, section.temperature, run.generator(f"{task.name} spread"))
    responses = responses_to(sampler, task.anchor, prompts.ids)
    scores = raw_scores(run, task, prompts, responses)
    scale = float(scores.mean()), max(float(scores.std()), 1e-6)
    copies = raw_scores(run, task, prompts, [data.add_eos(ids) for ids in prompts.y_ref])
    ended = [ids[-1] == data.tokenizer.eos for ids in responses]
    observe_scale(run, task, scale, scores[ended], copies)
    return scale


def fresh_start(run: Run, data: Data, task: Task, model: RewardModel) -> dict:
    """Return what a first stage starts from, in the form of a stage's checkpoint; one that was cut
    off keeps its scale. A critic starts from the reward model's trunk, which reads the same."""
    scale = (run.resumed.get("state") or {}).get("scale") or measure_scale(run, data, task)
    start = {"model": weights_of(task.anchor), "scale": scale}
    if run.config.ppo.advantage == "critic":
        critic = Critic(new_gpt(run, data))
        load_weights(critic.trunk, weights_of(model.trunk))
        start["critic"] = weights_of(critic)
    return start


def learner_of(run: Run, data: Data, task: Task, start: dict) -> Learner:
    """Make what learns in a stage, as ppo.advantage says."""
    section, policy = run.config.ppo, run.placed(new_gpt(run, data), start["model"])
    if section.advantage == "group":
        return ppo.group_learner(policy, section, task.stage, start["scale"])
    critic = run.placed(Critic(new_gpt(run, data)), start["critic"])
    return ppo.critic_learner(policy, critic, section, task.stage, start["scale"])


def train_stage(run: Run, data: Data, task: Task, start: dict) -> dict:
    """Run PPO from a fresh start or from another stage's checkpoint; return its own."""
    learner = learner_of(run, data, task, start)
    ppo.train(run, data, task, learner)
    found = {name: weights_of(one.model) for name, one in learner.networks().items()}
    return {"model": found.pop("policy"), "scale": learner.scale} | found


def rlhf_task(run: Run, data: Data, name: str, models: Models) -> Task:
    """Return what Eq. 3 asks of PPO."""
    stage, rp = run.config.rlhf, models.rp
    score = other_score(data, rp, stage.score) if stage.score else partial(model_score, rp)
    return Task(name, stage, models.policies["M_P^SFT"], partial(draw_prompts, run, data, name),
                score, partial(observe, run, data, name, stage.kl_target))


def train_rlhf(run: Run, data: Data, models: Models) -> dict:
    """Train M_P^RL by Eq. 3."""
    task = rlhf_task(run, data, "rlhf", models)
    return train_stage(run, data, task, fresh_start(run, data, task, models.rp))


def train_rlhf_more(run: Run, data: Data, models: Models) -> dict:
    """Train the rival of equal budget: RLHF from sft_more, for all samples of RLHF and PIT."""
    config, task = run.config, rlhf_task(run, data, "rlhf_more", models)
    more = sum(getattr(config, name).batches(config.ppo) for name in config.pit.curriculum)
    stage = replace(task.stage, iterations=task.stage.iterations + more)
    task = replace(task, stage=stage, anchor=models.policies[title("sft_more")])
    return train_stage(run, data, task, fresh_start(run, data, task, models.rp))


def train_pit_stage(run: Run, data: Data, name: str, models: Models, before: dict | None) -> dict:
    """Train PIT's stage 0 or 1, by Eq. 4 or 5. It goes on from the policy, the critic and the scale
    of the stage `before`; the first starts from M_PIT^SFT, the anchor throughout."""
    stage = getattr(run.config, name)
    draw = (partial(draw_data_references, run, data, name) if stage.reference == "data" else
            partial(draw_new_references, run, data, name, models))
    named, gap = run.config.pit.score, partial(model_score, models.rpit)
    score = gap if named == "gap" else other_score(data, models.rp, named)
    task = Task(name, stage, models.policies["M_PIT^SFT"], draw, score,
                partial(observe, run, data, name, stage.kl_target))
    return train_stage(run, data, task, before or fresh_start(run, data, task, models.rpit))


def train_to_rlhf(run: Run, data: Data) -> Models:
    """Train or restore the models up to M_P^RL."""
    models, inputs = train_start(run, data), inputs_of(run.config)["rlhf"]
    content = run.stage("rlhf", inputs, lambda: train_rlhf(run, data, models))
    models.policies[title("rlhf")] = run.placed(new_gpt(run, data), content["model"])
    return models


def train_all(run: Run, data: Data) -> Models:
    """Train or restore every model of the method, in order."""
    models, inputs, before = train_to_rlhf(run, data), inputs_of(run.config), None
    for name in run.config.pit.curriculum:
        before = run.stage(name, inputs[name],
                           lambda: train_pit_stage(run, data, name, models, before))
        models.policies[title(name)] = run.placed(new_gpt(run, data), before["model"])
    if run.config.eval.equal_budget:
        for name, make in ("sft_more", train_sft_more), ("rlhf_more", train_rlhf_more):
            content = run.stage(name, inputs[name], lambda: make(run, data, models))
            models.policies[title(name)] = run.placed(new_gpt(run, data), content["model"])
    return models


def main() -> None:
    _, config = command_line(__doc__)
    load_functions(config)
    run = Run(config)
    data = load_data(run)
    try_functions(config, data)
    refiner_data(run, data)
    with run.precision():
        models = train_all(run, data)
        run.write_config()
        write(run, evaluate(run, data, models))


if __name__ == "__main__":
    guard(main)
