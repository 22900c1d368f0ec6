"""What makes PPO into Eqs. 3, 4 and 5: prompts, scores, anchors; and the report's figures."""

import copy
import dataclasses
import gc
import json
import os
import sys
from collections import Counter
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import ppo
import sample
import train_pit
from ablations import drafts, scores
from ablations.scores import difference_score, other_score
from conftest import ROOT, command, read_lines, tiny_run
from corpus import bills
from corpus.tokens import Column
from data import Fold, Pairs
from evaluation import measure, show, watch
from model import pad_rows
from pretrained import configure
from report import evaluate as report
from report import page
from report.prices import price_list
from reward import RewardModel, score
from runtime import own as runtime_own
from runtime import stages
from runtime.config import Config, PPOSection, StageSection
from runtime.files import load
from runtime.settings import UserError
from sample import Models, Sampler
from train_reward import new_gpt


@pytest.fixture(scope="module")
def models(bills_run) -> Models:
    """Make models of random weights, each of another seed."""
    run, data = bills_run
    def gpt(seed):
        run.config.run.seed = seed
        model = new_gpt(run, data)
        run.config.run.seed = 1
        return model
    policies = {"M_P^SFT": gpt(2), "M_PIT^SFT": gpt(3), "M_P^RL": gpt(4), "PIT stage 0": gpt(5),
                "PIT stage 1": gpt(6)}
    return Models(*(RewardModel(gpt(seed), run.config.reward) for seed in (7, 8)), policies)


def same(one, two) -> bool:
    """Return whether two models have the same weights."""
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


# --------------------------------------------------------------------------- prompts and scores


def test_the_fold_is_gone_through_before_a_pair_comes_again(bills_run):
    run, _ = bills_run
    ten = SimpleNamespace(folds={"rl": Fold(*(list(range(10)) for _ in range(3)))})

    def draw(name, iteration, number):
        return train_pit.draw_pairs(run, ten, name, iteration, number).x
    drawn = [i for it in range(6) for i in draw("rlhf", it, 5)]
    passes = [drawn[i:i + 10] for i in (0, 10, 20)]
    assert all(sorted(one) == list(range(10)) for one in passes) and passes[0] != passes[1]
    assert len(draw("rlhf", 3, 25)) == 25  # more than the fold
    assert set(Counter(draw("rlhf", 0, 40)).values()) == {4}
    assert draw("stage0", 0, 5) != drawn[:5]


def test_rlhf_reads_the_prompt_alone(bills_run):
    run, data = bills_run
    prompts = train_pit.draw_prompts(run, data, "rlhf", None, 1, 6)
    assert prompts.x == train_pit.draw_pairs(run, data, "rlhf", 1, 6).x
    assert prompts.ids == [data.policy_prompt(x) for x in prompts.x]
    assert prompts.y_ref == [[]] * 6 and prompts.source == [""] * 6


def test_stage_0_reads_each_prompt_with_y_l_and_with_y_w(bills_run):
    run, data = bills_run
    prompts = train_pit.draw_data_references(run, data, "stage0", None, 2, 6)
    pairs = train_pit.draw_pairs(run, data, "stage0", 2, 3)
    seen = Counter((tuple(x), tuple(y), s) for x, y, s in zip(prompts.x, prompts.y_ref,
                                                             prompts.source))
    assert seen == Counter((tuple(pairs.x[i]), tuple(getattr(pairs, s)[i]), s)
                           for i in range(3) for s in ("y_l", "y_w"))
    assert prompts.ids == [data.pit_prompt(x, y) for x, y in zip(prompts.x, prompts.y_ref)]


def test_stage_1_reads_responses_that_the_policy_gives_now(bills_run, models):
    run, data = bills_run
    draw = partial(train_pit.draw_new_references, run, data, "stage1", models, None)
    first, again = draw(1, 6), draw(1 + len(data.folds["rl"]), 6)
    assert set(map(tuple, first.y_ref)).isdisjoint(map(tuple, again.y_ref))  # drawn afresh
    assert first.source == ["M_P^RL"] * 6
    assert first.ids == [data.pit_prompt(x, y) for x, y in zip(first.x, first.y_ref)]
    assert draw(1, 6).y_ref == first.y_ref  # by numbers of the iteration


def test_a_rollout_that_is_not_finite_is_refused_before_it_is_logged(bills_run, monkeypatch):
    run, data = bills_run
    rows = pad_rows([[1]] * 2, [[2], [3]])
    zeros, logged = torch.zeros(rows.tokens.shape), []
    monkeypatch.setattr(run, "log", lambda *line: logged.append(line))
    prompts = train_pit.draw_prompts(run, data, "rlhf", None, 1, 2)
    score = torch.tensor([1.0, float("nan")])
    rollout = ppo.Rollout(rows, *[zeros] * 5, score, score > 0)
    with pytest.raises(UserError, match="rlhf, iteration 7: reward not finite"):
        watch.observe(run, data, "rlhf", 2.0, 7, prompts, rollout)
    assert not logged


def sampler_of(run, data) -> Sampler:
    return Sampler(run, data, 1.0, torch.Generator().manual_seed(0))


