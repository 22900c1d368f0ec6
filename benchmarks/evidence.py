"""The paper's findings on bills, and its critics' questions: benchmarks/evidence.md.

    python benchmarks/evidence.py                               # everything, three seeds
    python benchmarks/evidence.py --rows main terms --seeds 14 15  # two seeds more of these rows

A row is a question with the comparisons that answer it. Each row of each seed is a file in
benchmarks/results, written when it is finished and not made again; after each, the tables of
evidence.md are filled in anew. The models that rows need are trained once each, in
runs/<name>-<place of the total>-<seed>..., and a training that was cut off goes on.

Choices are made on validation questions of the first two seeds (rows "choices-..."), six settings
for each system; what was chosen stands in the config or in lab.CHOSEN. Figures are of test
questions. Improvements are of y_0 ~ M_P^RL unless said.
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
from lab import (CHOSEN, OUTSIDE_SEED, RL, Lab, Responses, Trained, label, log_of, mean_length,
                 rl_samples)
from script import ROOT
from tables import fill_pages

from evaluation.measure import fold_scores, pair_agreement
from report.evaluate import stage_costs
from report.judge import Judge
from report.rivals import refiner_examples
from report.rubric import LACKING, NESTED, without
from runtime import interrupt
from runtime.config import COMPARISONS
from runtime.files import write_whole
from runtime.launch import guard
from runtime.ranks import barrier, rank
from runtime.run import NotFinite
from runtime.settings import UserError, read_arguments

SEEDS = [11, 12, 13]  # the config was made while looking at test questions of 1 to 3
TEMPERATURES = (1.0, 0.5)
GRID = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0, 1.2)
KL_TARGETS = (1.5, 3.0)
LR_TIMES = (1.0, 2.0, 4.0)  # a learning rate
LESSONS = (3, 5, 8)
TOO_MANY = 120       # iterations of a stage
TIMED, AT_ONCE = 3, 256  # times that an answer is timed, questions that are asked together
CHAIN = 8            # improvements of improvements


@dataclass
class System:
    """What it answers, and the trainings that it stands on, by their names in Lab.trainings."""
    make: Callable[[Responses], list]
    trainings: tuple[str, ...] = ()


M_P = ("sft", "rp", "rlhf")
PIT = M_P + ("pit_sft", "rpit", "stage0", "stage1")
TAUGHT = ("refiner",) + ("refiner-rl",) * (CHOSEN["refiner"] == "after RL")
OWN = ("sft",) + ("rp",) * (CHOSEN["refiner"] == "after RL") + TAUGHT
SYSTEMS = {
    "y_0 ~ M_P^SFT": System(lambda r: r.of("M_P^SFT"), ("sft",)),
    "y_0 ~ M_P^RL": System(lambda r: r.of("M_P^RL"), M_P),
    "RLHF, equal budget": System(
        lambda r: r.answers("RLHF, equal budget", r.lab.equal_budget().last()),
        ("sft", "rp", "rlhf-long")),
    "best of 2": System(lambda r: r.best_of(2), M_P),
    "best of 4": System(lambda r: r.best_of(4), M_P),
    "best of 8": System(lambda r: r.best_of(8), M_P),
    "Self-Refine, whole rubric": System(lambda r: r.refined(), M_P + TAUGHT),
    "Self-Refine, whole rubric, of its own drafts": System(lambda r: r.refined(own=True), OWN),
    "Self-Refine, all but the total": System(lambda r: r.refined(without("total")), M_P + TAUGHT),
    "M_PIT^SFT": System(lambda r: r.pit_sft(), M_P + ("pit_sft",)),
    "PPO on R_P(x, y) - R_P(x, y_ref)": System(
        lambda r: r.improved("difference of R_P", r.lab.difference().last()),
        M_P + ("pit_sft", "rpit", "difference-stage0", "difference-stage1")),  # R_PIT: the critic
    "PIT": System(lambda r: r.pit(), PIT),
    "PIT, iteration 3": System(lambda r: r.pit(3), PIT),
    "PIT of y_0 ~ M_P^SFT": System(lambda r: r.pit(start="M_P^SFT"), PIT),
    "M_PIT^SFT of y_0 ~ M_P^SFT": System(lambda r: r.pit_sft(start="M_P^SFT"), ("sft", "pit_sft")),
    "y_w": System(lambda r: r.made["y_w"]),
    "y_l": System(lambda r: r.made["y_l"]),
}


# --------------------------------------------------------------- all systems, and the control


def main_table(lab: Lab) -> dict:
    """Every system at equal temperatures and at its own best one, and PIT against each."""
    makers = {name: system.make for name, system in SYSTEMS.items()}
    best, found = in_settings(lab, makers, compared)
    return {"at": found, "best_temperatures": best,
            "rl_samples": {name: rl_samples_of(lab, name) for name in SYSTEMS}}


def rl_samples_of(lab: Lab, system: str) -> dict:
    """Responses that RL scored and sampled for a system."""
    parts = [lab.trainings()[name] for name in SYSTEMS[system].trainings]
    found = [rl_samples(run.config, [section]) for run, _, section in parts]
    return {what: sum(samples[what] for samples in found) for what in ("scored", "sampled")}


def compared(at: dict[str, Responses]) -> dict:
    """Each system's worth at its temperature (its drafts' too), its win - lose over the originals,
    and PIT's over it."""
    made, found = {name: system.make(at[name]) for name, system in SYSTEMS.items()}, {}
    for name, y in made.items():
        found[name] = at[name].worth(y) | {
            f"over {original}": at[name].over(y, made[original])
            for original in ("y_0 ~ M_P^SFT", "y_0 ~ M_P^RL")} | {
            f"{ours} over it": at[name].over(made[ours], y) for ours in ("PIT", "PIT, iteration 3")}
    return found


