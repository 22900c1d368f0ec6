"""Pooling, the losses of R_P and R_PIT by hand, branches against separate rows, and overfitting."""

import dataclasses
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import reward
import train_reward
from conftest import read_lines, tiny_gpt
from data import Pairs
from evaluation import measure
from faster import branches as faster
from model import pad_rows, token_logprobs
from reward import ORDERED, POOLS, RewardModel, gap_loss, pair_loss, score, two_scores
from runtime import batching
from runtime.config import FitSection, RewardSection
from train_reward import Training, rp_loss, rpit_loss

TERMS = RewardSection().terms
PLAIN = SimpleNamespace(policy_prompt=lambda x: x, pit_prompt=lambda x, y_ref: x + y_ref,
                        add_eos=lambda y: y)


def random_lists(count: int, seed: int) -> list[list[int]]:
    """Draw lists of 1 to 5 token ids from 1 to 10."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.randint(1, 6, (count,), generator=generator).tolist()
    return [torch.randint(1, 11, (n,), generator=generator).tolist() for n in sizes]


def reward_model(pool="sum", lm_coef=0.0, logp_feature=True, terms=TERMS, **sizes) -> RewardModel:
    """Make a reward model whose every weight has a say, as after some training."""
    section = RewardSection(pool=pool, lm_coef=lm_coef, logp_feature=logp_feature, terms=terms)
    model = RewardModel(tiny_gpt(**sizes), section)
    torch.nn.init.normal_(model.head.weight, std=0.25)
    model.head.bias.data = torch.tensor([0.3, -0.2])
    return model


# ------------------------------------------------------------------------------- scores and losses


def test_pooled_by_hand():
    rows = pad_rows([[5, 5], [5]], [[6, 6], [6, 6, 6]], room=1)
    scores = torch.tensor([[9.0, 9.0, 1.0, 2.0, 9.0], [9.0, 3.0, 4.0, 5.0, 9.0]])
    assert POOLS["sum"](scores, rows).tolist() == [3.0, 12.0]
    assert POOLS["last"](scores, rows).tolist() == [2.0, 5.0]


@pytest.mark.parametrize("pool, feature", [("sum", True), ("last", True), ("sum", False)])
def test_score_is_its_formula_and_unaffected_by_padding(pool, feature):
    model, prompts, responses = reward_model(pool, logp_feature=feature), *map(random_lists, (6, 6),
                                                                               (1, 2))
    together = score(model, pad_rows(prompts, responses, room=7))
    (w, g), (w_0, g_0) = model.head.weight, model.head.bias
    for i, (x, y) in enumerate(zip(prompts, responses)):
        h = model.trunk(torch.tensor([x + y]))[0]
        logp = torch.log_softmax(model.trunk.logits(h), -1)
        s = [w @ h[t] + w_0 + feature * (g @ h[t] + g_0) * logp[t - 1, y[t - len(x)]]
             for t in range(len(x), len(x + y))]
        alone = sum(s) if pool == "sum" else s[-1]
        assert together[i].item() == pytest.approx(alone.item(), abs=1e-4)
    assert not together.requires_grad


def test_the_score_does_not_teach_the_language_model_head():
    for lm_coef, taught in ((0.0, False), (0.5, True)):
        model = reward_model(lm_coef=lm_coef, tied=False)
        rp_loss(model, PLAIN, Pairs(*(random_lists(3, seed) for seed in (1, 2, 3))))[0].backward()
        gradient = model.trunk.head.weight.grad
        assert (gradient is not None and bool(gradient.any())) == taught
        assert model.head.weight.grad.any(1).all()


def test_reward_head_starts_without_a_say_or_small():
    trunk = tiny_gpt(width=1024, layers=1, heads=2, hidden=8)
    model = RewardModel(trunk, RewardSection(pool="sum"))
    assert (model.head.weight == 0).all() and (model.head.bias == 0).all()
    model = RewardModel(trunk, RewardSection(pool="last"))
    assert model.head.weight[0].std().item() == pytest.approx(1025 ** -0.5, rel=0.1)
    assert (model.head.weight[1] == 0).all() and (model.head.bias == 0).all()


def test_pair_loss_by_hand():
    # equal: log 2. A margin of log 3: sigmoid is 3/4, so log(4/3); of -log 3: log 4.
    zeros = torch.zeros(2)
    assert pair_loss(zeros, zeros).item() == pytest.approx(2 * math.log(2))
    margin = torch.tensor([math.log(3), -math.log(3)])
    assert pair_loss(margin, zeros).item() == pytest.approx(math.log(4 / 3) + math.log(4))
    far = torch.tensor([-200.0], requires_grad=True)  # log(sigmoid(-200)) would be -inf
    loss = pair_loss(far, torch.zeros(1))
    loss.backward()
    assert loss.item() == 200 and far.grad.item() == -1


@pytest.mark.parametrize("left_out", [None, *TERMS])
def test_gap_loss_is_equation_2_with_each_term_left_out(left_out):
    torch.manual_seed(0)
    r = {pair: torch.randn(3, dtype=torch.double) for pair in ORDERED}
    wl, ww, ll, lw = (r[pair] for pair in ("wl", "ww", "ll", "lw"))
    differences = {"wl>ww": wl - ww, "wl>ll": wl - ll, "wl>lw": wl - lw, "ww>lw": ww - lw,
                   "ll>lw": ll - lw}
    assert list(differences) == TERMS
    kept = [term for term in TERMS if term != left_out]
    expected = sum(math.log(1 + math.exp(-d)) for term in kept for d in differences[term].tolist())
    assert gap_loss(r, kept).item() == pytest.approx(expected)


# --------------------------------------------------------------------------------------- branches


def test_branches_of_one_row_by_hand():
    rows = pad_rows([[1, 2], [3], [1, 2], [3]], [[4, 5, 6], [7], [8], [9, 10]])
    b = faster.joined(rows, [[0, 2], [1, 3]])
    assert b.rows.tokens.tolist() == [[1, 2, 4, 5, 6, 8], [3, 7, 9, 10, 0, 0]]
    assert b.positions[0].tolist() == [0, 1, 2, 3, 4, 2]  # 8 goes on from 2, as 4 does
    assert b.positions[1, :4].tolist() == [0, 1, 1, 2]
    assert b.previous[0].tolist() == [0, 0, 1, 2, 3, 1]
    assert b.bias[0, 0].isfinite().int().tolist() == [[1, 0, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0],
                                           [1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 0, 0],
                                           [1, 1, 1, 1, 1, 0], [1, 1, 0, 0, 0, 1]]
    assert b.rows.responses() == [[4, 5, 6, 8], [7, 9, 10]]
    found = b.rows.tokens.flatten()[b.places]
    assert (found[rows.mask] == rows.tokens[rows.mask]).all()


@pytest.mark.parametrize("way", [reward, faster], ids=["plain", "branches"])
@pytest.mark.parametrize("pool", ["sum", "last"])
def test_two_scores_are_those_of_separate_rows(pool, way):
    model = reward_model(pool)
    prompts, a, b = (random_lists(8, seed) for seed in (1, 2, 3))
    of_a, of_b, lm_loss = way.two_scores(model, prompts, a, b)
    for side, scores in ((b, of_b), (a, of_a)):
        rows = pad_rows(prompts, side)
        torch.testing.assert_close(scores, score(model, rows), atol=1e-4, rtol=1e-5)
    logp = token_logprobs(model.trunk, rows)  # of a alone
    torch.testing.assert_close(lm_loss, -logp.sum(1) / rows.mask.sum(1), rtol=1e-4, atol=1e-5)


def test_branches_have_the_gradients_of_separate_rows():
    prompts, a, b = (random_lists(8, seed) for seed in (1, 2, 3))
    gradients = []
    for way in (reward, faster):
        model = reward_model()
        of_a, of_b, lm_loss = way.two_scores(model, prompts, a, b)
        (pair_loss(of_a, of_b) + lm_loss.sum()).backward()
        gradients.append([p.grad for p in model.parameters()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-3)


def groups_of_rows():
    """Return rows of three prompts, one of them alone, in no order."""
    prompts = [[1, 2], [3], [1, 2], [4, 5, 6], [1, 2], [3]]
    return pad_rows(prompts, random_lists(6, 7))


def test_logprobs_of_joined_rows_are_those_of_separate_rows():
    gradients, rows = [], groups_of_rows()
    for way in (token_logprobs, faster.token_logprobs):
        model = tiny_gpt()
        sizes = []
        model.register_forward_hook(lambda _, given, __: sizes.append(len(given[0])))
        logp = way(model, rows, 0.7)
        (logp * torch.arange(logp.numel()).view_as(logp)).sum().backward()
        gradients.append([logp.detach(), *(p.grad for p in model.parameters())])
    assert sizes == [3]  # rows, of 6
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-3)
    alone = rows[[0, 1, 3]]
    assert torch.equal(token_logprobs(model, alone), faster.token_logprobs(model, alone))


@pytest.mark.parametrize("pool", ["sum", "last"])
def test_scores_of_joined_rows_are_those_of_separate_rows(pool):
    model, rows = reward_model(pool), groups_of_rows()
    model.trunk.config.micro_batch = 12
    torch.testing.assert_close(faster.score(model, rows), score(model, rows), atol=1e-4, rtol=1e-5)


def test_at_most_four_rows_are_joined_and_those_of_two_scores_pair_by_pair(monkeypatch):
    rows = pad_rows([[1], [2], *[[1]] * 5], [[5]] * 7)
    assert faster.by_prompt(rows) == [[0, 2, 3, 4], [1], [5, 6]]
    model, sizes = reward_model(), []
    model.trunk.register_forward_hook(lambda _, given, __: sizes.append(given[0].shape))
    faster.two_scores(model, [[1, 2]] * 3, [[5, 6]] * 3, [[7]] * 3)
    assert sizes == [(3, 5)]
    monkeypatch.setattr(faster, "joined", None)  # not called where no prompt is shared
    faster.token_logprobs(model.trunk, rows[[0, 1]])
    assert not faster.score(model, rows[[0, 1]]).requires_grad


def test_pads_of_a_joined_row_have_places_within_the_context():
    rows = pad_rows([[1] * 20] * 4 + [[2]], [[5] * 20] * 4 + [[6]])
    model = tiny_gpt()  # of context 48; the joined row has 100 places
    torch.testing.assert_close(faster.token_logprobs(model, rows), token_logprobs(model, rows),
                               atol=1e-4, rtol=1e-3)


def test_ranks_that_step_together_get_rows_each(monkeypatch):
    monkeypatch.setattr(batching, "in_step", lambda count: 3)
    parts = [part.tolist() for part in faster.parts_of(pad_rows([[1]] * 4, [[5]] * 4), 99)]
    assert len(parts) == 3 and sorted(sum(parts, [])) == [0, 1, 2, 3] and all(parts)


def test_parts_keep_the_rows_of_a_prompt_together():
    rows = pad_rows([[1], [2, 2], [1], [3], [2, 2]], [[5] * 3, [6] * 4, [7], [8] * 2, [9] * 5])
    # positions: two of at most 1 + 3, two of at most 2 + 5, and one of 1 + 2
    parts = [part.tolist() for part in faster.parts_of(rows, 16)]
    assert parts == [[1, 4], [0, 2, 3]]
    assert [part.tolist() for part in faster.parts_of(rows, 1)] == [[1, 4], [0, 2], [3]]


def test_rp_loss_is_bradley_terry_and_lm_coef_zero_leaves_it_pure():
    model = reward_model(lm_coef=0.0)
    prompts, a, b = (random_lists(5, seed) for seed in (4, 5, 6))
    pairs = Pairs(x=prompts, y_w=a, y_l=b)
    r_w, r_l = (score(model, pad_rows(prompts, side)) for side in (a, b))
    pure, count, right = rp_loss(model, PLAIN, pairs)
    assert count == 5 and pure.item() == pytest.approx(pair_loss(r_w, r_l).item(), rel=1e-4)
    assert right.item() == (r_w > r_l).sum() and 0 < right < 5
    model.config.lm_coef = 0.5
    loss, _, _ = rp_loss(model, PLAIN, pairs)  # a sum over the 5 pairs, as pair_loss
    lm_loss = two_scores(model, prompts, a, b)[2].sum().item()
    assert loss.item() == pytest.approx(pure.item() + 0.5 * lm_loss, rel=1e-5)


def test_rpit_loss_is_equation_2_and_lm_coef_zero_leaves_it_pure():
    model = reward_model(lm_coef=0.0)
    x, y_w, y_l = (random_lists(4, seed) for seed in (17, 18, 19))
    sides = {"w": y_w, "l": y_l}
    pairs = Pairs(x=x, y_w=y_w, y_l=y_l)
    r = {pair: score(model, pad_rows([p + ref for p, ref in zip(x, sides[pair[1]])],
                                     sides[pair[0]])) for pair in ORDERED}
    for terms in (TERMS[1:], ["wl>lw"], TERMS):
        model.config.terms = terms
        pure, count, right = rpit_loss(model, PLAIN, pairs)
        assert pure.item() == pytest.approx(gap_loss(r, terms).item(), rel=1e-4)
    assert right.item() == (r["wl"] > r["lw"]).sum() and 0 < right < 4 == count
    model.config.lm_coef = 0.5
    loss, _, _ = rpit_loss(model, PLAIN, pairs)  # a sum over the 4 triples
    given_l = [a + b for a, b in zip(x, y_l)]
    lm_loss = two_scores(model, given_l, y_w, y_l)[2].sum().item()  # y_w given y_l
    assert loss.item() == pytest.approx(pure.item() + 0.5 * lm_loss, rel=1e-5)


# --------------------------------------------------------------------------------------- training


def fit(model, loss_of, steps: int) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        loss_of()[0].backward()
        optimizer.step()


@pytest.mark.parametrize("pool", ["sum", "last"])
def test_a_pointwise_model_overfits_ten_pairs(pool):
    model = reward_model(pool, lm_coef=0.1)
    prompts, a, b = (random_lists(10, seed) for seed in (10, 11, 12))
    pairs = Pairs(x=prompts, y_w=a, y_l=b)
    assert rp_loss(model, PLAIN, pairs)[2] < 10
    fit(model, lambda: rp_loss(model, PLAIN, pairs), 40)
    better, worse = (score(model, pad_rows(prompts, side)) for side in (a, b))
    assert (better > worse).all() and pair_loss(better, worse) < 1


def test_a_gap_model_overfits_ten_triples():
    model = reward_model(lm_coef=0.1)
    x, y_w, y_l = (random_lists(10, seed) for seed in (13, 14, 15))
    marked = SimpleNamespace(pit_prompt=lambda x, y_ref: x + [0] + y_ref, add_eos=lambda y: y)
    fit(model, lambda: rpit_loss(model, marked, Pairs(x=x, y_w=y_w, y_l=y_l)), 60)
    sides, r = {"w": y_w, "l": y_l}, {}
    for pair in ORDERED:
        refs = [p + [0] + ref for p, ref in zip(x, sides[pair[1]])]
        r[pair] = score(model, pad_rows(refs, sides[pair[0]]))
    for term in TERMS:  # Eq. 1 holds for every triple
        assert (r[term[:2]] > r[term[3:]]).all(), term


def test_rows_hold_what_each_model_reads(bills_run):
    run, data = bills_run
    fold, eos = data.folds["reward"], data.tokenizer.eos
    x, y_w, y_l = fold.x[3], fold.y_w[3], fold.y_l[3]
    rows = data.policy_rows([x], [y_w])
    assert rows.tokens[0].tolist() == data.policy_prompt(x) + y_w + [eos]
    assert rows.responses() == [y_w + [eos]]
    rows = data.pit_rows([x], [y_l], [y_w])
    assert rows.tokens[0].tolist() == data.pit_prompt(x, y_l) + y_w + [eos]
    assert rows.responses() == [y_w + [eos]]


@pytest.mark.parametrize("name", ["rp", "rpit"])
def test_training_minimises_the_loss_of_the_folds_pairs(bills_run, monkeypatch, name):
    run, data = bills_run
    fold, seen = data.folds["reward"], {}
    monkeypatch.setattr(run.config.reward, "lm_coef", 0.0)

    def train(run, data, model, training):
        torch.nn.init.normal_(model.head.weight)  # so that every pair has another score
        seen.update(model=model, fold=training.fold,
                    loss=training.loss(model, data, training.fold[[4, 7, 2]]))
    monkeypatch.setattr(train_reward, "train", train)
    gpt = train_reward.new_gpt(run, data)
    {"rp": train_reward.train_rp, "rpit": train_reward.train_rpit}[name](run, data, gpt)
    s = measure.fold_scores(data, seen["model"], seen["model"], fold)
    s = {key: torch.tensor(value[[4, 7, 2]]) for key, value in s.items()}
    expected = gap_loss(s, TERMS) if name == "rpit" else pair_loss(s["w"], s["l"])
    assert seen["fold"] is fold and seen["loss"][1] == 3
    assert seen["loss"][0].item() == pytest.approx(expected.item(), rel=1e-4)


@pytest.mark.parametrize("micro_batch", (2048, 90))
def test_a_folds_scores_are_those_of_each_response_alone(bills_run, monkeypatch, micro_batch):
    run, data = bills_run
    fold = data.folds["test"]
    model = train_reward.new_reward_model(run, data)
    torch.nn.init.normal_(model.head.weight, std=0.1)  # scores of which float32 knows 1e-4
    monkeypatch.setattr(model.trunk.config, "micro_batch", micro_batch)
    sides = {"w": fold.y_w[:], "l": fold.y_l[:]}
    found = measure.fold_scores(data, model, model, fold)
    expected = {side: measure.rp_scores(data, model, fold.x[:], y) for side, y in sides.items()} | {
        a + b: measure.gap_scores(data, model, fold.x[:], sides[a], sides[b])
        for a in sides for b in sides}
    assert found.keys() == expected.keys()
    for name, scores in expected.items():
        assert found[name] == pytest.approx(scores, abs=1e-4), name


def test_supervised_models_learn_the_preferred_response(bills_run, monkeypatch):
    run, data = bills_run
    fold, seen = data.folds["sft"], []
    monkeypatch.setattr(train_reward, "train", lambda run, data, model, training: seen.append(
        (training.fold, training.loss(model, data, training.fold[[5]]))))
    gpt = train_reward.new_gpt(run, data)
    train_reward.train_sft(run, data)
    train_reward.train_pit_sft(run, data, gpt)
    y = fold.y_w[5] + [data.tokenizer.eos]
    for prompt, (used, (loss, count, _)) in zip(
            (data.policy_prompt(fold.x[5]), data.pit_prompt(fold.x[5], fold.y_l[5])), seen):
        logits = gpt.logits(gpt(torch.tensor([prompt + y])))[0, len(prompt) - 1:-1]
        nll = torch.nn.functional.cross_entropy(logits, torch.tensor(y), reduction="sum")
        assert used is fold and count == len(y)
        assert loss.item() == pytest.approx(nll.item(), rel=1e-4)


def test_the_size_of_a_pair_is_what_its_model_reads(bills_run, monkeypatch):
    """Check it up to the templates, which add the same to each pair."""
    run, data = bills_run
    trainings = {}
    monkeypatch.setattr(train_reward, "train", lambda run, data, model, training:
                        trainings.update({training.name: training}))
    gpt = train_reward.new_gpt(run, data)
    train_reward.train_sft(run, data)
    for train in (train_reward.train_pit_sft, train_reward.train_rp, train_reward.train_rpit):
        train(run, data, gpt)
    fold = data.folds["reward"]
    pairs, sides = fold[range(9)], (fold.x, fold.y_w, fold.y_l)
    x, w, l = pairs.x, pairs.y_w, pairs.y_l
    policy, given_l, given_w = (data.policy_rows(x, w), data.pit_rows(x, l, w),
                                data.pit_rows(x, w, w))
    read = {"sft": policy.length, "pit_sft": given_l.length,
            "rp": policy.length + torch.tensor([len(y) for y in l]),
            "rpit": given_l.length + given_w.length + 2 * torch.tensor([len(y) for y in l])}
    for name, training in trainings.items():
        size = sum(times * side.lengths[:9] for times, side in zip(training.size, sides))
        assert len(set((read[name].numpy() - size).tolist())) == 1, name
    assert trainings.keys() == read.keys()


def test_learning_rate_warms_up_and_falls_to_a_twentieth():
    fit = FitSection(steps=12, warmup=4, lr=2.0)
    rates = [train_reward.learning_rate(fit, step) for step in (0, 1, 3, 4, 8, 12)]
    # half way down: 0.05 + 0.95 / 2 = 0.525 of the rate
    assert rates == pytest.approx([0.5, 1.0, 2.0, 2.0, 1.05, 0.1])


def test_training_lowers_the_loss_and_logs_means(bills_run, monkeypatch):
    run, data = bills_run
    monkeypatch.setattr(run.config, "sft", FitSection(steps=30, batch=16, lr=1e-2, warmup=1))
    train_reward.train_sft(run, data)
    lines = [line for line in read_lines(run.folder / "metrics.jsonl") if line["stage"] == "sft"]
    assert [line["step"] for line in lines] == list(range(1, 31))
    assert lines[0]["loss"] == pytest.approx(math.log(160), abs=1.5)  # nats a token
    assert lines[-1]["loss"] < lines[0]["loss"] - 1.5


@pytest.mark.parametrize("pairs, number", [(3, 3), (0, 20), (99, 20)])
def test_a_training_reads_no_more_than_the_first_pairs_that_it_is_given(bills_run, pairs, number):
    run, data = bills_run
    model, fold, seen = torch.nn.Linear(1, 1), data.folds["valid"], set()

    def loss_of(model, data, some):
        seen.update(map(tuple, some.y_w))
        return 0 * model.weight.sum(), torch.tensor(len(some)), torch.tensor(0)
    train_reward.train(run, data, model, Training(
        "x", FitSection(steps=20, batch=2, pairs=pairs), fold, loss_of, (1, 1, 1)))
    assert seen == set(map(tuple, fold.y_w[:number])) and len(fold) == 20


def test_the_log_has_means_over_the_steps_since_its_last_line(bills_run, monkeypatch):
    run, data = bills_run
    logged, steps = [], iter([(1.0, 1, 1), (6.0, 3, 2), (8.0, 4, 0)])  # loss, count, right
    monkeypatch.setattr(run.config.run, "log_every", 2)
    monkeypatch.setattr(run, "log", lambda name, line: logged.append(
        (name, *(line[key] for key in ("stage", "step", "loss", "accuracy", "lr")))))
    model, rates = torch.nn.Linear(1, 1), []
    monkeypatch.setattr(train_reward, "optimizer_step", lambda params, optimizer, *_: rates.append(
        optimizer.param_groups[0]["lr"]) or 1.0)

    def loss_of(model, data, pairs):
        loss, count, right = next(steps)
        return loss + 0 * model.weight.sum(), torch.tensor(count), torch.tensor(right)
    train_reward.train(run, data, model, Training(
        "x", FitSection(steps=3, batch=2, lr=0.5, warmup=2), data.folds["sft"], loss_of, (1, 1, 1)))
    # (1 + 6) / 4 and 3 / 4, then 8 / 4 and 0; the rate is that of the step
    assert logged == [("metrics.jsonl", "x", 2, 1.75, 0.75, 0.5),
                      ("metrics.jsonl", "x", 3, 2.0, 0.0, 0.5)]
    assert rates == [0.25, 0.5, 0.5]  # two steps of warm-up


def test_share_right_has_wilsons_interval():
    # 8 of 10: (0.8 + 0.19208 +- 1.96 sqrt(0.016 + 0.009604)) / 1.38416
    a = measure.share_right([True] * 8 + [False] * 2)
    assert (a["accuracy"], a["pairs"]) == (0.8, 10)
    assert (a["ci_low"], a["ci_high"]) == pytest.approx((0.4902, 0.9433), abs=1e-4)


def test_pairs_of_one_prompt_count_as_the_fewer_that_they_are_worth():
    right = [True] * 8 + [False] * 2
    assert measure.share_right(right, list("abcdefghij")) == measure.share_right(right)
    assert measure.share_right(right, list("aabbccddee")) == measure.share_right(
        right[::2]) | {"pairs": 10}  # each prompt twice
    one = measure.share_right(right, ["a"] * 10)
    assert (one["ci_low"], one["ci_high"]) == pytest.approx((0.1335, 0.9905), abs=1e-4)  # as of one
    assert measure.effective_number(4, list("aaab")) == 1.6 and measure.mean_interval(
        np.array([0.0, 1.0, 0.0, 1.0]), list("aabb"))[2] == pytest.approx(
            0.5 + 1.96 * (1 / 3 / 2) ** 0.5)


def test_agreements_are_of_prompts_not_of_pairs(bills_run, monkeypatch):
    """Every pair twice gives the interval of the pairs once."""
    data, once = bills_run[1], bills_run[1].folds["valid"][range(20)]
    twice = Pairs(once.x * 2, once.y_w * 2, once.y_l * 2)
    chance = np.random.default_rng(0)
    given = {tuple(x): chance.normal(size=6) for x in once.x}  # scores by the prompt

    def scores(data, rp, rpit, fold):
        return dict(zip(("w", "l", "wl", "ww", "ll", "lw"), np.array(
            [given[tuple(x)] for x in fold.x]).T))
    monkeypatch.setattr(measure, "fold_scores", scores)
    monkeypatch.setattr(measure, "pointwise_scores",
                        lambda data, model, fold: list(scores(data, 0, 0, fold).values())[:2])
    monkeypatch.setattr(measure, "gap_scores", lambda data, rpit, x, y, y_ref: np.array(
        [len(p) + len(ref) + ids[0] for p, ids, ref in zip(x, y, y_ref)]))
    found = []
    for fold in (once, twice):
        few = dataclasses.replace(data, folds={"valid": fold})
        found.append(measure.held_out_accuracies(few, None, None, "valid") | {
            "pointwise": measure.pointwise_agreement(data, None, fold),
            "gap": measure.gap_agreement(data, None, fold)})
        found[-1].pop("majority (either order)")
    assert len(found[0]) == 9
    for name, one in found[0].items():
        assert found[1][name] == pytest.approx(one | {"pairs": 2 * one["pairs"]}), name


def test_held_out_accuracies_count_the_right_orders(bills_run, monkeypatch):
    run, data = bills_run
    n, fold = 20, data.folds["valid"]
    fake = {"w": np.arange(n), "l": np.full(n, 4.5), "wl": np.full(n, 3), "ww": np.full(n, 2),
            "ll": np.arange(n), "lw": np.full(n, 0.5)}
    monkeypatch.setattr(measure, "fold_scores", lambda *_: fake)
    found = measure.held_out_accuracies(data, None, None, "valid")
    shares = {name: a["accuracy"] for name, a in found.items()}
    assert shares.pop("longer response") == pytest.approx(
        sum(len(fold.y_w[i]) > len(fold.y_l[i]) for i in range(n))
        / sum(len(fold.y_w[i]) != len(fold.y_l[i]) for i in range(n)))
    assert shares.pop("majority (either order)") == 0.5
    assert shares == {"R_P": 0.75, "R_PIT wl>ww": 1.0, "R_PIT wl>ll": 0.15, "R_PIT wl>lw": 1.0,
                      "R_PIT ww>lw": 1.0, "R_PIT ll>lw": 0.95}
