"""The GPT against plain formulas, and batched sampling with a cache against a naive loop."""

import math

import pytest
import torch

import model as plain
from conftest import tiny_gpt
from faster import sampling as faster
from model import (
    Attention,
    attend,
    pad_rows,
    rotary_table,
    rotate,
    sample_token,
    scalars,
    token_logprobs,
)
from runtime.batching import by_parts, micro_batches
from runtime.config import ModelSection

PROMPTS = [[1, 2, 3], [4], [5, 6, 7, 8, 9, 1, 2], [3, 3]]
both = pytest.mark.parametrize("sample", [plain.sample, faster.sample], ids=["plain", "faster"])


def uniforms(rows: int, new: int, seed: int = 0):
    return torch.rand(rows, new, generator=torch.Generator().manual_seed(seed))


def naive(model, prompt: list[int], max_new: int, eos: int) -> list[int]:
    """Decode one row greedily without a cache."""
    ids = list(prompt)
    for _ in range(max_new):
        ids.append(int(model.logits(model(torch.tensor([ids])))[0, -1].argmax()))
        if ids[-1] == eos:
            break
    return ids[len(prompt):]


# --------------------------------------------------------------------------------------- parts


def test_norms_compute_in_float32_under_autocast_too():
    model, seen = tiny_gpt(), []
    norms = [module for module in model.modules() if isinstance(module, torch.nn.RMSNorm)]
    for norm in norms:
        norm.register_forward_hook(lambda _, x, y: seen.append((x[0].dtype, y.dtype)))
    with torch.autocast("cpu", torch.bfloat16):
        model(torch.tensor([[1, 2, 3]]))
    assert len(norms) == 2 * len(model.blocks) + 1
    assert seen == [(torch.float32, torch.float32)] * len(norms)


def turns(context: int, width: int, theta: float = 10_000.0):
    """Return what `rotate` takes, for positions 0 to context - 1: [T, 1, C/2]."""
    return torch.view_as_complex(rotary_table(context, width, theta))[:, None]


def test_rotation_of_one_pair_is_by_the_position():
    # width 4 and theta 100: pair (0, 1) turns by 1 rad a token, pair (2, 3) by 100 ** -0.5 = 0.1
    x = torch.tensor([1.0, 0.0, 1.0, 0.0]).expand(1, 4, 1, 4)
    turned = rotate(x, turns(4, 4, 100.0))[0, :, 0]
    for t in range(4):
        expected = [math.cos(t), math.sin(t), math.cos(0.1 * t), math.sin(0.1 * t)]
        torch.testing.assert_close(turned[t], torch.tensor(expected))


def test_rotated_score_depends_only_on_the_distance():
    torch.manual_seed(0)
    q, k = torch.randn(2, 1, 32, 1, 8).unbind()
    q, k = q[:, :1].expand_as(q), k[:, :1].expand_as(k)  # the same vector at every position
    q, k = (rotate(x, turns(32, 8))[0, :, 0] for x in (q, k))
    scores = q @ k.T
    for distance in (0, 1, 5, 20):
        same = scores.diagonal(-distance)
        torch.testing.assert_close(same, same[:1].expand_as(same))
    assert (scores[20, 20] - scores[20, 15]).abs() > 1e-3


def test_rotation_keeps_the_type():
    x = torch.randn(1, 4, 2, 8).bfloat16()
    assert rotate(x, turns(4, 8)).dtype == torch.bfloat16


def test_attention_is_the_plain_formula():
    torch.manual_seed(0)
    config = ModelSection(heads=2, kv_heads=1, width=8)
    attention, x = Attention(config), torch.randn(1, 5, 8)
    q, k, v = (attention.qkv(x)[0].view(5, 4, 4).transpose(0, 1)[part]  # [heads, T, C]
               for part in (slice(0, 2), slice(2, 3), slice(3, 4)))
    q, k = (rotate(part[..., None, :], turns(5, 4))[..., 0, :] for part in (q, k))
    plain = torch.zeros(5, 2, 4)
    for t in range(5):
        for head in range(2):
            weights = torch.softmax(k[0, :t + 1] @ q[head, t] / 2, 0)  # 2 = sqrt(C)
            plain[t, head] = weights @ v[0, :t + 1]
    torch.testing.assert_close(attention(x, turns(5, 4))[0],
                               attention.out(plain.reshape(5, 8)))


