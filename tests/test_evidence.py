"""The evidence: its arms, their choices and tables; and what Self-Refine is taught."""

import dataclasses
import json
import sys
from types import SimpleNamespace

import pytest
import torch

from conftest import ROOT, read_lines, tiny_run
from corpus import bills
from data import load_data
from pretrained.configure import load_config
from report import rivals, rubric
from runtime.run import NotFinite
from runtime.settings import UserError
from runtime.stages import inputs_of
from train_reward import new_gpt

sys.path.insert(0, str(ROOT / "benchmarks"))

import evidence  # noqa: E402
import tables  # noqa: E402

ARMS = evidence.ARMS  # `made` has others


def test_intervals_are_students():
    assert tables.half_width([1.0, 2.0, 3.0]) == pytest.approx(4.303 / 3 ** 0.5)
    assert tables.half_width([0.0, 1.0] * 10) == pytest.approx(2.262 * (5 / 19 / 20) ** 0.5)
    assert tables.cell([1.0, 2.0, 3.0]) == "+2.0 ± 2.5"
    assert tables.cell([4.0, 5.0, 6.0]) == "+5.0 ± 2.5 *"
    assert tables.cell([0.5], ".3f") == "0.500"


# ------------------------------------------------------------------------- a taught Self-Refine


def test_the_refiner_is_taught_answers_notes_and_rewrites(tmp_path):
    run = tiny_run(tmp_path, tokenizer__vocab=200, model__context=208)
    data = load_data(run)
    fold = data.folds["sft"]
    examples = rivals.refiner_examples(run, data)
    show = data.tokenizer.show
    reads = [(show(x), data.tokenizer.decode(y)) for x, y in zip(examples.x, examples.y_w)]
    answers = [(show(data.policy_prompt(x)), data.tokenizer.decode(y))
               for x, y in zip(fold.x, fold.y_w)]
    assert [pair for pair in reads if "<|draft|>" not in pair[0]] == answers
    notes = [pair for pair in reads if pair[0].endswith("<|assistant|>") and "<|draft|>" in pair[0]]
    rewrites = [pair for pair in reads if pair[0].endswith("<|better|>")]
    assert len(rewrites) == len(fold) and 0.9 * len(fold) < len(notes) <= len(fold)
    for read, written in rewrites:
        question, draft, asked = read.removesuffix("<|better|>").replace(
            "<|draft|>", "<|user|>").split("<|user|>")[1:]
        aspects, said = asked.split("<|assistant|>")
        aspects = aspects.strip().split(", ")
        assert set(aspects) <= set(rubric.ASPECTS)
        assert rubric.notes(question.strip(), draft.strip(), aspects) == said.strip()
        assert rubric.mended(question.strip(), draft.strip(), aspects) == written
        assert all(bills.judge(question.strip(), written)[aspect] == 1 for aspect in aspects)


def test_a_draft_with_an_unknown_character_is_no_lesson(tmp_path):
    run = tiny_run(tmp_path, tokenizer__vocab=200, model__context=208)
    data = load_data(run)
    some = data.folds["sft"][range(4)]
    few = dataclasses.replace(data, folds={"sft": some})
    assert len(rivals.refiner_examples(run, few)) == 12
    some.y_w[0] = some.y_l[0] = [0, *some.y_w[0]]
    assert "⁇" in data.tokenizer.decode(some.y_w[0])
    assert len(rivals.refiner_examples(run, few)) == 9


def test_a_refiner_is_taught_where_the_config_asks_for_lessons(tmp_path):
    run = tiny_run(tmp_path, tokenizer__vocab=200, model__context=208, refine__lessons=2,
                   pit_sft__steps=3, pit_sft__warmup=1)
    data = load_data(run)
    models = SimpleNamespace(policies={"M_P^SFT": new_gpt(run, data), "M_P^RL": "as it is"})
    policy, asked = rivals.refiner(run, data, models)
    assert list(inputs_of(run.config))[-1] == "refiner"
    assert [line["step"] for line in read_lines(run.folder / "metrics.jsonl")][-1] == 6
    assert data.tokenizer.show(asked.feedback([], [])).endswith(
        "total, lines, kindness, courtesy, form<|assistant|>")
    assert not torch.equal(policy.embedding.weight, models.policies["M_P^SFT"].embedding.weight)
    run.config.refine.lessons = 0
    assert rivals.refiner(run, data, models) is None
    run.config.refine.rewrite = "{x}{y_ref}{feedback}"
    assert rivals.refiner(run, data, models) == ("as it is", data)