def settings_of(lab: Lab, makers: dict[str, Callable]) -> dict:
    """Choose temperatures of systems, by the functions that make their responses: the same for all,
    and "best", of each the one with the highest gold quality on validation questions."""
    def gold(make, temperature):
        responses = lab.responses("valid", temperature)
        return responses.gold(make(responses)).mean()

    return {str(t): dict.fromkeys(makers, t) for t in TEMPERATURES} | {
        "best": {name: max(GRID, key=lambda t: gold(make, t)) for name, make in makers.items()}}


def in_settings(lab: Lab, makers: dict[str, Callable], measure: Callable) -> tuple[dict, dict]:
    """Return the best temperatures, and in each setting measure(at), where `at` has the test
    responses of each system at its temperature there."""
    settings = settings_of(lab, makers)
    return settings["best"], {
        place: measure({name: lab.responses("test", t) for name, t in setting.items()})
        for place, setting in settings.items()}


# ------------------------------------------------------------------- variants of PIT's training


def compared_variants(lab: Lab, variants: dict[str, Trained]) -> dict:
    """Measure what other trainings of PIT make of y_0 in one iteration and in three: the worth, its
    win - lose over y_0, and PIT's over it; where each has its own best temperature, so have PIT and
    y_0."""
    def measure(at: dict[str, Responses]) -> dict:
        y_0, found = at["y_0 ~ M_P^RL"].of("M_P^RL"), {}
        for times, stem in ((1, ""), (3, ", iteration 3")):
            pit = at["PIT"].pit(times)
            for name, make in makers.items():
                found[name + stem] = at[name].beside(make(at[name], times=times), y_0, pit)
        return found

    makers = {name: partial(Responses.improved, name="PIT" if trained is lab.base() else name,
                            policy=trained.last()) for name, trained in variants.items()}
    best, found = in_settings(
        lab, makers | {name: SYSTEMS[name].make for name in ("PIT", "y_0 ~ M_P^RL")}, measure)
    samples = {name: rl_samples(trained.run.config, ("rlhf", *trained.run.config.pit.curriculum))
               for name, trained in variants.items()}
    return {"best_temperatures": best, "rl_samples": samples} | found