def test_grouped_attention_is_full_attention_with_repeated_heads():
    torch.manual_seed(0)
    grouped = Attention(ModelSection(heads=4, kv_heads=2, width=16))
    full = Attention(ModelSection(heads=4, kv_heads=4, width=16))
    q, k, v = grouped.qkv.weight.data.view(8, 4, 16).split([4, 2, 2])
    repeated = [part[[0, 0, 1, 1]] for part in (k, v)]  # queries 0, 1 share head 0; 2, 3 head 1
    full.qkv.weight.data = torch.cat([q, *repeated]).reshape(48, 16)
    full.out.weight.data = grouped.out.weight.data
    x = torch.randn(3, 7, 16)
    torch.testing.assert_close(grouped(x, turns(7, 4)), full(x, turns(7, 4)))


def test_queries_and_keys_are_normed_head_by_head_before_they_turn():
    attention = tiny_gpt(qk_norm=True, qkv_bias=True).blocks[0].attention
    for p in attention.parameters():
        torch.nn.init.normal_(p)
    x, rotations = torch.randn(2, 5, 16), turns(5, 4)
    rows = x @ attention.qkv.weight.T + attention.qkv.bias             # [2, 5, (4 + 2 * 2) * 4]
    q, k, v = rows.unflatten(-1, (-1, 4)).split([4, 2, 2], dim=2)
    q, k = (part / (part ** 2).mean(-1, keepdim=True).add(1e-5).sqrt() * norm.weight
            for part, norm in ((q, attention.q_norm), (k, attention.k_norm)))
    q, k, v = (part.transpose(1, 2) for part in (rotate(q, rotations), rotate(k, rotations), v))
    expected = attend(q, k, v).transpose(1, 2).flatten(2) @ attention.out.weight.T
    torch.testing.assert_close(attention(x, rotations), expected, atol=1e-5, rtol=1e-4)


def test_normed_queries_and_keys_are_in_the_type_of_the_values(monkeypatch):
    seen = []
    monkeypatch.setattr(plain, "attend", lambda q, k, v, bias: seen.append(
        (q.dtype, k.dtype, v.dtype)) or v.repeat_interleave(2, 1))
    attention = tiny_gpt(qk_norm=True).blocks[0].attention
    attention.q_norm.register_forward_hook(lambda module, x, y: seen.append(x[0].dtype))
    with torch.autocast("cpu", torch.bfloat16):
        attention(torch.randn(2, 5, 16), turns(5, 4))
    assert seen == [torch.float32, (torch.bfloat16,) * 3]  # normed in float32


def test_tied_model_shares_its_embedding():
    model = tiny_gpt()
    assert model.head.weight is model.embedding.weight and model.head.weight.shape == (11, 16)
    hidden = torch.randn(2, 16)
    torch.testing.assert_close(model.logits(hidden), hidden @ model.embedding.weight.T)
    more = tiny_gpt(tied=False)
    assert sum(p.numel() for p in more.parameters()) == sum(
        p.numel() for p in model.parameters()) + 11 * 16
    torch.testing.assert_close(more.logits(hidden), hidden @ more.head.weight.T)


def test_initial_weights_have_the_documented_spread():
    model = tiny_gpt(vocab=500, width=64, hidden=128, layers=2)
    block = model.blocks[1]
    for weight, std in ((model.embedding.weight, 1 / 8),           # 64 ** -0.5
                        (block.attention.qkv.weight, 1 / 8),
                        (block.attention.out.weight, 1 / 16),      # (2 * 2 * 64) ** -0.5
                        (block.mlp.down.weight, 512 ** -0.5)):     # (2 * 2 * 128) ** -0.5
        assert weight.std().item() == pytest.approx(std, rel=0.05)


def test_logits_are_float32_in_a_model_of_bfloat16():
    model = tiny_gpt().bfloat16()
    assert model.logits(torch.ones(2, 16).bfloat16()).dtype == torch.float32


# ------------------------------------------------------------------------- padding and the cache


