"""The evidence: its statistics, what Self-Refine is taught, its rows, tables and page."""

import dataclasses
import gc
import json
import subprocess
import sys
import weakref
from itertools import permutations
from types import SimpleNamespace

import numpy as np
import pytest

from conftest import ROOT, needs, tiny_run
from corpus import bills
from data import load_data
from report import rivals, rubric
from runtime.run import NotFinite
from runtime.settings import UserError

sys.path.insert(0, str(ROOT / "benchmarks"))

import evidence  # noqa: E402
import tables  # noqa: E402
from lab import Lab, Responses, log_of  # noqa: E402

# ------------------------------------------------------------------------------------ statistics


def test_elo_of_two_players_is_their_odds():
    a, b = np.array([1.0, 1, 1, 0, 0.5]), np.array([0.0, 0, 0, 1, 0.5])
    ratings = evidence.elo([b, a])  # three wins, a loss, a tie: 3.5 to 1.5
    assert ratings[0] == 1000
    assert ratings[1] == pytest.approx(1000 + 400 * np.log10(3.5 / 1.5), abs=1e-6)


def test_elo_solves_the_likelihood_equations():
    rng = np.random.default_rng(0)
    grades = [rng.normal(shift, 1, 300).round(1) for shift in (0, 0.3, 0.5, -0.4)]
    strength = 10 ** ((np.array(evidence.elo(grades)) - 1000) / 400)
    for i, mine in enumerate(grades):
        won = sum((np.sign(mine - other) + 1).sum() / 2
                  for j, other in enumerate(grades) if j != i)
        expected = sum(300 * strength[i] / (strength[i] + strength[j]) for j in range(4) if j != i)
        assert won == pytest.approx(expected, rel=1e-6)


def test_equal_values_share_their_rank():
    assert evidence.ranks_of(np.array([3.0, 1, 3, 2, 3])).tolist() == [3, 0, 3, 1, 3]


def test_rank_correlation_of_all_orders_of_four_is_spearmans():
    fixed = np.arange(4.0)
    for order in permutations(range(4)):
        other = np.array(order, float)
        expected = 1 - 6 * ((fixed - other) ** 2).sum() / (4 * 15)
        assert evidence.rank_correlation(10 ** fixed, other) == pytest.approx(expected)
    assert evidence.rank_correlation(fixed, np.ones(4)) is None


def test_a_chain_is_kept_up_to_its_first_step_that_is_not_above_the_threshold():
    marks = np.array([[1.0, 0.2, 0.0, 1.0], [1.0, 1.0, 1.0, 0.1], [1.0, 1.0, 1.0, 1.0]])
    assert evidence.kept(marks, 0.2).tolist() == [3, 0, 0, 1]


def chained() -> SimpleNamespace:
    """Return responses whose quality is what they say: two steps of three questions. r_gap is ten
    times the gain, but high for one loss; a copy has 1 or 4, and in a batch with other texts
    another last digit."""
    chain = [[0.2, 0.9, 0.85], [0.8, 0.9, 0.7], [0.6, 1.0, 0.7]]

    def gaps(y, y_ref):
        y, y_ref = np.array(y), np.array(y_ref)
        gap = 10 * (y - y_ref) + 1 + 3 * (y == 0.7)  # 7, 1, 2.5 and then -1, 2, 4
        return gap + 1e-7 * (y != y_ref).any()

    return SimpleNamespace(gold=np.array, gaps=gaps, of=lambda _: chain[0],
                           pit=lambda times: chain[times])


def test_what_r_gap_tells_is_of_steps_that_changed_something():
    responses = chained()
    found = evidence.what_gap_tells(responses, evidence.chain_of(responses, 2))
    assert list(found) == ["0.0 to 0.6", "0.6 to 0.8", "0.8 to 0.95", "0.95 to 1.0"]
    bad, good = found["0.0 to 0.6"], found["0.8 to 0.95"]
    assert bad == {"steps": 1, "correlation": None, "sign_right": 1, "of": 1,
                   "gained": pytest.approx(0.6)}
    assert good == {"steps": 3, "correlation": pytest.approx(0.5), "of": 3,
                    "sign_right": pytest.approx(2 / 3), "gained": pytest.approx(-0.25 / 3)}
    assert found["0.6 to 0.8"]["steps"] == found["0.95 to 1.0"]["steps"] == 0  # a copy is no step