def curriculum(lab: Lab) -> dict:
    """Compare PIT's stages alone, both, and in the wrong order, with equal numbers of iterations
    (of which each stage's first ppo.critic_warmup leave the policy alone); target KL and learning
    rate are those chosen for PIT's first and second stage, whichever stands there."""
    first, second = lab.config.stage0, lab.config.stage1
    total = first.iterations + second.iterations

    def placed(stage: str, settings, iterations: int) -> dict:
        return {f"{stage}__iterations": iterations, f"{stage}__kl_target": settings.kl_target,
                f"{stage}__lr_scale": settings.lr_scale}

    return compared_variants(lab, {
        "stage 0 alone": lab.varied("stage-0-alone", pit__curriculum=["stage0"],
                                    **placed("stage0", first, total)),
        "stage 1 alone": lab.varied("stage-1-alone", pit__curriculum=["stage1"],
                                    **placed("stage1", first, total)),
        "stage 0, then 1": lab.base(),
        "stage 1, then 0": lab.varied(
            "stage-1,-then-0", pit__curriculum=["stage1", "stage0"],
            **placed("stage1", first, first.iterations),
            **placed("stage0", second, second.iterations))})


def terms(lab: Lab) -> dict:
    """Compare Eq. 2 with all its terms, without one, with one only: how the reward model agrees
    with labels and judge, and what PIT becomes with it (the settings are those chosen for PIT)."""
    kept = {"all five": COMPARISONS} | {
        f"without {term}": tuple(t for t in COMPARISONS if t != term) for term in COMPARISONS} | {
        "only wl>lw": ("wl>lw",)}
    variants = {name: lab.base() if left == COMPARISONS else lab.varied(
        name.replace(" ", "-"), reward__terms=list(left)) for name, left in kept.items()}
    agreed = {name: agreements(trained) for name, trained in variants.items()}
    found = {name: models["R_PIT"] for name, models in agreed.items()}
    found["difference of R_P"] = agreed["all five"]["R_P"]
    variants["difference of R_P"] = lab.difference()
    return {"agreement": found, "pit": compared_variants(lab, variants)}


def agreements(trained: Trained) -> dict:
    """Measure how often the scores of R_P ("w" against "l") and R_PIT ("wl" against "lw") agree
    with labels and judge on held-out pairs; and how often the judge agrees with the labels, where
    it calls a tie in half of the cases: the ceiling of the first."""
    data, models = trained.data, trained.models
    fold = data.folds["test"]
    scores = fold_scores(data, models.rp, models.rpit, fold)
    judge = Judge(data, models, fold.x)
    judged = np.sign(judge.grades(fold.y_w) - judge.grades(fold.y_l))
    return {name: {"labels": float((scores[better] > scores[worse]).mean()),
                   "judge": pair_agreement(scores[better], scores[worse], judged)["accuracy"],
                   "ceiling": float((judged + 1).mean() / 2)}
            for name, better, worse in (("R_P", "w", "l"), ("R_PIT", "wl", "lw"))}


def reward_models(lab: Lab) -> dict:
    """Measure what the parts of R_P and R_PIT bring to their agreement, and what more pairs would,
    of as many more bills, each read as often."""
    config = lab.config
    changed = {"without log-probabilities": {"reward__logp_feature": False},
               "without the language-model loss": {"reward__lm_coef": 0.0},
               "score of the last token": {"reward__pool": "last"},
               "3 times the pairs": {"data__bills": 3 * config.data.bills,
                                     "rp__steps": 3 * config.rp.steps,
                                     "rpit__steps": 3 * config.rpit.steps}}
    variants = {"as it is": lab.base()} | {
        name: lab.supervised(name.replace(" ", "-"), **fields) for name, fields in changed.items()}
    return {name: agreements(trained) | {"pairs": len(trained.data.folds["reward"])}
            for name, trained in variants.items()}