def test_the_best_of_some_samples_may_be_the_draft(bills_run, models, monkeypatch):
    run, data = bills_run
    x = [data.folds["test"].x[i] for i in range(6)]
    best, source = drafts.best(sampler_of(run, data), models, None, x, 3)
    assert best == report.best_of(sampler_of(run, data), models, x, 3)
    assert source == ["best of M_P^RL"] * 6
    monkeypatch.setattr(run.config.stage1, "reference", "best")
    monkeypatch.setattr(run.config.stage1, "best_of", 3)
    prompts = train_pit.draw_new_references(run, data, "stage1", models, None, 1, 6)
    sampler = Sampler(run, data, 1.0, run.generator("stage1 references 1"))
    assert prompts.y_ref == drafts.best(sampler, models, None, prompts.x, 3)[0]


def test_half_of_the_drafts_may_be_the_policys_own_rewrites(bills_run, models, monkeypatch):
    run, data = bills_run
    policy = models.policies["M_PIT^SFT"]
    monkeypatch.setattr(run.config.stage1, "reference", "improved")
    prompts = train_pit.draw_new_references(run, data, "stage1", models, policy, 1, 6)
    sampler = Sampler(run, data, 1.0, run.generator("stage1 references 1"))
    y = sample.answer(sampler, models.policies["M_P^RL"], prompts.x)
    assert prompts.y_ref[:3] == y[:3]
    assert prompts.y_ref[3:] == sample.improve(sampler, policy, prompts.x[3:], y[3:]) != y[3:]
    assert prompts.source == ["M_P^RL"] * 3 + ["PIT"] * 3


OWN = '''
def spare(x, y_ref, y):
    assert all(isinstance(text, str) for text in x + y_ref + y)
    return [len(before) - len(after) for before, after in zip(y_ref, y)]
def short(x, y_ref, y):
    return [1.0]
def unknown(x, y_ref, y):
    return [float("nan")] * len(y)
def broken(x, y_ref, y):
    return [1 / 0]
'''


@pytest.fixture
def own_rows(bills_run, tmp_path):
    """Return the path of a file of scores, prompts with two responses, and their texts."""
    _, data = bills_run
    path = tmp_path / "own.py"
    path.write_text(OWN)
    x, y_ref = [data.folds["test"].x[i] for i in range(2)], [data.response("6 in all: tea 6."), []]
    y = [data.response("6 in all."), data.response("You fool! 7 in all: tea 7.")]
    ids = [data.pit_prompt(*pair) for pair in zip(x, y_ref)]
    return path, ppo.Prompts(ids, x, y_ref, ["M_P^RL"] * 2), data.pit_rows(x, y_ref, y)


def test_a_function_of_texts_may_be_the_score(bills_run, own_rows):
    path, prompts, rows = own_rows
    score = other_score(bills_run[1], None, f"{path}:spare")
    assert score(prompts, rows).tolist() == [7.0, -26.0]


@pytest.mark.parametrize("name, said", [
    ("short", "own.py:short returned 1 numbers for 2 responses"),
    ("unknown", "own.py:unknown returned nan for the response '6 in all.'; expected finite"),
    ("broken", "own.py:broken failed: ZeroDivisionError"),
    ("missing", "own.py:missing: cannot load it: AttributeError")])
def test_a_function_that_gives_no_scores_is_named(bills_run, own_rows, name, said):
    path, prompts, rows = own_rows
    with pytest.raises(UserError, match=said):
        other_score(bills_run[1], None, f"{path}:{name}")(prompts, rows)


def test_functions_are_tried_with_one_pair_before_training(bills_run, monkeypatch):
    run, data = bills_run
    config, seen = copy.deepcopy(run.config), []
    config.rlhf.score, config.pit.score, config.eval.judge = "a.py:f", "difference", "a.py:j"
    monkeypatch.setattr(scores, "asked", lambda *given: seen.append(given))
    scores.try_functions(config, data)
    config.rlhf.score, config.pit.score, config.eval.judge = "", "a.py:g", ""
    scores.try_functions(config, data)
    pair = data.folds["valid"][[0]]
    y_w, y_l = ([data.tokenizer.decode(side[0])] for side in (pair.y_w, pair.y_l))
    x = [show.prompt_text(data, pair.x[0])]
    assert seen == [("a.py:f", x, [""], y_w), ("a.py:j", x, y_w), ("a.py:g", x, y_l, y_w)]


def test_what_is_wrong_on_one_rank_is_told_by_all(bills_run, own_rows, monkeypatch):
    path, prompts, rows = own_rows
    elsewhere = "failed: KeyError: 'elsewhere'"
    monkeypatch.setattr(runtime_own, "gather", lambda found: found + [elsewhere])
    with pytest.raises(UserError, match="own.py:spare failed: KeyError: 'elsewhere'"):
        other_score(bills_run[1], None, f"{path}:spare")(prompts, rows)


@pytest.mark.parametrize("field", ["pit.score", "rlhf.score", "eval.judge"])
def test_a_function_that_cannot_be_loaded_is_refused_before_any_training(tmp_path, monkeypatch,
                                                                         field):
    path = tmp_path / "own.py"
    path.write_text(OWN)
    monkeypatch.setattr(train_pit, "Run", None)
    config = str(ROOT / "configs" / "tiny.toml")
    monkeypatch.setattr(sys, "argv", ["x", "--config", config, f"--{field}={path}:spar"])
    with pytest.raises(UserError, match="own.py:spar: cannot load it"):
        train_pit.main()


