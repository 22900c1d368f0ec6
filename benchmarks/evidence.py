"""The paper's findings on bills, and its critics' questions, as tables: benchmarks/evidence.md.

    python benchmarks/evidence.py --config configs/synthetic.toml --seeds 1 2 3
    python benchmarks/evidence.py --config configs/synthetic.toml --rows curriculum cost --seeds 1
    python benchmarks/tables.py                       # of what is in benchmarks/results

A row of the evidence is a question with the comparisons that answer it; each row of each seed is a
file in benchmarks/results, written when it is finished and not made again. The models that rows
need are trained once each, in runs/<name>-<place of the total>-<seed>..., and taken up where a
training was cut off. Questions that no choice has seen are asked ("test"); choices were made on
others ("valid", row "choices").
"""

import json
import time
from functools import cache
from pathlib import Path

import numpy as np
from lab import RUBRIC, Lab, Responses

from runtime import rank
from tools.files import write_whole
from tools.launch import guard
from tools.measure import fold_scores, held_out_accuracies, pair_agreement
from tools.ranks import barrier
from tools.report import judge_agreements, stage_seconds
from tools.settings import read_arguments

RESULTS = str(Path(__file__).resolve().parent / "results")
TEMPERATURES = (1.0, 0.5)
GRID = (0.2, 0.4, 0.6, 0.8, 1.0, 1.2)
COMPARISONS = ("wl>ww", "wl>ll", "wl>lw", "ww>lw", "ll>lw")  # of Eq. 2
RIVALS = ("y_0 ~ M_P^SFT", "y_0 ~ M_P^RL")  # that every system is compared with


def of_variant(responses: Responses, name: str, times: int = 1, **fields) -> list:
    """The improvements of y_0 by another training of PIT."""
    models = responses.lab.varied(name, **fields).models
    final = [policy for policy in models.policies if policy.startswith("PIT stage")][-1]
    return responses.improved(name, models.policies[final], times)


def difference(responses: Responses) -> list:
    return of_variant(responses, "difference", pit__score="difference")


# What each system answers, and how many samples its RL has seen, in iterations of the stages.
SYSTEMS = {
    "y_0 ~ M_P^SFT": (lambda r: r.of("M_P^SFT"), ()),
    "y_0 ~ M_P^RL": (lambda r: r.of("M_P^RL"), ("rlhf",)),
    "RLHF, equal budget": (lambda r: r.of("RLHF equal budget"), ("rlhf", "stage0", "stage1")),
    "best of 2": (lambda r: r.best_of(2), ("rlhf",)),
    "best of 4": (lambda r: r.best_of(4), ("rlhf",)),
    "best of 8": (lambda r: r.best_of(8), ("rlhf",)),
    "Self-Refine, whole rubric": (lambda r: r.refined(), ("rlhf", "rlhf")),
    "Self-Refine, whole rubric, no RL": (
        lambda r: r.refined(name="Self-Refine without RL"), ("rlhf",)),
    "Self-Refine, all but the total": (lambda r: r.refined(without("total")), ("rlhf", "rlhf")),
    "M_PIT^SFT": (lambda r: r.improved("M_PIT^SFT", r.models.policies["M_PIT^SFT"]), ("rlhf",)),
    "PPO on R_P(x, y) - R_P(x, y_ref)": (difference, ("rlhf", "stage0", "stage1")),
    "PIT": (lambda r: r.pit(), ("rlhf", "stage0", "stage1")),
    "PIT, iteration 3": (lambda r: r.pit(3), ("rlhf", "stage0", "stage1")),
    "y_w": (lambda r: r.made["y_w"], ()),
    "y_l": (lambda r: r.made["y_l"], ()),
}


def without(*aspects) -> tuple:
    """The rubric that lacks these."""
    return tuple(aspect for aspect in RUBRIC if aspect not in aspects)


def worth(responses: Responses, y: list) -> dict:
    """A system's quality, and what it samples for an answer."""
    return {"gold": float(responses.gold(y).mean()), "aspects": responses.aspects(y),
            "tokens": responses.tokens(y)}


# ------------------------------------------------------------------------------------- the rows


