"""Training step (forward, backward, AdamW) against transformers' Llama.

    python benchmarks/train_step.py --workload W                    # or W2; --compile

W: 32 rows of 128 tokens; W2: 4 rows of 256. The limit is the time that the matrix products need at
the machine's best.
"""

import torch
from common import WORKLOADS, alternate, forward_flops, gemm_peak, hf, ours, report_peer
from script import arguments

from model import Rows, token_logprobs
from runtime.batching import micro_batches

BATCH = {"W": (32, 128), "W2": (4, 256)}


def our_model(workload: str, tokens):
    """Return our model and what precedes the optimiser: forward, backward by micro-batches."""
    model = ours(workload)
    rows = Rows(tokens, torch.ones(len(tokens), dtype=torch.long),
                torch.full((len(tokens),), tokens.shape[1]))

    def backward(forward):
        for chosen in micro_batches(rows.length, model.config.micro_batch):
            (-token_logprobs(forward, rows[chosen]).sum() / rows.mask.sum()).backward()
    return model, backward


def hf_model(workload: str, tokens):
    return hf(workload), lambda forward: forward(input_ids=tokens, labels=tokens).loss.backward()


def step_of(model, backward, compiled: bool):
    """Return a whole training step of a side."""
    forward = torch.compile(model) if compiled else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step():
        backward(forward)
        optimizer.step()
        optimizer.zero_grad()
    return step


def main() -> None:
    args = arguments(
        __doc__, ("--workload", {"choices": WORKLOADS, "default": "W"}),
        ("--compile", {"action": "store_true", "help": "torch.compile on both sides"}))
    batch, time = BATCH[args.workload]
    tokens = torch.randint(0, WORKLOADS[args.workload][1], (batch, time))
    seconds = alternate({
        name: step_of(*make(args.workload, tokens), args.compile)
        for name, make in (("ours", our_model), ("HF Llama", hf_model))}, 15)
    least = 3 * forward_flops(args.workload) * batch * time / gemm_peak()
    report_peer(f"training step {args.workload}" + ", compiled" * args.compile, "HF Llama",
                *seconds.values(), least, peer_of_peak=least / seconds["HF Llama"])


if __name__ == "__main__":
    main()
