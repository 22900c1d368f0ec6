"""Lines beside the config: their choices and tables; and what Self-Refine is taught."""

import copy
import dataclasses
import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import train_reward
from conftest import ROOT, needs, read_lines, tiny_run, write_lines
from corpus import bills
from data import load_data
from report import evaluate, rivals, rubric
from runtime.files import lock
from runtime.run import NotFinite
from runtime.settings import UserError
from runtime.stages import inputs_of
from train_reward import new_gpt

sys.path.insert(0, str(ROOT / "benchmarks"))

import ablate  # noqa: E402
import agreement  # noqa: E402
import plots  # noqa: E402
import prices  # noqa: E402
import tables  # noqa: E402


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


def test_the_rival_goes_on_from_the_supervised_model(bills_run, monkeypatch):
    run, data = bills_run
    seen, models = [], SimpleNamespace(policies={"M_P^SFT": new_gpt(run, data, 2)})
    monkeypatch.setattr(rivals, "train", lambda run, data, model, training: seen.append(
        (copy.deepcopy(model), training)))
    rivals.train_sft_more(run, data, models)
    (start, training), = seen
    assert torch.equal(start.embedding.weight, models.policies["M_P^SFT"].embedding.weight)
    assert training.fold is data.folds["sft"] and training.fit is run.config.pit_sft
    assert training.loss is train_reward.sft_loss


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


# ------------------------------------------------------------------------------- lines and tables

GROUPS = "ppo.advantage=group ppo.group=2"
LINES = (GROUPS, "pit.score=difference")
TINY = ("--run.ranks=1", "--eval.prompts=8", "--ppo.batch=8", "--ppo.minibatches=2",
        "--data.bills=500", "--data.valid=8", "--data.test=20", "--data.max_response=17")


