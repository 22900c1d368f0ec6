"""The scripts as a user runs them, on the tiny config: everything there, reused, and usable."""

import json
import math
import re
import shutil
from types import SimpleNamespace

import pytest
import torch

from conftest import ROOT, command, needs, read_lines, write_lines
from corpus import bills
from pretrained.configure import load_config
from report.evaluate import stage_costs
from report.page import curves, draw_curves
from runtime.files import load, save
from runtime.run import iterations
from runtime.stages import inputs_of
from test_docs import PAGES, commands

TINY = "configs/tiny.toml"
FITS = {"sft": [5, 10, 15, 20], "pit_sft": [5], "rp": [5], "rpit": [5], "sft_more": [5]}
STAGES = {"rlhf": [0, 1, 2, 3], "stage0": [0, 1, 2, 3], "stage1": [1, 2, 3],
          "rlhf_more": list(range(13))}  # 3, 3, and twice 3: stage 1 draws its references too
ROW = {"system", "against", "iteration", "temperature", "win", "tie", "lose", "delta", "ci_low",
       "ci_high", "equal_length", "gold", "grades", "aspects", "length", "cut", "copies"}
REPORT = {"name", "seed", "eval_seed", "split", "prompts", "judge", "rows", "reward", "seconds",
          "tflop", "peak_tflop_a_second", "prices", "data", "examples", "responses"}
PROMPT = "What is the bill for tea, a coupon and a hat?"


def succeed(*arguments, stdin: str = "", **environment: str) -> str:
    """Run a script that has to end well; returns what it prints."""
    done = command(*arguments, stdin=stdin, **environment)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Traceback" not in done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Return the folder of a finished run, the argument that leads to it, and its output."""
    folder = tmp_path_factory.mktemp("runs")
    where = f"--run.dir={folder}"
    return folder / "tiny", where, succeed("train_pit.py", "--config", TINY, where)


def report_of(folder) -> dict:
    return json.loads((folder / "report.json").read_text(encoding="utf-8"))


def assert_finite(value) -> None:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            assert_finite(item)
    assert not isinstance(value, float) or math.isfinite(value)


def test_a_run_leaves_everything_it_should(trained):
    folder, where, printed = trained
    names = {"data", *FITS, *STAGES}
    assert {path.stem for path in folder.glob("*.pt")} == names
    assert not list(folder.glob("*.tmp"))
    assert load_config(str(folder / "config.toml")) == load_config(
        str(ROOT / TINY),
        [where, "--model.micro_batch=2048", "--model.look_every=1", "--run.amp=off"])
    for name in names:
        content = load(folder / f"{name}.pt")
        assert content["inputs"]["run.seed"] == 1 and content["seconds"] >= 0
    page = (folder / "report.md").read_text(encoding="utf-8")
    assert page.split("## Examples")[0].strip() in printed and str(folder) in printed


def test_the_models_of_a_run_are_different_ones(trained):
    folder = trained[0]
    weights = {name: load(folder / f"{name}.pt")["model"]["embedding.weight"]
               for name in ("sft", "pit_sft", "sft_more", *STAGES)}
    names = sorted(weights)
    assert not any(torch.equal(weights[a], weights[b])
                   for i, a in enumerate(names) for b in names[:i])