def test_a_stage_knows_which_function_it_was_trained_with(tmp_path):
    path = tmp_path / "own.py"
    fields = [f"--rlhf.score={path}:spare", f"--pit.score={path}:spare"]

    def noted():
        config = configure.load_config(str(ROOT / "configs" / "tiny.toml"), fields)
        assert config.rlhf.score_file == config.pit.score_file
        return config.rlhf.score_file
    path.write_text(OWN)
    first = noted()
    path.write_text(OWN + "# changed")
    assert noted() != first
    path.unlink()
    with pytest.raises(UserError, match="rlhf.score = .*own.py:spare': cannot read .*own.py"):
        noted()
    for wrong in ("--rlhf.score=gap", "--pit.score=best", "--pit.score="):
        with pytest.raises(UserError, match="score = .*: expected .*'file.py:function'"):
            configure.load_config(str(ROOT / "configs" / "tiny.toml"), [wrong])
    with pytest.raises(UserError, match="stage1.score: the stages of PIT share pit.score"):
        configure.load_config(str(ROOT / "configs" / "tiny.toml"), ["--stage1.score=a.py:b"])


def test_batches_that_a_stage_samples():
    critic, group = PPOSection(), PPOSection(advantage="group", group=4)
    for reference, alone, shared in (("data", 8, 8), ("policy", 16, 10), ("best", 32, 14),
                                     ("improved", 20, 11)):
        stage = StageSection(iterations=8, reference=reference, best_of=3)
        assert (stage.batches(critic), stage.batches(group)) == (alone, shared)


def test_the_reward_model_reads_the_tokens_of_the_rollout(bills_run, models):
    run, data = bills_run
    prompts = train_pit.draw_data_references(run, data, "stage0", None, 1, 4)
    rows = pad_rows(prompts.ids, [[5, 6, data.tokenizer.eos]] * 4)
    gap = score(models.rpit, rows)
    by_hand = measure.gap_scores(data, models.rpit, prompts.x, [[5, 6]] * 4, prompts.y_ref)
    assert gap.tolist() == pytest.approx(by_hand.tolist(), abs=1e-4)


def test_the_difference_is_of_two_pointwise_scores(bills_run, models):
    run, data = bills_run
    prompts = train_pit.draw_data_references(run, data, "stage0", None, 1, 4)
    rows = pad_rows(prompts.ids, [[5, 6, data.tokenizer.eos], [7]] * 2)
    found = difference_score(data, models.rp, prompts, rows)
    for i, y in enumerate([[5, 6], [7]] * 2):
        own, other = (measure.rp_scores(data, models.rp, [prompts.x[i]], [text])
                      for text in (y, prompts.y_ref[i]))
        assert found[i].item() == pytest.approx((own - other).item(), abs=1e-4)


def test_the_scale_is_that_of_the_anchors_samples(bills_run, models, monkeypatch):
    run, data = bills_run
    logged, raw, read = {}, torch.arange(32.0) % 4, []  # mean 1.5, variance 1.25
    monkeypatch.setattr(run, "log", lambda name, line: logged.update(line))
    anchor = models.policies["M_PIT^SFT"]
    task = ppo.Task("stage0", run.config.stage0, anchor,
                    partial(train_pit.draw_data_references, run, data, "stage0"),
                    lambda prompts, rows: read.append((prompts, rows)) or raw * len(read), None)
    found = train_pit.measure_scale(run, data, task)
    assert found == pytest.approx([1.5, 1.25 ** 0.5])
    prompts, rows = read[0]
    numbers = torch.rand(32, 40, generator=run.generator("stage0 spread"))  # of four batches
    samples = sample.sample(anchor, prompts.ids, numbers, 1.0, data.tokenizer.eos)[0]
    assert torch.equal(rows.tokens, samples.tokens) and prompts.x == task.draw(None, 0, 32).x
    copies = pad_rows(prompts.ids, [data.add_eos(ids) for ids in prompts.y_ref])
    assert torch.equal(read[1][1].tokens, copies.tokens)  # whose scores are twice as high here
    ended = [ids[-1] == data.tokenizer.eos for ids in samples.responses()]
    lowest = min(score for score, whole in zip(raw.tolist(), ended) if whole)
    assert logged == {"stage": "stage0", "step": 0, "score_mean": found[0],
                      "score_std": found[1],
                      "copy_mean": pytest.approx(3.0),
                      "copy_std": pytest.approx(2 * 1.25 ** 0.5),
                      "score_min": pytest.approx((lowest - 1.5) / 1.25 ** 0.5)}


def test_the_lowest_score_is_of_responses_with_their_end(bills_run, models, monkeypatch, capsys):
    run, data = bills_run
    logged, eos = {}, data.tokenizer.eos
    monkeypatch.setattr(run, "log", lambda name, line: logged.update(line))
    task = ppo.Task("stage0", run.config.stage0, models.policies["M_PIT^SFT"],
                    partial(train_pit.draw_data_references, run, data, "stage0"),
                    lambda prompts, rows: torch.tensor([-100.0, -6.0] + 30 * [1.0]), None)
    for ends, lowest in ((32 * [[7]], None), ([[7]] + 31 * [[7, eos]], -6.0)):
        monkeypatch.setattr(train_pit, "responses_to", lambda *arguments, ends=ends: ends)
        mean, spread = train_pit.measure_scale(run, data, task)
        assert mean == pytest.approx(-76 / 32) and spread > 1
        assert logged["score_min"] == (
            lowest and pytest.approx((lowest - mean) / spread))
    assert "ppo.no_eos_score" not in capsys.readouterr().err
    monkeypatch.setattr(run.config.ppo, "no_eos_score", 0.1)  # between the two
    train_pit.measure_scale(run, data, task)
    assert "warning: stage0: ppo.no_eos_score = 0.1 is no lower than what 3%" in (
        capsys.readouterr().err)


# ---------------------------------------------------------------------------------- when to stop


