"""A GPT of the Llama architecture, its key-value cache, and batched sampling.

RMSNorm, rotary positions, grouped-query attention, SwiGLU; if asked, tied embeddings, biases of
queries, keys and values (Qwen2), norms of queries and keys (Qwen3). Rows of unequal length are
padded on the *right* and positions count from the row's first token. Under a causal mask no real
token ever sees a pad, so training needs no padding mask (sampling hides the pads between prompt and
response), and a row's logits depend neither on padding nor on others. Left out: dropout, top-k and
top-p. LoRA is in pretrained/lora.py; what makes sampling faster is in faster/sampling.py.

Shapes: B rows, T tokens, N chosen tokens, V vocabulary, D width, H heads, K kv heads, C head width.
"""

import math
from dataclasses import dataclass
from itertools import chain

import torch
import torch.nn as nn
import torch.nn.functional as F

from runtime.config import ModelSection


@dataclass
class Rows:
    """Prompts with their responses, padded on the right."""
    tokens: torch.Tensor      # [B, T] prompt, response, padding
    prompt: torch.Tensor      # [B] how many tokens the prompt has
    length: torch.Tensor      # [B] how many both have; the end is part of the response

    @property
    def mask(self):
        """Mark the response's tokens [B, T]."""
        at = torch.arange(self.tokens.shape[1], device=self.tokens.device)
        return (at >= self.prompt[:, None]) & (at < self.length[:, None])

    @property
    def before(self):
        """Mark one place to the left [B, T], where the response's tokens are predicted."""
        return F.pad(self.mask[:, 1:], (0, 1))

    def __getitem__(self, rows):
        """Take some of the rows, cut to the longest of them."""
        longest = int(self.length[rows].max())
        return Rows(self.tokens[rows, :longest], self.prompt[rows], self.length[rows])

    def responses(self) -> list[list[int]]:
        """List the responses' token ids, without the padding."""
        return [row[p:n] for row, p, n in zip(self.tokens.tolist(), self.prompt.tolist(),
                                              self.length.tolist())]


def pad_rows(prompts: list, responses: list | None = None, device="cpu", room: int = 0) -> Rows:
    """Make rows of lists of token ids, with room for more tokens after them. The padding is id 0,
    which no real token sees."""
    rows = [list(p) + list(r) for p, r in zip(prompts, responses or [[]] * len(prompts))]
    length = torch.tensor([len(row) for row in rows])
    tokens = torch.zeros(len(rows), int(length.max()) + room, dtype=torch.long)
    tokens[torch.arange(tokens.shape[1]) < length[:, None]] = torch.tensor(list(chain(*rows)))
    return Rows(tokens.to(device), torch.tensor([len(p) for p in prompts], device=device),
                length.to(device))


def on_grid(mask, values):
    """Put values [N] of the mask's tokens, row by row, at their places [B, T]; 0 elsewhere."""
    return torch.zeros(mask.shape, device=mask.device).masked_scatter(mask, values)


def rotary_table(context: int, head_width: int, theta: float, scaling=()) -> torch.Tensor:
    """Return exp(i p theta^(-2j / C)) of position p and pair j (2104.09864): [context, C/2, 2].

    `scaling` is Llama 3's, if any: what turns fewer than `low` times within the original context
    turns slower by `factor`, what turns more than `high` times as before, in between a mixture.
    """
    frequencies = theta ** (-torch.arange(0, head_width, 2).float() / head_width)  # [C/2]
    if scaling:
        factor, low, high, original = scaling
        kept = ((original * frequencies / (2 * math.pi) - low) / (high - low)).clamp(0, 1)
        frequencies = frequencies * (kept + (1 - kept) / factor)
    angles = torch.arange(context)[:, None] * frequencies                # [context, C/2]
    return torch.stack([angles.cos(), angles.sin()], dim=-1)


def rotate(x, rotations):
    """Turn queries or keys x [B, T, H, C] by angles, complex [B, T, 1, C/2] or [T, 1, C/2].

    The pairs that turn together are (2i, 2i + 1), as in Meta's Llama. As complex numbers this is
    one pass over memory forward and one backward, where reals need five.
    """
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))  # [B, T, H, C/2]
    return torch.view_as_real(pairs * rotations).flatten(-2).to(x.dtype)