def test_logits_depend_neither_on_padding_nor_on_other_rows():
    model = tiny_gpt()
    rows = pad_rows(PROMPTS, room=9)
    rows.tokens[:, 10:] = 7  # any token in the padding
    together = model.logits(model(rows.tokens))
    for i, prompt in enumerate(PROMPTS):
        alone = model.logits(model(torch.tensor([prompt])))[0]
        torch.testing.assert_close(together[i, :len(prompt)], alone, atol=1e-5, rtol=0)


def test_later_tokens_do_not_change_earlier_logits():
    model, tokens = tiny_gpt(), torch.tensor([[1, 2, 3, 4, 5, 6]])
    changed = tokens.clone()
    changed[0, 4] = 9
    before, after = model(tokens), model(changed)
    torch.testing.assert_close(before[:, :4], after[:, :4])
    assert (before[:, 4:] - after[:, 4:]).abs().max() > 1e-3


def test_states_depend_only_on_relative_positions_and_on_what_the_mask_shows():
    model, tokens = tiny_gpt(), torch.tensor([[1, 2, 3, 4, 5, 6]])
    causal = torch.full((1, 1, 6, 6), -math.inf).triu(1)
    plain, positions = model(tokens), torch.arange(6)[None]
    torch.testing.assert_close(model(tokens, positions + 20, causal), plain, atol=1e-5, rtol=1e-4)
    assert (model(tokens, positions * 2, causal) - plain).abs().max() > 1e-3
    blind = causal.clone()
    blind[..., 2:, 1] = -math.inf  # no position attends to token 1, so it may as well not be there
    shorter = model(tokens[:, [0, 2, 3, 4, 5]], positions[:, [0, 2, 3, 4, 5]], causal[..., 1:, 1:])
    torch.testing.assert_close(model(tokens, positions, blind)[:, 2:], shorter[:, 1:], atol=1e-5,
                               rtol=1e-4)


@pytest.mark.parametrize("kind", [{}, {"qkv_bias": True}, {"qk_norm": True}])
def test_reading_token_by_token_through_the_cache_is_reading_at_once(kind):
    model, tokens = tiny_gpt(**kind), torch.randint(0, 11, (3, 12))
    cache = plain.Cache()
    parts = [model(tokens[:, :5], cache=cache)]
    for t in range(5, 12):
        mask = torch.zeros(3, 1, 1, t + 1)
        parts.append(model(tokens[:, t:t + 1], torch.full((3, 1), t), mask, cache))
    torch.testing.assert_close(torch.cat(parts, 1), model(tokens), atol=1e-5, rtol=1e-5)


def test_reading_through_the_cache_of_one_piece_is_reading_at_once():
    model, tokens = tiny_gpt(), torch.randint(0, 11, (3, 12))
    cache = faster.Cache(14)
    parts = [model(tokens[:, :5], cache=cache)]
    bias = torch.full((6, 1, 14), -math.inf)  # 3 rows, 2 heads of keys and values
    bias[:, :, :5] = 0
    for cache.filled in range(5, 12):
        bias[:, :, cache.filled] = 0
        parts.append(model(tokens[:, cache.filled:cache.filled + 1],
                           torch.full((3, 1), cache.filled), bias, cache))
    torch.testing.assert_close(torch.cat(parts, 1), model(tokens), atol=1e-5, rtol=1e-5)


def test_scalars_are_float32_where_the_trunk_is_bfloat16():
    head, hidden = torch.nn.Linear(16, 1), 3 * torch.randn(20, 16)
    exact = head(hidden)
    with torch.autocast("cpu", torch.bfloat16):
        assert (head(hidden) - exact).abs().max() > 1e-3
        torch.testing.assert_close(scalars(head, hidden), exact)


@both
@pytest.mark.parametrize("tied", [True, False])
def test_greedy_samples_are_those_of_a_naive_loop(sample, tied):
    model = tiny_gpt(seed=3, tied=tied)
    free = [naive(model, prompt, 12, eos=-1) for prompt in PROMPTS]
    assert len({tuple(row) for row in free}) == 4  # rows that differ can be distinguished
    eos = free[2][4]  # a token that ends at least one row before the limit
    rows = sample(model, PROMPTS, uniforms(4, 12), 0, eos)[0]
    assert rows.responses() == [naive(model, prompt, 12, eos) for prompt in PROMPTS]
    assert [row[:n] for row, n in zip(rows.tokens.tolist(), rows.prompt.tolist())] == PROMPTS