@pytest.mark.parametrize("stop, gaps, steps", [
    (False, [(1.0, 0.5), (0.5, 0.5), (2.0, 0.5)], 3), (True, [(1.0, 0.5), (0.5, 0.5)], 2),
    (True, [(0.4, 0.5)], 1), (True, [(1.0, 0.5), (0.6, 0.5), (0.7, 0.5)], 3)])
def test_stop_ends_where_a_step_is_no_better_than_a_copy(bills_run, monkeypatch, capsys, stop, gaps,
                                                         steps):
    said, texts, read = chain_shown(bills_run, monkeypatch, capsys, stop, gaps)
    assert [line[:3] for line in said[:steps]] == ["y_1", "y_2", "y_3"][:steps]
    assert said[steps:] == [f"no better than a copy: y_{steps - 1} stays"] * (
        stop and gaps[-1][0] <= gaps[-1][1])
    assert len(read) == steps and read[0] == [texts[1], texts[0]]  # an improvement, and a copy


def test_stop_ends_at_a_copy_whatever_the_rounding(bills_run, monkeypatch, capsys):
    same = ["1 in all: tea 1."] * 4
    said, _, _ = chain_shown(bills_run, monkeypatch, capsys, True, [(1.0, 0.999)], same)
    assert said[1:] == ["no better than a copy: y_0 stays"]


def chain_shown(bills_run, monkeypatch, capsys, stop: bool, gaps, texts=tuple(
        f"{k} in all: tea {k}." for k in range(4))):
    """Return what is printed of improvements of texts[0] whose gaps, and those of copies, are
    these; and what R_PIT reads."""
    run, data = bills_run
    rows, answers = [], iter([data.response(text)] for text in texts[1:])
    monkeypatch.setattr(sample, "improve", lambda *arguments: next(answers))
    monkeypatch.setattr(sample.reward, "score",
                        lambda model, read: rows.append(read) or torch.tensor(gaps[len(rows) - 1]))
    policies = dict.fromkeys(map(stages.title, run.config.stages()))
    models = SimpleNamespace(policies=policies, rpit=None)
    args = SimpleNamespace(ref=texts[0], iters=3, stop=stop, explain=False)
    sampler = Sampler(run, data, 1.0, None)
    sample.show_improvements(sampler, models, "What is the bill for tea?", args)
    return capsys.readouterr().out.splitlines()[2:], texts, [
        [data.tokenizer.decode(data.strip_eos(ids)) for ids in both.responses()] for both in rows]


# --------------------------------------------------------------------------------- the stages


def test_each_stage_starts_from_and_is_anchored_to_what_the_method_says(bills_run, models,
                                                                        monkeypatch):
    run, data = bills_run
    seen = []

    def train(run, data, task, learner):
        policy, critic = learner.policy.model, learner.critic.model
        seen.append((task, copy.deepcopy(policy), copy.deepcopy(critic),
                     task.anchor, learner.scale, task.stage, learner.beta))
        policy.embedding.weight.data += 1  # as if it had learnt
        critic.head.bias.data += 1
        learner.beta = 0.7
    monkeypatch.setattr(ppo, "train", train)
    monkeypatch.setattr(train_pit, "measure_scale", lambda run, data, task: (
        [1.0, 2.0] if task.name == "rlhf" else [3.0, 4.0]))
    monkeypatch.setattr(run.config, "stage1", StageSection(iterations=7, beta=0.2))
    sft, pit_sft = models.policies["M_P^SFT"], models.policies["M_PIT^SFT"]
    before = copy.deepcopy(sft), copy.deepcopy(pit_sft)
    train_pit.train_rlhf(run, data, models)
    zero = train_pit.train_pit_stage(run, data, "stage0", models, None)
    train_pit.train_pit_stage(run, data, "stage1", models, zero)
    more = copy.deepcopy(sft)
    more.embedding.weight.data += 2
    monkeypatch.setitem(models.policies, "M_P^SFT equal budget", more)
    train_pit.train_rlhf_more(run, data, models)
    task, policy, critic, anchor, spread, stage, beta = seen[0]  # Eq. 3
    assert same(policy, sft) and anchor is sft and spread == [1.0, 2.0]
    assert beta == run.config.rlhf.beta
    assert same(critic.trunk, models.rp.trunk) and critic.head.weight.abs().sum() == 0
    assert task.name == "rlhf" and stage == run.config.rlhf == StageSection()
    task, policy, critic, anchor, spread, stage, beta = seen[1]  # Eq. 4
    assert same(policy, pit_sft) and anchor is pit_sft and spread == [3.0, 4.0]
    assert same(critic.trunk, models.rpit.trunk) and stage == run.config.stage0
    assert set(task.draw(None, 1, 4).source) == {"y_l", "y_w"} and task.name == "stage0"
    task, policy, critic, anchor, spread, stage, beta = seen[2]  # Eq. 5, on from stage 0
    assert torch.equal(policy.embedding.weight, pit_sft.embedding.weight + 1) and beta == 0.2
    assert anchor is pit_sft and spread == [3.0, 4.0] and critic.head.bias.item() == 1
    assert task.draw(None, 1, 4).source == ["M_P^RL"] * 4 and stage == run.config.stage1
    task, policy, critic, anchor, spread, stage, beta = seen[3]  # the rival by one pass
    assert same(policy, more) and anchor is more and beta == run.config.rlhf.beta
    assert same(critic.trunk, models.rp.trunk) and critic.head.bias.item() == 0
    assert stage == StageSection(iterations=114) and task.name == "rlhf_more"  # 50 + 50 + 2 * 7
    assert set(task.draw(None, 1, 4).source) == {""}  # prompts alone, as in Eq. 3
    assert same(sft, before[0]) and same(pit_sft, before[1])  # the models are left as they were