# ------------------------------------------------------------------------- PIT and Self-Refine


def temperatures(lab: Lab) -> dict:
    """Compare PIT and Self-Refine at several temperatures, of drafts at T = 1 and at the same T."""
    drafts, found = lab.responses("test", 1.0), {}
    for temperature in GRID:
        for place, responses in (("drafts at 1", Responses(lab, "test", temperature, drafts)),
                                 ("drafts alike", lab.responses("test", temperature))):
            y_0 = responses.of("M_P^RL")
            found[f"{temperature}, {place}"] = {"y_0": responses.worth(y_0)} | {
                name: responses.worth(y) | {"over y_0": responses.over(y, y_0)}
                for name, y in (("PIT", responses.pit()), ("Self-Refine", responses.refined()))}
    return found


def rubrics(lab: Lab) -> dict:
    """Self-Refine by rubrics of the k weightiest aspects, of the k lightest, and without one."""
    def measure(at: dict[str, Responses]) -> dict:
        pit = at["PIT"].pit()
        return {"PIT": at["PIT"].worth(pit)} | {
            name: at[name].beside(at[name].refined(aspects), at[name].of("M_P^RL"), pit)
            for name, aspects in by.items()}

    by = NESTED | LACKING
    best, found = in_settings(lab, {"PIT": Responses.pit} | {
        name: partial(Responses.refined, aspects=aspects) for name, aspects in by.items()}, measure)
    return {"best_temperatures": best} | found


# -------------------------------------------------------------------------- chains of improvements


def iterations(lab: Lab) -> dict:
    """Quality and Elo along a chain of improvements, what r_gap tells there, and when to stop."""
    best, found = in_settings(lab, {
        "y_0": lambda r: r.of("M_P^RL"), "PIT": Responses.pit, "Self-Refine": Responses.refined,
        "best of 4": lambda r: r.best_of(4)}, lambda at: {"players": ranked(at)})
    for temperature in TEMPERATURES:
        responses = lab.responses("test", temperature)
        chain = chain_of(responses, CHAIN)
        found[str(temperature)] |= {
            "copies": (100 * copied(chain).mean(1)).tolist(),
            "r_gap": what_gap_tells(responses, chain),
            "stopping": stopping(lab, temperature, responses, chain)}
    return {"best_temperatures": best} | found


def ranked(at: dict[str, Responses]) -> dict:
    """Worth and Elo of y_0, PIT's iterations, Self-Refine's and best of 4, of the responses `at`
    each system's temperature."""
    pit, refine, best = at["PIT"], at["Self-Refine"], at["best of 4"]
    players = {"y_0": (at["y_0"], at["y_0"].of("M_P^RL"))}
    players |= {f"PIT {i}": (pit, pit.pit(i)) for i in range(1, CHAIN + 1)}
    players |= {f"Self-Refine {i}": (refine, refine.refined(times=i)) for i in (1, 2, 3)}
    players["best of 4"] = (best, best.best_of(4))
    ratings = elo([responses.gold(y) for responses, y in players.values()])
    return {name: responses.worth(y) | {"elo": rating}
            for (name, (responses, y)), rating in zip(players.items(), ratings)}


def chain_of(responses: Responses, number: int) -> list[list]:
    """Return y_0 and its improvements."""
    return [responses.of("M_P^RL")] + [responses.pit(i) for i in range(1, number + 1)]


def copied(chain: list[list]) -> np.ndarray:
    """Return which improvements of a chain are copies, [steps, questions]."""
    return np.array([[a == b for a, b in zip(*step)] for step in zip(chain, chain[1:])])


def elo(grades: list[np.ndarray]) -> list[float]:
    """Rate players by all comparisons of their grades on the same questions (Bradley and
    Terry's model, a tie is half a win each); the first player has 1,000."""
    wins = np.array([[(np.sign(a - b) + 1).sum() / 2 for b in grades] for a in grades])  # [n, n]
    np.fill_diagonal(wins, 0)
    games, strength = wins + wins.T, np.ones(len(grades))
    for _ in range(2000):  # Zermelo's iteration
        strength = wins.sum(1) / (games / (strength[:, None] + strength)).sum(1)
        strength /= strength[0]
    return [1000 + 400 * float(np.log10(s)) for s in strength]