def main_table(lab: Lab) -> dict:
    """Every system at equal temperatures and at its own best one, and PIT against each."""
    config, at = lab.base().run.config, cache(lambda t: Responses(lab, "test", t))
    settings = {str(t): dict.fromkeys(SYSTEMS, t) for t in TEMPERATURES}
    settings["best"] = best_temperatures(lab)
    return {"at": {name: compared(at, setting) for name, setting in settings.items()},
            "best_temperatures": settings["best"],
            "rl_samples": {
                name: sum(getattr(config, stage).iterations for stage in stages) * config.ppo.batch
                for name, (_, stages) in SYSTEMS.items()}}


def compared(at, setting: dict) -> dict:
    """Each system's worth at its temperature in the setting, its win - lose over the RIVALS, and
    PIT's over it; at(temperature) are responses."""
    made = {name: (at(setting[name]), make(at(setting[name])))
            for name, (make, _) in SYSTEMS.items()}
    found = {}
    for name, (responses, y) in made.items():
        found[name] = worth(responses, y)
        for rival in RIVALS:
            found[name] |= {f"over {rival}": responses.over(y, made[rival][1])}
        for ours in ("PIT", "PIT, iteration 3"):
            found[name] |= {f"{ours} over it": responses.over(made[ours][1], y)}
    return found


def best_temperatures(lab: Lab) -> dict:
    """Of each system the temperature with the highest gold quality on validation questions."""
    gold = {name: {} for name in SYSTEMS}
    for temperature in GRID:
        responses = Responses(lab, "valid", temperature)
        for name, (make, _) in SYSTEMS.items():
            gold[name][temperature] = responses.gold(make(responses)).mean()
    return {name: max(found, key=found.get) for name, found in gold.items()}


def curriculum(lab: Lab) -> dict:
    """PIT's stages alone, both, and in the wrong order, with equal numbers of iterations."""
    config = lab.base().run.config
    first, second = config.stage0.iterations, config.stage1.iterations
    scale, total = config.stage1.lr_scale, first + second
    variants = {
        "stage 0 alone": {"pit__curriculum": ["stage0"], "stage0__iterations": total},
        "stage 1 alone": {"pit__curriculum": ["stage1"], "stage1__iterations": total,
                          "stage1__lr_scale": 1.0},
        "stage 0, then 1": {},
        "stage 1, then 0": {"pit__curriculum": ["stage1", "stage0"],
                            "stage1__iterations": first, "stage1__lr_scale": 1.0,
                            "stage0__iterations": second, "stage0__lr_scale": scale}}
    return {str(temperature): {name: variant_worth(responses, name, fields)
                               for name, fields in variants.items()}
            for temperature in TEMPERATURES
            for responses in (Responses(lab, "test", temperature),)}


def variant_worth(responses: Responses, name: str, fields: dict) -> dict:
    """What another training of PIT makes of y_0, and its win - lose over y_0 and over PIT."""
    y = of_variant(responses, name, **fields) if fields else responses.pit()
    return worth(responses, y) | {"over y_0 ~ M_P^RL": responses.over(y, responses.of("M_P^RL")),
                                  "PIT over it": responses.over(responses.pit(), y)}


def terms(lab: Lab) -> dict:
    """Eq. 2 with all its terms, without one, with one only, and the difference of R_P: how the
    reward model agrees with labels and judge, and what PIT becomes with it."""
    lists = {"all five": COMPARISONS} | {
        f"without {term}": tuple(t for t in COMPARISONS if t != term) for term in COMPARISONS} | {
        "only wl>lw": ("wl>lw",)}
    fields = {name: {"reward__terms": list(kept)} if len(kept) < 5 else {}
              for name, kept in lists.items()} | {"difference": {"pit__score": "difference"}}
    base = lab.base()
    fold = base.data.folds["test"]
    responses = {t: Responses(lab, "test", t) for t in TEMPERATURES}
    judge, found = responses[1.0].judge, {}
    better = judge.grades(fold.y_w[:len(judge.x)]) - judge.grades(fold.y_l[:len(judge.x)])
    found["ceiling"] = judge_agreements(base.data, base.models, judge, fold)[
        "labels, held-out pairs, judge (the ceiling)"]
    for name, changed in fields.items():
        models = lab.varied(name, **changed).models if changed else base.models
        scores = fold_scores(base.data, models.rp, models.rpit, fold)
        a, b = ("w", "l") if name == "difference" else ("wl", "lw")
        held_out = held_out_accuracies(base.data, models.rp, models.rpit, "test")
        found[name] = {
            "labels": held_out["R_P" if name == "difference" else "R_PIT wl>lw"],
            "judge": pair_agreement(scores[a][:len(judge.x)], scores[b][:len(judge.x)], better),
            "pit": {str(t): variant_worth(r, name, changed) for t, r in responses.items()}}
    return found