def test_the_report_has_every_system_and_key(trained):
    report = report_of(trained[0])
    assert set(report) == REPORT
    assert (report["prompts"], report["split"], report["judge"]) == (16, "test", "hidden judge")
    found = [(r["system"], r["against"], r["temperature"], r["iteration"]) for r in report["rows"]]
    rl, sft, more, longer = "M_P^RL", "M_P^SFT", "RLHF equal budget", "M_P^SFT equal budget"
    assert found == [row for t in (1.0, 0.5) for row in [
        (sft, rl, t, 0), (rl, sft, t, 0), ("best of 4", rl, t, 0), (longer, rl, t, 0),
        (more, rl, t, 0),
        ("M_PIT^SFT", rl, t, 1), ("PIT stage 0", rl, t, 1), ("PIT stage 0", rl, t, 2),
        ("PIT stage 1", rl, t, 1), ("PIT stage 1", rl, t, 2), ("PIT stage 1", sft, t, 1),
        ("PIT stage 1", "M_PIT^SFT", t, 1),
        ("PIT stage 1", more, t, 1), ("PIT stage 1", more, t, 2)]] + [
        ("y_l", rl, None, 0), ("y_w", rl, None, 0)]
    for row in report["rows"]:
        assert set(row) == ROW and set(row["aspects"]) == set(bills.WEIGHTS)
        assert row["win"] + row["tie"] + row["lose"] == pytest.approx(100)
        assert row["delta"] == pytest.approx(row["win"] - row["lose"])
        assert row["ci_low"] <= row["delta"] <= row["ci_high"]
        assert row["gold"] == pytest.approx(sum(bills.WEIGHTS[k] * v
                                                for k, v in row["aspects"].items()))
        assert sum(row["grades"]) / 16 == pytest.approx(row["gold"], abs=1e-4)
        assert (row["copies"] is None) == (row["system"] in (
            sft, rl, "best of 4", longer, more, "y_l", "y_w"))
    assert_finite(report["rows"])
    assert report["data"]["read"] == 600 and report["data"]["test"] == 50
    assert set(report["seconds"]) == {"data", *FITS, *STAGES, "evaluation"} == set(report["tflop"])
    assert report["tflop"]["data"] == 0 and report["peak_tflop_a_second"] > 1e-3
    assert all(report["tflop"][name] > 0 for name in (*FITS, *STAGES, "evaluation"))
    for name, a in report["reward"].items():
        assert set(a) == {"accuracy", "ci_low", "ci_high", "pairs"}, name
        assert a["pairs"] == 0 or 0 <= a["ci_low"] <= a["accuracy"] <= a["ci_high"] <= 1
    assert len(report["reward"]) == 15 and len(report["examples"]) == 8
    for example in report["examples"]:
        grades = [bills.grade(example["x"], step["y"]) for step in example["steps"]]
        assert [step["gold"] for step in example["steps"]] == pytest.approx(grades)
        for key in ("r_gap", "a copy"):
            assert [step[key] is None for step in example["steps"]] == [True, False, False]
        for before, step in zip(example["steps"], example["steps"][1:]):
            if step["y"] == before["y"]:
                assert step["r_gap"] == pytest.approx(step["a copy"], abs=1e-4)
    rewrites = [step for example in report["examples"] for step in example["steps"][1:]]
    assert any(abs(step["r_gap"] - step["a copy"]) > 1e-3 for step in rewrites)


def test_the_metrics_have_every_stage_and_only_finite_numbers(trained):
    lines = read_lines(trained[0] / "metrics.jsonl")
    steps = {}
    for line in lines:
        steps.setdefault(line["stage"], []).append(line["step"])
        assert_finite(line)
        if line["stage"] in FITS:
            last = line["step"] == FITS[line["stage"]][-1] and line["stage"] in ("rp", "rpit")
            asked = {f"valid_{key}" for key in ("accuracy", "ci_low", "ci_high", "pairs")}
            assert set(line) == {"stage", "step", "loss", "accuracy", "grad_norm", "lr"} | (
                asked if last else set())
        elif line["step"] == 0:
            assert set(line) == {"stage", "step", "score_mean", "score_std", "copy_mean",
                                 "copy_std", "score_min"}
        else:
            assert set(line) == {
                "stage", "step", "reward", "kl", "k3", "eos_rate", "length", "copies", "empty",
                "beta", "value_loss", "gold", "entropy",
                "sampler_gap", "sampler_gap_max", "explained_variance"} | (
                {"copies y_l", "copies y_w"} if line["stage"] == "stage0" else set()) | (
                {"policy_loss", "clipped"} if line["step"] > 1 else set())
            assert line["sampler_gap_max"] == pytest.approx(0, abs=1e-4)
            assert 0 <= line["gold"] <= 1 and line["k3"] >= 0
    assert steps == FITS | STAGES


