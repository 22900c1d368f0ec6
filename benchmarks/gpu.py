"""A training step and sampling on a GPU, against transformers.

    python benchmarks/gpu.py                           # SmolLM2-135M's shape, bfloat16 products
    python benchmarks/gpu.py --device cpu --batch 2 --layers 1        # does it run

The step: log-probabilities of 128 responses of 64 tokens to prompts of 96, backward, AdamW.
Sampling: 64 new tokens to each of the prompts, none ends before. Weights are float32 on all sides.
"""

import random
from dataclasses import replace

import torch
from common import alternate, llama_config, random_lists, report
from script import arguments

from faster.sampling import sample
from model import GPT, pad_rows, token_logprobs
from runtime.config import ModelSection

SHAPE, VOCAB = ModelSection(layers=30, heads=9, kv_heads=3, width=576, hidden=1536, context=512,
                            rope_theta=100_000.0), 49_152  # SmolLM2-135M's
PROMPT, NEW = 96, 64


class Side:
    """What is the same on all sides; a side has its loss of `rows` and its way to sample.
    `keep_casts`: whether autocast keeps the bfloat16 copies of weights, its default."""

    def __init__(self, model, loss, draw, device: str, keep_casts: bool):
        self.loss, self.draw, self.device, self.keep_casts = loss, draw, device, keep_casts
        self.optimizer = torch.optim.AdamW(model.parameters(), fused=True)

    def bfloat16(self):
        return torch.autocast(self.device, torch.bfloat16, cache_enabled=self.keep_casts)

    def wait(self):
        if self.device == "cuda":
            torch.cuda.synchronize()

    def train(self):
        with self.bfloat16():
            loss = self.loss()
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.wait()

    def sample(self):
        with torch.no_grad(), self.bfloat16():
            self.draw()
        self.wait()

    def peak(self) -> float:
        """Measure the GB that a training step takes at most, beside weights and optimisers."""
        if self.device != "cuda":
            return 0.0
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
        self.train()
        return (torch.cuda.max_memory_allocated() - held) / 1e9


def our_side(shape, rows, prompts, device: str) -> Side:
    torch.manual_seed(0)
    model = GPT(shape, VOCAB).to(device)
    uniforms = torch.rand(len(prompts), NEW, device=device)
    return Side(model, lambda: -token_logprobs(model, rows).mean(),
                lambda: sample(model, prompts, uniforms, 1.0, -1), device, keep_casts=False)


def their_side(shape, rows, prompts, device: str) -> Side:
    from transformers import LlamaForCausalLM
    model = LlamaForCausalLM(llama_config(shape, VOCAB)).to(device)
    labels = rows.tokens.masked_fill(~rows.mask, -100)
    ids = torch.tensor(prompts, device=device)
    return Side(model, lambda: model(input_ids=rows.tokens, labels=labels).loss,
                lambda: model.generate(
                    ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW,
                    min_new_tokens=NEW, do_sample=True, top_k=0, top_p=1.0, pad_token_id=0),
                device, keep_casts=True)


def main() -> None:
    args = arguments(__doc__, ("--device", {"default": "cuda"}),
                     ("--batch", {"type": int, "default": 128}),
                     ("--layers", {"type": int, "default": SHAPE.layers}))
    shape = replace(SHAPE, layers=args.layers, micro_batch=65_536, look_every=16)
    chance = random.Random(0)
    prompts, responses = (random_lists(chance, args.batch, n, n, VOCAB) for n in (PROMPT, NEW))
    rows = pad_rows(prompts, responses, args.device)
    sides = {"ours": our_side(shape, rows, prompts, args.device),
             "transformers": their_side(shape, rows, prompts, args.device)}
    device = torch.cuda.get_device_name() if args.device == "cuda" else args.device
    step = alternate({name: side.train for name, side in sides.items()}, 5)
    draw = alternate({name: side.sample for name, side in sides.items()}, 5)
    for name, side in sides.items():
        report(f"{name}, {args.batch} rows", device=device, step_ms=1000 * step[name],
               tokens_a_second=args.batch * (PROMPT + NEW) / step[name], step_gb=side.peak(),
               sampling_ms_a_token=1000 * draw[name] / NEW)


if __name__ == "__main__":
    main()