def test_whoever_stops_throws_the_step_away_that_he_stops_at():
    responses, asked = chained(), []
    lab = SimpleNamespace(responses=lambda *split: asked.append(split) or responses)
    found = evidence.stopping(lab, 0.5, responses, evidence.chain_of(responses, 2))
    assert asked == [("valid", 0.5)]
    assert found["once"] == {"gold": pytest.approx(2.4 / 3), "steps": 1}
    assert found["always"] == {"gold": pytest.approx(2.3 / 3), "steps": 2}
    assert found["r_gap above a copy's"] == {
        "gold": pytest.approx(2.4 / 3), "threshold": 0, "steps": pytest.approx(5 / 3)}
    by_threshold = found["r_gap above a threshold"]  # the best leaves the third question alone
    assert by_threshold["gold"] == pytest.approx(2.55 / 3) and 2.4 < by_threshold["threshold"] < 4
    assert by_threshold["steps"] == pytest.approx(4 / 3)


def test_the_best_temperature_of_a_system_is_its_best_on_validation_questions():
    asked = set()

    def responses(split, temperature):
        asked.add(split)
        return SimpleNamespace(temperature=temperature, gold=np.array)

    makers = {"cold": lambda r: [0.5 - r.temperature, 0.0], "hot": lambda r: [r.temperature, 1.0]}
    found = evidence.settings_of(SimpleNamespace(responses=responses), makers)
    assert found == {"1.0": {"cold": 1.0, "hot": 1.0}, "0.5": {"cold": 0.5, "hot": 0.5},
                     "best": {"cold": 0.0, "hot": 1.2}}
    assert asked == {"valid"}


def test_intervals_are_students():
    assert tables.half_width([1.0, 2.0, 3.0]) == pytest.approx(4.303 / 3 ** 0.5)
    assert tables.half_width([0.0, 1.0] * 15) == pytest.approx(2.093 * (7.5 / 29 / 30) ** 0.5)
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


# ------------------------------------------------------------------------------ rows and tables