def test_a_sample_of_every_rollout_is_kept(trained):
    lines = read_lines(trained[0] / "samples.jsonl")
    assert [(line["stage"], line["step"]) for line in lines] == [
        (stage, step) for stage, steps in STAGES.items() for step in steps if step]
    for line in lines:
        assert set(line) == {"stage", "step", "x", "source", "y_ref", "y", "reward", "kl"}
        bills.things_of(line["x"])  # a question
        source = {"stage0": ("y_l", "y_w"), "stage1": ("M_P^RL",)}.get(line["stage"], ("",))
        assert line["source"] in source and (line["y_ref"] == "") == (line["source"] == "")
    assert len({line["x"] for line in lines}) > 8


@pytest.mark.parametrize("log", ["metrics.jsonl", "samples.jsonl"])
def test_every_key_of_the_logs_is_explained_and_nothing_else(trained, log):
    page = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    metrics, samples = page.split("## samples.jsonl")
    said = set(re.findall(r"(?m)^\| `([^`]+)` \|", samples if log == "samples.jsonl" else metrics))
    found = {key for line in read_lines(trained[0] / log) for key in line}
    of_groups = {"length_best", "length_worst"} if log == "metrics.jsonl" else set()  # no critic
    assert said == found | of_groups


def test_a_second_run_reuses_everything(trained):
    folder, where, _ = trained
    before, report = {p: p.read_bytes() for p in folder.glob("*.*") if p.suffix in (
        ".pt", ".jsonl")}, report_of(folder)
    succeed("train_pit.py", "--config", TINY, where)
    assert all(path.read_bytes() == content for path, content in before.items())
    again = report_of(folder)
    assert all(again[key] == report[key] for key in REPORT - {"seconds", "tflop",
                                                              "peak_tflop_a_second"})
    assert all(again["tflop"][name] == report["tflop"][name] for name in (*FITS, *STAGES))
    assert all(again["seconds"][name] == report["seconds"][name] for name in (*FITS, *STAGES))


def test_a_run_that_was_cut_off_ends_as_one_that_was_not(trained):
    folder, where, _ = trained
    lines, report = read_lines(folder / "metrics.jsonl"), report_of(folder)
    weights = load(folder / "stage1.pt")["model"]
    (folder / "stage1.pt").unlink()
    succeed("train_pit.py", "--config", TINY, where)
    again = load(folder / "stage1.pt")["model"]
    assert all(torch.equal(weight, again[name]) for name, weight in weights.items())
    order = lambda line: (line["stage"], line["step"])
    assert sorted(read_lines(folder / "metrics.jsonl"), key=order) == sorted(lines, key=order)
    assert report_of(folder)["rows"] == report["rows"]


def test_seconds_are_those_of_the_stages_that_a_report_stands_on(tmp_path):
    folder, base = tmp_path / "own", tmp_path / "base"
    for path, seconds in ((base / "data.pt", 1), (base / "sft.pt", 2), (folder / "sft.pt", 3)):
        path.parent.mkdir(exist_ok=True)
        save(path, {"inputs": {}, "seconds": seconds, "operations": 10.0 * seconds})
    (base / "foreign.pt").write_text("no checkpoint")
    run = SimpleNamespace(used={"data": base / "data.pt", "sft": folder / "sft.pt"})
    assert stage_costs(run, ["data", "sft"]) == {"data": (1, 10), "sft": (3, 30)}
    config = load_config(str(ROOT / TINY), ["--pit.curriculum=['stage1']"])
    assert list(inputs_of(config)) == [
        "data", "sft", "pit_sft", "rp", "rpit", "sft_more", "rlhf", "stage1", "rlhf_more"]


@needs("matplotlib")
def test_the_pictures_of_the_tutorial_are_drawn_from_a_run(trained, tmp_path):
    folder, where, _ = trained
    bad = folder.parent / "tiny-rate"  # a run that fails on purpose
    shutil.copytree(folder, bad)
    succeed("docs/figures.py", "--config", TINY, where, "--to", str(tmp_path))
    drawn = {path.name for path in tmp_path.iterdir()}
    assert drawn == {path.name for path in (ROOT / "docs" / "tutorial").glob("*.svg")}
    assert "learning rate too high" in (tmp_path / "failures.svg").read_text()
    shutil.rmtree(bad)


