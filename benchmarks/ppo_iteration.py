"""A PPO iteration on workload W against TRL's PPOTrainer: seconds, and the peak memory of each.

    python benchmarks/ppo_iteration.py                   # --peer groups: our own, without a critic

64 prompts of 16 to 32 tokens, 32 new tokens each (none ends before), scores of a reward model, the
reference's log-probabilities, values of a critic of its own, then 4 epochs of 4 minibatches. Each
side runs in processes of its own, by turns. Beside the seconds stands what the matrix products of
our iteration alone would take at the machine's best.
"""

import copy
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from functools import partial
from statistics import median

import torch
from common import (WORKLOADS, forward_flops, gemm_peak, hf, hf_scorer, ours, random_lists,
                    report_peer)
from script import arguments

import ppo
import reward
from faster import branches
from runtime.config import PPOSection, RewardSection, StageSection

ROWS, NEW, EPOCHS, MINIBATCHES = 64, 32, 4, 4
ITERATIONS, ROUNDS = 4, 3  # of a process, the first one to warm up; processes of each side
VOCAB = WORKLOADS["W"][1]


def make_prompts(groups: int = 1) -> list[list[int]]:
    """Make as many prompts as there are rows, each `groups` times."""
    prompts = random_lists(random.Random(0), ROWS // groups, 16, 32, VOCAB)
    return [prompt for prompt in prompts for _ in range(groups)]


def run_ours(groups: bool = False) -> list[float]:
    """Return the seconds of each iteration, with a critic or with groups of four."""
    policy = ours("W")
    model = reward.RewardModel(copy.deepcopy(policy), RewardSection(pool="last"))
    learner = (ppo.group_learner(policy, PPOSection(), StageSection()) if groups else
               ppo.critic_learner(policy, ppo.Critic(copy.deepcopy(policy)), PPOSection(),
                                  StageSection()))
    section = PPOSection(batch=ROWS, epochs=EPOCHS, minibatches=MINIBATCHES, no_eos_score=0.0)
    ids = make_prompts(learner.group)
    prompts = ppo.Prompts(ids, ids, [[]] * ROWS, [""] * ROWS)
    task = ppo.Task("W", StageSection(), copy.deepcopy(policy), None,
                    lambda _, rows: branches.score(model, rows), None)
    generator, seconds = torch.Generator().manual_seed(0), []
    for _ in range(ITERATIONS):
        start = time.perf_counter()
        uniforms = torch.rand(ROWS, NEW, generator=generator)
        rollout = ppo.roll_out(learner, task, prompts, uniforms, section, -1)
        mask = rollout.rows.mask
        assert mask.sum() == ROWS * NEW
        advantages, returns = learner.advantages(rollout, section)
        experience = ppo.Experience(rollout.rows, rollout.logp,
                                    ppo.whiten(advantages, mask), rollout.values, returns)
        for name, one in learner.networks().items():
            ppo.update(one, experience, section, generator, name)
        seconds.append(time.perf_counter() - start)
    return seconds


def run_trl() -> list[float]:
    """Time each iteration, in seconds; a word-level tokenizer, since TRL wants one."""
    from datasets import Dataset
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast, TrainerCallback
    from trl.experimental.ppo import PPOConfig, PPOTrainer
    words = {f"w{i}": i for i in range(VOCAB)}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="w0")), pad_token="w0",
        eos_token="w1", unk_token="w0", padding_side="left")
    stamps = []

    class Clock(TrainerCallback):
        def on_step_end(self, *_, **__):
            stamps.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as folder:
        trainer = PPOTrainer(
            args=PPOConfig(
                output_dir=folder, per_device_train_batch_size=ROWS // MINIBATCHES,
                gradient_accumulation_steps=MINIBATCHES, num_mini_batches=MINIBATCHES,
                num_ppo_epochs=EPOCHS, response_length=NEW, total_episodes=ROWS * ITERATIONS,
                local_rollout_forward_batch_size=ROWS, temperature=1.0, num_sample_generations=0,
                report_to="none", save_strategy="no", logging_strategy="no", use_cpu=True,
                bf16=False, gradient_checkpointing=False, disable_tqdm=True),
            processing_class=tokenizer, model=hf("W"), ref_model=hf("W"),
            reward_model=hf_scorer("W"), value_model=hf_scorer("W"),
            train_dataset=Dataset.from_dict({"input_ids": make_prompts()}),
            callbacks=[Clock])
        start = time.perf_counter()
        trainer.train()
    return [after - before for before, after in zip([start, *stamps], stamps)]


SIDES = {"ours": run_ours, "trl": run_trl, "groups": partial(run_ours, groups=True)}
PEERS = {"trl": "TRL PPOTrainer", "groups": "ours with groups of four"}


def one_side(side: str) -> dict:
    """Run a side in a process of its own."""
    output = subprocess.run([sys.executable, __file__, "--side", side], capture_output=True,
                            text=True)
    if output.returncode:
        sys.exit(output.stderr)
    return json.loads(output.stdout.splitlines()[-1])


def main() -> None:
    args = arguments(__doc__, ("--side", {"choices": SIDES, "help": "run only it, here"}),
                     ("--peer", {"choices": PEERS, "default": "trl"}))
    if args.side:
        seconds = SIDES[args.side]()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps({"seconds": seconds[1:], "peak_mb": peak}))
        return
    sides = "ours", args.peer
    runs = [(side, one_side(side)) for _ in range(ROUNDS) for side in sides]
    seconds, memory = {}, {}
    for side in sides:
        seconds[side] = median(s for name, run in runs if name == side for s in run["seconds"])
        memory[side] = median(run["peak_mb"] for name, run in runs if name == side)
    read = sum(map(len, make_prompts())) + ROWS * NEW
    passes = 5 + 2 * 3 * EPOCHS  # sampling, four scorings; forward and backward of two models
    least = passes * read * forward_flops("W") / gemm_peak()
    report_peer("PPO iteration W", PEERS[args.peer], seconds["ours"], seconds[args.peer], least,
                ours_mb=memory["ours"], peer_mb=memory[args.peer],
                memory=memory["ours"] / memory[args.peer])


if __name__ == "__main__":
    main()