def temperatures(lab: Lab) -> dict:
    """PIT and Self-Refine at several temperatures, of drafts at T = 1 and of drafts at the same."""
    drafts, found = Responses(lab, "test", 1.0).of("M_P^RL"), {}
    for temperature in GRID:
        for place, responses in (("drafts at 1", Responses(lab, "test", temperature, drafts)),
                                 ("drafts alike", Responses(lab, "test", temperature))):
            y_0 = responses.of("M_P^RL")
            found[f"{temperature}, {place}"] = {"y_0": worth(responses, y_0)} | {
                name: worth(responses, y) | {"over y_0": responses.over(y, y_0)}
                for name, y in (("PIT", responses.pit()), ("Self-Refine", responses.refined()))}
    return found


def rubrics(lab: Lab) -> dict:
    """Self-Refine by rubrics of k aspects, the weightiest first, and by those that lack one."""
    named = {f"first {k}": RUBRIC[:k] for k in range(1, len(RUBRIC) + 1)} | {
        f"without {aspect}": without(aspect) for aspect in RUBRIC}
    found = {}
    for temperature in TEMPERATURES:
        responses = Responses(lab, "test", temperature)
        y_0, pit = responses.of("M_P^RL"), responses.pit()
        made = {name: responses.refined(aspects) for name, aspects in named.items()}
        found[str(temperature)] = {"PIT": worth(responses, pit)} | {
            name: worth(responses, y) | {"over y_0": responses.over(y, y_0),
                                         "PIT over it": responses.over(pit, y)}
            for name, y in made.items()}
    return found


def iterations(lab: Lab, number: int = 8) -> dict:
    """Quality and Elo along a chain of improvements, what r_gap tells there, and when to stop."""
    found = {}
    for temperature in TEMPERATURES:
        responses = Responses(lab, "test", temperature)
        chain = [responses.of("M_P^RL")] + [responses.pit(i) for i in range(1, number + 1)]
        others = {f"Self-Refine {i}": responses.refined(times=i) for i in (1, 2, 3)}
        others["best of 4"] = responses.best_of(4)
        players = {f"PIT {i}" if i else "y_0": y for i, y in enumerate(chain)} | others
        ratings = elo([responses.gold(y) for y in players.values()])
        found[str(temperature)] = {
            "players": {name: worth(responses, y) | {"elo": rating, "copies": copies}
                        for (name, y), rating, copies in zip(
                            players.items(), ratings, copied(chain) + [None] * len(others))},
            "r_gap": [what_gap_tells(responses, *step) for step in zip(chain, chain[1:])],
            "stopping": stopping(lab, temperature, responses, chain)}
    return found


def copied(chain: list) -> list:
    """The share of responses that are what they should improve."""
    return [None] + [float(np.mean([a == b for a, b in zip(y, y_ref)]))
                     for y_ref, y in zip(chain, chain[1:])]


def elo(grades: list[np.ndarray]) -> list[float]:
    """Ratings of players from all comparisons of their grades on the same questions (Bradley and
    Terry's model, a tie is half a win each); the first player has 1,000."""
    wins = np.array([[(np.sign(a - b) + 1).sum() / 2 for b in grades] for a in grades])  # [n, n]
    np.fill_diagonal(wins, 0)
    games, strength = wins + wins.T, np.ones(len(grades))
    for _ in range(2000):  # Zermelo's iteration
        rate = games / (strength[:, None] + strength)
        strength = wins.sum(1) / rate.sum(1)
        strength /= strength[0]
    return [1000 + 400 * float(np.log10(s)) for s in strength]


def ranks_of(values: np.ndarray) -> np.ndarray:
    """Ranks from 0; equal values share their mean rank."""
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    return (count.cumsum() - (count + 1) / 2)[place]


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's; 0 where one of them does not vary."""
    a, b = ranks_of(a), ranks_of(b)
    return float(np.corrcoef(a, b)[0, 1]) if a.std() and b.std() else 0.0