def ranks_of(values: np.ndarray) -> np.ndarray:
    """Return ranks from 0; equal values share their mean rank."""
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    return (count.cumsum() - (count + 1) / 2)[place]


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float | None:
    """Return Spearman's correlation; None where one of them does not vary."""
    if len(a) < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return None
    return float(np.corrcoef(ranks_of(a), ranks_of(b))[0, 1])


DRAFTS = ((0.0, 0.6), (0.6, 0.8), (0.8, 0.95), (0.95, 1.01))  # by their gold quality


def what_gap_tells(responses: Responses, chain: list[list]) -> dict:
    """Measure how r_gap of an improvement, less that of a copy, goes with what it gained, over all
    steps of a chain by the quality of y_ref, copies left out: the rank correlation, and how often
    it has the sign of the gain."""
    over_copy = gaps_of(responses, chain)["over_copy"]
    gold = np.array([responses.gold(y) for y in chain])
    changed = ~copied(chain)
    gained, found = np.diff(gold, axis=0), {}
    for low, high in DRAFTS:
        here = changed & (gold[:-1] >= low) & (gold[:-1] < high)
        told = pair_agreement(over_copy[here], 0 * over_copy[here], gained[here].round(9))
        found[f"{low} to {min(high, 1.0)}"] = {
            "steps": int(here.sum()),
            "correlation": rank_correlation(over_copy[here], gained[here]),
            "sign_right": told["accuracy"] if told["pairs"] else None, "of": told["pairs"],
            "gained": float(gained[here].mean()) if here.any() else None}
    return found


def gaps_of(responses: Responses, chain: list[list]) -> dict:
    """Return r_gap of each step of a chain, [steps, questions], as it is and less that of a copy
    (0 for copies, which another batch would score otherwise in the last digit)."""
    gap = np.stack([responses.gaps(y, y_ref) for y_ref, y in zip(chain, chain[1:])])
    copy = np.stack([responses.gaps(y_ref, y_ref) for y_ref in chain[:-1]])
    return {"gap": gap, "over_copy": np.where(copied(chain), 0.0, gap - copy)}


def kept(marks: np.ndarray, threshold: float) -> np.ndarray:
    """Count the steps kept of each chain: all before the first mark not above the threshold."""
    return np.cumprod(marks > threshold, axis=0).sum(0)


def stopping(lab: Lab, temperature: float, responses: Responses, chain: list[list]) -> dict:
    """Compare always going on with keeping y_i only if its r_gap exceeds a threshold, chosen for
    the gold quality of validation questions; and if it exceeds that of a copy."""
    seen = lab.responses("valid", temperature)
    known = chain_of(seen, len(chain) - 1)
    golds = [np.array([r.gold(y) for y in c]) for r, c in ((seen, known), (responses, chain))]
    marks = [gaps_of(r, c) for r, c in ((seen, known), (responses, chain))]
    every = [np.arange(gold.shape[1]) for gold in golds]
    threshold = max(np.quantile(marks[0]["gap"], np.linspace(0, 0.9, 19)), key=lambda t: golds[0][
        kept(marks[0]["gap"], t), every[0]].mean())
    found = {"once": {"gold": float(golds[1][1].mean()), "steps": 1},
             "always": {"gold": float(golds[1][-1].mean()), "steps": len(chain) - 1}}
    for name, mark, limit in (("r_gap above a threshold", "gap", threshold),
                              ("r_gap above a copy's", "over_copy", 0.0)):
        last = kept(marks[1][mark], limit)
        found[name] = {"gold": float(golds[1][last, every[1]].mean()), "threshold": float(limit),
                       "steps": float(np.minimum(last + 1, len(chain) - 1).mean())}
    return found


