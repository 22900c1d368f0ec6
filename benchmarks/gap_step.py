"""A step of R_PIT, Eq. 2 on 32 triples, against four forward passes of [x, y_ref, y] in one batch;
and log-probabilities of rows in groups, joined against a row each.

    python benchmarks/gap_step.py

Workload W, x of 16 to 32 tokens, responses of 24 to 40. Our side computes each prompt [x, y_ref]
once for both of its responses and takes micro-batches of similar length; the peer is transformers'
Llama with a scalar head on the last token, 128 padded rows. Both: forward, backward, AdamW; no
language-model loss. The groups are four responses to each of 16 prompts [x, y_ref], of a length as
in R_PIT; of them a forward and a backward pass.
"""

import random
from functools import partial

import torch
from common import (WORKLOADS, alternate, forward_flops, gemm_peak, hf_scorer, ours, random_lists,
                    report_peer)

import reward
from faster import branches
from model import pad_rows, token_logprobs
from reward import RewardModel, gap_loss
from runtime.batching import micro_batches
from runtime.config import RewardSection

TRIPLES = 32


def main() -> None:
    chance, vocab = random.Random(0), WORKLOADS["W"][1]
    x, y_w, y_l = (random_lists(chance, TRIPLES, low, high, vocab)
                   for low, high in ((16, 32), (24, 40), (24, 40)))
    config = RewardSection(pool="last", logp_feature=False, lm_coef=0.0)
    model, peer = RewardModel(ours("W"), config), hf_scorer("W")
    optimizers = [torch.optim.AdamW(m.parameters(), lr=1e-5, fused=True) for m in (model, peer)]
    lengths = torch.tensor([2 * len(a) + 3 * len(b) + 3 * len(c) for a, b, c in zip(x, y_w, y_l)])

    def our_step(two_scores):
        for chosen in micro_batches(lengths, model.trunk.config.micro_batch):
            x_, w, l = ([column[i] for i in chosen] for column in (x, y_w, y_l))
            prompts = [a + ref for refs in (l, w) for a, ref in zip(x_, refs)]
            r_w, r_l, _ = two_scores(model, prompts, w + w, l + l)
            (wl, ww), (ll, lw) = r_w.chunk(2), r_l.chunk(2)
            loss = gap_loss({"wl": wl, "ww": ww, "ll": ll, "lw": lw}, config.terms)
            (loss / TRIPLES).backward()
        optimizers[0].step()
        optimizers[0].zero_grad()

    four = [a + ref + y for ys, refs in ((y_w, y_l), (y_w, y_w), (y_l, y_l), (y_l, y_w))
            for a, ref, y in zip(x, refs, ys)]  # wl, ww, ll, lw
    longest = max(map(len, four))
    padded = torch.tensor([row + [0] * (longest - len(row)) for row in four])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in four])

    def peer_step():
        scores = peer(input_ids=padded, attention_mask=mask).logits[:, 0]
        r = dict(zip(("wl", "ww", "ll", "lw"), scores.chunk(4)))
        (gap_loss(r, config.terms) / TRIPLES).backward()
        optimizers[1].step()
        optimizers[1].zero_grad()

    seconds = alternate({"ours": partial(our_step, branches.two_scores),
                         "plain": partial(our_step, reward.two_scores), "HF": peer_step}, 9)
    least = 3 * int(lengths.sum()) * forward_flops("W") / gemm_peak()
    report_peer("gap reward step, Eq. 2 on 32 triples", "HF Llama, four rows a triple",
                seconds["ours"], seconds["HF"], least)
    print(f"one row a response (reward.two_scores): {seconds['plain']:.3f} s")
    prompts = [a + ref for a, ref in zip(x, y_l)][:TRIPLES // 2]
    rows, policy = pad_rows([p for p in prompts for _ in "abcd"], 2 * y_w), ours("W")

    def passes(logprobs, parts):
        for part in parts(rows, policy.config.micro_batch):
            logprobs(policy, rows[part]).sum().backward()

    def alone(rows, size: int):
        return micro_batches(rows.length, size)

    seconds = alternate({
        "a row each": partial(passes, token_logprobs, alone),
        "joined": partial(passes, branches.token_logprobs, branches.parts_of)}, 9)
    print("log-probabilities of 16 groups of four: " + ", ".join(
        f"{name} {spent:.3f} s" for name, spent in seconds.items()))


if __name__ == "__main__":
    main()