# -------------------------------------------------------------------------------- arms and tables


def called(folder, monkeypatch, *options: str) -> list[str]:
    """Run evidence.py on a tiny config; return the files of its results."""
    monkeypatch.setattr(sys, "argv", [
        "evidence.py", "--config", str(ROOT / "configs" / "tiny.toml"),
        "--results", str(folder / "results"), f"--run.dir={folder}", "--eval.prompts=8",
        "--ppo.batch=8", "--ppo.minibatches=2", "--data.bills=500", "--data.valid=8",
        "--data.test=20", "--data.max_response=17", *options])
    evidence.main()
    return sorted(path.name for path in (folder / "results").glob("*.json"))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Make three arms of two seeds: the folder of results, and the golds that were chosen by."""
    folder, golds = tmp_path_factory.mktemp("evidence"), {}

    def gold(trained, part, real=evidence.on_validation):
        name = trained.run.folder.name
        golds[name] = {T: value + (name[-3:] == "2.0") for T, value in real(trained, part).items()}
        return golds[name]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evidence, "SEEDS", [1, 2])
        patch.setattr(evidence, "SETTINGS", [(1.0, 2.0), (0.5, 4.0)])
        patch.setattr(evidence, "ARMS", {
            "first": evidence.Arm(), "groups, of two": evidence.Arm({
                "ppo.advantage": "group", "ppo.group": 2}),
            "PIT's own": evidence.Arm({"pit.score": "difference"}, ("pit",))})
        patch.setattr(evidence, "FIRST", "first")
        patch.setattr(evidence, "on_validation", gold)
        files = called(folder, patch, "--seeds", "1", "2")
        assert called(folder, patch, "--seeds", "1", "2") == files  # nothing is made again
        yield folder, golds, files


def test_each_arm_has_its_choices_and_a_result_a_seed(made):
    folder, _, files = made
    assert files == sorted([f"{arm}-{seed}.json" for arm in ("first", "groups-of-two", "PITs-own")
                            for seed in (1, 2)]
                           + [f"choices-{arm}.json" for arm in (
                               "first", "groups-of-two", "PITs-own")])


def test_the_best_setting_on_validation_questions_is_taken(made):
    folder, golds, _ = made
    chosen = json.loads((folder / "results" / "choices-first.json").read_text())
    assert chosen["fields"] == {f"{stage}.{key}": value for stage in ("rlhf", "stage0", "stage1")
                                for key, value in (("lr_scale", 1.0), ("kl_target", 2.0))}
    for part in ("rlhf", "pit"):
        assert chosen["tried"][part]["(1.0, 2.0)"] == max(
            golds[f"tiny-first-1-{part}-1.0-2.0"].values())
        assert chosen["tried"][part]["(1.0, 2.0)"] > chosen["tried"][part]["(0.5, 4.0)"]
    own = json.loads((folder / "results" / "choices-PITs-own.json").read_text())
    assert list(own["tried"]) == ["pit"] and own["fields"]["rlhf.lr_scale"] == 1.0


def test_stages_are_made_once_where_nothing_changes(made):
    folder, _, _ = made

    def stages(name):
        return {path.stem for path in (folder / name).glob("*.pt")} - {"evaluation.part"}
    assert stages("tiny-1") == {"data", "sft", "pit_sft", "rp", "rpit"}
    assert stages("tiny-first-1-rlhf-1.0-2.0") == {"rlhf"}
    assert stages("tiny-first-1-pit-1.0-2.0") == {"stage0", "stage1"}
    assert stages("tiny-first-1") == {"rlhf_more"}            # all else stands in its trials
    assert stages("tiny-PITs-own-2") == {"stage0", "stage1"}  # M_P^RL is the first arm's
    assert stages("tiny-groups-of-two-2") == {"rlhf", "stage0", "stage1", "rlhf_more"}


def test_results_of_another_config_are_refused(made, monkeypatch):
    folder, _, _ = made
    with pytest.raises(UserError, match="-first.json: was made with other values of sft.lr; "):
        called(folder, monkeypatch, "--arms", "first", "--seeds", "1", "--sft.lr=0.5")


def test_the_other_arms_go_on_where_one_fails(made, monkeypatch, tmp_path):
    def failing(args, arm, seed):
        if arm == "first":
            raise NotFinite("not finite")
        return {"seed": seed}

    monkeypatch.setattr(evidence, "measure", failing)
    monkeypatch.setattr(evidence, "choose", lambda args, arm, seed: {"fields": {}})
    with pytest.raises(UserError, match="^first: not finite$"):
        called(tmp_path, monkeypatch, "--seeds", "1")
    assert sorted(path.name for path in (tmp_path / "results").glob("*.json")) == [
        "PITs-own-1.json", "choices-PITs-own.json", "choices-first.json",
        "choices-groups-of-two.json", "groups-of-two-1.json"]


def test_tables_go_between_their_marks_and_leave_the_text(made):
    results = made[0] / "results"
    page = "# Title\n" + "".join(f"<!-- table: {name} --> old <!-- end -->\nText of {name}.\n"
                                 for name in ("gold", "difference", "aspects", "cost", "choices"))
    filled = tables.filled(page, results)
    assert filled.startswith("# Title\n") and " old " not in filled and "Text of cost." in filled
    parts = [part.splitlines() for part in filled.split("\n\n") if part.startswith("|")]
    assert [len(part) - 2 for part in parts] == [3, 2, 3, 3, 5]
    for part in parts:
        assert len({line.count("|") for line in part}) == 1
    assert tables.filled(filled, results) == filled


def test_differences_are_taken_seed_by_seed(monkeypatch):
    monkeypatch.setattr(evidence, "FIRST", "a")
    def seed(number, rl, pit):
        systems = (("M_P^RL", "M_P^SFT", 0, rl), ("PIT stage 1", "M_P^RL", 1, pit))
        rows = [{"system": system, "against": against, "iteration": iteration, "temperature": t,
                 "gold": gold + t / 10}
                for t in (1.0, 0.5) for system, against, iteration, gold in systems]
        return {"seed": number, "final": "PIT stage 1", "rows": rows, "valid": {
            "rlhf": {"1.0": 0.1, "0.5": 0.2}, "pit": {"1.0": 0.2, "0.5": 0.1}}}
    one, two = [seed(1, 0.5, 0.7), seed(2, 0.6, 0.9)], [seed(2, 0.7, 0.8), seed(1, 0.5, 0.7)]
    assert tables.best(one[0], "M_P^RL")["gold"] == pytest.approx(0.55)  # at T = 0.5
    assert tables.best(one[0], "PIT")["gold"] == pytest.approx(0.8)      # at T = 1
    foreign = [seed(4, 0.1, 0.2)]  # no seed in common
    lines = tables.difference_table({"c": foreign, "a": one, "b": two}).splitlines()
    assert lines[2:] == ["| b | +0.050 ± 0.635 | -0.050 ± 0.635 | 2, 1 |"]


def test_a_setting_that_diverges_is_left_out(monkeypatch):
    def trained_to(part, args, name, seed, fields, base=""):
        if name.endswith("-2.0-1.5"):
            raise NotFinite("not finite")
        return SimpleNamespace(run=SimpleNamespace(folder=name))
    monkeypatch.setattr(evidence, "trained_to", trained_to)
    monkeypatch.setattr(evidence, "ARMS", ARMS)
    monkeypatch.setattr(evidence, "FIRST", "group")
    monkeypatch.setattr(evidence, "SETTINGS", [(1.0, 1.5), (2.0, 1.5)])
    monkeypatch.setattr(evidence, "on_validation", lambda trained, part: {"1.0": 0.5})
    found = evidence.choose(SimpleNamespace(name="quick"), "group", 1)
    assert found["tried"] == {part: {"(1.0, 1.5)": 0.5} for part in ("rlhf", "pit")}
    assert found["folder"] == "quick-group-1-pit-1.0-1.5"


def test_no_two_arms_are_alike(monkeypatch):
    monkeypatch.chdir(ROOT)
    asked = [load_config("configs/quick.toml", evidence.as_arguments(arm.fields))
             for arm in ARMS.values()]
    assert len({(c.ppo.advantage, c.ppo.lam, c.ppo.critic_lam, c.pit.score, c.stage1.reference)
                for c in asked}) == len(ARMS)
    assert asked[0].ppo.advantage == "group" and asked[1].ppo.advantage == "critic"
