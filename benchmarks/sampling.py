"""Batched sampling at temperature 1 against transformers' generate with its dynamic cache.

    python benchmarks/sampling.py --workload W
    python benchmarks/sampling.py --workload W2

64 prompts of 16 to 32 tokens (W2: 8), 64 new tokens each: no row ends before, on either side. The
limit is the time of the matrix products at the machine's best, or of reading the weights once a
token, whichever is more.
"""

import random

import torch
from common import (WORKLOADS, alternate, fastest, forward_flops, gemm_peak, hf, ours, random_lists,
                    report)
from script import arguments

import model as plain
from faster.sampling import sample

NEW = 64


def main() -> None:
    args = arguments(
        __doc__, ("--workload", {"choices": WORKLOADS, "default": "W"}),
        ("--cache", {"choices": ("dynamic", "static"), "default": "dynamic",
                     "help": "transformers' cache"}))
    number, vocab = {"W": 64, "W2": 8}[args.workload], WORKLOADS[args.workload][1]
    prompts = random_lists(random.Random(0), number, 16, 32, vocab)
    model, peer = ours(args.workload), hf(args.workload)
    longest = max(map(len, prompts))
    padded = torch.tensor([[0] * (longest - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
    sides = {
        "ours": lambda: sample(model, prompts, torch.rand(number, NEW), 1.0, -1),
        "plain": lambda: plain.sample(model, prompts, torch.rand(number, NEW), 1.0, -1),
        "HF": lambda: peer.generate(
            padded, attention_mask=mask, max_new_tokens=NEW, min_new_tokens=NEW, do_sample=True,
            top_k=0, top_p=1.0, temperature=1.0, pad_token_id=0, cache_implementation=args.cache)}
    assert len(sides["ours"]().responses()[0]) == NEW
    assert sides["HF"]().shape[1] == longest + NEW
    seconds = alternate(sides, 7)
    numbers = torch.ones(1 << 27)
    bandwidth = numbers.numel() * 4 / fastest(numbers.sum)  # bytes a second read from memory
    weights = sum(p.numel() * 4 for p in model.parameters())
    step = max(forward_flops(args.workload) * number / gemm_peak(), weights / bandwidth)
    report(f"sampling {args.workload}, {number} prompts", peer=f"HF generate, {args.cache} cache",
           ours_ms_a_token=1000 * seconds["ours"] / NEW, peer_ms_a_token=1000 * seconds["HF"] / NEW,
           plain_ms_a_token=1000 * seconds["plain"] / NEW, ratio=seconds["HF"] / seconds["ours"],
           of_peak=step * NEW / seconds["ours"])


if __name__ == "__main__":
    main()