@needs("matplotlib")
def test_the_curves_of_a_run_are_those_of_its_base_where_it_trained_nothing(trained, tmp_path):
    """Of a stage whose log is lost there are none."""
    folder, *_ = trained
    config = load_config(str(ROOT / TINY), ["--pit.curriculum=[\"stage1\"]"])
    run = SimpleNamespace(folder=tmp_path, config=config, used={
        "rlhf": folder / "rlhf.pt", "stage1": folder / "stage1.pt",
        "rlhf_more": tmp_path / "lost" / "rlhf_more.pt"})
    picture = curves(run, {"kl": "KL", "nothing": "nothing"})
    for axis, stage in zip(picture.axes, ("rlhf", "stage1")):
        logged = iterations(folder, stage)
        assert axis.get_title() == stage and len(logged) == 3
        assert [*axis.lines[0].get_ydata()] == [line["kl"] for line in logged]
    assert not any(axis.lines for axis in picture.axes[2:])
    draw_curves(run)
    assert [path.name for path in tmp_path.iterdir()] == ["curves.png"]
    run.folder, run.used = tmp_path / "none", dict.fromkeys(run.used, tmp_path / "lost" / "x.pt")
    draw_curves(run)  # writes nothing: the folder is not there


def test_another_config_is_refused_for_the_same_folder(trained):
    folder, where, _ = trained
    before = (folder / "sft.pt").read_bytes()
    done = command("train_reward.py", "--config", TINY, where, "--sft.lr=0.5")
    assert done.returncode == 2 and "was made with other values (or none) of sft.lr" in done.stderr
    assert (folder / "sft.pt").read_bytes() == before


def test_sample_improves_a_response(trained):
    printed = succeed("sample.py", "--config", TINY, trained[1], "--prompt", PROMPT, "--ref",
                      "Sure! 10 in all: tea 5, coupon 2, hat 10.", "--iters", "2").splitlines()
    assert printed[0] == f"x    {PROMPT}"
    assert printed[1] == "y_0  Sure! 10 in all: tea 5, coupon 2, hat 10.  gold 1.00"
    text = "\n".join(printed[2:])
    step = r"  .*  r_gap [+-]\d+\.\d\d \(a copy [+-]\d+\.\d\d\)  gold 0?[01]\.\d\d"
    assert re.fullmatch(f"y_1{step}\ny_2{step}", text, re.DOTALL)


def test_sample_draws_other_samples_with_another_seed(trained):
    texts = [succeed("sample.py", "--config", TINY, trained[1], "--prompt", PROMPT, *seed)
             for seed in ([], ["--seed=1"], ["--seed=5"])]  # run.seed is 1
    assert texts[0] == texts[1] != texts[2]


def test_sample_asks_for_prompts(trained):
    printed = succeed("sample.py", "--config", TINY, trained[1], "--iters=1",
                      stdin=f"{PROMPT}\nHello you\n\nWhat is more?\n")
    assert [line for line in printed.splitlines() if line.startswith("x ")] == [
        f"x    {PROMPT}", "x    Hello you"]
    assert printed.count("\ny_0  ") == printed.count("\ny_1  ") == 2 and "y_2" not in printed
    first, second = printed.split("x    Hello you")
    assert "gold" in first and "gold" not in second  # the judge knows bills only


def test_sample_refuses_a_prompt_that_is_too_long(trained):
    done = command("sample.py", "--config", TINY, trained[1], "--prompt", "tea " * 50)
    assert done.returncode == 2 and "data.max_prompt is 32; shorten it" in done.stderr
    assert done.stderr.count("\n") == 1


def test_eval_writes_the_same_report_again(trained):
    folder, where, _ = trained
    report = report_of(folder)
    (folder / "report.json").unlink()
    (folder / "report.md").unlink()
    succeed("train_pit.py", "--config", TINY, where)
    again = report_of(folder)
    assert again["rows"] == report["rows"] and again["examples"] == report["examples"]
    assert again["reward"] == report["reward"] and (folder / "report.md").exists()