def test_with_groups_a_stage_has_no_critic(bills_run, models, monkeypatch):
    run, data = bills_run
    seen = []
    monkeypatch.setattr(run.config.ppo, "advantage", "group")
    monkeypatch.setattr(ppo, "train", lambda run, data, task, learner: seen.append(learner))
    monkeypatch.setattr(train_pit, "measure_scale", lambda run, data, task: [1.0, 2.0])
    zero = train_pit.train_pit_stage(run, data, "stage0", models, None)
    one = train_pit.train_pit_stage(run, data, "stage1", models, zero)
    assert set(zero) == set(one) == {"model", "scale"}
    assert [learner.critic for learner in seen] == [None, None]
    assert {learner.group for learner in seen} == {run.config.ppo.group}


def test_a_stage_that_was_cut_off_keeps_its_scale(bills_run, models, monkeypatch):
    run, data = bills_run
    monkeypatch.setattr(train_pit, "measure_scale", lambda *_: pytest.fail("measured again"))
    monkeypatch.setattr(run, "resumed", {"state": {"scale": (1.0, 2.0)}})
    monkeypatch.setattr(ppo, "train", lambda run, data, task, learner: None)
    assert train_pit.train_rlhf(run, data, models)["scale"] == (1.0, 2.0)


@dataclasses.dataclass
class ThreeStages(Config):
    stage2: StageSection = dataclasses.field(default_factory=StageSection)


def test_a_third_stage_is_one_line_of_the_config(tmp_path, monkeypatch, capsys):
    def call(script, *arguments):
        monkeypatch.setattr(sys, "argv", [
            "script", "--config", str(ROOT / "configs" / "tiny.toml"), f"--run.dir={tmp_path}",
            "--pit.curriculum=['stage0', 'stage1', 'stage2']", "--stage2.iterations=2",
            "--stage2.reference=data", "--sft.steps=2", "--rlhf.iterations=2", "--eval.prompts=2",
            "--eval.temperatures=[1.0]", "--eval.iterations=1", "--eval.equal_budget=false",
            *arguments])
        script.main()
        return capsys.readouterr().out

    with pytest.raises(UserError, match="unknown section 'stage2'"):
        call(train_pit)
    monkeypatch.setattr(configure, "Config", ThreeStages)
    with pytest.raises(UserError, match="pit.curriculum: 'stage3'; did you mean 'stage2'"):
        call(train_pit, "--pit.curriculum=['stage3']")
    call(train_pit)
    gc.collect()  # with the run its lock goes
    lines = read_lines(tmp_path / "tiny" / "metrics.jsonl")
    assert [line["step"] for line in lines if line["stage"] == "stage2"] == [1, 2]
    rows = json.loads((tmp_path / "tiny" / "report.json").read_text())["rows"]
    against = [row["against"] for row in rows if row["system"] == "PIT stage 2"]
    assert against == ["M_P^RL", "M_P^SFT", "M_PIT^SFT"]  # it is the last stage
    before, after = (load(tmp_path / "tiny" / f"{name}.pt")["model"] for name in (
        "stage1", "stage2"))
    assert any(not torch.equal(w, after[name]) for name, w in before.items())
    assert "y_1" in call(sample, "--prompt=How much is tea?", "--iters=1")


# ------------------------------------------------------------------------------------- sampling


def test_responses_are_those_of_each_prompt_without_their_end(bills_run, models):
    run, data = bills_run
    policy, fold = models.policies["M_P^RL"], data.folds["test"]
    x = [fold.x[i] for i in range(8)]
    greedy = Sampler(run, data, 0, torch.Generator())
    together = sample.answer(greedy, policy, x)
    assert together == [sample.answer(greedy, policy, [ids])[0] for ids in x]
    assert all(data.tokenizer.eos not in y and len(y) <= 40 for y in together)
    better = sample.improve(greedy, policy, x, together)
    rows = sample.sample(policy, [data.pit_prompt(*pair) for pair in zip(x, together)],
                         torch.zeros(8, 40), 0, data.tokenizer.eos)[0]
    assert better == [data.strip_eos(ids) for ids in rows.responses()]


def test_ranks_with_unequal_shares_sample_as_many_batches(bills_run, models, monkeypatch):
    """Check that no rank is left with a batch more: where weights are sharded it would hang."""
    run, data = bills_run
    sizes, sampler = [], Sampler(run, data, 1.0, torch.Generator())
    monkeypatch.setattr(run.config.ppo, "batch", 2)
    monkeypatch.setattr(sample, "in_step", lambda count: max(count, 4))  # another rank has 7
    monkeypatch.setattr(sample, "sample", lambda policy, prompts, *rest: sizes.append(
        len(prompts)) or (SimpleNamespace(responses=lambda: prompts), None))
    prompts = [[i] for i in range(6)]
    assert sample.responses_to(sampler, None, prompts) == prompts
    assert sizes == [2, 2, 1, 1]