class Cache:
    """Keys and values of what the rows of a batch have read."""

    def __init__(self):
        self.layers: dict[int, tuple] = {}  # of each layer the keys and the values [B, K, T, C]

    def attend(self, layer: int, q, k, v, bias):
        """Return the attention of new tokens, q [B, H, t, C], to all that was read up to them;
        their k and v [B, K, t, C] join the cache."""
        if layer in self.layers:
            k, v = (torch.cat(pair, dim=2) for pair in zip(self.layers[layer], (k, v)))
        self.layers[layer] = k, v
        return attend(q, k, v, bias)


def attend(q, k, v, bias=None):
    """Return softmax(q k^T / sqrt(C) + bias) v [B, H, T, C]; without a bias it is causal."""
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, is_causal=bias is None,
                                          enable_gqa=q.shape[1] > k.shape[1])


class Linear(nn.Module):
    """x W^T + b, W at first of std 1/sqrt(inputs); an adapter (pretrained/lora.py) adds to it."""

    def __init__(self, inputs: int, outputs: int, bias: bool = False):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs) * inputs ** -0.5)
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None
        self.lora = None

    def forward(self, x):
        y = F.linear(x, self.weight, self.bias)
        return y if self.lora is None else y + self.lora(x)


class Attention(nn.Module):
    """Causal grouped-query attention (arXiv 2305.13245), queries, keys and values in one matrix."""

    def __init__(self, config: ModelSection):
        super().__init__()
        self.heads, self.kv_heads = config.heads, config.kv_heads
        self.head_width = config.head_width or config.width // config.heads
        self.qkv = Linear(config.width, (self.heads + 2 * self.kv_heads) * self.head_width,
                          config.qkv_bias)
        self.out = Linear(self.heads * self.head_width, config.width)
        self.q_norm, self.k_norm = (nn.RMSNorm(self.head_width, config.norm_eps)
                                    if config.qk_norm else None for _ in "qk")

    def forward(self, x, rotations, bias=None, cache=None, layer=0):
        batch, time, _ = x.shape
        qkv = self.qkv(x).view(batch, time, -1, self.head_width)  # [B, T, H + 2K, C]
        qk, v = qkv.split([self.heads + self.kv_heads, self.kv_heads], dim=2)
        if self.q_norm is not None:  # in float32, each head by itself
            q, k = qk.float().split([self.heads, self.kv_heads], dim=2)
            qk = torch.cat([self.q_norm(q), self.k_norm(k)], dim=2).to(v.dtype)
        q, k = rotate(qk, rotations).split([self.heads, self.kv_heads], dim=2)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)  # [B, H or K, T, C]
        y = attend(q, k, v, bias) if cache is None else cache.attend(layer, q, k, v, bias)
        return self.out(y.transpose(1, 2).reshape(batch, time, -1))        # [B, T, D]


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x)), gate and up in one matrix (arXiv 2002.05202)."""

    def __init__(self, config: ModelSection):
        super().__init__()
        self.gate_up = Linear(config.width, 2 * config.hidden)
        self.down = Linear(config.hidden, config.width)

    def forward(self, x):
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)), the latter at the places `at` [B, T] alone."""

    def __init__(self, config: ModelSection):
        super().__init__()
        self.attention_norm = nn.RMSNorm(config.width, config.norm_eps)
        self.attention = Attention(config)
        self.mlp_norm = nn.RMSNorm(config.width, config.norm_eps)
        self.mlp = SwiGLU(config)

    def forward(self, x, rotations, bias=None, cache=None, layer=0, at=None):
        x = x + self.attention(self.attention_norm(x), rotations, bias, cache, layer)
        x = x if at is None else x[at]                                     # [N, D]
        return x + self.mlp(self.mlp_norm(x))


class GPT(nn.Module):
    """tokens [B, T] -> hidden states [B, T, D] (forward) -> logits over V (logits)."""

    def __init__(self, config: ModelSection, vocab: int):
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(vocab, config.width)
        blocks = [Block(config) for _ in range(config.layers)]
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.RMSNorm(config.width, config.norm_eps)
        self.head = Linear(config.width, vocab)
        if config.tied:
            self.embedding.weight = self.head.weight
        table = rotary_table(config.context, blocks[0].attention.head_width, config.rope_theta,
                             config.rope_scaling)
        self.register_buffer("rotary", table, persistent=False)
        nn.init.normal_(self.embedding.weight, std=config.width ** -0.5)
        for block in blocks:  # what adds to the residual stream starts small (GPT-2)
            for last in (block.attention.out, block.mlp.down):
                last.weight.data *= (2 * config.layers) ** -0.5

    def forward(self, tokens, positions=None, bias=None, cache=None, at=None):
        """Return the hidden states [B, T, D] of tokens [B, T]; or [N, D], row by row, of those N
        places alone that are true in `at` [B, T], which saves the last layer's MLP at the others.

        positions [B, T]: by default 0 to T - 1. bias [B, 1, T, S]: 0 where a token may look, else
        -inf; by default at itself and before. S counts keys: T, or all that the cache then holds.
        Where the cache holds earlier tokens, both have to be given.
        """
        angles = self.rotary[:tokens.shape[1]] if positions is None else self.rotary[positions]
        rotations = torch.view_as_complex(angles.float()).unsqueeze(-2)  # [B or -, T, 1, C/2]
        x = self.embedding(tokens).float()                           # [B, T, D]
        for layer, block in enumerate(self.blocks):
            x = block(x, rotations, bias, cache, layer, at if block is self.blocks[-1] else None)
        return self.norm(x)

    def logits(self, hidden):
        """Return the logits [..., V] of hidden states [..., D], in float32 under autocast, too."""
        return self.head(hidden).float()