def what_gap_tells(responses: Responses, y_ref: list, y: list) -> dict:
    """How r_gap of an improvement goes with what it gained, copies left out; and how often it is
    above the gap of a copy where something was gained, and below where something was lost."""
    changed = np.array([a != b for a, b in zip(y, y_ref)])
    gained = (responses.gold(y) - responses.gold(y_ref))[changed]
    gap = responses.gaps(y, y_ref)[changed]
    over_copy = gap - responses.gaps(y_ref, y_ref)[changed]
    return {"changed": float(changed.mean()), "draft_gold": float(responses.gold(y_ref).mean()),
            "correlation": rank_correlation(gap, gained),
            "correlation_over_copy": rank_correlation(over_copy, gained),
            "gap_of_pit_right": pair_agreement(over_copy, 0 * over_copy, gained)}


def stopping(lab: Lab, temperature: float, responses: Responses, chain: list) -> dict:
    """Always going on against keeping y_i only if its r_gap exceeds a threshold, chosen for the
    gold quality of validation questions; and if it exceeds that of a copy."""
    seen = Responses(lab, "valid", temperature)
    known = [seen.of("M_P^RL")] + [seen.pit(i) for i in range(1, len(chain))]
    marks = [gaps_of(r, c) for r, c in ((seen, known), (responses, chain))]
    golds = [np.array([r.gold(y) for y in c]) for r, c in ((seen, known), (responses, chain))]
    candidates = np.quantile(marks[0]["gap"], np.linspace(0, 0.9, 19))
    best = max(candidates, key=lambda threshold: golds[0][
        kept(marks[0]["gap"], threshold), np.arange(golds[0].shape[1])].mean())
    found = {"always": {"gold": float(golds[1][-1].mean()), "steps": len(chain) - 1},
             "once": {"gold": float(golds[1][1].mean()), "steps": 1}}
    for name, mark, threshold in (("threshold", "gap", best), ("over a copy", "over_copy", 0.0)):
        last = kept(marks[1][mark], threshold)
        found[name] = {"gold": float(golds[1][last, np.arange(len(last))].mean()),
                       "steps": float(np.minimum(last + 1, len(chain) - 1).mean()),
                       "threshold": float(threshold)}
    return found


def gaps_of(responses: Responses, chain: list) -> dict:
    """r_gap of each step of a chain, [steps, questions], as it is and less that of a copy."""
    gap = np.stack([responses.gaps(y, y_ref) for y_ref, y in zip(chain, chain[1:])])
    copy = np.stack([responses.gaps(y_ref, y_ref) for y_ref in chain[:-1]])
    return {"gap": gap, "over_copy": gap - copy}


def kept(marks: np.ndarray, threshold: float) -> np.ndarray:
    """How many steps of each chain are kept: all before the first whose mark is not above it."""
    return np.cumprod(marks > threshold, axis=0).sum(0)


def cost(lab: Lab) -> dict:
    """Seconds of training, and for an answer tokens sampled and read, calls and seconds."""
    config, base = lab.base().run.config, lab.base()
    lab.refiners(), difference(Responses(lab, "valid", 1.0))
    base.run.config.eval.prompts, prompts = 256, config.eval.prompts
    stages = ("y_0 ~ M_P^RL", "best of 2", "best of 4", "best of 8", "Self-Refine, whole rubric",
              "PIT")
    answers = {}
    for name in stages:
        responses = Responses(lab, "test", 1.0)
        start = time.perf_counter()
        y = SYSTEMS[name][0](responses)
        answers[name] = {"seconds": (time.perf_counter() - start) / len(y),
                         "tokens": responses.tokens(y)}
    base.run.config.eval.prompts = prompts
    return {"answers": answers, "training": stage_seconds(base.run)}


def optimisation(lab: Lab) -> dict:
    """Gold quality, reward and KL along RLHF and PIT's first stage, with fixed coefficients of the
    KL and more iterations than are good."""
    found = {}
    for stage in ("rlhf", "stage0"):
        for beta in (0.0, 0.03, 0.1):
            trained = lab.one_stage(f"{stage}-beta-{beta}", stage, **{
                f"{stage}__beta": beta, f"{stage}__kl_target": 1e9,  # it never moves beta
                f"{stage}__iterations": 150})
            lines = (trained.run.folder / "metrics.jsonl").read_text().splitlines()
            rows = [row for row in map(json.loads, lines) if row["stage"] == stage and row["step"]]
            found[f"{stage}, beta {beta}"] = {
                key: [row[key] for row in rows] for key in ("step", "gold", "reward", "kl")}
    return found


