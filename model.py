"""A GPT of the Llama architecture, its key-value cache, and batched sampling.

RMSNorm, rotary positions, grouped-query attention, SwiGLU, no biases, optionally tied embeddings.
Rows of unequal length are padded on the *right* and positions count from the row's first token.
Under a causal mask no real token ever sees a pad, so training needs no padding mask (sampling hides
the pads between prompt and response), and a row's logits depend neither on padding nor on others.

Shapes: B batch, T time, V vocabulary, D width, H heads, K key-value heads, C width of a head.
"""

import copy
import math
from dataclasses import dataclass
from itertools import chain

import torch
import torch.nn as nn
import torch.nn.functional as F

from runtime.config import LoRASection, ModelSection
from runtime.ranks import in_step


class RMSNorm(nn.Module):
    """x / rms(x) * weight, in float32 whatever the input (arXiv 1910.07467)."""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x):
        return F.rms_norm(x.float(), self.weight.shape, self.weight, self.eps).to(x.dtype)


def rotary_table(context: int, width: int, theta: float, scaling=()) -> torch.Tensor:
    """exp(i angle) of each position and pair (arXiv 2104.09864), as reals [context, C/2, 2].

    `scaling` is Llama 3's, if any: what turns fewer than `low` times within the original context
    turns slower by `factor`, what turns more than `high` times as before, in between a mixture.
    """
    frequencies = theta ** (-torch.arange(0, width, 2).float() / width)  # [C/2]
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
    """Keys and values of what the rows of a batch have read, in `size` columns that all rows share:
    first the prompts, then a column for each new token."""

    def __init__(self, size: int):
        self.size, self.filled = size, 0
        self.layers: list[tuple] = []  # of each layer the keys and the values [B, K, size, C]

    def start(self, k, v):
        """Keep a layer's keys and values of the prompts [B, K, T, C]."""
        self.layers.append(tuple(F.pad(x, (0, 0, 0, self.size - x.shape[2])) for x in (k, v)))

    def attend(self, layer: int, q, k, v, bias):
        """Attention of one new token a row: q [B, H, 1, C]; k and v [B, K, 1, C] join the cache.

        bias [B * K, 1, size] is 0 at the columns that a row may look at, else -inf. Going over all
        columns keeps the memory that is read in one piece: twice as fast as over those filled.
        """
        keys, values = self.layers[layer]
        keys[:, :, self.filled], values[:, :, self.filled] = k[:, :, 0], v[:, :, 0]
        batch, groups, size, width = keys.shape
        scores = torch.baddbmm(bias, q.reshape(batch * groups, -1, width),
                               keys.flatten(0, 1).transpose(1, 2), alpha=width ** -0.5)
        return torch.bmm(scores.softmax(-1), values.flatten(0, 1)).view(q.shape)

    def keep(self, rows):
        """Go on with some of the rows."""
        self.layers = [(k[rows], v[rows]) for k, v in self.layers]


class LoRA(nn.Module):
    """A change of rank r to a frozen weight W: W + alpha / r B A (arXiv 2106.09685); B starts at 0.
    Of queries, keys and values, or gate and up, which are one W, there is one A."""

    def __init__(self, outputs: int, inputs: int, config: LoRASection):
        super().__init__()
        self.a = nn.Parameter(torch.randn(config.rank, inputs) * inputs ** -0.5)
        self.b = nn.Parameter(torch.zeros(outputs, config.rank))
        self.scale = config.alpha / config.rank

    def forward(self, x):
        return F.linear(F.linear(x, self.a), self.scale * self.b)