def test_greedy_samples_stay_so_when_rows_leave_the_batch():
    model, prompts = tiny_gpt(seed=3), [[i % 11, (3 * i) % 11, 1][:1 + i % 3] for i in range(40)]
    free = [naive(model, prompt, 16, eos=-1) for prompt in prompts]
    eos = max(range(11), key=lambda token: len({r.index(token) for r in free if token in r}))
    sizes = []
    model.register_forward_hook(lambda _, given, __: sizes.append(len(given[0])))
    rows = faster.sample(model, prompts, uniforms(40, 16), 0, eos)[0]
    assert rows.responses() == [naive(model, prompt, 16, eos) for prompt in prompts]
    assert sizes[0] == len({tuple(prompt) for prompt in prompts})  # each is read once
    assert sizes[1] == 40 and len(set(sizes[1:17])) > 1  # they did leave


@both
def test_samples_end_with_their_first_eos_or_at_max_new(sample):
    model, eos = tiny_gpt(seed=1), 4
    rows = sample(model, PROMPTS * 50, uniforms(200, 6), 1.0, eos)[0]
    responses = rows.responses()
    ended = [r for r in responses if eos in r]
    assert 20 < len(ended) < 180  # both kinds are there
    assert all(r.index(eos) == len(r) - 1 <= 5 for r in ended)
    assert all(len(r) == 6 for r in responses if eos not in r)
    assert len({len(r) for r in ended}) > 3
    beyond = torch.arange(rows.tokens.shape[1]) >= rows.length[:, None]
    assert rows.tokens[beyond].eq(0).all()  # rows that ended stay ended
    assert rows.tokens.shape[1] == rows.length.max()


@both
def test_sampling_stops_once_all_rows_have_ended(sample):
    model, calls = tiny_gpt(), []
    model.register_forward_hook(lambda *_: calls.append(1))
    eos = naive(model, [1, 2, 3], 1, eos=-1)[0]  # the first token already is the end
    calls.clear()
    rows = sample(model, [[1, 2, 3]], uniforms(1, 10), 0, eos)[0]
    assert rows.responses() == [[eos]] and len(calls) == 1
    assert rows.tokens.tolist() == [[1, 2, 3, eos]]  # cut to the longest


@both
def test_samples_are_those_of_their_generator(sample):
    model = tiny_gpt()
    one, same, other = (sample(model, PROMPTS * 5, uniforms(20, 5, seed), 1.0, 0)[0].responses()
                        for seed in (1, 1, 2))
    assert one == same != other


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_the_plain_loop_samples_the_same(temperature):
    """Where the cumulative probabilities of both, which round otherwise, agree on a draw."""
    model, numbers = tiny_gpt(seed=1), uniforms(80, 12)
    (one, drawn), (other, also) = (way.sample(model, PROMPTS * 20, numbers, temperature, 4)
                                   for way in (plain, faster))
    assert one.responses() == other.responses() and torch.equal(one.tokens, other.tokens)
    assert torch.equal(one.length, other.length) and torch.equal(one.prompt, other.prompt)
    torch.testing.assert_close(drawn, also, atol=1e-5, rtol=1e-5)
    assert (drawn != 0).equal(one.mask)


@pytest.mark.parametrize("look_every", [3, 16])
def test_looking_seldom_changes_no_sample(look_every):
    model, numbers = tiny_gpt(seed=1), uniforms(80, 12)
    often = faster.sample(model, PROMPTS * 20, numbers, 1.0, 4)[0]
    model.config.look_every = look_every
    assert faster.sample(model, PROMPTS * 20, numbers, 1.0, 4)[0].responses() == often.responses()


@both
def test_a_sample_does_not_depend_on_when_the_other_rows_end(sample):
    model = tiny_gpt(seed=1)
    short = sample(model, PROMPTS * 20, uniforms(80, 12), 1.0, 4)[0].responses()
    long = sample(model, PROMPTS * 20, uniforms(80, 12), 1.0, -1)[0].responses()
    assert len({len(row) for row in short}) > 6  # rows left the batch at many times
    for one, whole in zip(short, long):
        assert one == whole[:len(one)]


