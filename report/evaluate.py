"""The evaluation on held-out prompts: what report.json holds.

Every system answers the same prompts at the same temperature; a response wins over the one that it
is compared with if the judge grades it higher. On bills the judge is the hidden one. On other data
it is a reward model held out from all training, or your own (eval.judge); as reward models like
length, win - lose is shown at equal length beside.
"""

import itertools
import random
import time
from dataclasses import replace

import numpy as np
import torch
from tqdm import tqdm

from data import Data, Fold, Pairs
from evaluation import measure
from evaluation.show import prompt_text
from report.judge import Judge, judge_of
from report.prices import price_list
from report.rivals import best_of, refiner, self_refine
from reward import score
from runtime import files, operations, ranks
from runtime.config import ONLY_SPEED
from runtime.run import Run, values_of
from runtime.stages import inputs_of, title
from sample import Sampler, answer, improve
from train_reward import Models


class Table:
    """The rows of the report, one system at one temperature each; a sample of `longest` tokens, its
    end left out, was cut off."""

    def __init__(self, judge: Judge, longest: int):
        self.judge, self.longest, self.rows = judge, longest, []

    def add(self, system: str, y: list, against: str, y_other: list, temperature, iteration=0,
            y_ref=None) -> None:
        """Add a row: y of `system` against y_other of `against`; y_ref is what it improved."""
        grades, others = self.judge.grades(y), self.judge.grades(y_other)
        longer = np.array([len(a) - len(b) for a, b in zip(y, y_other)])
        aspects = self.judge.aspects(y) if self.judge.bills else []
        self.rows.append({
            "system": system, "against": against, "iteration": iteration,
            "temperature": temperature} | measure.comparison(np.sign(grades - others), longer) | {
            "gold": float(grades.mean()) if self.judge.is_gold else None,
            "grades": grades.round(4).tolist(),
            "aspects": {name: float(np.mean([a[name] for a in aspects]))
                        for name in (aspects[0] if aspects else {})},
            "length": float(np.mean([len(ids) for ids in y])),
            "cut": 100 * float(np.mean([len(ids) >= self.longest for ids in y])),
            "copies": None if y_ref is None else
            100 * float(np.mean([a == b for a, b in zip(y, y_ref)]))})


class Kept:
    """The responses of an evaluation, kept on disk as they are made: the same evaluation, of the
    same models, goes on with them if it was cut off."""

    def __init__(self, run: Run):
        self.path, self.start = run.folder / "evaluation.part.pt", time.perf_counter()
        self.inputs = evaluated(run)
        content = files.load(self.path) if self.path.exists() else {"inputs": None}
        fits = content["inputs"] == self.inputs
        self.made = content["made"] if fits else {}
        self.before = content["spent"] if fits else (0.0, 0.0)
        self.counted = operations.done
        ranks.barrier()  # before the first rank writes another one

    def __call__(self, name: str, sampler: Sampler, make) -> list:
        """Return what make() samples with a sampler, made once."""
        name, generator = f"{name}, {sampler.temperature}", sampler.generator
        if name not in self.made:
            self.made[name] = {"y": make(), "state": generator.get_state()}
            if ranks.rank() == 0:
                files.save(self.path, {"inputs": self.inputs, "made": self.made,
                                       "spent": self.spent()})
        generator.set_state(self.made[name]["state"])
        return self.made[name]["y"]

    def spent(self) -> tuple[float, float]:
        """Return the seconds and the operations of the evaluation up to now, those before it was
        cut off included."""
        seconds, done = self.before
        return (seconds + time.perf_counter() - self.start,
                done + ranks.ranks() * (operations.done - self.counted))


def evaluated(run: Run) -> dict:
    """Return what an evaluation's responses depend on: settings, and the very checkpoints."""
    paths = {name: run.used[name].stat() for name in inputs_of(run.config)}
    return {name: value for name, value in values_of(run.config).items()
            if not name.startswith("run.") and name not in {*ONLY_SPEED, "eval.judge"}} | {
        "run.seed": run.config.run.seed, "run.amp": run.config.run.amp} | {
        name: [stat.st_size, stat.st_mtime_ns] for name, stat in paths.items()}