def scalars(head: nn.Linear, hidden):
    """Return what a head makes of states [..., D], in float32 also where the trunk is in bfloat16:
    rewards and values need more than its 8 bits."""
    with torch.autocast(hidden.device.type, enabled=False):
        return head(hidden.float())


def token_logprobs(model: GPT, rows: Rows, temperature: float = 1.0):
    """Return log pi(token | tokens before it) of the responses' tokens, else 0: [B, T], float32.

    The state at t - 1 predicts token t; logits are computed where they are needed only.
    """
    hidden = model(rows.tokens, at=rows.before)                               # [N, D]
    logits = model.logits(hidden) / temperature                               # [N, V]
    return on_grid(rows.mask, -F.cross_entropy(logits, rows.tokens[rows.mask], reduction="none"))


def sample_token(logits, temperature: float, uniform):
    """Draw a token a row from softmax(logits / temperature), with its log-probability: the first
    whose cumulated probability exceeds `uniform` [B], from [0, 1). Temperature 0: the likeliest."""
    if temperature == 0:
        return logits.argmax(-1), torch.zeros_like(logits[:, 0])
    probability = (logits / temperature).softmax(-1)                                  # [B, V]
    upto = probability.cumsum(-1)
    token = torch.searchsorted(upto, uniform[:, None] * upto[:, -1:], right=True)
    token = token.clamp(max=logits.shape[-1] - 1)                                     # [B, 1]
    return token[:, 0], probability.gather(1, token)[:, 0].clamp_min(1e-30).log()


@torch.no_grad()
def sample(model: GPT, prompts: list, uniforms, temperature: float, eos: int):
    """Sample a response to each prompt (lists of token ids), until all have ended. Return Rows, and
    the log-probabilities that the tokens were drawn with [B, T], 0 elsewhere.

    A response ends with its first `eos`, which is part of it, or after as many tokens as `uniforms`
    [B, new] has random numbers from [0, 1) for it. Training uses faster/sampling.py: the same.
    """
    # 1. Read the prompts: the state at each one's last token predicts the first new one.
    device = model.embedding.weight.device
    rows = pad_rows(prompts, device=device, room=uniforms.shape[1])
    every = torch.arange(len(prompts), device=device)
    places = torch.arange(int(rows.prompt.max()), device=device)
    cache, going = Cache(), torch.ones(len(prompts), dtype=torch.bool, device=device)
    logprobs = torch.zeros(rows.tokens.shape, device=device)
    last = places == rows.prompt[:, None] - 1
    hidden = model(rows.tokens[:, :len(places)], cache=cache, at=last)             # [B, D]
    # New tokens join the cache after the longest prompt; bias [B, 1, 1, S] hides a row's padding.
    bias = torch.zeros(len(prompts), 1, 1, len(places), device=device).masked_fill(
        (places >= rows.prompt[:, None])[:, None, None], -torch.inf)
    for uniform in uniforms.to(device).unbind(1):
        # 2. Draw a token a row. It is part of the response until that has ended.
        token, logp = sample_token(model.logits(hidden), temperature, uniform)
        position = rows.length.clone()
        rows.tokens[every, position] = torch.where(going, token, 0)
        logprobs[every, position] = torch.where(going, logp, 0)
        rows.length += going
        going &= token != eos
        if not going.any():
            break
        # 3. Read it: its state predicts the next one.
        bias = F.pad(bias, (0, 1))
        hidden = model(token[:, None], position[:, None], bias, cache)[:, 0]
    return rows[:], logprobs[:, :int(rows.length.max())]  # [:] cuts the room that is left