ON_PAGES = [words for page in PAGES for words in commands(page)
            if words[0].startswith(("train_", "sample")) and "configs/quick.toml" in words]


@pytest.mark.parametrize("words", ON_PAGES, ids=" ".join)
def test_the_commands_of_the_pages_run(trained, words):
    """Run them with the smallest config."""
    ours = {"configs/quick.toml": TINY, "--run.base=runs/quick": f"--run.base={trained[0]}"}
    words = [ours.get(word, word) for word in words]
    succeed(*words, trained[1], stdin=f"{PROMPT}\n\n")


def test_train_reward_prints_accuracies(trained):
    printed = succeed("train_reward.py", "--config", TINY, trained[1])
    figures = dict(re.findall(r"^  (\S.*?) +(\d\.\d{3})  \[\d\.\d{3}, \d\.\d{3}\] of \d+$", printed,
                              re.MULTILINE))
    report = report_of(trained[0])["reward"]
    assert set(figures) == {"R_P", "R_PIT wl>ww", "R_PIT wl>ll", "R_PIT wl>lw", "R_PIT ww>lw",
                            "R_PIT ll>lw", "longer response", "majority (either order)"}
    assert all(float(figures[name]) == pytest.approx(report[name]["accuracy"], abs=6e-4)
               for name in figures)
    assert "read: 600" in printed.splitlines()


def test_hh_conversations_go_all_the_way(tmp_path):
    lines = []
    for i, pair in enumerate(bills.make_pairs(300, 4, "first")):
        start = f"\n\nHuman: Hi {i}\n\nAssistant: Yes?\n\nHuman: {pair['prompt']}"
        lines.append({side: f"{start}\n\nAssistant: {pair[side]}"
                      for side in ("chosen", "rejected")})
    lines += [{"chosen": lines[0]["chosen"], "rejected": lines[1]["rejected"]}] * 3
    lines += [{"chosen": lines[5]["chosen"], "rejected": lines[5]["chosen"]}] * 2
    path = write_lines(tmp_path / "hh.jsonl", lines)
    printed = succeed("train_reward.py", "--config", TINY, f"--run.dir={tmp_path}",
                      f"--data.files=['{path}']", "--data.max_prompt=70", "--model.context=256",
                      "--tokenizer.vocab=220", "--tokenizer.byte_fallback=false",
                      "--template.user=Human: {x}",
                      "--template.assistant=Assistant: {x}").splitlines()
    assert {"read: 305", "dropped, prompts differ: 3", "dropped, responses equal: 2"} <= set(
        printed)
    kept = sum(int(line.split(": ")[1]) for line in printed[:printed.index("")] if line.split(
        ": ")[0] in ("sft", "reward", "rl", "valid", "test"))
    assert kept == 300
    assert any(re.match(r"  R_P +\d\.\d{3}", line) for line in printed)


def assert_equal_logs(folder, other, count: int) -> None:
    """Check that the metrics of two runs have so many lines, and the same figures."""
    lines, expected = (sorted(read_lines(path / "metrics.jsonl"), key=lambda line: (
        line["stage"], line["step"])) for path in (folder, other))
    assert len(lines) == len(expected) == count
    for line, wanted in zip(lines, expected):
        assert line == {key: value if isinstance(value, str) else
                        pytest.approx(value, rel=1e-5, abs=1e-5) for key, value in wanted.items()}


TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "train_pit.py")


@pytest.mark.parametrize("start, ranks", [
    (TORCHRUN, 2), (("train_pit.py", "--run.ranks=4"), 4),
    (("train_pit.py", "--run.ranks=3", "--run.shard=true"), 3)])
