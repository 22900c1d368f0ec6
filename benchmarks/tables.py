"""The finished rows of the evidence as tables, between their marks in benchmarks/evidence.md and
docs/results.md.

    python benchmarks/tables.py                  # evidence.py does it too, after each row

Figures are means over seeds, most with their 95 % interval (Student's, over seeds; `*`: it excludes
zero). The text of the pages is written by hand and stays as it is.
"""

import json
import math
import re
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev

from script import ROOT, arguments

from report.rubric import ASPECTS
from runtime.files import write_whole
from runtime.launch import guard

STUDENT = {2: 12.71, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306,
           10: 2.262, 11: 2.228, 12: 2.201, 13: 2.179, 14: 2.160, 15: 2.145, 16: 2.131, 17: 2.120,
           18: 2.110, 19: 2.101, 20: 2.093}  # 97.5 % quantiles, by the number of seeds
JUDGES = {"gold": "hidden judge", "outside": "other reward model"}
PLACES = {"1.0": "T = 1", "0.5": "T = 0.5", "best": "own best T"}
EQUAL = ("1.0", "0.5")
ALL = tuple(PLACES)


def read_rows(folder: Path) -> dict[str, dict]:
    """Read the contents of each row by seeds, in their order."""
    rows = defaultdict(dict)
    for path in sorted(folder.glob("*.json"), key=lambda path: int(path.stem.split("-")[-1])):
        content = json.loads(path.read_text(encoding="utf-8"))
        rows[content["row"]][content["seed"]] = content["content"]
    return rows


def gathered(seeds: list, path: str, **names: str) -> list:
    """Return what each seed has at the path, such as "at/{at}/{name}/gold", with the names put in;
    of "one path - another" the difference in points (hundredths)."""
    path, _, other = path.partition(" - ")
    found = list(seeds)
    for key in filter(None, path.split("/")):
        found = [content[key.format(**names)] for content in found]
    if other:
        found = [100 * (a - b) for a, b in zip(found, gathered(seeds, other, **names))]
    return found


# ---------------------------------------------------------------- how figures of seeds are shown


def half_width(values: list[float]) -> float:
    """Return half the 95 % interval of a mean over seeds; infinite for one seed, and from 21 seeds
    on a little too wide."""
    n = len(values)
    return STUDENT[min(n, max(STUDENT))] * stdev(values) / math.sqrt(n) if n > 1 else math.inf


def cell(values: list[float | None], form: str = "+.1f") -> str:
    """Mean and interval of the seeds that know the figure, and how many these are if not all; a
    signed figure whose interval excludes zero gets a star."""
    known = [v for v in values if v is not None]
    if not known:
        return ""
    half = half_width(known)
    star = " *" if "+" in form and abs(mean(known)) > half else ""
    width = f" ± {format(half, form.replace('+', ''))}" if math.isfinite(half) else ""
    few = f" ({len(known)} of {len(values)} seeds)" if len(known) < len(values) else ""
    return format(mean(known), form) + width + star + few


def interval(form: str, unit: float = 1) -> Callable[[list], str]:
    return lambda values: cell([v if v is None else v / unit for v in values], form)


def average(form: str, unit: float = 1) -> Callable[[list], str]:
    return lambda values: format(mean(values) / unit, form)


def each(values: list) -> str:
    return "/".join(map(str, values))


# -------------------------------------------------------------------------------------- the tables


@dataclass
class Column:
    """A figure of each line of a table: its path in the line's content, or else in the seed's, how
    it is shown, at which temperatures (without any at T = 1), and the lines without it."""
    head: str
    path: str
    show: Callable[[list], str] = cell
    places: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()


def table(seeds: list, head: str, under: str, columns: list[Column], but: str = "?") -> str:
    """Markdown, a line for each name that seeds have `under` a path, without those with a word."""
    names = [name for name in gathered(seeds, under, at="1.0")[0] if but not in name]
    heads, lines = [head], [[name] for name in names]
    for column in columns:
        for at in column.places or ("1.0",):
            heads.append(column.head + f", {PLACES[at]}" * bool(column.places))
            for name, line in zip(names, lines):
                line.append("" if name in column.skip else
                            column.show(figures(seeds, under, name, at, column.path)))
    return markdown(heads, lines)


def figures(seeds: list, under: str, name: str, at: str, path: str) -> list:
    """Return what each seed has at the path in the line of this name, or else at its own top."""
    training = name.removesuffix(", iteration 3")
    own = gathered(seeds, under + "/{name}", name=name, at=at)
    return gathered([seed | line for seed, line in zip(seeds, own)], path, name=name, at=at,
                    training=training)