class Linear(nn.Module):
    """x W^T, at first with weights of std 1/sqrt(inputs); with LoRA an adapter adds to it."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs) * inputs ** -0.5)
        self.lora = None

    def forward(self, x):
        y = F.linear(x, self.weight)
        return y if self.lora is None else y + self.lora(x)


class Attention(nn.Module):
    """Causal grouped-query attention (arXiv 2305.13245), queries, keys and values in one matrix."""

    def __init__(self, config: ModelSection):
        super().__init__()
        self.heads, self.kv_heads = config.heads, config.kv_heads
        self.head_width = config.head_width or config.width // config.heads
        self.qkv = Linear(config.width, (self.heads + 2 * self.kv_heads) * self.head_width)
        self.out = Linear(self.heads * self.head_width, config.width)

    def forward(self, x, rotations, mask=None, cache=None, layer=0):
        batch, time, _ = x.shape
        qkv = self.qkv(x).view(batch, time, -1, self.head_width)  # [B, T, H + 2K, C]
        qk, v = qkv.split([self.heads + self.kv_heads, self.kv_heads], dim=2)
        q, k = rotate(qk, rotations).split([self.heads, self.kv_heads], dim=2)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)  # [B, H or K, T, C]
        if cache is not None and cache.filled:
            y = cache.attend(layer, q, k, v, mask)
        else:
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None,
                                               enable_gqa=self.heads > self.kv_heads)
            if cache is not None:
                cache.start(k, v)
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
    def __init__(self, config: ModelSection):
        super().__init__()
        self.attention_norm = RMSNorm(config.width, config.norm_eps)
        self.attention = Attention(config)
        self.mlp_norm = RMSNorm(config.width, config.norm_eps)
        self.mlp = SwiGLU(config)

    def forward(self, x, rotations, mask=None, cache=None, layer=0, at=None):
        x = x + self.attention(self.attention_norm(x), rotations, mask, cache, layer)
        x = x if at is None else x[at]                                     # [N, D]
        return x + self.mlp(self.mlp_norm(x))


class GPT(nn.Module):
    """tokens [B, T] -> hidden states [B, T, D] (forward) -> logits over V (logits)."""

    def __init__(self, config: ModelSection, vocab: int):
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(vocab, config.width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = RMSNorm(config.width, config.norm_eps)
        self.head = Linear(config.width, vocab)
        if config.tied:
            self.head.weight = self.embedding.weight
        table = rotary_table(config.context, self.blocks[0].attention.head_width, config.rope_theta,
                             config.rope_scaling)
        self.register_buffer("rotary", table, persistent=False)
        nn.init.normal_(self.embedding.weight, std=config.width ** -0.5)
        for block in self.blocks:  # what adds to the residual stream starts small (GPT-2)
            for last in (block.attention.out, block.mlp.down):
                last.weight.data *= (2 * config.layers) ** -0.5

    def compile_blocks(self):
        """Compile each block, but not the cache, which would be compiled anew for each layer. (The
        last block is compiled in two pieces: where `at` picks its states the size is not known.)"""
        Cache.start, Cache.attend = map(torch.compiler.disable, (Cache.start, Cache.attend))
        for block in self.blocks:
            block.compile(dynamic=True)
        return self

    def forward(self, tokens, positions=None, mask=None, cache: Cache | None = None, at=None):
        """Hidden states [B, T, D] of tokens [B, T]; or [N, D], row by row, of those N places that
        are true in `at` [B, T]: nobody asks for the last layer's MLP at the others.

        positions [B, T] (default: 0 to T - 1) and mask [B, 1, T, T], 0 where a token may look and
        -inf elsewhere (default: at itself and before), let branches of one row share what stands
        before them. A cache takes the prompts first; then tokens [B, 1], with the bias of
        Cache.attend as the mask.
        """
        angles = self.rotary[:tokens.shape[1]] if positions is None else self.rotary[positions]
        rotations = torch.view_as_complex(angles.float()).unsqueeze(-2)  # [B or -, T, 1, C/2]
        x = self.embedding(tokens).float()                           # [B, T, D]
        for layer, block in enumerate(self.blocks):
            x = block(x, rotations, mask, cache, layer, at if block is self.blocks[-1] else None)
        if cache is not None:
            cache.filled += tokens.shape[1]
        return self.norm(x)

    def logits(self, hidden):
        """Logits [..., V] of hidden states [..., D]: float32, whatever the product was made in."""
        return self.head(hidden).float()


def adapted(trunk: GPT, config: LoRASection) -> GPT:
    """A model that shares the weights of a frozen trunk and has adapters of its own."""
    trunk.requires_grad_(False)
    shared = {id(tensor): tensor for tensor in (*trunk.parameters(), *trunk.buffers())}
    model = copy.deepcopy(trunk, shared)
    for name, module in list(model.named_modules()):
        if name.rpartition(".")[2] in config.linears:
            module.lora = LoRA(*module.weight.shape, config)
    return model


@torch.no_grad()
def merged(model: GPT) -> dict[str, torch.Tensor]:
    """The weights of a model in float32, adapters added to what they adapt."""
    weights = {name: tensor.float() for name, tensor in model.state_dict().items()
               if ".lora." not in name}
    with torch.autocast(model.embedding.weight.device.type, enabled=False):
        for name, module in model.named_modules():
            if isinstance(module, LoRA):
                name = name.removesuffix("lora") + "weight"
                weights[name] = weights[name] + module.scale * module.b @ module.a
    return weights


def scalars(head: nn.Linear, hidden):
    """What a head makes of states [..., D], in float32 also where the trunk is in bfloat16: rewards
    and values need more than its 8 bits."""
    with torch.autocast(hidden.device.type, enabled=False):
        return head(hidden.float())


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

    @property
    def before(self):
        """[B, T] true one place to the left: where the response's tokens are predicted."""
        return F.pad(self.mask[:, 1:], (0, 1))

    def __getitem__(self, rows):
        """Some of the rows, cut to the longest of them."""
        longest = int(self.length[rows].max())
        return Rows(self.tokens[rows, :longest], self.prompt[rows], self.length[rows])

    def responses(self) -> list[list[int]]:
        """The responses' token ids, without the padding."""
        return [row[p:n] for row, p, n in zip(self.tokens.tolist(), self.prompt.tolist(),
                                              self.length.tolist())]