# ------------------------------------------------------------------- costs, and too much of a good


def cost(lab: Lab) -> dict:
    """Of each system the seconds and tokens of its trainings, and for an answer the tokens sampled
    and read, the calls and the seconds (median of three, 256 questions at once, T = 1)."""
    tokens, found = training_tokens(lab), {}
    trainings = {name: {"seconds": stage_costs(run, [stage])[stage][0]} | tokens[name]
                 for name, (run, stage, _) in lab.trainings().items()}
    for name, system in SYSTEMS.items():
        if not system.trainings:
            continue
        times = []
        for _ in range(1 + TIMED):  # the first warms up
            responses = Responses(lab, "test", 1.0, number=AT_ONCE)
            start = time.perf_counter()
            y = system.make(responses)
            times.append((time.perf_counter() - start) / len(y))
        spent, learned, drawn = (sum(trainings[part][what] for part in system.trainings)
                                 for what in ("seconds", "learned", "drawn"))
        found[name] = responses.cost(y) | rl_samples_of(lab, name) | {
            "seconds": median(times[1:]), "training": spent, "tokens_learned": learned,
            "tokens_drawn": drawn}
    return {"systems": found, "trainings": trainings}


def training_tokens(lab: Lab) -> dict[str, dict]:
    """Of each training the tokens that the model under training reads, prompts included, and those
    that are sampled for it, references included; from mean lengths, ends left out."""
    data, length, found = lab.base().data, mean_length, {}
    sft, pairs, rl = (data.folds[name] for name in ("sft", "reward", "rl"))
    taught, both = refiner_examples(lab.base().run, data), length(pairs.y_w) + length(pairs.y_l)
    rows = {"sft": length(map(data.policy_prompt, sft.x)) + length(sft.y_w),
            "pit_sft": length(map(data.pit_prompt, sft.x, sft.y_l)) + length(sft.y_w),
            "rp": length(map(data.policy_prompt, pairs.x)) + both,
            "rpit": 2 * both + sum(length(map(data.pit_prompt, pairs.x, y_ref))
                                   for y_ref in (pairs.y_w, pairs.y_l)),
            "refiner": length(taught.x) + length(taught.y_w)}
    y_0 = length(lab.responses("test", 1.0).of("M_P^RL"))  # about as long as on the RL fold
    x = length(map(data.policy_prompt, rl.x))
    empty = length(data.pit_prompt(ids, []) for ids in rl.x)
    references = {"data": (length(rl.y_w) + length(rl.y_l)) / 2, "policy": y_0}
    for name, (run, stage, section) in lab.trainings().items():
        fit = getattr(lab.config, section)
        if section in RL:
            prompt = x if section == "rlhf" else empty + references[fit.reference]
            drawn = y_0 if section != "rlhf" and fit.reference == "policy" else 0
            lengths = [row["length"] for row in log_of(run, stage)]
            found[name] = {"learned": lab.config.ppo.batch * sum(prompt + y for y in lengths),
                           "drawn": lab.config.ppo.batch * sum(drawn + y for y in lengths)}
        else:
            times = CHOSEN["lessons"] if name == "refiner" else 1
            found[name] = {"learned": times * fit.steps * fit.batch * rows[name], "drawn": 0}
    return found


def optimisation(lab: Lab) -> dict:
    """Follow gold quality, reward and KL along RLHF and PIT's stage 0, with fixed coefficients of
    the KL and more iterations than are good: of the rollouts, on questions of the RL fold at T = 1
    (stage 0: of y_l and y_w); and at the end on test questions (stage 0: of y_0 ~ M_P^RL)."""
    found, responses = {}, lab.responses("test", 1.0)
    for stage in ("rlhf", "stage0"):
        for beta in (0.0, 0.03, 0.1):
            name = f"{stage}, beta {beta}"
            trained = lab.one_stage(stage, f"{stage}-beta-{beta}", **{
                f"{stage}__beta": beta, f"{stage}__kl_target": 1e9,  # it never moves beta
                f"{stage}__iterations": TOO_MANY})
            rows = log_of(trained.run, stage)
            make = responses.answers if stage == "rlhf" else responses.improved
            y = make(name, trained.last())
            found[name] = {
                key: [row[key] for row in rows] for key in ("step", "gold", "reward", "kl")} | {
                "test": responses.worth(y)}
    return found