def evaluate_at(run: Run, data: Data, models: Models, table: Table, x, temperature,
                kept: Kept, refining) -> dict:
    """Add all rows at one temperature; `refining` is Self-Refine's policy with its data, if any.
    Returns the responses that the examples are drawn from."""
    setting, policies = run.config.eval, models.policies

    def sampler_of(purpose: str) -> Sampler:
        return Sampler(run, data, temperature,
                       run.generator(f"{purpose} {temperature}", setting.seed))

    sampler = sampler_of("evaluation")

    def answers(name: str, sampler=sampler) -> list:
        return kept(name, sampler, lambda: answer(sampler, policies[name], x))

    def improved(name: str, y_ref: list, what) -> list:
        return kept(f"{name}, {what}", sampler, lambda: improve(sampler, policies[name], x, y_ref))

    sft, y_0 = answers("M_P^SFT"), answers("M_P^RL")
    table.add("M_P^SFT", sft, "M_P^RL", y_0, temperature)
    table.add("M_P^RL", y_0, "M_P^SFT", sft, temperature)
    if "pretrained" in policies:
        own = answers("pretrained", sampler_of("pretrained"))
        table.add("pretrained", own, "M_P^RL", y_0, temperature)
    best = kept("best of n", sampler, lambda: best_of(sampler, models, x, setting.best_of))
    table.add(f"best of {setting.best_of}", best, "M_P^RL", y_0, temperature)
    more = None
    if "RLHF equal budget" in policies:
        table.add("M_P^SFT equal budget", answers("M_P^SFT equal budget"), "M_P^RL", y_0,
                  temperature)
        more = answers("RLHF equal budget")
        table.add("RLHF equal budget", more, "M_P^RL", y_0, temperature)
    chains, refined = {}, []
    if refining:
        own = replace(sampler_of("Self-Refine"), data=refining[1])
        refined = kept("Self-Refine", own, lambda: self_refine(own, refining[0], x, y_0))
        table.add("Self-Refine", refined, "M_P^RL", y_0, temperature, 1, y_0)
    for name in [n for n in ("M_PIT^SFT", *map(title, run.config.stages())) if n in policies]:
        y = y_0
        chains[name] = [y_0]
        for i in range(1, 2 if name == "M_PIT^SFT" else setting.iterations + 1):
            y_ref, y = y, improved(name, y, i)
            chains[name].append(y)
            table.add(name, y, "M_P^RL", y_0, temperature, i, y_ref)
    final = title(run.config.pit.curriculum[-1])
    over_sft = improved(final, sft, "of M_P^SFT")
    table.add(final, over_sft, "M_P^SFT", sft, temperature, 1, sft)
    table.add(final, chains[final][1], "M_PIT^SFT", chains["M_PIT^SFT"][1], temperature, 1, y_0)
    if more is not None:
        for i in dict.fromkeys((1, setting.iterations)):
            table.add(final, chains[final][i], "RLHF equal budget", more, temperature, i,
                      chains[final][i - 1])
    if refined:
        table.add(final, chains[final][1], "Self-Refine", refined, temperature, 1, y_0)
    return {"sft": sft, "chain": chains[final], "refined": refined}


def sample_agreements(run: Run, data: Data, models: Models, judge: Judge, x: list) -> dict:
    """Measure how often reward models order two samples as the judge does, at temperature 1."""
    sampler = Sampler(run, data, 1.0, run.generator("agreements", run.config.eval.seed))
    policies, found = models.policies, {}

    def compare(kind, a, b, gap_a, gap_b):
        better = judge.grades(a) - judge.grades(b)
        found[f"R_P, {kind}"] = measure.pair_agreement(
            *(measure.rp_scores(data, models.rp, x, y) for y in (a, b)), better)
        found[f"R_PIT, {kind}"] = measure.pair_agreement(gap_a, gap_b, better)

    a, b = (answer(sampler, policies["M_P^SFT"], x) for _ in range(2))
    compare("pairs of M_P^SFT's samples", a, b, measure.gap_scores(data, models.rpit, x, a, b),
            measure.gap_scores(data, models.rpit, x, b, a))
    y_ref = answer(sampler, policies["M_P^RL"], x)
    final = policies[title(run.config.pit.curriculum[-1])]
    a, b = (improve(sampler, final, x, y_ref) for _ in range(2))
    compare("pairs of PIT's samples over one y_ref ~ M_P^RL", a, b,
            *(measure.gap_scores(data, models.rpit, x, y, y_ref) for y in (a, b)))
    return found


def judge_agreements(data: Data, models: Models, judge: Judge, fold: Pairs) -> dict:
    """Measure how often reward models and labels agree with the judge on held-out pairs."""
    better = judge.grades(fold.y_w) - judge.grades(fold.y_l)
    s = measure.fold_scores(data, models.rp, models.rpit, fold)
    return {"R_P, held-out pairs, judge": measure.pair_agreement(s["w"], s["l"], better),
            "R_PIT, held-out pairs, judge": measure.pair_agreement(s["wl"], s["lw"], better),
            "labels, held-out pairs, judge (the ceiling)": measure.pair_agreement(
                np.ones(len(fold)), np.zeros(len(fold)), better)}


def stage_costs(run: Run, stages) -> dict[str, tuple[float, float]]:
    """Return the seconds and the operations that finished stages took."""
    contents = {name: files.load(run.used[name]) for name in stages}
    return {name: (content["seconds"], content["operations"])
            for name, content in contents.items()}


def once_each(fold: Fold, number: int) -> Pairs:
    """Return the first pair of each prompt, `number` of them: answers to one prompt are no
    independent trials, and some data sets have many pairs on one. (A fold begins with one pair of
    each group that the split keeps together.)"""
    first = {}
    for i, x in enumerate(fold.x):
        first.setdefault(tuple(x), i)
    return fold[list(first.values())[:number]]


