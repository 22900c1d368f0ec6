"""A GPT of the Llama architecture, its key-value cache, and batched sampling.

RMSNorm, rotary positions, grouped-query attention, SwiGLU, no biases, optionally tied embeddings.
Rows of unequal length are padded on the *right* and positions count from the row's first token.
Under a causal mask no real token ever sees a pad, so neither training nor sampling needs a padding
mask, and a row's logits depend neither on the amount of padding nor on the other rows.

Shapes: B batch, T time, V vocabulary, D width, H heads, K key-value heads, C width of a head.
"""

from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F

from runtime import ModelSection


class RMSNorm(nn.Module):
    """x / rms(x) * weight, in float32 whatever the input (arXiv 1910.07467)."""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x):
        return F.rms_norm(x.float(), self.weight.shape, self.weight, self.eps).to(x.dtype)


def rotary_tables(context: int, width: int, theta: float) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin of the rotary angles (arXiv 2104.09864), each [context, C]."""
    frequencies = theta ** (-torch.arange(0, width, 2).float() / width)  # [C/2]
    angles = torch.arange(context)[:, None] * frequencies                # [context, C/2]
    angles = torch.cat([angles, angles], dim=1)                          # [context, C]
    return angles.cos(), angles.sin()


def rotate(x, cos, sin):
    """Turn queries or keys x [B, T, H, C] by their positions' angles ([B or 1, T, 1, C]).

    The pairs that turn together are (i, i + C/2), as in Hugging Face's Llama.
    """
    left, right = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-right, left], dim=-1) * sin


class Cache:
    """Keys and values of what B rows have read so far, at most `size` tokens each.

    Rows may have read differently many tokens: `length` [B] says how many. What a right-padded
    prompt leaves behind its end is overwritten as the row goes on, and never seen before that.
    """

    def __init__(self, config: ModelSection, rows: int, size: int, device, dtype):
        shape = (rows, size, config.kv_heads, config.width // config.heads)
        self.keys = [torch.zeros(shape, device=device, dtype=dtype) for _ in range(config.layers)]
        self.values = [torch.zeros_like(k) for k in self.keys]
        self.length = torch.zeros(rows, dtype=torch.long, device=device)

    def extend(self, layer: int, keys, values, positions):
        """Write keys and values [B, T, K, C] at positions [B, T]; return all, [B, size, K, C]."""
        rows = torch.arange(len(keys), device=keys.device)[:, None]
        self.keys[layer][rows, positions] = keys
        self.values[layer][rows, positions] = values
        return self.keys[layer], self.values[layer]


class Attention(nn.Module):
    """Causal grouped-query attention (arXiv 2305.13245), queries, keys and values in one matrix."""

    def __init__(self, config: ModelSection):
        super().__init__()
        self.heads, self.kv_heads = config.heads, config.kv_heads
        self.head_width = config.width // config.heads
        self.qkv = nn.Linear(config.width, (self.heads + 2 * self.kv_heads) * self.head_width,
                             bias=False)
        self.out = nn.Linear(self.heads * self.head_width, config.width, bias=False)

    def forward(self, x, cos, sin, mask=None, positions=None, cache=None, layer=0):
        batch, time, _ = x.shape
        qkv = self.qkv(x).view(batch, time, -1, self.head_width)  # [B, T, H + 2K, C]
        qk, v = qkv.split([self.heads + self.kv_heads, self.kv_heads], dim=2)
        q, k = rotate(qk, cos, sin).split([self.heads, self.kv_heads], dim=2)
        if cache is not None:
            k, v = cache.extend(layer, k, v, positions)
            k, v = k[:, :mask.shape[-1]], v[:, :mask.shape[-1]]   # [B, L, K, C]
        repeats = self.heads // self.kv_heads
        if repeats > 1:
            k, v = k.repeat_interleave(repeats, dim=2), v.repeat_interleave(repeats, dim=2)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)  # [B, H, T or L, C]
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
        return self.out(y.transpose(1, 2).reshape(batch, time, -1))        # [B, T, D]


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x)), gate and up in one matrix (arXiv 2002.05202)."""

    def __init__(self, config: ModelSection):
        super().__init__()
        self.gate_up = nn.Linear(config.width, 2 * config.hidden, bias=False)
        self.down = nn.Linear(config.hidden, config.width, bias=False)

    def forward(self, x):
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)


class Block(nn.Module):
    def __init__(self, config: ModelSection):
        super().__init__()
        self.attention_norm = RMSNorm(config.width, config.norm_eps)
        self.attention = Attention(config)
        self.mlp_norm = RMSNorm(config.width, config.norm_eps)
        self.mlp = SwiGLU(config)

    def forward(self, x, *args):
        x = x + self.attention(self.attention_norm(x), *args)
        return x + self.mlp(self.mlp_norm(x))