def few_prompts(folder):
    return [f"--run.dir={folder}", "--eval.prompts=8", "--ppo.batch=8", "--data.bills=500",
            "--data.valid=8", "--data.test=20", "--data.max_response=17"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Make every row of a tiny run, with fewer settings to try: the folder of results."""
    folder = tmp_path_factory.mktemp("evidence")
    (folder / "results").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        for name, few in {"GRID": (0.0, 1.0), "KL_TARGETS": (3.0,), "LR_TIMES": (1.0,),
                          "LESSONS": (3,), "TOO_MANY": 6, "TIMED": 1, "AT_ONCE": 4}.items():
            patch.setattr(evidence, name, few)
        labs = {place: tiny_lab(folder, place=place) for place in ("first", "last")}
        for row in evidence.ROWS:
            evidence.make_row(row, labs["last" if row == "control" else "first"],
                              folder / "results" / f"{row}-1.json")
        labs.clear()
        gc.collect()  # a lab and its responses hold each other, and the locks of its runs
    return folder / "results"


def tiny_lab(folder, *fields: str, place: str = "first") -> Lab:
    return Lab(str(ROOT / "configs" / "tiny.toml"), [*few_prompts(folder), *fields], 1, place)


def test_a_finished_row_is_kept_and_one_with_other_settings_refused(made, monkeypatch):
    def finished(row: str, *fields: str, seed: int = 1) -> bool:
        lab = tiny_lab(made.parent, *fields, place="last" if row == "control" else "first")
        return evidence.finished(made / f"{row}-{seed}.json", row, evidence.stands_on(row, lab))

    assert not finished("main", seed=2)
    assert all(map(finished, evidence.ROWS))
    chosen = ("--rlhf.lr_scale=7", "--rlhf.kl_target=7")
    assert finished("choices-rlhf", *chosen) and finished("choices-equal-budget", *chosen)
    assert finished("choices-pit", "--stage0.lr_scale=7")  # chosen by these rows
    assert finished("choices-refiner", "--stage0.kl_target=7")  # which has no such stage
    for row in ("main", "choices-pit"):  # which stand on M_P^RL
        with pytest.raises(UserError, match="values of rlhf.kl_target, rlhf.lr_scale; delete"):
            finished(row, *chosen)
    assert finished("rubrics", "--run.amp=off")  # as "auto" is on a CPU
    with pytest.raises(UserError, match="values of run.amp; delete"):
        finished("rubrics", "--run.amp=bf16")
    for seed in (1, 2):  # a table would average the two
        with pytest.raises(UserError, match="main-1.json: was made with other values of eval.prom"):
            finished("main", "--eval.prompts=9", seed=seed)
    monkeypatch.setitem(evidence.CHOSEN, "difference", {"stage0__lr_scale": 7.0})
    assert finished("curriculum") and finished("rubrics")  # which do not stand on it
    for row in ("main", "control", "cost", "terms"):
        with pytest.raises(UserError, match="other values of chosen.difference; delete it"):
            finished(row)


def test_rows_are_made_by_name_and_not_again(made):
    command = [sys.executable, str(ROOT / "benchmarks" / "evidence.py"), "--config",
               str(ROOT / "configs" / "tiny.toml"), "--rows", "curriculum", "--seeds", "1",
               *few_prompts(made.parent), "--results", str(made.parent / "again" / "results")]
    said = [subprocess.run(command, capture_output=True, text=True, check=True).stdout
            for _ in range(2)]
    assert said[0].count("written:") == 1 and "written:" not in said[1]
    again, before = (json.loads((folder / "curriculum-1.json").read_text())["content"]
                     for folder in (made.parent / "again" / "results", made))
    for at in tables.EQUAL:  # the best temperature is of other ones here
        assert again[at] == before[at]  # samples belong to their names, not to the order of rows


def test_costs_are_of_all_that_was_sampled_for_an_answer(made):
    found = tables.read_rows(made)["cost"][1]["systems"]
    assert [found[name]["calls"] for name in (
        "y_0 ~ M_P^RL", "best of 4", "Self-Refine, whole rubric", "PIT", "PIT, iteration 3")] == [
        1, 4, 3, 2, 4]
    tokens = [found[name]["tokens"] for name in ("y_0 ~ M_P^RL", "PIT", "PIT, iteration 3")]
    assert tokens == sorted(tokens)
    batch, iterations = 8, 3  # of each stage; references are sampled too
    assert (found["PIT"]["scored"], found["PIT"]["sampled"]) == (
        9 * batch, 12 * batch) and found["y_0 ~ M_P^RL"]["scored"] == iterations * batch
    assert found["RLHF, equal budget"]["scored"] == found["PIT"]["sampled"]


def test_tokens_of_a_training_are_those_that_its_model_reads_and_its_samples(made):
    found = tables.read_rows(made)["cost"][1]["trainings"]
    lab = tiny_lab(made.parent)
    base, config = lab.base(), lab.config
    data, fit = base.data, config.sft
    fold = data.folds["sft"]
    rows = [len(data.policy_prompt(x)) + len(y) for x, y in zip(fold.x, fold.y_w)]
    assert found["sft"]["learned"] == pytest.approx(fit.steps * fit.batch * np.mean(rows))
    lengths = [row["length"] for row in log_of(base.run, "rlhf")]
    assert len(lengths) == config.rlhf.iterations
    assert found["rlhf"]["drawn"] == pytest.approx(config.ppo.batch * sum(lengths))
    assert config.stage1.reference == "policy"
    assert found["stage1"]["drawn"] > 1.5 * config.ppo.batch * sum(
        row["length"] for row in log_of(base.run, "stage1"))
    assert found["rpit"]["learned"] > 2 * found["rp"]["learned"] * (
        config.rpit.steps * config.rpit.batch) / (config.rp.steps * config.rp.batch)


def test_drafts_of_another_temperature_cost_what_they_cost_there(made):
    found = tables.read_rows(made)["temperatures"][1]
    for system in ("y_0", "PIT", "Self-Refine"):
        assert found["1.0, drafts at 1"][system] == found["1.0, drafts alike"][system]


def test_settings_to_choose_from_are_sampled_with_the_same_random_numbers(made):
    lab = tiny_lab(made.parent)
    responses, policy = Responses(lab, "valid", 1.0), lab.base().models.policies["M_P^SFT"]
    one, two = (responses.answers(name, policy, purpose="choice") for name in ("one", "two"))
    assert one == two and one is not two
    assert one != responses.answers("three", policy)


def test_stages_of_a_curriculum_take_the_settings_of_their_place(monkeypatch):
    monkeypatch.setattr(evidence, "compared_variants", lambda lab, variants: variants)
    stages = dict(stage0=SimpleNamespace(iterations=5, kl_target=1.5, lr_scale=1.0),
                  stage1=SimpleNamespace(iterations=4, kl_target=3.0, lr_scale=0.5))
    found = evidence.curriculum(SimpleNamespace(
        config=SimpleNamespace(**stages), base=lambda: {}, varied=lambda name, **fields: fields))
    assert found["stage 1 alone"] == {"pit__curriculum": ["stage1"], "stage1__iterations": 9,
                                      "stage1__kl_target": 1.5, "stage1__lr_scale": 1.0}
    assert found["stage 1, then 0"] == {
        "pit__curriculum": ["stage1", "stage0"],
        "stage1__iterations": 5, "stage1__kl_target": 1.5, "stage1__lr_scale": 1.0,
        "stage0__iterations": 4, "stage0__kl_target": 3.0, "stage0__lr_scale": 0.5}


def test_rows_go_on_where_one_fails(tmp_path, monkeypatch):
    def failing(lab):
        raise NotFinite("not finite")

    monkeypatch.setattr(evidence, "ROWS", {"bad": failing, "good": lambda lab: {"seed": lab.seed}})
    monkeypatch.setattr(sys, "argv", [
        "evidence.py", "--config", str(ROOT / "configs" / "tiny.toml"), "--seeds", "1", "2",
        "--results", str(tmp_path)])
    with pytest.raises(UserError, match="bad of seed 1: not finite; bad of seed 2: not finite"):
        evidence.main()
    assert [json.loads((tmp_path / f"good-{seed}.json").read_text())["content"]["seed"]
            for seed in (1, 2)] == [1, 2]

    def full(lab):
        raise UserError("no space")

    monkeypatch.setattr(evidence, "ROWS", {"full": full, "more": lambda lab: {}})
    with pytest.raises(UserError, match="^no space$"):  # of one rank alone: none may go on
        evidence.main()
    assert not list(tmp_path.glob("more-*"))


def test_the_models_of_a_seed_are_gone_before_the_next_ones(tmp_path, monkeypatch):
    class Models:
        pass

    made, alive = [], []

    def row(lab):
        gc.collect()
        alive.append([ref() is not None for ref in made])
        made.append(weakref.ref(lab.once("models", Models)))
        return {}

    monkeypatch.setattr(evidence, "ROWS", {"one": row, "two": row})
    monkeypatch.setattr(sys, "argv", [
        "evidence.py", "--config", str(ROOT / "configs" / "tiny.toml"), "--seeds", "1", "2",
        "--results", str(tmp_path)])
    evidence.main()
    assert alive == [[], [True], [False, False], [False, False, True]]


def test_choices_are_made_for_the_first_two_seeds_unless_asked_for(tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(evidence, "make_row", lambda row, lab, path: made.append((row, lab.seed)))
    command = ["evidence.py", "--config", str(ROOT / "configs" / "tiny.toml"),
               "--results", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", command + ["--seeds", "11", "12", "13"])
    evidence.main()
    rows = set(evidence.ROWS)
    assert all({row for row, seed in made if seed == chosen} == rows for chosen in (11, 12))
    assert {row for row, seed in made if seed == 13} == rows - set(evidence.CHOICES)
    made.clear()
    monkeypatch.setattr(sys, "argv", command + ["--seeds", "12", "--rows", "choices-pit"])
    evidence.main()
    assert made == [("choices-pit", 12)]


def test_a_tie_is_no_win_and_systems_are_alike_in_all_rows(made):
    main = tables.read_rows(made)["main"][1]["at"]["1.0"]
    assert main["y_w"]["gold"] > main["y_l"]["gold"]
    assert main["y_0 ~ M_P^RL"]["over y_0 ~ M_P^RL"] == {"gold": 0, "outside": 0}
    assert main["PIT"]["PIT over it"] == {"gold": 0, "outside": 0}
    curriculum = tables.read_rows(made)["curriculum"][1]
    for at in tables.PLACES:
        for name in ("stage 0, then 1", "stage 0, then 1, iteration 3"):
            assert curriculum[at][name]["PIT over it"] == {"gold": 0, "outside": 0}
    assert curriculum["1.0"]["stage 0, then 1, iteration 3"]["gold"] == main[
        "PIT, iteration 3"]["gold"]


def test_reward_models_are_compared_part_by_part(made, monkeypatch):
    found = tables.read_rows(made)["reward-models"][1]
    terms = tables.read_rows(made)["terms"][1]["agreement"]
    assert {name: found["as it is"][name] for name in ("R_PIT", "R_P")} == {
        "R_PIT": terms["all five"], "R_P": terms["difference of R_P"]}
    assert found["3 times the pairs"]["pairs"] > 2.9 * found["as it is"]["pairs"]

    def trained(name="", **fields):
        return SimpleNamespace(data=SimpleNamespace(folds={"reward": []}), fields=fields)

    monkeypatch.setattr(evidence, "agreements", lambda one: {"fields": one.fields})
    config = tiny_lab(made.parent).config
    asked = evidence.reward_models(SimpleNamespace(config=config, base=trained, supervised=trained))
    assert [one["fields"] for one in asked.values()] == [
        {}, {"reward__logp_feature": False}, {"reward__lm_coef": 0.0}, {"reward__pool": "last"},
        {"data__bills": 3 * config.data.bills, "rp__steps": 3 * config.rp.steps,
         "rpit__steps": 3 * config.rpit.steps}]


def test_tables_go_between_their_marks_and_leave_the_text(made):
    page = "# Title\n" + "".join(
        f"<!-- table: {row} --> old <!-- end -->\nText of {row}.\n" for row in tables.TABLES)
    filled = tables.filled(page, tables.read_rows(made))
    assert filled.startswith("# Title\n") and " old " not in filled
    assert filled.count("Seed 1:\n\n|") == len(tables.TABLES)
    assert tables.named([11, 12, 14]) == "Seeds 11, 12 and 14"
    assert all(f"\nText of {row}.\n" in filled for row in tables.TABLES)
    for table in (part.splitlines() for part in filled.split("\n\n") if part.startswith("|")):
        assert len({line.replace("\\|", "").count("|") for line in table}) == 1
    assert tables.filled(filled, tables.read_rows(made)) == filled
    assert "Not made yet." in tables.filled(page, {})


def test_targets_are_met_on_average_and_beyond_the_interval():
    sure, unsure = [19.0, 20.0, 21.0], [0.0, 20.0, 40.0]
    assert tables.verdict(sure, 15, wins=True) == "met"
    assert tables.verdict(unsure, 15, wins=True) == "not shown"
    assert tables.verdict(unsure, 15, wins=False) == "met"
    assert tables.verdict(sure, 30, wins=True) == "missed"
    assert tables.verdict(unsure, 30, wins=True) == "missed, within the interval"
    assert tables.verdict([50.0], 30, wins=True) == "one seed"


def test_the_table_of_targets_has_them_all_and_is_filled_in(made):
    page = tables.filled("<!-- table: targets --> <!-- end -->", tables.read_rows(made))
    lines = [line.split("|") for line in page.splitlines() if line.startswith("|")][2:]
    assert [line[1].strip() for line in lines] == list(tables.TARGETS)
    for line, target in zip(lines, tables.TARGETS.values()):
        assert [bool(cell.strip()) for cell in line[2:6:2]] == [
            at in target.aims for at in tables.EQUAL]


def test_every_row_has_a_table():
    assert {row.removesuffix("-headline") for row in tables.TABLES} == set(evidence.ROWS)


@needs("matplotlib")
def test_the_curves_have_plots(made):
    import plots
    plt, rows = plots.pyplot(), tables.read_rows(made)
    for name, plot in plots.PLOTS.items():
        figure = plot(plt, list(rows[name].values()))
        figure.savefig(made.parent / f"{name}.svg")
        plt.close(figure)
        assert "<svg" in (made.parent / f"{name}.svg").read_text()