def held_out(run: Run, data: Data, split: str) -> Pairs:
    """Return a pair of each of the questions that an evaluation asks."""
    groups = getattr(run.config.data, split)
    return once_each(data.folds[split], min(run.config.eval.prompts, groups))


def golds_on_validation(run: Run, data: Data, models: Models) -> dict[str, dict[str, float]]:
    """Return each system's gold on validation questions of bills, by temperature: for choices."""
    x, refining = held_out(run, data, "valid").x, refiner(run, data, models)
    table, found = Table(Judge(data, None, x), run.config.data.max_response), {}
    for temperature in run.config.eval.temperatures:
        evaluate_at(run, data, models, table, x, temperature, lambda name, sampler, make: make(),
                    refining)
    for row in table.rows:
        if row["iteration"] < 2 and row["against"] == ("M_P^SFT" if row["system"] == "M_P^RL"
                                                       else "M_P^RL"):
            found.setdefault(row["system"], {})[str(row["temperature"])] = row["gold"]
    return found


def evaluate(run: Run, data: Data, models: Models) -> dict:
    """Return the content of report.json."""
    grader = judge_of(run, data, models)
    refining = refiner(run, data, models)
    costs, setting, kept = stage_costs(run, inputs_of(run.config)), run.config.eval, Kept(run)
    fold = held_out(run, data, setting.split)
    x = fold.x
    judge = Judge(data, grader, x)
    table = Table(judge, run.config.data.max_response)
    responses = {t: evaluate_at(run, data, models, table, x, t, kept, refining)
                 for t in tqdm(setting.temperatures, "  evaluation", disable=ranks.rank() != 0)}
    y_0 = responses[setting.temperatures[0]]["chain"][0]
    for side in ("y_l", "y_w"):
        table.add(side, getattr(fold, side), "M_P^RL", y_0, None)
    accuracies = measure.held_out_accuracies(data, models.rp, models.rpit, setting.split)
    if judge.is_gold:
        accuracies |= judge_agreements(data, models, judge, fold)
        accuracies |= sample_agreements(run, data, models, judge, x)
    else:
        accuracies["judge of this report"] = measure.pointwise_agreement(
            data, judge.grader, data.folds[setting.split])
    prices = price_list(data, models, x, run.config.data) if judge.bills else {}
    costs["evaluation"] = kept.spent()
    peak = ranks.all_sum(torch.tensor(operations.peak(run.device))).item()
    return {"name": run.config.run.name, "seed": run.config.run.seed,
            "eval_seed": setting.seed, "split": setting.split, "prompts": len(x),
            "judge": judge.name, "rows": table.rows, "reward": accuracies, "prices": prices,
            "seconds": {name: seconds for name, (seconds, _) in costs.items()},
            "tflop": {name: done / 1e12 for name, (_, done) in costs.items()},
            "peak_tflop_a_second": peak / 1e12, "data": data.counts,
            "examples": examples(run, data, models, judge, responses),
            "responses": comparisons(run, data, x, responses)}


def comparisons(run: Run, data: Data, x: list, responses: dict) -> list[dict]:
    """Return what an outside judge may be asked to compare, as texts: the original response, the
    first improvement and, if it is there, Self-Refine's."""
    final, found = title(run.config.pit.curriculum[-1]), []
    for temperature, made in responses.items():
        texts = {name: [data.tokenizer.decode(ids) for ids in y] for name, y in (
            ("M_P^RL", made["chain"][0]), (final, made["chain"][1]),
            ("Self-Refine", made["refined"])) if y}
        for system, against in itertools.combinations(reversed(texts), 2):
            found.append({"x": [prompt_text(data, ids) for ids in x], "temperature": temperature,
                          "system": system, "y": texts[system],
                          "against": against, "y_other": texts[against]})
    return found


def examples(run: Run, data: Data, models: Models, judge: Judge, responses: dict) -> list[dict]:
    """Return improvements of some prompts, drawn with the evaluation's seed, each with its r_gap,
    that of an unchanged copy, and gold."""
    temperature = run.config.eval.temperatures[-1]
    chain, decode = responses[temperature]["chain"], data.tokenizer.decode
    found = []
    shown = min(run.config.eval.examples, len(judge.x))
    for i in random.Random(run.config.eval.seed).sample(range(len(judge.x)), shown):
        steps, x = [], prompt_text(data, judge.x[i])
        for k, y in enumerate(chain):
            y_ref = chain[k - 1][i]
            gap, copy = score(models.rpit, data.pit_rows(
                [judge.x[i]] * 2, [y_ref] * 2, [y[i], y_ref])).tolist() if k else (None, None)
            gold = float(judge.grades(y)[i]) if judge.is_gold else None
            steps.append({"y": decode(y[i]), "r_gap": gap, "a copy": copy, "gold": gold})
        found.append({"x": x, "temperature": temperature, "steps": steps})
    return found