# ---------------------------------------------------------------------------------------- choices


def tried(lab: Lab, settings: dict[str, dict], make: Callable, lessons: int | None = None) -> dict:
    """Of each setting the gold quality on validation questions, mean over two temperatures, of what
    make(responses, fields) writes; all settings have the same random numbers."""
    at = [Responses(lab, "valid", t, lessons=lessons) for t in TEMPERATURES]
    return {name: float(np.mean([r.gold(make(r, fields)).mean() for r in at]))
            for name, fields in settings.items()}


def rlhf_settings() -> dict[str, dict]:
    return {f"kl_target {kl}, lr_scale {scale}": {"rlhf__kl_target": kl, "rlhf__lr_scale": scale}
            for kl in KL_TARGETS for scale in LR_TIMES}


def rlhf_choices(lab: Lab) -> dict:
    """M_P^RL's answers."""
    return tried(lab, rlhf_settings(), lambda r, fields: r.answers(
        label("rlhf", fields), lab.one_stage("rlhf", **fields).last(), "rlhf"))


def equal_budget_choices(lab: Lab) -> dict:
    """Do the same with RLHF of the budget of PIT."""
    return tried(lab, rlhf_settings(), lambda r, fields: r.answers(
        label("long", fields), lab.equal_budget(**fields).last(), "RLHF, equal budget"))


def pit_choices(lab: Lab, score: str = "gap") -> dict:
    """Do the same with PIT's improvements of y_0, of learning rates, as its KL hardly reaches the
    config's targets: stage 0's, and then stage 1's after the best of these."""
    first = {f"stage0, lr_scale {scale}": {"pit__score": score, "stage0__lr_scale": scale}
             for scale in LR_TIMES}
    golds = tried(lab, first, lambda r, fields: r.improved(
        label("stage0", fields), lab.one_stage("stage0", **fields).last(), purpose="stage0"))
    best = first[max(golds, key=golds.get)]
    second = {f"stage1, lr_scale {scale / 2}": best | {"stage1__lr_scale": scale / 2}
              for scale in LR_TIMES}
    return golds | tried(lab, second, lambda r, fields: r.improved(
        label("both", fields), lab.both_stages(**fields).last(), purpose="stage1"))


def refiner_choices(lab: Lab) -> dict:
    """Do the same with Self-Refine's rewrites of y_0, by the whole rubric."""
    found = {}
    for lessons in LESSONS:
        settings = {f"{lessons} x M_PIT^SFT's steps, {kind}": {"kind": kind}
                    for kind in ("after RL", "before RL")}
        found |= tried(lab, settings, lambda r, fields: r.refined(**fields), lessons)
    return found


CHOICES = {"choices-rlhf": rlhf_choices,
           "choices-equal-budget": equal_budget_choices,
           "choices-pit": pit_choices,
           "choices-difference": partial(pit_choices, score="difference"),
           "choices-refiner": refiner_choices}
ROWS = CHOICES | {
    "main": main_table, "control": main_table, "rubrics": rubrics, "temperatures": temperatures,
    "iterations": iterations, "curriculum": curriculum, "terms": terms,
    "reward-models": reward_models, "cost": cost, "optimisation": optimisation}

# What rows use of CHOSEN, and the settings that they try themselves or never use.
REFINED = ("lessons", "refiner")
USED = {"main": tuple(CHOSEN), "control": tuple(CHOSEN), "cost": tuple(CHOSEN),
        "rubrics": REFINED, "temperatures": REFINED, "iterations": REFINED,
        "terms": ("difference",)}