def test_copies_of_y_l_and_of_y_w_are_told_apart():
    zeros = torch.zeros(4, 2)
    rollout = ppo.Rollout(pad_rows([[1]] * 4, [[2]] * 4), *[zeros] * 5, zeros[0], zeros[0])

    def copies(y_ref, source, y):
        figures = watch.figures_of(rollout, ppo.Prompts([], [], y_ref, source), y)
        return {name: value for name, value in figures.items() if "copies" in name}
    y_ref = [[1], [2, 3], [4], [5]]
    assert copies(y_ref, ["y_l", "y_l", "y_w", "y_w"], [[1], [2], [4], [5]]) == {
        "copies": 0.75, "copies y_l": 0.5, "copies y_w": 1.0}
    assert copies(y_ref, ["M_P^RL"] * 4, y_ref) == {"copies": 1.0}
    assert copies([[]] * 4, [""] * 4, [[]] * 4) == {"copies": 0.0}


def test_new_words_are_marked_on_a_terminal(monkeypatch):
    before, after = "tea 5, hat 9.", "Sure! tea 5, hat 13."
    assert show.marked(before, after) == after
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    assert show.marked(before, after) == (
        "\033[1;32mSure!\033[0m tea 5, hat \033[1;32m13.\033[0m")
    assert show.marked("a b", "a").split() == ["a"]


# --------------------------------------------------------------------------------------- report


class FixedJudge:
    """A judge whose grade of a response is its length."""
    is_gold = bills = True

    def grades(self, y):
        return np.array([len(ids) for ids in y], dtype=float)

    def aspects(self, y):
        return [{"length": len(ids), "empty": float(not ids)} for ids in y]


def test_a_row_of_the_table_by_hand():
    # wins, a tie and a loss: signs 1, 1, 0, -1; mean 1/4, variance (2 * 9 + 1 + 25) / 16 / 3
    table = report.Table(FixedJudge(), longest=3)
    y, other = [[1, 1, 1], [2, 2], [3], []], [[1], [2], [4], [5, 5]]
    table.add("A", y, "B", other, 0.5, 2, y_ref=[[1, 1, 1], [2], [3], [9]])
    row, = table.rows
    half = 100 * 1.96 * ((18 + 1 + 25) / 48 / 4) ** 0.5
    assert row == {
        "system": "A", "against": "B", "iteration": 2, "temperature": 0.5, "win": 50, "tie": 25,
        "lose": 25, "delta": 25, "ci_low": pytest.approx(25 - half), "gold": 1.5,
        "ci_high": min(100, 25 + half), "equal_length": row["equal_length"],
        "grades": [3.0, 2.0, 1.0, 0.0], "aspects": {"length": 1.5, "empty": 0.25},
        "length": 1.5, "cut": 25, "copies": 50}
    longer = np.array([2, 1, 0, -2])
    assert row["equal_length"] == [100 * x for x in measure.at_equal_length(
        np.array([1, 1, 0, -1]), longer)]
    table.add("A", y, "B", other, 0.5)
    assert table.rows[1]["copies"] is None


def test_the_hidden_judge_grades_the_text(bills_run, models):
    run, data = bills_run
    fold = data.folds["test"]
    x = [fold.x[i] for i in range(5)]
    judge = report.Judge(data, None, x)
    y = [fold.y_w[i] for i in range(5)]
    texts = [(data.tokenizer.decode(a), data.tokenizer.decode(b)) for a, b in zip(x, y)]
    assert judge.grades(y) == pytest.approx([bills.grade(*pair) for pair in texts])
    assert judge.aspects(y)[0] == bills.judge(*texts[0]) and judge.is_gold


def test_real_data_is_judged_by_a_held_out_reward_model(bills_run, models):
    _, data = bills_run
    fold = data.folds["test"]
    x, y = ([part[i] for i in range(5)] for part in (fold.x, fold.y_w))
    judge = report.Judge(data, models.rp, x)
    assert not judge.is_gold and "held out" in judge.name
    expected = measure.rp_scores(data, models.rp, x, y)
    assert judge.grades(y) == pytest.approx(expected.tolist(), abs=1e-4)
    assert judge.grades(y) is judge.grades(y)  # the same list is graded once


def test_the_users_judge_grades_the_texts(bills_run, models, tmp_path):
    data, path = bills_run[1], tmp_path / "own.py"
    path.write_text("def words(x, y): return [len(b.split()) - len(a.split()) "
                    "for a, b in zip(x, y)]\ndef one(x, y): return [1]\n")
    x, y = ([part[i] for i in range(5)] for part in (data.folds["test"].x, data.folds["test"].y_w))
    own = tiny_run(tmp_path, data__files=["no.jsonl"], eval__judge=f"{path}:words")
    assert "judge" not in stages.inputs_of(own.config)  # no reward model is trained
    judge = report.Judge(data, report.judge_of(own, data, models), x)
    assert (judge.is_gold, judge.bills, judge.name) == (True, False, f"{path}:words")
    decode = data.tokenizer.decode
    assert judge.grades(y).tolist() == [len(decode(b).split()) - len(decode(a).split())
                                        for a, b in zip(x, y)]
    own.config.eval.judge = f"{path}:one"
    judge = report.Judge(data, report.judge_of(own, data, models), x)
    with pytest.raises(UserError, match="own.py:one returned 1 numbers for 5 responses"):
        judge.grades(y)


def test_the_first_pair_of_each_prompt_is_kept():
    fold = Fold([[1], [1], [2], [1], [3]], [[10], [11], [12], [13], [14]], [[5]] * 5)
    assert report.once_each(fold, 9) == Pairs([[1], [2], [3]], [[10], [12], [14]], [[5]] * 3)
    assert report.once_each(fold, 2) == Pairs([[1], [2]], [[10], [12]], [[5]] * 2)


