"""A PPO iteration on workload W against TRL's PPOTrainer: seconds, and the peak memory of each.

    python benchmarks/ppo_iteration.py

64 prompts of 16 to 32 tokens, 32 new tokens each (none ends before), scores of a reward model, the
reference's log-probabilities, values of a critic of its own, then 4 epochs of 4 minibatches. Each
side runs in processes of its own, by turns. Beside the seconds stands what the matrix products of
our iteration alone would take at the machine's best.
"""

import argparse
import copy
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from statistics import median

ROWS, NEW, EPOCHS, MINIBATCHES = 64, 32, 4, 4


def make_prompts(vocab: int) -> list[list[int]]:
    from common import random_lists

    return random_lists(random.Random(0), ROWS, 16, 32, vocab)


def run_ours(iterations: int) -> list[float]:
    """Return the seconds of each iteration."""
    from common import WORKLOADS, ours, torch

    import ppo
    import reward
    from runtime.config import PPOSection, RewardSection, StageSection

    policy = ours("W")
    model = reward.RewardModel(copy.deepcopy(policy), RewardSection(pool="last"))
    learner = ppo.make_learner(policy, ppo.Critic(copy.deepcopy(policy)), PPOSection(),
                               StageSection())
    section = PPOSection(batch=ROWS, epochs=EPOCHS, minibatches=MINIBATCHES, no_eos_score=0.0)
    ids = make_prompts(WORKLOADS["W"][1])
    prompts = ppo.Prompts(ids, ids, [[]] * ROWS, [""] * ROWS)
    task = ppo.Task("W", None, lambda _, rows: reward.score(model, rows), None)
    anchor, generator, seconds = copy.deepcopy(policy), torch.Generator().manual_seed(0), []
    for _ in range(iterations):
        start = time.perf_counter()
        rollout = ppo.roll_out(learner, anchor, prompts, task, section, NEW, -1, [0.0, 1.0],
                               generator)
        assert rollout.mask.sum() == ROWS * NEW
        ppo.update(learner, rollout, section, True, generator)
        seconds.append(time.perf_counter() - start)
    return seconds


def run_trl(iterations: int) -> list[float]:
    """Return the seconds of each iteration; a word-level tokenizer, since TRL wants one."""
    from common import WORKLOADS, hf, hf_config
    from datasets import Dataset
    from tokenizers import Tokenizer, models
    from transformers import (LlamaForSequenceClassification, PreTrainedTokenizerFast,
                              TrainerCallback)
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    vocab = WORKLOADS["W"][1]
    words = {f"w{i}": i for i in range(vocab)}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="w0")), pad_token="w0",
        eos_token="w1", unk_token="w0", padding_side="left")
    config = hf_config("W")
    config.num_labels, config.pad_token_id = 1, 0
    stamps = []

    class Clock(TrainerCallback):
        def on_step_end(self, *_, **__):
            stamps.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as folder:
        trainer = PPOTrainer(
            args=PPOConfig(
                output_dir=folder, per_device_train_batch_size=ROWS // MINIBATCHES,
                gradient_accumulation_steps=MINIBATCHES, num_mini_batches=MINIBATCHES,
                num_ppo_epochs=EPOCHS, response_length=NEW, total_episodes=ROWS * iterations,
                local_rollout_forward_batch_size=ROWS, temperature=1.0, num_sample_generations=0,
                report_to="none", save_strategy="no", logging_strategy="no", use_cpu=True,
                bf16=False, gradient_checkpointing=False, disable_tqdm=True),
            processing_class=tokenizer, model=hf("W"), ref_model=hf("W"),
            reward_model=LlamaForSequenceClassification(config),
            value_model=LlamaForSequenceClassification(config),
            train_dataset=Dataset.from_dict({"input_ids": make_prompts(vocab)}),
            callbacks=[Clock])
        start = time.perf_counter()
        trainer.train()
    return [after - before for before, after in zip([start, *stamps], stamps)]


def one_side(side: str, iterations: int) -> dict:
    """Run a side in a process of its own."""
    output = subprocess.run([sys.executable, __file__, "--side", side, "--iterations",
                             str(iterations)], capture_output=True, text=True)
    if output.returncode:
        sys.exit(output.stderr)
    return json.loads(output.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", choices=("ours", "trl"), help="run this side only, in-process")
    parser.add_argument("--iterations", type=int, default=4, help="the first is a warm-up")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    if args.side:
        seconds = {"ours": run_ours, "trl": run_trl}[args.side](args.iterations)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps({"seconds": seconds[1:], "peak_mb": peak}))
        return
    from common import WORKLOADS, forward_flops, gemm_peak, report
    runs = {"ours": [], "trl": []}
    for _ in range(args.rounds):
        for side, results in runs.items():
            results.append(one_side(side, args.iterations))
    seconds = {side: median(s for run in results for s in run["seconds"])
               for side, results in runs.items()}
    memory = {side: median(run["peak_mb"] for run in results) for side, results in runs.items()}
    read = sum(map(len, make_prompts(WORKLOADS["W"][1]))) + ROWS * NEW
    passes = 5 + 2 * 3 * EPOCHS  # sampling, four scorings; forward and backward of two models
    least = passes * read * forward_flops("W") / gemm_peak()
    report("PPO iteration W", peer="TRL PPOTrainer", ours_s=seconds["ours"], peer_s=seconds["trl"],
           ratio=seconds["trl"] / seconds["ours"], of_peak=least / seconds["ours"],
           ours_mb=memory["ours"], peer_mb=memory["trl"], memory=memory["ours"] / memory["trl"])


if __name__ == "__main__":
    main()
