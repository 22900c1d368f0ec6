"""LoRA against full training: a step of the policy, and the memory of a whole PPO stage.

    python benchmarks/lora.py                # SmolLM2-135M's shape, random weights; no peers needed

The step: log-probabilities of 8 responses of 48 tokens to prompts of 96, backward, Adam, in float32
and, where the CPU has instructions for it, in bfloat16. The memory: the largest resident size of a
process that holds what a stage of PIT holds (policy and critic with their optimisers, the anchor,
both reward models, three policies more), after one step of policy and critic; each side in a
process of its own.
"""

import argparse
import random
import resource
import subprocess
import sys

import torch
from common import alternate, random_lists, report

from model import GPT, adapted, pad_rows, token_logprobs
from ppo import Critic, make_learner
from reward import RewardModel
from runtime import LoRASection, ModelSection, PPOSection, RewardSection, StageSection
from tools.checks import emulated

SHAPE, VOCAB = ModelSection(layers=30, heads=9, kv_heads=3, width=576, hidden=1536, context=512,
                            rope_theta=100_000.0), 49_152
LORA = LoRASection(rank=16)


def makers() -> dict:
    """Of each side a function that makes another model."""
    trunk = GPT(SHAPE, VOCAB)
    return {"full": lambda: GPT(SHAPE, VOCAB), "LoRA": lambda: adapted(trunk, LORA)}


def make_rows():
    chance = random.Random(0)
    prompts, responses = (random_lists(chance, 8, n, n, VOCAB) for n in (96, 48))
    return pad_rows(prompts, responses)


def train_step(model, optimizer, rows) -> None:
    (-token_logprobs(model, rows).mean()).backward()
    optimizer.step()
    optimizer.zero_grad()


def compare_steps() -> None:
    rows, sides = make_rows(), {}
    for name, make in makers().items():
        model = make()
        optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], fused=True)
        sides[name] = lambda model=model, optimizer=optimizer: train_step(model, optimizer, rows)
    slow = any(emulated("cpu", "bf16"))
    for precision in ("float32",) if slow else ("float32", "bfloat16"):
        with torch.autocast("cpu", torch.bfloat16, precision == "bfloat16", cache_enabled=False):
            seconds = alternate(sides, 3)
        report(f"training step, {precision}", full_s=seconds["full"], lora_s=seconds["LoRA"],
               ratio=seconds["full"] / seconds["LoRA"],
               lora_tokens_a_second=rows.tokens.numel() / seconds["LoRA"])


def hold_a_stage(side: str) -> None:
    """Make what a PPO stage holds, take a step, and print the largest resident size in MB."""
    make, rows = makers()[side], make_rows()
    learner = make_learner(make(), Critic(make()), PPOSection(), StageSection())
    others = [make() for _ in range(4)] + [RewardModel(make(), RewardSection()) for _ in range(2)]
    train_step(learner.policy, learner.policy_optimizer, rows)
    learner.critic(rows).sum().backward()
    learner.critic_optimizer.step()
    assert len(others) == 6
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hold", choices=["full", "LoRA"], help="internal: one side's memory")
    args = parser.parse_args()
    if args.hold:
        hold_a_stage(args.hold)
        return
    compare_steps()
    full, lora = (float(subprocess.run([sys.executable, __file__, "--hold", side], check=True,
                                       capture_output=True, text=True).stdout)
                  for side in ("full", "LoRA"))
    report("memory of a PPO stage", full_mb=full, lora_mb=lora, share=lora / full)


if __name__ == "__main__":
    main()