def called(folder, monkeypatch, *options: str, lines=LINES) -> list[str]:
    """Run ablate.py on a tiny config; return the files of its results."""
    monkeypatch.setattr(sys, "argv", [
        "ablate.py", "--config", str(ROOT / "configs" / "tiny.toml"), f"--run.dir={folder}",
        "--results", str(folder / "results"), *TINY, *(f"--line={line}" for line in lines),
        *options])
    ablate.main()
    return sorted(path.name for path in (folder / "results").iterdir())


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Make three lines of two seeds: the folder of results, and the golds that were chosen by."""
    folder, golds = tmp_path_factory.mktemp("lines"), {}

    def gold(trained, part, real=ablate.on_validation):
        name = trained.run.folder.name
        best = name.endswith("-1.0-2.0")
        golds[name] = {T: value + best for T, value in real(trained, part).items()}
        return golds[name]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ablate, "SETTINGS", [(1.0, 2.0), (0.5, 4.0)])
        patch.setattr(ablate, "on_validation", gold)
        files = called(folder, patch, "--choose", "--seeds", "1", "2")
        patch.setattr(ablate, "measure", None)  # nothing is made again
        patch.setattr(ablate, "choose", None)
        assert called(folder, patch, "--choose", "--seeds", "1", "2") == files
    yield folder, golds, files


SLUGS = ("own", "ppo.advantage=group-ppo.group=2", "pit.score=difference")


def test_each_line_has_its_choices_and_a_result_a_seed(made):
    folder, _, files = made
    assert [name for name in files if name.endswith(".json")] == sorted(
        [f"{slug}-{seed}.json" for slug in SLUGS for seed in (1, 2)]
        + [f"choices-{slug}.json" for slug in SLUGS])
    own = json.loads((folder / "results" / "own-2.json").read_text())
    assert own["line"] == "" and own["seed"] == 2
    assert len(own["log"]["stage1"]["gold"]) == 3 and "entropy" in own["log"]["rlhf"]


def test_the_best_setting_on_validation_questions_is_taken(made):
    folder, golds, _ = made
    chosen = json.loads((folder / "results" / "choices-own.json").read_text())
    assert chosen["fields"] == {f"{stage}.{key}": value for stage in ("rlhf", "stage0", "stage1")
                                for key, value in (("lr_scale", 1.0), ("kl_target", 2.0))}
    for part in ("rlhf", "pit"):
        assert chosen["tried"][part]["(1.0, 2.0)"] == max(golds[f"tiny-1-{part}-1.0-2.0"].values())
        assert list(chosen["tried"][part]) == [  # the best of the first two lay at two edges
            "(1.0, 2.0)", "(0.5, 4.0)", "(0.5, 2.0)", "(2.0, 2.0)", "(1.0, 1.0)", "(1.0, 4.0)"]
    own = json.loads((folder / "results" / "choices-pit.score=difference.json").read_text())
    assert list(own["tried"]) == ["pit"] and own["fields"]["rlhf.lr_scale"] == 1.0


def test_stages_are_made_once_where_nothing_changes(made):
    folder, _, _ = made

    def stages(name):
        return {path.stem for path in (folder / name).glob("*.pt")} - {"evaluation.part"}
    assert stages("tiny-1-start") == {"data", "sft", "pit_sft", "rp", "rpit"}
    assert stages("tiny-1-rlhf-1.0-2.0") == {"rlhf"}
    assert stages("tiny-1-pit-1.0-2.0") == {"stage0", "stage1"}
    assert stages("tiny-1") == {"sft_more", "rlhf_more"}           # all else stands in its trials
    assert stages("tiny-pit.score=difference-2") == {"stage0", "stage1"}  # M_P^RL is the config's
    assert stages("tiny-ppo.advantage=group-ppo.group=2-2") == {
        "rlhf", "stage0", "stage1", "rlhf_more"}


def test_results_of_another_config_are_refused(made, monkeypatch):
    folder, _, _ = made
    monkeypatch.setattr(ablate, "SETTINGS", [(1.0, 2.0), (0.5, 4.0)])
    with pytest.raises(UserError, match="choices-own.json: was made with other values of sft.lr; "):
        called(folder, monkeypatch, "--choose", "--seeds", "1", "--sft.lr=0.5")


def test_without_choices_a_line_stands_on_the_run_of_the_config(monkeypatch, tmp_path):
    files = called(tmp_path, monkeypatch, "--seeds", "3", lines=["stage1.iterations=1"])
    assert [name for name in files if name.endswith(".json")] == [
        "own-3.json", "stage1.iterations=1-3.json"]
    made = {f"{path.parent.name}/{path.stem}" for path in tmp_path.glob("*/*.pt")}
    assert {name for name in made if "=" in name and "part" not in name} == {
        "tiny-stage1.iterations=1-3/stage1", "tiny-stage1.iterations=1-3/rlhf_more"}
    assert {*json.loads((tmp_path / "results" / "own-3.json").read_text())["valid"]} == {
        "M_P^SFT", "M_P^RL", "best of 4", "M_P^SFT equal budget", "RLHF equal budget",
        "M_PIT^SFT", "PIT stage 0", "PIT stage 1"}
    assert "tiny-3/stage1" in made and "tiny-3/rlhf" in made


def arguments(**more) -> SimpleNamespace:
    """Return what the command line of ablate.py for the quick start has."""
    return SimpleNamespace(**{"config": str(ROOT / "configs" / "quick.toml"), "overrides": [],
                              "base": "", "choose": True, "name": "quick", "bills": True, **more})


@pytest.mark.parametrize("line, said", [
    ("nonsense", "argument .--nonsense"), ("ppo.lan=1", "did you mean 'lam'"),
    ("run.amp=bf16", "run.amp is set by this script"), ("ppo.epochs=0", "ppo.epochs"),
    ("eval.temperatures=[1.0]", "eval.temperatures is set by this script$"),
    ("stage1.lr_scale=2", "stage1.lr_scale is set by this script under --choose"),
    ('ppo.lam=1 data.files=["a b"]', "hidden judge"), ("pit.score=no.py:f", "no.py"),
    ("eval.judge=a.py:b", "leave eval.judge out")])
def test_a_line_that_cannot_be_compared_is_refused_first(line, said):
    with pytest.raises(UserError, match=said):
        ablate.refuse_unfit(arguments(), line)


def test_lines_on_real_pairs_can_be_compared_by_agreement():
    ablate.refuse_unfit(arguments(bills=False), 'data.files=["a.jsonl"]')


def test_lines_that_can_be_compared():
    ablate.refuse_unfit(arguments(), "")
    ablate.refuse_unfit(arguments(), "ppo.lam=0.5 stage1.beta=0.1")
    args = arguments()
    args.choose = False
    ablate.refuse_unfit(args, "stage1.lr_scale=2")


def test_what_a_line_leaves_alone_keeps_the_settings_of_the_config(monkeypatch):
    fields = {f"{stage}.lr_scale": 0.5 for stage in ("rlhf", "stage0", "stage1")}
    monkeypatch.setattr(ablate, "start_of", lambda args, line, seed: "start")
    monkeypatch.setattr(ablate, "chosen_of", lambda args, line: {"fields": fields, "folder": "no"})
    assert ablate.choose(arguments(), "eval.iterations=4", 1) == {
        "fields": fields, "tried": {}, "folder": "start"}


def test_what_a_line_makes_anew():
    args = arguments()
    assert ablate.changed(args, "rp.steps=5") == {"rp", "rlhf", "stage0", "stage1"}
    assert ablate.changed(args, "stage1.beta=0.5") == {"stage1"}
    assert ablate.changed(args, "eval.prompts=5 model.look_every=3") == set()


def test_the_other_lines_go_on_where_one_fails(monkeypatch, tmp_path):
    def failing(args, line, seed, chosen):
        if line == GROUPS:
            raise NotFinite("not finite")
        return {}

    monkeypatch.setattr(ablate, "measure", failing)
    monkeypatch.setattr(tables, "write", lambda results: "")
    with pytest.raises(UserError, match=f"^{GROUPS}, seed 1: not finite$"):
        called(tmp_path, monkeypatch, "--seeds", "1")
    assert [path.name for path in sorted((tmp_path / "results").glob("*.json"))] == [
        "own-1.json", "pit.score=difference-1.json"]


def test_what_another_call_is_making_comes_last(monkeypatch, tmp_path):
    order = []
    monkeypatch.setattr(ablate, "measure", lambda args, line, seed, chosen: {})
    monkeypatch.setattr(tables, "write", lambda results: "")
    monkeypatch.setattr(ablate.time, "sleep", lambda seconds: other.close())
    real = ablate.finish
    monkeypatch.setattr(ablate, "finish", lambda *job: order.append(job[1:]) or real(*job))
    other = lock(tmp_path / "tiny-claims" / "own-1")  # the other call is at it until we sleep
    called(tmp_path, monkeypatch, "--seeds", "1", "2", lines=[])
    assert order[:3] == [("", 1), ("", 2), ("", 1)]
    assert (tmp_path / "results" / "own-1.json").exists()


def test_tables_go_between_their_marks_and_leave_the_text(made):
    page = "# Title\n" + "".join(
        f"<!-- table: results/{name} --> old <!-- end -->\nText of {name}.\n"
        for name in [*tables.TABLES, "choices"])
    filled = tables.filled(page, made[0])
    assert filled.startswith("# Title\n") and " old " not in filled and "Text of cost." in filled
    parts = [part.splitlines() for part in filled.split("\n\n") if part.startswith("|")]
    assert [len(part) - 2 for part in parts] == [12, 11, 12, 3, 2, 3, 2, 1, 3, 3, 3, 5]
    for part in parts:
        assert len({line.count("|") for line in part}) == 1
    assert "| `pit.score=difference` | the same |" in filled
    assert tables.filled(filled, made[0]) == filled
    for mark in ("results/nothing", "nowhere/gold"):
        with pytest.raises(UserError, match=f"{mark} -->: no such table"):
            tables.filled(f"<!-- table: {mark} --> <!-- end -->", made[0])
    assert "tables.md" in made[2]


def seed_of(number, rl, pit):
    systems = (("M_P^RL", "M_P^SFT", 0, rl), ("PIT stage 1", "M_P^RL", 1, pit))
    rows = [{"system": system, "against": against, "iteration": iteration, "temperature": t,
             "gold": gold + t / 10, "delta": 10 * gold}
            for t in (1.0, 0.5) for system, against, iteration, gold in systems]
    return {"seed": number, "final": "PIT stage 1", "rows": rows, "valid": {
        "M_P^RL": {"1.0": 0.1, "0.5": 0.2}, "PIT stage 1": {"1.0": 0.2, "0.5": 0.1}}}


def test_differences_are_taken_seed_by_seed():
    one, two = [seed_of(1, 0.5, 0.7), seed_of(2, 0.6, 0.9)], [
        seed_of(2, 0.7, 0.8), seed_of(1, 0.5, 0.7)]
    assert tables.best(one[0], "M_P^RL")["gold"] == pytest.approx(0.55)  # at T = 0.5
    assert tables.best(one[0], "PIT")["gold"] == pytest.approx(0.8)      # at T = 1
    foreign = [seed_of(4, 0.1, 0.2)]  # no seed in common
    lines = tables.difference_table({"c": foreign, "": one, "b": two}).splitlines()
    assert lines[2:] == ["| `b` | +0.050 ± 0.635 | -0.050 ± 0.635 | 2, 1 |"]


def test_costs_are_those_of_rlhf_alone_and_of_all_stages():
    one = {"tflop": {"rlhf": 1.0, "rlhf_more": 5.0, "stage0": 2.0, "stage1": 4.0, "sft": 9.0}}
    assert tables.spent([one], "rlhf") == "1"
    assert tables.spent([one, one], "stage") == "6"


def test_a_file_that_is_no_result_is_refused(tmp_path):
    for text in ("{", "[]", '{"rows": []}'):
        (tmp_path / "own-1.json").write_text(text)
        with pytest.raises(UserError, match="own-1.json: no result that belongs here"):
            tables.read_results(tmp_path)


@pytest.mark.parametrize("line", [
    'pit.curriculum=["stage1", "stage0"] stage1.iterations=44',
    """--pit.curriculum='["stage1", "stage0"]' --stage1.iterations=44""",
    """  pit.curriculum='["stage1", "stage0"]'   --stage1.iterations=44 """])
def test_a_line_may_stand_as_on_a_command_line(line):
    assert ablate.fields_in(line) == ['pit.curriculum=["stage1", "stage0"]', "stage1.iterations=44"]


def test_results_of_another_script_are_refused_before_training(tmp_path):
    (tmp_path / "own-1.json").write_text('{"line": "", "seed": 1, "settings": {}, "gold": {}}')
    never = SimpleNamespace(results=tmp_path)  # no line, no seed: nothing can be trained
    with pytest.raises(UserError, match="own-1.json: no result that belongs here"):
        ablate.each_once(never, None, "wins", None)
    with pytest.raises(UserError, match="own-1.json: no result that belongs here"):
        tables.read_results(tmp_path)
    assert tables.results_of(tmp_path, "gold")[0]["seed"] == 1
    (tmp_path / "own-1.json").write_text(  # a report has prices, too
        '{"line": "", "seed": 1, "settings": {}, "rows": [], "prices": {}}')
    with pytest.raises(UserError, match="own-1.json: no result that belongs here"):
        tables.price_table(tmp_path)


def test_a_second_rewrite_is_compared_with_the_first():
    one = seed_of(1, 0.5, 0.7)
    assert tables.iteration_table({"": [one]}).count("\n") == 1  # none was made
    one["rows"] += [row | {"iteration": 2, "gold": row["gold"] + row["temperature"] / 10}
                    for row in one["rows"] if row["iteration"]]
    assert tables.iteration_table({"": [one]}).splitlines()[2:] == [
        "| as it is | 0.800 | +0.100 | 0.750 | +0.050 |"]


def test_temperatures_are_chosen_on_validation_questions(bills_run, monkeypatch):
    run, data = bills_run
    asked, models = [], None

    def add_rows(run, data, models, table, x, temperature, kept, refining):
        asked.append((x, temperature))
        table.rows += [
            {"system": "PIT stage 0", "against": against, "iteration": iteration, "gold": gold,
             "temperature": temperature} for against, iteration, gold in (
                ("M_P^RL", 1, 0.5), ("M_P^RL", 2, 0.6), ("M_P^SFT", 1, 0.7))]
    monkeypatch.setattr(evaluate, "evaluate_at", add_rows)
    monkeypatch.setattr(evaluate, "refiner", lambda *_: None)
    monkeypatch.setattr(run.config.eval, "prompts", 3)
    monkeypatch.setattr(run.config.eval, "temperatures", [1.0, 0.2])
    assert evaluate.golds_on_validation(run, data, models) == {
        "PIT stage 0": {"1.0": 0.5, "0.2": 0.5}}  # the first rewrite of M_P^RL's drafts
    valid = evaluate.once_each(data.folds["valid"], 3).x
    assert asked == [(valid, 1.0), (valid, 0.2)]


def test_systems_are_compared_question_by_question_each_at_its_own_best_temperature():
    """Two questions, two seeds; on validation PIT is better at T = 1, RLHF at T = 0.5."""
    def row(system, t, grades, against="M_P^RL", iteration=0):
        return {"system": system, "against": against, "iteration": iteration, "temperature": t,
                "gold": sum(grades) / 2, "grades": grades, "aspects": {"total": grades[0]}}
    def seed(first):
        return {"final": "PIT stage 1", "valid": {
            "M_P^RL": {"1.0": 0.1, "0.5": 0.2}, "PIT stage 1": {"1.0": 0.9, "0.5": 0.8}}, "rows": [
            row("M_P^RL", 1.0, [first, 0.4], "M_P^SFT"), row("M_P^RL", 0.5, [0.9, 0.3], "M_P^SFT"),
            row("PIT stage 1", 1.0, [0.9, 0.9], iteration=1),
            row("PIT stage 1", 0.5, [0.9, 0.8], iteration=1),
            row("PIT stage 1", 1.0, [1.0, 0.1], "M_P^SFT", 1), row("y_w", None, [1.0, 1.0])]}
    seeds = [seed(0.2), seed(1.0)]
    assert tables.systems(seeds) == [("y_w", 0), ("PIT", 1), ("M_P^RL", 0)]
    assert tables.headline_table({"": seeds}).splitlines()[2:] == [
        "| y_w of the data | 1.000 ± 0.000 | 1.000 ± 0.000 | 1.000 ± 0.000 | -100.0 ± 0.0 * | "
        "-100.0 ± 0.0 * |",
        "| PIT | 0.900 ± 0.000 | 0.850 ± 0.000 | 0.900 ± 0.000 |  |  |",
        # at T = 1 100 and 0 points: 50 and 12.71 * 50; at T = 0.5 a tie and a win
        "| M_P^RL | 0.500 ± 2.542 | 0.600 ± 0.000 | 0.600 ± 0.000 | +50.0 ± 635.5 | "
        "+50.0 ± 0.0 * |"]
    assert tables.lead_table({"": seeds}).splitlines()[2:] == [
        "| y_w of the data | -100.0 (-100.0, -100.0) | -100.0 (-100.0, -100.0) |",
        "| M_P^RL | +50.0 (+100.0, +0.0) | +50.0 (+50.0, +50.0) |"]
    assert tables.system_table({"": seeds[:1]}).splitlines()[-1] == "| M_P^RL | 0.90 |"
    other = seed(0.2)
    other["rows"][2] = row("PIT stage 1", 1.0, [0.9, 0.7], iteration=1)  # a tie and a loss
    for one, number in zip((*seeds, other), (1, 2, 1)):
        one |= {"seed": number, "log": {"rlhf": {"reward": [0.1]}}}
    assert tables.rewrite_table({"": seeds, "a.b=1": [other]}).splitlines()[2:] == [
        "| `a.b=1` | 0.800 | 0.900 | -50.0 | -50.0 |"]
    assert tables.rival_table({"": seeds, "a.b=1": [other]}).count("\n") == 1  # the same M_P^RL
    other["rows"][:2] = [row("M_P^RL", 1.0, [1.0, 0.9], "M_P^SFT"),  # a loss, a tie
                         row("M_P^RL", 0.5, [0.8, 0.9], "M_P^SFT")]  # a win, a tie
    other |= {"tflop": {"rlhf": 3.0}, "log": {"rlhf": {"reward": [0.2]}}}
    assert tables.rival_table({"": seeds, "a.b=1": [other]}).splitlines()[2:] == [
        "| `a.b=1` | 0.850 | 0.80 | 3 | -50.0 | +50.0 |"]


def test_samples_are_counted_with_the_drafts_of_a_group():
    settings = {"ppo.batch": 16, "ppo.advantage": "group", "ppo.group": 4, "rlhf.iterations": 10,
                "stage0.iterations": 4, "stage1.iterations": 8, "stage0.reference": "data"}
    assert tables.sampled({"settings": settings}) == {
        "rlhf": 160, "stage0": 64, "stage1": 160, "rlhf_more": 384}


def test_the_table_of_prices_has_both_reward_models_of_each_line(tmp_path):
    for seed, total in (1, -2.0), (2, -1.0):
        (tmp_path / f"own-{seed}.json").write_text(json.dumps({
            "line": "", "seed": seed, "settings": {},
            "agreements": {"R_P": 0.7, "R_PIT wl>lw": 0.8},
            "gold": {"best of 4 by R_P": 0.5, "best of 4 by r_gap": 0.6}, "prices": {
                "wrong total": {"right": -2.4, "R_P": [total, -9, 9], "R_PIT": [-1, 0, 0]}}}))
    assert tables.price_table(tmp_path).splitlines()[2:] == [
        "| as it is | R_P | -1.50 (-2.00, -1.00) | 0.700 (0.700, 0.700) | 0.500 (0.500, 0.500) |",
        "| as it is | R_PIT | -1.00 (-1.00, -1.00) | 0.800 (0.800, 0.800) | 0.600 (0.600, 0.600) |"]


def test_reward_models_of_a_line_stand_on_the_run_of_the_config(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(sys, "argv", [
        "prices.py", "--config", str(ROOT / "configs" / "tiny.toml"), f"--run.dir={tmp_path}",
        *TINY, "--seeds", "1", "--line=rp.steps=6"])
    prices.main()
    assert "| `rp.steps=6` | R_PIT |" in capsys.readouterr().out
    own, line = (json.loads((tmp_path / "tiny-prices" / f"{name}-1.json").read_text())
                 for name in ("own", "rp.steps=6"))
    assert own["prices"]["insult"]["R_PIT"] == line["prices"]["insult"]["R_PIT"]  # the same model
    assert own["prices"]["insult"]["R_P"] != line["prices"]["insult"]["R_P"]
    assert own["gold"]["M_P^SFT"] == line["gold"]["M_P^SFT"]
    assert {path.stem for path in (tmp_path / "tiny-rp.steps=6-1-start").glob("*.pt")} == {"rp"}


def three_pairs(monkeypatch, x: list) -> SimpleNamespace:
    """Return data of three pairs. R_P has two of them right, and a tie; R_PIT and the judge have
    one right, another one each; the longer response is right twice."""
    rows = evaluate.Pairs(x=x, y_w=[[1, 2], [1], [1, 2, 3]], y_l=[[1], [1, 2], [1, 2]])
    scores = {"w": [2, 2, 1], "l": [1, 1, 1], "wl": [1, 0, 0], "lw": [0, 1, 1]}
    monkeypatch.setattr(agreement.measure, "fold_scores", lambda *_: {
        name: np.array(column) for name, column in scores.items()})
    monkeypatch.setattr(agreement, "Judge", lambda *_: SimpleNamespace(
        grades=lambda y: np.array([0, 3, 0] if y == rows.y_w else [1, 1, 1])))
    return SimpleNamespace(folds={"valid": rows})


def test_agreement_counts_the_right_orders_and_compares_with_the_longer_response(monkeypatch):
    data = three_pairs(monkeypatch, [[1], [2], [3]])
    models = SimpleNamespace(rp=None, rpit=None)
    found = {name: round(figures[0], 3) for name, figures in agreement.agreements(
        data, models, None).items()}
    assert found == {"R_P": 0.833, "R_PIT": 0.333, "judge": 0.333, "longer": 0.667,
                     "R_P less longer": 0.167, "R_PIT less longer": -0.333,
                     "judge less longer": -0.333}
    three = agreement.agreements(data, models, None)["longer"]
    data = three_pairs(monkeypatch, [[1], [1], [3]])
    two = agreement.agreements(data, models, None)["longer"]
    assert two[0] == three[0] and two[2] - two[0] == pytest.approx(
        (three[2] - three[0]) * (3 / 1.8) ** 0.5)  # 9 / (4 + 1) prompts, not 3


def test_choices_are_compared_with_the_one_answer_and_at_its_length(monkeypatch, bills_run):
    run, data = bills_run
    y = {"M_P^SFT": [[5], [5, 5], [5, 5]], "best of 4 by R_P": [[5, 5], [5, 5], [5]]}
    used = []
    monkeypatch.setattr(agreement, "tries", lambda sampler, *_: used.append(
        sampler.temperature) or {name: list(v) for name, v in y.items()})
    monkeypatch.setattr(agreement, "Judge", lambda *_: SimpleNamespace(
        grades=lambda y: np.array([len(ids) for ids in y]) + (np.arange(3) == 2)))  # likes length
    found = agreement.choices(run, data, None, None, [[1], [2], [3]])
    assert list(found) == ["best of 4 by R_P"] and used == run.config.eval.temperatures[:1]
    one = found["best of 4 by R_P"]
    assert (one["win"], one["tie"], one["lose"]) == pytest.approx((100 / 3, 100 / 3, 100 / 3))
    monkeypatch.setattr(agreement, "tries", lambda *_: {
        "M_P^SFT": [[5]] * 30, "M_PIT^SFT": [[5, 5]] * 29 + [[5]]})
    monkeypatch.setattr(agreement, "Judge", lambda *_: SimpleNamespace(
        grades=lambda y: np.array([len(ids) for ids in y])))
    one = agreement.choices(run, data, None, None, [[1]] * 30)["M_PIT^SFT"]
    assert one["delta"] > 90 and one["equal_length"][0] < one["delta"]  # the length explains some


def test_the_best_by_each_reward_model_is_tried(monkeypatch, bills_run):
    run, data = bills_run
    answers, rewrites = iter("abcd"), iter("efgh")
    monkeypatch.setattr(prices, "answer", lambda *_: [next(answers)])
    monkeypatch.setattr(prices, "improve", lambda sampler, policy, x, y: [next(rewrites) + y[0]])
    worth = {**dict(zip("abcd", (1.0, 3.0, 2.0, 0.0))), "ea": 0.0, "fa": 1.0, "ga": 5.0, "ha": 4.0}
    monkeypatch.setattr(prices.measure, "rp_scores", lambda data, rp, x, y: [worth[y[0]]])
    monkeypatch.setattr(prices.measure, "gap_scores", lambda data, rpit, x, y, ref: [worth[y[0]]])
    models = SimpleNamespace(rp=None, rpit=None, policies={"M_P^SFT": None, "M_PIT^SFT": None})
    assert prices.tries(SimpleNamespace(data=data), models, [[1]]) == {
        "M_P^SFT": ["a"], "best of 4 by R_P": ["b"], "M_PIT^SFT": ["ea"],
        "best of 4 by r_gap": ["ga"]}


def test_people_are_asked_before_rl_with_fewer_pairs_and_with_all(monkeypatch, tmp_path, capsys):
    path = write_lines(tmp_path / "a.jsonl", bills.make_pairs(300, 3, "first"))
    command = ["agreement.py", "--config", str(ROOT / "configs" / "tiny.toml"), *TINY, "--seeds",
               "1", f"--run.dir={tmp_path}"]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(UserError, match="needs real pairs in data.files; on bills: prices.py"):
        agreement.main()
    monkeypatch.setattr(sys, "argv", command + [
        f'--data.files=["{path}"]', "--data.valid=20", "--data.test=12", "--eval.prompts=50",
        "--line=rp.pairs=9"])
    agreement.main()
    table = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines()[-10:]]
    assert [row[:3] for row in table] == [[line, "1", model] for line in (
        "as it is", "`rp.pairs=9`") for model in ("R_P", "R_PIT", "M_PIT^SFT", "judge", "longer")]
    own, line = (json.loads((tmp_path / "tiny-agreement" / f"{name}-1.json").read_text())
                 for name in ("own", "rp.pairs=9"))
    same = {name for name, found in own["agreements"].items() if found == line["agreements"][name]}
    assert {"judge", "longer", "R_PIT"} <= same
    assert own["pairs"] == own["prompts"] == 20  # of validation
    for row in (*table[:2], *table[3:5]):
        assert row[3].startswith(f"{own['agreements'][row[2]][0]:.3f} [")
    for row in (*table[:2], table[3]):
        assert row[4].startswith(f"{own['agreements'][f'{row[2]} less longer'][0]:+.3f} [")
    for row, choice in zip(table, ("best of 4 by R_P", "best of 4 by r_gap", "M_PIT^SFT")):
        assert row[5].startswith(f"{choice}: {own['wins'][choice]['equal_length'][0]:+.1f} [")
    assert own["wins"]["M_PIT^SFT"] == line["wins"]["M_PIT^SFT"]
    assert {path.stem for path in (tmp_path / "tiny-rp.pairs=9-1-start").glob("*.pt")} == {"rp"}


def test_a_curve_is_smoothed_over_the_iterations_before():
    assert plots.smooth([1.0, 3.0, 5.0], 2) == [1.0, 2.0, 4.0]


def test_the_best_of_several_responses_is_chosen_question_by_question():
    scores = [np.array([1.0, 5.0]), np.array([2.0, 4.0])]
    assert prices.chosen_by(scores, ["ab", "cd"]) == ["c", "b"]


@needs("matplotlib")
def test_the_plots_are_the_same_each_time(made, tmp_path):
    names = {"differences.svg", "wins.svg", "curves.svg", "curves-rlhf.beta=0.svg"}
    for folder in (tmp_path / "a", tmp_path / "b"):
        shutil.copytree(made[0] / "results", folder)
        content = json.loads((folder / "pit.score=difference-1.json").read_text())
        (folder / "other.json").write_text(json.dumps(content | {"line": "rlhf.beta=0"}))
        plots.draw(folder)
        assert {path.name for path in folder.glob("*.svg")} == names
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert b"pit.score=difference" in (tmp_path / "a" / "differences.svg").read_bytes()
    assert b"M_P^SFT equal budget" in (tmp_path / "a" / "wins.svg").read_bytes()


@needs("matplotlib")
def test_long_training_is_drawn_by_beta_over_the_seeds(tmp_path, monkeypatch):
    for seed in (1, 2):
        (tmp_path / f"optimisation-{seed}.json").write_text(json.dumps({"content": {
            f"{stage}, beta {beta}": {key: [seed + beta + at] for at, key in enumerate(
                ("gold", "reward", "kl"), place)}
            for place, stage in enumerate(("rlhf", "stage0")) for beta in plots.BETAS}}))
    drawn = []
    monkeypatch.setattr(plots, "FIRST_EDITION", tmp_path)
    monkeypatch.setattr(plots, "band", lambda axis, seeds, colour, label: (
        axis.plot([0], label=label),
        drawn.append((axis.get_subplotspec().colspan.start, label, seeds))))
    plots.draw_optimisation(tmp_path / "a.svg")
    assert [column for column, *_ in drawn] == [0] * 9 + [1] * 9
    assert drawn[1] == (0, "beta 0.03", [[1.03], [2.03]])   # gold of RLHF
    assert drawn[15] == (1, "beta 0.0", [[4.0], [5.0]])     # KL of stage 0


def test_a_grid_goes_on_until_all_neighbours_of_its_best_setting_were_tried():
    grid = [(rate, target) for rate in (0.5, 1.0, 2.0) for target in (1.5, 3.0)]
    assert ablate.untried(grid, (1.0, 3.0)) == [(1.0, 6.0)]
    assert ablate.untried(grid, (0.5, 1.5)) == [(0.25, 1.5), (0.5, 0.75)]
    assert ablate.untried(grid + [(1.0, 6.0)], (1.0, 3.0)) == []
    assert ablate.untried(grid + [(1.0, 6.0)], (1.0, 6.0)) == [(0.5, 6.0), (2.0, 6.0), (1.0, 12.0)]


def test_a_setting_that_diverges_is_left_out(monkeypatch):
    def trained_to(part, args, line, name, fields):
        if name.endswith("-2.0-1.5") or line == "ppo.lam=0.5" and "rlhf" in name:
            raise NotFinite("not finite")
        return SimpleNamespace(run=SimpleNamespace(folder=name))
    monkeypatch.setattr(ablate, "trained_to", trained_to)
    monkeypatch.setattr(ablate, "SETTINGS", [(1.0, 1.5), (2.0, 1.5)])
    monkeypatch.setattr(ablate, "on_validation", lambda trained, part: {"1.0": 0.5})
    args = arguments(runs=Path("runs"))
    found = ablate.choose(args, "", 1)
    assert found["tried"] == {part: {  # the last one was not finite; the grid goes on all the same
        "(1.0, 1.5)": 0.5, "(0.5, 1.5)": 0.5, "(1.0, 0.75)": 0.5, "(1.0, 3.0)": 0.5}
        for part in ("rlhf", "pit")}
    assert Path(found["folder"]) == Path("runs/quick-1-pit-1.0-1.5")
    with pytest.raises(NotFinite, match="^ppo.lam=0.5: no setting of rlhf is finite$"):
        ablate.choose(args, "ppo.lam=0.5", 1)