def test_by_parts_is_the_whole():
    rows = pad_rows(PROMPTS * 3, [[2, 5], [1, 1, 1], [4], [9, 8, 7, 6]] * 3)
    parts = []

    def table(part):
        parts.append(part.tokens.numel())
        return (part.tokens * 2.0 + part.prompt[:, None]) * part.mask
    torch.testing.assert_close(by_parts(table, rows, micro_batches(rows.length, 20)), table(rows))
    assert len(parts) > 3 and max(parts[:-1]) <= 20


# ------------------------------------------------------------------- drawing and log-probabilities


@pytest.mark.parametrize("temperature", [1.0, 0.5, 2.0])
def test_draws_have_the_frequencies_of_softmax(temperature):
    logits, n = torch.tensor([1.0, 0.0, -1.0, 0.5, 2.0]), 20_000
    uniforms = torch.rand(n, generator=torch.Generator().manual_seed(0))
    drawn = sample_token(logits.expand(n, 5), temperature, uniforms)[0]
    expected = n * torch.softmax(logits / temperature, 0)
    chi_square = ((drawn.bincount(minlength=5) - expected) ** 2 / expected).sum()
    assert chi_square < 18.5  # 4 degrees of freedom: exceeded once in a thousand


def test_a_draw_is_where_the_cumulative_probability_exceeds_its_chance():
    logits = torch.tensor([[-math.inf, 0.0, math.log(2), -math.inf, 0.0, -math.inf]])  # 1/4 1/2 1/4
    for chance, token in ((0.0, 1), (0.24, 1), (0.26, 2), (0.74, 2), (0.76, 4), (1 - 1e-7, 4)):
        assert sample_token(logits, 1.0, torch.tensor([chance]))[0].tolist() == [token]


def test_temperature_zero_takes_the_likeliest():
    logits = torch.randn(200, 7, generator=torch.Generator().manual_seed(0))
    assert torch.equal(sample_token(logits, 0, None)[0], logits.argmax(1))


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_token_logprobs_are_log_softmax_and_gather(temperature):
    model, rows = tiny_gpt(), pad_rows(PROMPTS, [[2, 5], [1, 1, 1], [4], [9, 8, 7, 6]])
    logp = token_logprobs(model, rows, temperature)
    everywhere = torch.log_softmax(model.logits(model(rows.tokens)) / temperature, -1)
    for b, row in enumerate(rows.tokens.tolist()):
        for t, token in enumerate(row):
            response = len(PROMPTS[b]) <= t < rows.length[b]
            expected = everywhere[b, t - 1, token].item() if response else 0.0
            assert logp[b, t].item() == pytest.approx(expected, abs=1e-5)


def test_states_at_some_places_are_those_of_all():
    model, rows = tiny_gpt(), pad_rows(PROMPTS, [[2, 5], [1, 1, 1], [4], [9, 8, 7, 6]])
    at = torch.rand(rows.tokens.shape, generator=torch.Generator().manual_seed(0)) < 0.4
    hidden = model(rows.tokens)
    torch.testing.assert_close(model(rows.tokens, at=at), hidden[at])


def test_micro_batches_are_all_rows_once_within_the_size_and_of_similar_length():
    rows = pad_rows([[1] * n for n in (3, 9, 1, 4, 4, 20, 2, 5)])
    parts = [chosen.tolist() for chosen in micro_batches(rows.length, 12)]
    assert parts == [[5], [1], [7, 3], [4, 0, 6], [2]]  # the longest has more than 12 alone


def test_rows_know_their_responses():
    rows = pad_rows([[1, 2], [3]], [[4], [5, 6, 7]], room=2)
    assert rows.tokens.tolist() == [[1, 2, 4, 0, 0, 0], [3, 5, 6, 7, 0, 0]]
    assert rows.mask.int().tolist() == [[0, 0, 1, 0, 0, 0], [0, 1, 1, 1, 0, 0]]
    assert rows.before.int().tolist() == [[0, 1, 0, 0, 0, 0], [1, 1, 1, 0, 0, 0]]
    assert rows.responses() == [[4], [5, 6, 7]]
    first = rows[torch.tensor([0])]
    assert first.tokens.tolist() == [[1, 2, 4]] and first.responses() == [[4]]
