"""What each trick of the code brings: the time of its plain counterpart over its own.

    python benchmarks/tricks.py

Both sides run by turns on workload W (benchmarks/common.py), one thread. That they compute the same
is what tests/ show.
"""

import random
from unittest import mock

import torch
import torch.nn.functional as F
from common import WORKLOADS, alternate, ours, random_lists, report

import model as gpt
from model import GPT, Rows, pad_rows, portions, sample, token_logprobs
from reward import RewardModel, eq2_loss, gap_loss, make_branches
from runtime import RewardSection


def lists(number: int, low: int, high: int, vocab: int = 512) -> list[list[int]]:
    return random_lists(random.Random(low + high), number, low, high, vocab)


def everywhere(model: GPT, rows: Rows):
    """The log-probabilities of the responses from the logits of all positions."""
    logits = model.logits(model(rows.tokens))[:, :-1]
    logp = -F.cross_entropy(logits.flatten(0, 1), rows.tokens[:, 1:].flatten(), reduction="none")
    return F.pad(logp.view(len(rows.tokens), -1), (1, 0)) * rows.mask


def last_mlp_everywhere(model: GPT, rows: Rows):
    """Logits at the responses only, but the last layer's states of all positions."""
    logits = model.logits(model(rows.tokens)[rows.before])
    return -F.cross_entropy(logits, rows.tokens[rows.mask], reduction="none")


def step(model: GPT, rows: Rows, size: int, logprobs=token_logprobs) -> None:
    """Forward and backward of the responses' log-probabilities, portion by portion."""
    for chosen in portions(rows.length, size):
        logprobs(model, rows[chosen]).sum().backward()
    model.zero_grad()


def real_rotate(x, turns):
    """The rotation in real numbers."""
    cos, sin = turns.real, turns.imag
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1).flatten(-2)


def sliced_attend(self, layer, q, k, v, bias):
    """Attention of a new token over the filled columns only, by torch's own kernel."""
    keys, values = self.layers[layer]
    keys[:, :, self.filled], values[:, :, self.filled] = k[:, :, 0], v[:, :, 0]
    end = self.filled + 1
    mask = bias.view(len(keys), -1, 1, bias.shape[-1])[..., :end]
    return F.scaled_dot_product_attention(q, keys[:, :, :end], values[:, :, :end], attn_mask=mask)


def noisy_draw(logits, temperature, chance):
    """The likeliest token after Gumbel noise: V random numbers a row instead of one."""
    return (logits / temperature - torch.empty_like(logits).exponential_().log()).argmax(-1)


def compare(name: str, trick, plain, repeats: int = 9) -> None:
    seconds = alternate({"trick": trick, "plain": plain}, repeats)
    report(f"trick: {name}", with_ms=1000 * seconds["trick"], without_ms=1000 * seconds["plain"],
           gain=seconds["plain"] / seconds["trick"])


def training_tricks() -> None:
    model = ours("W")
    even = pad_rows(lists(32, 1, 1), lists(32, 127, 127))

    def plain_rotary():
        with mock.patch.object(gpt, "rotate", real_rotate):
            step(model, even, 2048)
    compare("rotary positions as complex numbers, training step", lambda: step(model, even, 2048),
            plain_rotary)
    uneven = pad_rows(lists(64, 16, 32), lists(64, 8, 96))
    compare("portions of similar length, training step on rows of 24 to 128",
            lambda: step(model, uneven, 2048), lambda: step(model, uneven, 0))
    large = GPT(WORKLOADS["W"][0], 32000)
    compare("logits at response positions only, training step with a vocabulary of 32,000",
            lambda: step(large, uneven, 2048), lambda: step(large, uneven, 2048, everywhere), 3)
    drafts = pad_rows(lists(64, 40, 60), lists(64, 16, 32))
    compare("the last layer's MLP at response positions only, training step on a third of the rows",
            lambda: step(model, drafts, 2048),
            lambda: step(model, drafts, 2048, last_mlp_everywhere))
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    optimizers = [torch.optim.AdamW(model.parameters(), fused=fused) for fused in (True, False)]
    compare("fused AdamW, one update", optimizers[0].step, optimizers[1].step)
    for rows in (2048, 64):
        x = torch.randn(rows, 256, requires_grad=True)
        weights = [torch.randn(688, 256, requires_grad=True) for _ in "gu"]
        both = torch.cat([w.detach() for w in weights]).requires_grad_()
        grad = torch.randn(rows, 688)

        def together():
            gate, up = F.linear(x, both).chunk(2, dim=-1)
            (F.silu(gate) * up).backward(grad)

        def apart():
            gate, up = (F.linear(x, w) for w in weights)
            (F.silu(gate) * up).backward(grad)
        compare(f"gate and up in one product of {rows} rows, forward and backward", together, apart,
                50)
    prompts, y_w, y_l = lists(32, 40, 72), lists(32, 24, 40), lists(32, 24, 41)
    scorer = RewardModel(ours("W"), RewardSection(pool="last", logp_feature=False, lm_coef=0.0))

    def shared():
        eq2_loss(scorer, make_branches(prompts * 2, y_w * 2, y_l * 2, "cpu"))[0].backward()

    def four_rows():
        rows = pad_rows(prompts * 4, (y_w + y_l) * 2)
        hidden = scorer.trunk(rows.tokens)
        scores = scorer.head(hidden)[..., 0].gather(1, rows.length[:, None] - 1)[:, 0]
        r = dict(zip(("wl", "ll", "ww", "lw"), scores.chunk(4)))
        gap_loss(r, scorer.config.terms).backward()
    compare("Eq. 2's pairs share their prefix, forward and backward", shared, four_rows)


def sampling_tricks() -> None:
    model, prompts, numbers = ours("W"), lists(64, 16, 32), torch.rand(64, 64)

    def run():
        sample(model, prompts, numbers, 1.0, -1)

    def run_with(target, name, plain):
        def patched():
            with mock.patch.object(target, name, plain):
                run()
        return patched
    compare("one product over all columns of the cache, sampling", run, run_with(
        gpt.Cache, "attend", sliced_attend))
    compare("one random number a token, sampling", run, run_with(gpt, "draw", noisy_draw))
    logits, chance = torch.randn(8, 32000), torch.rand(8)
    compare("one random number a token, a draw from 8 x 32,000",
            lambda: gpt.draw(logits, 1, chance), lambda: noisy_draw(logits, 1, None))
    short = GPT(WORKLOADS["W"][0], 24)  # an end comes after 24 tokens on average
    tokens = lists(64, 16, 32, 24)

    def leaving(look_every):
        def run():
            short.config.look_every = look_every
            sample(short, tokens, numbers, 1.0, 5)
        return run
    compare("rows that have ended leave the batch, sampling", leaving(1), leaving(1 << 30))
    short.config.look_every = 0


if __name__ == "__main__":
    training_tricks()
    sampling_tricks()