class GPT(nn.Module):
    """tokens [B, T] -> hidden states [B, T, D] (forward) -> logits over V (logits)."""

    def __init__(self, config: ModelSection, vocab: int):
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(vocab, config.width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = RMSNorm(config.width, config.norm_eps)
        self.head = None if config.tied else nn.Linear(config.width, vocab, bias=False)
        cos, sin = rotary_tables(config.context, config.width // config.heads, config.rope_theta)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        self.apply(self._init)

    def _init(self, module):
        """Normal weights of std 1/sqrt(D); what adds to the residual stream is 1/sqrt(2 layers) of
        that (GPT-2)."""
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=self.config.width ** -0.5)
        if isinstance(module, (Attention, SwiGLU)):
            last = module.out if isinstance(module, Attention) else module.down
            nn.init.normal_(last.weight, std=(2 * self.config.layers * last.in_features) ** -0.5)

    def forward(self, tokens, positions=None, mask=None, cache: Cache | None = None):
        """Hidden states [B, T, D] of tokens [B, T].

        positions [B, T] (default: 0 to T - 1) and mask [B, 1, T, T], true where a token may look
        (default: at itself and before), let branches of one row share what stands before them.
        With a cache the tokens follow on what it has read.
        """
        time = tokens.shape[1]
        if cache is not None:
            positions = cache.length[:, None] + torch.arange(time, device=tokens.device)  # [B, T]
            seen = torch.arange(int(positions.max()) + 1, device=tokens.device)           # [L]
            mask = (seen <= positions[:, :, None])[:, None]                        # [B, 1, T, L]
            cache.length += time
        at = slice(0, time) if positions is None else positions
        cos, sin = (table[at].unsqueeze(-2) for table in (self.cos, self.sin))  # [B or -, T, 1, C]
        x = self.embedding(tokens)                                              # [B, T, D]
        for layer, block in enumerate(self.blocks):
            x = block(x, cos, sin, mask, positions, cache, layer)
        return self.norm(x)

    def logits(self, hidden):
        """Logits [..., V], in float32, of hidden states [..., D]."""
        weight = self.embedding.weight if self.head is None else self.head.weight
        return F.linear(hidden, weight).float()


@dataclass
class Rows:
    """Prompts with their responses, padded on the right."""
    tokens: torch.Tensor      # [B, T] prompt, response, padding
    prompt: torch.Tensor      # [B] tokens of the prompt
    length: torch.Tensor      # [B] tokens of prompt and response; the end is part of the response

    @property
    def mask(self):
        """[B, T] true at the response's tokens."""
        at = torch.arange(self.tokens.shape[1], device=self.tokens.device)
        return (at >= self.prompt[:, None]) & (at < self.length[:, None])

    def __getitem__(self, rows):
        """Some of the rows, cut to the longest of them."""
        longest = int(self.length[rows].max())
        return Rows(self.tokens[rows, :longest], self.prompt[rows], self.length[rows])

    def responses(self) -> list[list[int]]:
        """The responses' token ids, without the padding."""
        return [row[p:n] for row, p, n in zip(self.tokens.tolist(), self.prompt.tolist(),
                                              self.length.tolist())]


def pad_rows(prompts: list, responses: list | None = None, device="cpu", room: int = 0) -> Rows:
    """Rows of lists of token ids, with room for more tokens behind. The padding is id 0, which no
    real token sees."""
    rows = [list(p) + list(r) for p, r in zip(prompts, responses or [[]] * len(prompts))]
    tokens = torch.zeros(len(rows), max(map(len, rows)) + room, dtype=torch.long)
    for i, row in enumerate(rows):
        tokens[i, :len(row)] = torch.tensor(row)
    return Rows(tokens.to(device), torch.tensor([len(p) for p in prompts], device=device),
                torch.tensor([len(r) for r in rows], device=device))


def token_logprobs(model: GPT, hidden, tokens, mask, temperature: float = 1.0):
    """log pi(token | what stands before it) at the tokens of the mask, 0 elsewhere: [B, T].

    hidden [B, T, D] are the states of tokens [B, T]; the state at t - 1 predicts token t. Logits
    are computed for the mask's tokens only, their normalisation in float32.
    """
    logits = model.logits(hidden[:, :-1][mask[:, 1:]]) / temperature  # [N, V]
    logp = -F.cross_entropy(logits, tokens[mask], reduction="none")   # [N]
    return torch.zeros(mask.shape, device=mask.device).masked_scatter(mask, logp)


def draw(logits, temperature: float, generator):
    """One token a row from softmax(logits / temperature): argmax of the Gumbel-perturbed logits;
    temperature 0 takes the likeliest."""
    if temperature == 0:
        return logits.argmax(-1)
    noise = torch.empty_like(logits).exponential_(generator=generator)
    return (logits / temperature - noise.log()).argmax(-1)


@torch.no_grad()
def sample(model: GPT, prompts: list, max_new: int, temperature: float, eos: int,
           generator=None) -> Rows:
    """Sample a response to each prompt (lists of token ids), until all have ended.

    A response ends with its first `eos`, which is part of it, or is cut after max_new tokens.
    """
    device = model.embedding.weight.device
    rows = pad_rows(prompts, device=device, room=max_new)
    start = int(rows.prompt.max())
    cache = Cache(model.config, len(prompts), start + max_new, device, model.embedding.weight.dtype)
    every = torch.arange(len(prompts), device=device)
    last = model(rows.tokens[:, :start], cache=cache)[every, rows.prompt - 1]  # [B, D]
    cache.length = rows.prompt.clone()
    going = torch.ones(len(prompts), dtype=torch.bool, device=device)
    for _ in range(max_new):
        token = draw(model.logits(last), temperature, generator)         # [B]
        rows.tokens[every, rows.length] = torch.where(going, token, 0)
        rows.length += going
        going = going & (token != eos)
        if not going.any():
            break
        cache.length = rows.length - 1  # ended rows repeat their last token, to no effect
        last = model(rows.tokens[every, rows.length - 1][:, None], cache=cache)[:, 0]
    return rows[every]