def test_several_ranks_do_what_one_does(trained, tmp_path, start, ranks):
    """Check that every loss, every rollout and the report agree, since batches, minibatches and
    random numbers are shared out and gradients summed; also where each of three ranks has an
    unequal share of a minibatch and a third of the weights."""
    succeed(*start, "--config", TINY, f"--run.dir={tmp_path}")
    assert load_config(str(tmp_path / "tiny" / "config.toml")).run.ranks == ranks
    folder, one = tmp_path / "tiny", trained[0]
    assert_equal_logs(folder, one, sum(map(len, (FITS | STAGES).values())))
    two, report = report_of(folder), report_of(one)
    assert set(two) == set(report) == REPORT
    assert two["rows"] == report["rows"] and two["data"] == report["data"]


def test_ranks_share_groups_of_responses_too(trained, tmp_path):
    """Check it where a prompt has several responses, as in the quick start: each of two ranks has
    two of the four groups."""
    for ranks in (1, 2):
        succeed("train_pit.py", "--config", TINY, f"--run.dir={tmp_path}", f"--run.name=by-{ranks}",
                f"--run.ranks={ranks}", f"--run.base={trained[0]}", "--ppo.advantage=group",
                "--pit.curriculum=['stage0']", "--eval.equal_budget=false", "--eval.iterations=1")
    assert_equal_logs(tmp_path / "by-2", tmp_path / "by-1", len(STAGES["rlhf"] + STAGES["stage0"]))
    assert report_of(tmp_path / "by-2")["rows"] == report_of(tmp_path / "by-1")["rows"]


def test_bfloat16_runs_on_a_cpu(trained, tmp_path):
    """Check what a GPU does by default: there are figures, though not those of float32. Run as
    many ranks as there are cores, of two at most."""
    cores = command("-c", "import torch; print(torch.get_num_threads())", OMP_NUM_THREADS="2")
    succeed("train_pit.py", "--config", TINY, f"--run.dir={tmp_path}", "--run.amp=bf16",
            "--run.ranks=0",
            "--sft.steps=5", "--rlhf.iterations=1", "--stage0.iterations=1", "--eval.prompts=8",
            "--pit.curriculum=['stage0']", "--eval.equal_budget=false", "--model.look_every=4",
            OMP_NUM_THREADS="2")
    assert load_config(str(tmp_path / "tiny" / "config.toml")).run.ranks == int(cores.stdout)
    assert_finite(report_of(tmp_path / "tiny")["rows"])
    one, other = (read_lines(path / "metrics.jsonl")[0] for path in (tmp_path / "tiny", trained[0]))
    assert one["loss"] == pytest.approx(other["loss"], rel=0.02)
    assert one["grad_norm"] != pytest.approx(other["grad_norm"], rel=1e-5)


def explained(where: str) -> dict[str, list]:
    """Return the table of sample.py --explain, and its last lines."""
    lines = succeed("sample.py", "--config", TINY, where, "--prompt", PROMPT, "--ref", "Sure!",
                    "--explain").splitlines()
    heads = re.split(r"\s{2,}", lines[3].strip())
    numbers = [list(map(float, line.split()[-len(heads):])) for line in lines[4:]
               if re.fullmatch(r"\S*( +[+-]\d+\.\d{3})+", line)]
    return {"tail": lines[4 + len(numbers):]} | {
        head: [row[i] for row in numbers] for i, head in enumerate(heads)}


def test_a_response_of_ppo_is_explained_token_by_token(trained):
    """Each token's -beta KL, the score at the last; delta and A by V: gamma 1, lambda 0.95."""
    found = explained(trained[1])
    score = float(re.search(r"([+-][\d.]+), with the KL", found["tail"][0])[1])
    assert found["reward"][:-1] == found["-beta KL"][:-1]
    assert found["reward"][-1] == pytest.approx(score + found["-beta KL"][-1], abs=2e-3)
    after, A = [*found["V"][1:], 0.0], 0.0
    for t in reversed(range(len(after))):
        assert found["delta"][t] == pytest.approx(found["reward"][t] + after[t] - found["V"][t],
                                                  abs=2e-3)
        A = found["delta"][t] + 0.95 * A
        assert found["A"][t] == pytest.approx(A, abs=2e-2)
    assert sum(found["reward"]) == pytest.approx(
        float(re.search(r"with the KL ([+-][\d.]+)", found["tail"][0])[1]), abs=0.02)