def markdown(heads: list[str], lines: list[list[str]]) -> str:
    return "\n".join(["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
                     + ["| " + " | ".join(line) + " |" for line in lines])


SCORED = Column("responses scored in RL", "rl_samples/{training}/scored", average(".0f"))
SAMPLED = Column("sampled", "rl_samples/{training}/sampled", average(".0f"))
TOKENS = Column("tokens sampled an answer, T = 1", "tokens", average(".0f"))
GOLD = Column("gold", "gold", interval(".3f"), ALL)
BEST = Column("best T of each seed", "best_temperatures/{name}", each, skip=("y_w", "y_l"))


def main_table(seeds: list) -> list[str]:
    """Systems: what they are worth and cost, what PIT wins over them, and their aspects."""
    worth = [SCORED, SAMPLED, TOKENS, Column("calls", "calls", average(".0f")), GOLD, BEST,
             Column("over M_P^SFT", "over y_0 ~ M_P^SFT/gold", places=ALL),
             Column("over M_P^RL", "over y_0 ~ M_P^RL/gold", places=ALL)]
    wins = [Column(f"{head}, {name}", f"{ours} over it/{judge}", places=ALL)
            for head, ours in (("PIT", "PIT"), ("iteration 3", "PIT, iteration 3"))
            for judge, name in JUDGES.items()]
    aspects = [Column(name, f"aspects/{name}", average(".3f")) for name in ASPECTS]
    return [table(seeds, "system", "at/{at}", worth),
            table(seeds, "win - lose over", "at/{at}", wins),
            table(seeds, "aspects, T = 0.5", "at/0.5", aspects),
            table(seeds, "aspects, own best T", "at/best", aspects)]


def headline_table(seeds: list) -> list[str]:
    """Return the main table in short."""
    return [table(seeds, "system", "at/{at}", [
        Column("sampled in RL", "rl_samples/{name}/sampled", average(".0f")),
        Column("tokens an answer", "tokens", average(".0f")),
        Column("gold", "gold", interval(".3f"), EQUAL),
        Column("PIT over it", "PIT over it/gold", places=ALL, skip=("PIT",)),
        Column("by the other reward model", "PIT over it/outside", places=EQUAL, skip=("PIT",)),
    ], but=" of y_0")]


def variants_table(seeds: list) -> list[str]:
    """Variants of PIT's training: what they are worth, and how they compare with y_0 and PIT, after
    as many iterations as they."""
    return [table(seeds, "PIT with", "{at}", [
        SCORED, SAMPLED, TOKENS, GOLD,
        Column("best T of each seed", "best_temperatures/{training}", each),
        Column("over y_0", "over y_0/gold", places=ALL),
        Column("PIT over it", "PIT over it/gold", places=ALL),
        Column("PIT over it by the other reward model", "PIT over it/outside", places=ALL)])]


def agreement(model: str = "", at: str = "") -> list[Column]:
    """How often a reward model agrees with labels, and with the judge."""
    return [Column(f"{model}agrees with labels", f"{at}labels", interval(".3f")),
            Column(f"{model}less the ceiling, points", f"{at}labels - {at}ceiling"),
            Column(f"{model}with the judge", f"{at}judge", interval(".3f"))]


def terms_table(seeds: list) -> list[str]:
    less = Column("less R_P's, points", "judge - agreement/difference of R_P/judge")
    ceiling = cell(gathered(seeds, "agreement/all five/ceiling"), ".3f")
    return [table(seeds, "Eq. 2", "agreement", [*agreement(), less]),
            f"The ceiling: the judge agrees with {ceiling} of the labels, ties half.",
            *variants_table(gathered(seeds, "pit"))]


def reward_models_table(seeds: list) -> list[str]:
    return [table(seeds, "reward models", "", [
        Column("pairs", "pairs", average(".0f")),
        *agreement("R_P ", "R_P/"), *agreement("R_PIT ", "R_PIT/")])]


def temperatures_table(seeds: list) -> list[str]:
    return [table(seeds, "T of the improver", "", [
        Column("gold of y_0", "y_0/gold", interval(".3f")),
        Column("gold of PIT", "PIT/gold", interval(".3f")),
        Column("gold of Self-Refine", "Self-Refine/gold", interval(".3f")),
        Column("PIT over y_0", "PIT/over y_0/gold"),
        Column("Self-Refine over y_0", "Self-Refine/over y_0/gold"),
        Column("tokens an answer of PIT", "PIT/tokens", average(".0f")),
        Column("tokens an answer of Self-Refine", "Self-Refine/tokens", average(".0f"))])]


def rubrics_table(seeds: list) -> list[str]:
    return [table(seeds, "rubric", "{at}", [TOKENS, GOLD, BEST, *(
        Column(f"PIT over it, {name}", f"PIT over it/{judge}", places=ALL, skip=("PIT",))
        for judge, name in JUDGES.items())])]


def iterations_table(seeds: list) -> list[str]:
    """Chains of improvements, what r_gap tells of drafts, and when to stop."""
    copies = [{at: {f"PIT {i}": share for i, share in enumerate(seed[at]["copies"], 1)}
               for at in EQUAL} for seed in seeds]
    players = [TOKENS, GOLD, Column("Elo", "elo", interval(".0f"), ALL),
               Column("copies in %", "copies/{at}/{name}", interval(".0f"), EQUAL, skip=tuple(
                   name for name in seeds[0]["1.0"]["players"] if not name.startswith("PIT")))]
    told = [Column("steps", "steps", interval(".0f"), EQUAL),
            Column("gain", "gained", interval("+.3f"), EQUAL),
            Column("rank correlation of r_gap", "correlation", interval(".2f"), EQUAL),
            Column("steps that changed gold", "of", interval(".0f"), EQUAL),
            Column("of these sign right", "sign_right", interval(".2f"), EQUAL)]
    stopping = [Column("gold", "gold", interval(".3f"), EQUAL),
                Column("steps", "steps", interval(".1f"), EQUAL)]
    seeds = [seed | {"copies": found} for seed, found in zip(seeds, copies)]
    return [table(seeds, "response", "{at}/players", players),
            table(seeds, "gold of y_ref", "{at}/r_gap", told),
            table(seeds, "when to stop", "{at}/stopping", stopping)]


def cost_table(seeds: list) -> list[str]:
    seconds, read, sampled = (
        "seconds of training", "millions of tokens read in training", "sampled in training")
    systems = [Column(seconds, "training", average(".0f")),
               Column(read, "tokens_learned", average(".1f", 1e6)),
               Column(sampled, "tokens_drawn", average(".1f", 1e6)),
               Column("responses scored in RL", "scored", average(".0f")),
               Column("sampled", "sampled", average(".0f")),
               Column("calls an answer", "calls", average(".0f")),
               Column("tokens sampled", "tokens", average(".0f")),
               Column("tokens read", "read", average(".0f")),
               Column("milliseconds", "seconds", interval(".1f", 0.001))]
    trainings = [Column(seconds, "seconds", interval(".0f")),
                 Column(read, "learned", average(".1f", 1e6)),
                 Column(sampled, "drawn", average(".1f", 1e6))]
    return [table(seeds, "system", "systems", systems),
            table(seeds, "training", "trainings", trainings)]


def optimisation_table(seeds: list) -> list[str]:
    """Gold of ten iterations up to each third of a training, and what else there is at its end."""
    n = len(next(iter(seeds[0].values()))["gold"])
    thirds = (n // 3, 2 * n // 3, n)

    def ends(training: dict) -> dict:
        golds = {end: mean(training["gold"][max(0, end - 10):end]) for end in thirds}
        last = {what: mean(training[what][-10:]) for what in ("reward", "kl")}
        return {str(end): gold for end, gold in golds.items()} | last | {
            "gain": golds[n] - golds[n // 3], "test": training["test"]}

    seeds = [{name: ends(training) for name, training in seed.items()} for seed in seeds]
    return [table(seeds, "stage, coefficient of the KL", "", [
        *(Column(f"gold, ten iterations up to {end}", str(end), interval(".3f"))
          for end in thirds),
        Column("last less first", "gain", interval("+.3f")),
        Column("reward at the end (std)", "reward", interval(".1f")),
        Column("KL at the end (nats)", "kl", interval(".1f")),
        Column("gold, test questions", "test/gold", interval(".3f"))])]


def choices_table(seeds: list) -> list[str]:
    def mean_and_each(golds: list[float]) -> str:
        return f"{mean(golds):.3f} ({', '.join(f'{gold:.3f}' for gold in golds)})"

    return [markdown(["setting", "gold, validation questions (of each seed)"], [
        [setting, mean_and_each(gathered(seeds, setting))] for setting in seeds[0]])]


TABLES = {"main": main_table, "control": main_table, "curriculum": variants_table,
          "terms": terms_table, "reward-models": reward_models_table,
          "temperatures": temperatures_table, "rubrics": rubrics_table,
          "iterations": iterations_table, "cost": cost_table, "optimisation": optimisation_table}
TABLES |= {f"choices-{system}": choices_table
           for system in ("rlhf", "equal-budget", "pit", "difference", "refiner")}
TABLES |= {f"{row}-headline": headline_table for row in ("main", "control")}


# ------------------------------------------------------------------------------------- the targets


@dataclass
class Target:
    """What was hoped for: the row, where a seed's points are found in it, the least that is enough
    at a temperature, and whether PIT is to win, by an interval that excludes zero."""
    row: str
    path: str
    aims: dict[str, float]
    wins: bool = True


LEVEL = dict.fromkeys(EQUAL, 0)


def over(row: str, line: str, aims: dict[str, float] = LEVEL) -> Target:
    return Target(row, f"{line}/PIT over it/gold", aims)


TARGETS = {
    "PIT over y_0 ~ M_P^SFT": over("main", "at/{at}/y_0 ~ M_P^SFT", {"1.0": 45}),
    "PIT over y_0 ~ M_P^RL": over("main", "at/{at}/y_0 ~ M_P^RL", {"1.0": 15, "0.5": 20}),
    "PIT's third iteration over its first, not lower": Target(
        "main", "at/{at}/PIT/PIT, iteration 3 over it/gold", LEVEL, wins=False),
    "PIT over RLHF, equal budget": over("main", "at/{at}/RLHF, equal budget"),
    "PIT over best of 4": over("main", "at/{at}/best of 4"),
    "PIT over Self-Refine without total": over("rubrics", "{at}/without total"),
    "PIT over Self-Refine without lines": over("rubrics", "{at}/without lines"),
    "PIT over Self-Refine without kindness": over("rubrics", "{at}/without kindness"),
    "PIT over Self-Refine without courtesy": over("rubrics", "{at}/without courtesy"),
    "PIT over Self-Refine without form": over("rubrics", "{at}/without form"),
    "both stages over stage 0 alone": over("curriculum", "{at}/stage 0 alone"),
    "both stages over stage 1 alone": over("curriculum", "{at}/stage 1 alone"),
    "both stages over stage 1, then 0": over("curriculum", "{at}/stage 1, then 0"),
    "r_gap's agreement with labels less the ceiling": Target(
        "terms", "agreement/all five/labels - agreement/all five/ceiling", {"1.0": -2}, wins=False),
    "r_gap's less R_P's, not lower": Target(
        "terms", "agreement/all five/labels - agreement/difference of R_P/labels", {"1.0": 0},
        wins=False)}


def verdict(values: list[float], aim: float, wins: bool) -> str:
    """Say whether a target is met: enough on average, and where PIT is to win by an interval
    without zero."""
    if len(values) < 2:
        return "one seed"
    if mean(values) < aim:
        return "missed" + ", within the interval" * (mean(values) + half_width(values) >= aim)
    return "met" if not wins or mean(values) > half_width(values) else "not shown"


def targets_table(rows: dict[str, dict]) -> str:
    """Show the targets of all rows that there are. Agreement does not depend on a temperature: it
    stands under the first."""
    lines = []
    for name, target in TARGETS.items():
        cells, seeds = [], rows.get(target.row, {}).values()
        for at in EQUAL:
            values = gathered(seeds, target.path, at=at) if at in target.aims else []
            cells += [f"{cell(values)} ({target.aims[at]:+d})",
                      verdict(values, target.aims[at], target.wins)] if values else ["", ""]
        lines.append([name, *cells])
    return markdown(["points", *(head for at in EQUAL for head in (f"{PLACES[at]} (aim)", ""))],
                    lines)


# -------------------------------------------------------------------------------------- the pages


def named(seeds: list[int]) -> str:
    """Say which seeds a table is of."""
    first = ", ".join(map(str, seeds[:-1]))
    return f"Seeds {first} and {seeds[-1]}" if first else f"Seed {seeds[-1]}"


def filled(page: str, rows: dict[str, dict]) -> str:
    """Return the page with each row's table between `<!-- table: row -->` and `<!-- end -->`."""
    def tables(match):
        seeds = rows.get(match[1].removesuffix("-headline"))
        if match[1] == "targets":
            made = [targets_table(rows)]
        elif seeds:
            made = [f"{named(list(seeds))}:", *TABLES[match[1]](list(seeds.values()))]
        else:
            made = ["Not made yet."]
        return "\n\n".join([f"<!-- table: {match[1]} -->", *made, "<!-- end -->"])

    return re.sub(r"<!-- table: ([\w-]+) -->.*?<!-- end -->", tables, page, flags=re.DOTALL)


def fill_pages(results: Path) -> None:
    """Put the tables into the page beside the folder of results and docs/results.md, if they
    are there and have the marks."""
    rows = read_rows(results)
    for page in (results.parent / "evidence.md", results.parent.parent / "docs" / "results.md"):
        text = page.read_text(encoding="utf-8") if page.exists() else ""
        if "<!-- table: " in text:
            made = filled(text, rows).encode()
            write_whole(page, lambda file: file.write(made))  # its text has no other copy
            print(f"written: {page}", flush=True)


if __name__ == "__main__":
    arguments(__doc__)  # it takes none
    guard(lambda: fill_pages(ROOT / "benchmarks" / "results"))
