"""Training step (forward, backward, AdamW) against transformers' Llama and, given by path, nanoGPT
or llama2.c.

    python benchmarks/train_step.py --workload W
    python benchmarks/train_step.py --workload W2
    python benchmarks/train_step.py --workload W --peer ../nanoGPT
    python benchmarks/train_step.py --workload W --peer ../llama2.c --compile

W: 32 rows of 128 tokens; W2: 4 rows of 256. The limit is the time that the matrix products need at
the machine's best.
"""

import importlib.util
from pathlib import Path

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


def peer_model(folder: str, workload: str, tokens):
    """Load nanoGPT or llama2.c, recognised by what their model.py defines."""
    spec = importlib.util.spec_from_file_location("peer", Path(folder) / "model.py")
    peer = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(peer)
    config, vocab = WORKLOADS[workload]
    torch.manual_seed(0)
    inputs, targets = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
    if hasattr(peer, "ModelArgs"):  # llama2.c keeps its loss in the model
        model = peer.Transformer(peer.ModelArgs(
            dim=config.width, n_layers=config.layers, n_heads=config.heads, vocab_size=vocab,
            hidden_dim=config.hidden, max_seq_len=config.context))

        def backward(forward):
            forward(inputs, targets)
            model.last_loss.backward()
        return model, backward
    model = peer.GPT(peer.GPTConfig(
        n_layer=config.layers, n_head=config.heads, n_embd=config.width, vocab_size=vocab,
        block_size=config.context, dropout=0.0, bias=False))
    return model, lambda forward: forward(inputs, targets)[1].backward()


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
        ("--peer", {"help": "a folder of nanoGPT or llama2.c; else transformers"}),
        ("--compile", {"action": "store_true", "help": "torch.compile on both sides"}))
    batch, time = BATCH[args.workload]
    tokens = torch.randint(0, WORKLOADS[args.workload][1], (batch, time))
    name = Path(args.peer).name if args.peer else "HF Llama"
    peer = (peer_model(args.peer, args.workload, tokens) if args.peer else
            hf_model(args.workload, tokens))
    seconds = alternate({"ours": step_of(*our_model(args.workload, tokens), args.compile),
                         name: step_of(*peer, args.compile)}, 15)
    least = 3 * forward_flops(args.workload) * batch * time / gemm_peak()
    report_peer(f"training step {args.workload}" + ", compiled" * args.compile, name,
                seconds["ours"], seconds[name], least, peer_of_peak=least / seconds[name])


if __name__ == "__main__":
    main()