def with_test_pairs(data, chosen: list[int]):
    """Return the data with some of the test pairs only."""
    some = data.folds["test"][chosen]
    fold = Fold(*map(Column.of, (some.x, some.y_w, some.y_l)))
    return dataclasses.replace(data, folds=data.folds | {"test": fold})


@pytest.fixture
def evaluated(bills_run, monkeypatch):
    """Yield a run for evaluations of models that it has not trained; the file that these keep."""
    monkeypatch.setattr(report, "inputs_of", lambda config: ["data"])
    monkeypatch.setattr(page, "rl_inputs", lambda config: [])  # nor has it logs to draw
    monkeypatch.setattr(bills_run[0].config.data, "max_response", 12)  # such models never end
    path = bills_run[0].folder / "evaluation.part.pt"
    yield bills_run[0], path
    path.unlink(missing_ok=True)


def test_an_evaluation_that_was_cut_off_goes_on(evaluated, bills_run, models, monkeypatch):
    run, path = evaluated
    data, calls, stop = with_test_pairs(bills_run[1], [0, 1, 2, 3]), [], 7

    def watched(sampling):
        def call(*arguments):
            calls.append(sampling)
            if len(calls) == stop:
                raise KeyboardInterrupt
            return sampling(*arguments)
        return call

    whole = report.evaluate(run, data, models)
    path.unlink()
    for name in ("answer", "improve", "best_of"):
        monkeypatch.setattr(report, name, watched(getattr(report, name)))
    with pytest.raises(KeyboardInterrupt):
        report.evaluate(run, data, models)
    done, stop = len(calls) - 1, None
    calls.clear()
    again = report.evaluate(run, data, models)
    first = len(calls)
    assert all(again[key] == whole[key] for key in ("rows", "examples", "reward", "responses"))
    assert again["seconds"]["evaluation"] > 0 and done == 6
    calls.clear()
    report.evaluate(run, data, models)
    most = len(calls)
    monkeypatch.setattr(run.config.model, "micro_batch", 999)  # by which only the rounding changes
    report.evaluate(run, data, models)
    assert len(calls) == 2 * most < 2 * first
    monkeypatch.setattr(run.config.eval, "seed", 2)  # of another one nothing is taken
    report.evaluate(run, data, models)
    assert len(calls) == 2 * most + first + done
    os.utime(run.folder / "data.pt")  # nor of other checkpoints
    report.evaluate(run, data, models)
    assert len(calls) == 2 * (most + first + done)


def test_what_the_split_keeps_together_is_asked_once(evaluated, bills_run, models, monkeypatch):
    """Ask a bill once: in other words it is no independent trial, and comes last in a fold."""
    run, _ = evaluated
    data = with_test_pairs(bills_run[1], [0, 1, 2, 3])
    monkeypatch.setattr(run.config.data, "test", 3)
    assert report.evaluate(run, data, models)["prompts"] == 3


def test_an_evaluation_is_kept_until_all_is_written(evaluated, bills_run, models, monkeypatch):
    run, path = evaluated
    found = report.evaluate(run, with_test_pairs(bills_run[1], [0, 1]), models)

    def full(where, write, real=page.files.write_whole):
        if where.name == "report.md":
            raise UserError(f"{where}: cannot write it")
        real(where, write)

    with monkeypatch.context() as patch, pytest.raises(UserError, match="report.md: cannot write"):
        patch.setattr(page.files, "write_whole", full)
        page.write(run, found)
    assert path.exists()
    page.write(run, found)
    assert not path.exists() and (run.folder / "report.md").exists()


def test_a_judge_of_the_users_makes_the_gold_of_a_report(evaluated, bills_run, models, monkeypatch,
                                                         tmp_path):
    run, path = evaluated[0], tmp_path / "own.py"
    path.write_text("def size(x, y): return list(map(len, y))\n")
    for section, key, value in (("eval", "judge", f"{path}:size"), ("data", "files", ["none"])):
        monkeypatch.setattr(getattr(run.config, section), key, value)
    data = with_test_pairs(bills_run[1], [0, 1])
    made = report.evaluate(run, data, models)
    y_w, decode = made["rows"][-1], data.tokenizer.decode
    assert y_w["gold"] == np.mean([len(decode(y)) for y in data.folds["test"].y_w])
    assert y_w["aspects"] == made["prices"] == {}
    assert "judge of this report" not in made["reward"]
    assert "labels, held-out pairs, judge (the ceiling)" in made["reward"]
    steps = [step for example in made["examples"] for step in example["steps"]]
    assert [step["gold"] for step in steps] == [len(step["y"]) for step in steps]
    kept = report.evaluated(run)
    run.config.eval.judge = "another.py:judge"  # the responses stay
    assert report.evaluated(run) == kept


def test_a_prompt_with_many_pairs_is_answered_once(evaluated, bills_run, models):
    """Check it as on summaries, where a post has several pairs, all of them held out."""
    many = with_test_pairs(bills_run[1], [0, 1, 0, 2, 1])
    made = report.evaluate(evaluated[0], many, models)
    assert made["prompts"] == len(made["responses"][0]["x"]) == 3
    assert made["reward"]["R_P"]["pairs"] == 5


def test_best_of_takes_the_highest_r_p(bills_run, models):
    run, data = bills_run
    x = [data.folds["test"].x[i] for i in range(6)]
    policy = models.policies["M_P^RL"]
    best, again = (Sampler(run, data, 1.0, torch.Generator().manual_seed(0)) for _ in range(2))
    best = report.best_of(best, models, x, 3)
    tries = [sample.answer(again, policy, x) for _ in range(3)]
    scores = np.stack([measure.rp_scores(data, models.rp, x, y) for y in tries])
    for i, k in enumerate(scores.argmax(0).tolist()):
        assert best[i] == tries[k][i]