RATES = ("stage0.lr_scale", "stage1.lr_scale")
OF_PIT = (*RATES, "stage0.kl_target", "stage1.kl_target")
OF_RLHF = ("rlhf.kl_target", "rlhf.lr_scale", *OF_PIT)
FREE_OF = {"choices-rlhf": OF_RLHF, "choices-equal-budget": OF_RLHF, "choices-pit": RATES,
           "choices-difference": RATES, "choices-refiner": OF_PIT}


# --------------------------------------------------------------------------------- files of rows


def stands_on(row: str, lab: Lab) -> dict:
    """Return the settings that a row's content depends on: the config, less what the row tries
    itself or never uses, and those of CHOSEN that it uses."""
    settings = lab.settings(USED.get(row, ()))
    return {name: value for name, value in settings.items() if name not in FREE_OF.get(row, ())}


def finished(path: Path, row: str, settings: dict) -> bool:
    """Return whether the row is there. Raises UserError if it was made with other settings, for
    this seed or for another, with which a table would average it; new fields do not count."""
    for made in sorted(path.parent.glob(f"{row}-[0-9]*.json")):
        before = json.loads(made.read_text(encoding="utf-8"))["settings"]
        differ = sorted(name for name in before.keys() & settings
                        if before[name] != json.loads(json.dumps(settings[name])))
        if differ:
            raise UserError(f"{made}: was made with other values of {', '.join(differ)}; delete "
                            "it, or choose another folder with --results")
    return path.exists()


def make_row(row: str, lab: Lab, path: Path) -> None:
    """Answer a row's question with one seed, and keep the answer."""
    start = time.perf_counter()
    content = ROWS[row](lab)
    kept_row = {"row": row, "seed": lab.seed, "settings": stands_on(row, lab),
                "seconds": time.perf_counter() - start, "content": content}
    if rank() == 0:
        text = json.dumps(kept_row, indent=1, allow_nan=False)
        write_whole(path, lambda file: file.write(text.encode()))
        print(f"written: {path}", flush=True)
        if path.parent.name == "results":  # rows elsewhere are no part of the pages
            fill_pages(path.parent)
    barrier()


def main() -> None:
    args, overrides = read_arguments(
        __doc__.splitlines()[0],
        ("--rows", {"nargs": "+", "choices": list(ROWS),
                    "help": "all; the choices for the first two seeds only"}),
        ("--seeds", {"nargs": "+", "type": int, "default": SEEDS}),
        ("--results", {"default": str(ROOT / "benchmarks" / "results"),
                       "help": "the folder of finished rows"}),
        config=str(ROOT / "configs" / "synthetic.toml"))
    if set(args.seeds) & {seed + OUTSIDE_SEED for seed in args.seeds}:
        raise UserError(f"--seeds: seed + {OUTSIDE_SEED} has the data of another judge")
    Path(args.results).mkdir(parents=True, exist_ok=True)
    todo = []  # before a rank makes any of it
    for seed in args.seeds:
        for row in args.rows or [r for r in ROWS if r not in CHOICES or seed in SEEDS[:2]]:
            lab = Lab(args.config, overrides, seed, "last" if row == "control" else "first")
            path = Path(args.results) / f"{row}-{seed}.json"
            if finished(path, row, stands_on(row, lab)):
                print(f"there already: {path}")
            else:
                todo.append((row, lab, path))
    labs, failed = {}, []
    while todo:
        row, lab, path = todo.pop(0)
        labs = {key: one for key, one in labs.items() if one.seed == lab.seed}  # memory
        try:
            make_row(row, labs.setdefault(lab.name, lab), path)
        except NotFinite as error:  # of all ranks at once: the other rows go on
            failed.append(f"{row} of seed {lab.seed}: {error}")
            print(failed[-1], flush=True)
            interrupt.release()
    if failed:
        raise UserError("; ".join(failed))


if __name__ == "__main__":
    guard(main)