KL_TARGETS = (1.5, 2.0, 3.0)


def choices(lab: Lab) -> dict:
    """Gold quality on validation questions, mean over two temperatures, of six settings for each
    system that is trained: of its answers, or of its improvements of y_0."""
    at = [Responses(lab, "valid", t) for t in TEMPERATURES]
    found = {"RLHF": {
        f"kl_target {kl}, lr_scale {scale}": mean_gold(at, lambda r: of_stage(
            r, "rlhf", rlhf__kl_target=kl, rlhf__lr_scale=scale))
        for kl in KL_TARGETS for scale in (1.0, 0.5)}}
    for system, score in (("PIT", "gap"), ("PPO on the difference of R_P", "difference")):
        found[system] = {f"{stage}, kl_target {kl}": mean_gold(at, lambda r: make(
            r, score, **{f"{stage}__kl_target": kl}))
            for stage, make in (("stage0", of_first_stage), ("stage1", of_both_stages))
            for kl in KL_TARGETS}
    found["Self-Refine"] = {f"{lessons} x M_PIT^SFT's steps{after}": mean_gold(
        [Responses(lab, "valid", t, lessons=lessons) for t in TEMPERATURES],
        lambda r: r.refined(name=name))
        for lessons in (1, 2, 3)
        for name, after in (("Self-Refine", ", RL"), ("Self-Refine without RL", ""))}
    return found


def mean_gold(at: list[Responses], make) -> float:
    return float(np.mean([r.gold(make(r)).mean() for r in at]))


def of_stage(responses: Responses, stage: str, **fields) -> list:
    """The answers of another RLHF, or the improvements by another first stage of PIT."""
    name = "-".join([stage, *(f"{key.split('__')[1]}-{value}" for key, value in fields.items())])
    policy = responses.lab.one_stage(name, stage, **fields).models.policies[stage]
    return (responses.answers if stage == "rlhf" else responses.improved)(name, policy)


def of_first_stage(responses: Responses, score: str, **fields) -> list:
    return of_stage(responses, "stage0", pit__score=score, **fields)


def of_both_stages(responses: Responses, score: str, stage1__kl_target: float) -> list:
    return of_variant(responses, f"stage1-{score}-kl_target-{stage1__kl_target}", pit__score=score,
                      stage1__kl_target=stage1__kl_target)


ROWS = {"main": main_table, "control": main_table, "curriculum": curriculum, "terms": terms,
        "temperatures": temperatures, "rubrics": rubrics, "iterations": iterations, "cost": cost,
        "optimisation": optimisation, "choices": choices}


def make_row(row: str, lab: Lab, path: Path) -> None:
    """Answer a row's question with one seed, and keep the answer."""
    start = time.perf_counter()
    content = ROWS[row](lab)
    content = {"row": row, "seed": lab.seed, "questions": lab.base().run.config.eval.prompts,
               "seconds": time.perf_counter() - start} | {"content": content}
    if rank() == 0:
        path.parent.mkdir(exist_ok=True)
        text = json.dumps(content, indent=1)
        write_whole(path, lambda file: file.write(text.encode()))
        print(f"written: {path}", flush=True)
    barrier()


def main() -> None:
    args, overrides = read_arguments(
        __doc__.splitlines()[0],
        ("--rows", {"nargs": "+", "default": list(ROWS), "choices": list(ROWS)}),
        ("--seeds", {"nargs": "+", "type": int, "default": [1, 2, 3]}),
        ("--results", {"default": RESULTS, "help": "the folder of finished rows"}))
    files = {(row, seed): Path(args.results) / f"{row}-{seed}.json"
             for seed in args.seeds for row in args.rows}
    missing = [key for key, path in files.items() if not path.exists()]  # before a rank makes one
    labs = {}
    for row, seed in missing:
        place = "last" if row == "control" else "first"
        lab = labs.setdefault((place, seed), Lab(args.config, overrides, seed, place))
        make_row(row, lab, files[row, seed])


if __name__ == "__main__":
    guard(main)