def test_prices_need_two_questions(bills_run, models):
    run, data = bills_run
    x = data.folds["valid"].x
    assert price_list(data, models, x[:1], run.config.data) == {}
    assert np.isfinite(price_list(data, models, x[:2], run.config.data)["courtesy"]["R_P"]).all()


def test_agreement_leaves_out_ties_of_the_judge():
    first, second = np.array([2.0, 1, 3, 0, 5]), np.array([1.0, 2, 0, 4, 5])
    better = np.array([1.0, 1, 0, -1, 1])  # right, wrong, a tie, right, and equal scores: wrong
    a = measure.pair_agreement(first, second, better)
    assert (a["accuracy"], a["pairs"]) == (0.5, 4)


def test_every_example_of_a_report_stands_on_its_page():
    rows = [dict(system="S", against="B", iteration=1, temperature=0.5, win=1, tie=2, lose=3,
                 delta=-2, ci_low=-4, ci_high=0, equal_length=[-1, -3, 1], gold=None, aspects={},
                 length=7, cut=3, copies=None)]
    steps = [{"y": "first draft", "r_gap": None, "a copy": None, "gold": None},
             {"y": "second\ndraft", "r_gap": 1.5, "a copy": 0.75, "gold": 0.25}]
    text = page.as_markdown({
        "name": "n", "seed": 1, "eval_seed": 1, "prompts": 2, "split": "test", "judge": "J",
        "rows": rows,
        "reward": {"R_P": {"accuracy": 0.5, "ci_low": 0.25, "ci_high": 0.75, "pairs": 9}},
        "examples": [{"x": "a question", "temperature": 0.5, "steps": steps}],
        "data": {"read": 4}, "seconds": {"sft": 1.0, "rp": 2.0}, "peak_tflop_a_second": 0.25,
        "tflop": {"sft": 0.125, "rp": 0.25},
        "prices": {"courtesy": {"right": 0.6, "R_P": [0.5, 0.4, 0.6], "R_PIT": [0.1, -0.2, 0.3]}}})
    for part in ("| S | 0.5 | 1 |  | B | 1.0 | 2.0 | 3.0 | -2.0 [-4.0, +0.0] | "
                 "-1.0 [-3.0, +1.0] | 7.0 | 3 |  |",
                 "| R_P | 0.500 | 0.250 to 0.750 | 9 |", "**a question** (T = 0.5)",
                 "- y_0: first draft\n",
                 "- y_1: second\n  draft (r_gap +1.50, a copy +0.75, gold +0.25)\n",
                 "| sft | 1 | 0.1 | 50 % |", "| all | 3 | 0.4 | 50 % |",
                 "| courtesy | +0.60 | +0.50 [+0.40, +0.60] | +0.10 [-0.20, +0.30] |"):
        assert part in text


def test_bills_can_be_looked_at():
    done = command("corpus/bills.py", "--pairs", "3", "--total", "last")
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0 and len(lines) == 3
    for line in lines:
        for side in ("chosen", "rejected"):
            assert line["grades"][side] == round(bills.grade(line["prompt"], line[side]), 2)


def test_each_row_of_the_report_compares_the_responses_that_it_names(monkeypatch, bills_run):
    """A response is the letters of the policies that wrote it, the draft's first."""
    run, data = bills_run
    rows, letters = [], {"M_P^SFT": "s", "M_P^RL": "r", "M_PIT^SFT": "p", "PIT stage 0": "0",
                         "PIT stage 1": "1"}
    monkeypatch.setattr(run.config.eval, "iterations", 2)
    monkeypatch.setattr(report, "answer", lambda sampler, policy, x: [policy])
    monkeypatch.setattr(report, "improve", lambda sampler, policy, x, y_ref: [y_ref[0] + policy])
    monkeypatch.setattr(report, "best_of", lambda *_: ["b"])
    table = SimpleNamespace(add=lambda name, y, against, other, T, i=0, y_ref=("",): rows.append(
        (name, *y, against, *other, T, i, *y_ref)))
    found = report.evaluate_at(run, data, SimpleNamespace(policies=letters), table, [[5]], 0.5,
                               lambda name, sampler, make: make(), None)
    assert found == {"sft": ["s"], "chain": [["r"], ["r1"], ["r11"]], "refined": []}
    assert rows == [
        ("M_P^SFT", "s", "M_P^RL", "r", 0.5, 0, ""), ("M_P^RL", "r", "M_P^SFT", "s", 0.5, 0, ""),
        ("best of 4", "b", "M_P^RL", "r", 0.5, 0, ""),
        ("M_PIT^SFT", "rp", "M_P^RL", "r", 0.5, 1, "r"),
        ("PIT stage 0", "r0", "M_P^RL", "r", 0.5, 1, "r"),
        ("PIT stage 0", "r00", "M_P^RL", "r", 0.5, 2, "r0"),
        ("PIT stage 1", "r1", "M_P^RL", "r", 0.5, 1, "r"),
        ("PIT stage 1", "r11", "M_P^RL", "r", 0.5, 2, "r1"),
        ("PIT stage 1", "s1", "M_P^SFT", "s", 0.5, 1, "s"),
        ("PIT stage 1", "r1", "M_PIT^SFT", "rp", 0.5, 1, "r")]