def micro_batches(length, size: int):
    """Indices of rows of similar length [B] that together take at most `size` positions (or of one
    row; 0: no limit): little padding, little memory, activations that fit a CPU's caches."""
    order = length.argsort(descending=True, stable=True)
    longest, parts, start = length[order].tolist(), [], 0
    while start < len(order):
        end = start + max(1, (size or len(order) * longest[0]) // longest[start])
        parts.append(order[start:end])
        start = end
    for _ in range(in_step(len(parts)) - len(parts)):
        parts.sort(key=len)
        parts += parts.pop().tensor_split(2)  # two of the fullest
    return parts


def pad_rows(prompts: list, responses: list | None = None, device="cpu", room: int = 0) -> Rows:
    """Rows of lists of token ids, with room for more tokens behind. The padding is id 0, which no
    real token sees."""
    rows = [list(p) + list(r) for p, r in zip(prompts, responses or [[]] * len(prompts))]
    length = torch.tensor([len(row) for row in rows])
    tokens = torch.zeros(len(rows), int(length.max()) + room, dtype=torch.long)
    tokens[torch.arange(tokens.shape[1]) < length[:, None]] = torch.tensor(list(chain(*rows)))
    return Rows(tokens.to(device), torch.tensor([len(p) for p in prompts], device=device),
                length.to(device))


def on_grid(mask, values):
    """Values [N] of the mask's tokens, row by row, at their places; 0 elsewhere: [B, T]."""
    return torch.zeros(mask.shape, device=mask.device).masked_scatter(mask, values)


def token_logprobs(model: GPT, rows: Rows, temperature: float = 1.0):
    """log pi(token | what stands before it) at the responses' tokens [B, T], in float32.

    The state at t - 1 predicts token t; logits are computed where they are needed only.
    """
    hidden = model(rows.tokens, at=rows.before)                               # [N, D]
    logits = model.logits(hidden) / temperature                               # [N, V]
    return on_grid(rows.mask, -F.cross_entropy(logits, rows.tokens[rows.mask], reduction="none"))


def by_micro_batches(function, rows: Rows, size: int):
    """function(rows) -> [B, T], computed for micro-batches of at most `size` positions."""
    result = torch.zeros(rows.tokens.shape, device=rows.tokens.device)
    for chosen in micro_batches(rows.length, size):
        part = function(rows[chosen])
        result[chosen, :part.shape[1]] = part
    return result


def draw(logits, temperature: float, uniform):
    """One token a row from softmax(logits / temperature): the first whose cumulative probability
    exceeds `uniform` [B], numbers from [0, 1). Temperature 0 takes the likeliest."""
    if temperature == 0:
        return logits.argmax(-1)
    upto = (logits / temperature).softmax(-1).cumsum(-1)                              # [B, V]
    token = torch.searchsorted(upto, uniform[:, None] * upto[:, -1:], right=True)[:, 0]
    return token.clamp(max=logits.shape[-1] - 1)


@torch.no_grad()
def sample(model: GPT, prompts: list, uniforms, temperature: float, eos: int) -> Rows:
    """Sample a response to each prompt (lists of token ids), until all have ended.

    A response ends with its first `eos`, which is part of it, or is cut after as many tokens as
    `uniforms` [B, new] has random numbers from [0, 1) for it: no row depends on the others, nor on
    how many ranks share them (`random_numbers` of runtime/ranks.py). New tokens share a column of
    the cache, behind the longest prompt. Rows that have ended leave once they are a quarter; the
    host looks (and waits for the device) once in `look_every` tokens.
    """
    # 1. Room for the new tokens behind the prompts; each row hides its own padding.
    device = model.embedding.weight.device
    look_every = max(1, model.config.look_every)
    rows = pad_rows(prompts, device=device, room=uniforms.shape[1])
    start, size = int(rows.prompt.max()), rows.tokens.shape[1]
    columns = torch.arange(size, device=device)
    bias = torch.zeros(len(prompts), 1, size, device=device).masked_fill(
        (columns >= rows.prompt[:, None])[:, None], -torch.inf)
    cache = Cache(size)
    live = torch.arange(len(prompts), device=device)                   # rows in the batch
    going = torch.ones(len(prompts), dtype=torch.bool, device=device)  # of these, not yet ended
    # 2. Read the prompts: the state at each one's last token predicts the first new one.
    last = model(rows.tokens[:, :start], cache=cache,
                 at=columns[:start] == rows.prompt[:, None] - 1)              # [B, D]
    # 3. A token a row at a time, until all have ended; rows that have ended leave the batch.
    for column, uniform in enumerate(uniforms.to(device).unbind(1), start):
        token = draw(model.logits(last), temperature, uniform[live])
        at = rows.length[live]
        rows.tokens[live, at] = torch.where(going, token, 0)
        rows.length[live] = at + going
        going = going & (token != eos)
        look = (column - start) % look_every == look_every - 1
        if column == size - 1 or look and not in_step(int(going.any())):
            break
        if look and 0 < going.float().mean() < 0.75:
            live, token, at, bias = live[going], token[going], at[going], bias[going]
            cache.keep(going)
            going = going[going]
        bias[:, :, column] = 0
        seen = bias.repeat_interleave(model.config.kv_heads, dim=0)  # [live * K, 1, size]
        last = model(token[:, None], at[:, None], seen, cache)[:, 0]
    return rows[torch.arange(len(prompts), device=device)]
