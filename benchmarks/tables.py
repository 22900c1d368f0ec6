"""The finished rows of the evidence as tables, between their marks in benchmarks/evidence.md and
docs/results.md.

    python benchmarks/tables.py                  # evidence.py does it too, after each row

Figures are means over seeds, most with their 95 % interval (Student's, over seeds; `*`: it excludes
zero). The text of the pages is written by hand and stays as it is.
"""

import argparse
import json
import math
import re
import sys
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from runtime.files import write_whole  # noqa: E402
from runtime.launch import guard  # noqa: E402

STUDENT = {2: 12.71, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306,
           10: 2.262, 11: 2.228, 12: 2.201, 13: 2.179, 14: 2.160, 15: 2.145, 16: 2.131, 17: 2.120,
           18: 2.110, 19: 2.101, 20: 2.093}  # 97.5 % quantiles, by the number of seeds
JUDGES = {"gold": "hidden judge", "outside": "other reward model"}


def read_rows(folder: Path) -> dict[str, dict]:
    """Read the contents of each row by seeds, in their order."""
    rows = defaultdict(dict)
    for path in sorted(folder.glob("*.json"), key=lambda path: int(path.stem.split("-")[-1])):
        content = json.loads(path.read_text(encoding="utf-8"))
        rows[content["row"]][content["seed"]] = content["content"]
    return rows


def half_width(values: list[float]) -> float:
    """Return half the 95 % interval of a mean over seeds; infinite for one seed, and from 21 seeds
    on a little too wide."""
    n = len(values)
    return STUDENT[min(n, max(STUDENT))] * stdev(values) / math.sqrt(n) if n > 1 else math.inf


def cell(values: list[float], form: str = "+.1f") -> str:
    """Format mean and interval; a signed figure whose interval excludes zero gets a star."""
    half = half_width(values)
    star = " *" if "+" in form and abs(mean(values)) > half else ""
    width = f" ± {format(half, form.replace('+', ''))}" if math.isfinite(half) else ""
    return format(mean(values), form) + width + star


def markdown(heads: list[str], lines: list[list[str]]) -> str:
    return "\n".join(["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
                     + ["| " + " | ".join(line) + " |" for line in lines])


def gathered(seeds: list, *path) -> list:
    """Return what each seed has at the path."""
    found = []
    for content in seeds:
        for key in path:
            content = content[key]
        found.append(content)
    return found


def gold(seeds: list, *path) -> str:
    return cell(gathered(seeds, *path, "gold"), ".3f")


def present(values: list, form: str) -> str:
    """Format a cell of those seeds that know the figure, and how many these are if not all."""
    known = [v for v in values if v is not None]
    few = f" ({len(known)} of {len(values)} seeds)" if len(known) < len(values) else ""
    return cell(known, form) + few if known else ""


def costs(seeds: list, *path) -> list[str]:
    return [f"{mean(gathered(seeds, *path, what)):.0f}" for what in ("tokens", "calls")]


COST_HEADS = ["tokens sampled an answer, T = 1", "calls"]
RL_HEADS = ["responses scored in RL", "sampled"]
PLACES = {"1.0": "T = 1", "0.5": "T = 0.5", "best": "own best T"}
EQUAL = ("1.0", "0.5")


def heads_at(heads: list[str], places=tuple(PLACES)) -> list[str]:
    """Return each head for each temperature."""
    return [f"{head}, {PLACES[at]}" for head in heads for at in places]


def best_temperatures(seeds: list, name: str) -> str:
    return "/".join(map(str, gathered(seeds, "best_temperatures", name)))


def main_table(seeds: list) -> str:
    """Show what systems are worth and cost, what PIT wins over them, and their aspects."""
    return "\n\n".join(table(seeds) for table in (worth_table, pit_table, aspect_table))


def worth_table(seeds: list) -> str:
    lines = []
    for name, samples in seeds[0]["rl_samples"].items():
        best = best_temperatures(seeds, name)
        lines.append([name, *map(str, samples.values()), *costs(seeds, "at", "1.0", name),
                      *(gold(seeds, "at", at, name) for at in PLACES),
                      best if name not in ("y_w", "y_l") else "",
                      *(cell(gathered(seeds, "at", at, name, f"over {original}", "gold"))
                        for original in ("y_0 ~ M_P^SFT", "y_0 ~ M_P^RL") for at in PLACES)])
    return markdown(["system", *RL_HEADS, *COST_HEADS,
                     *heads_at(["gold"]), "best T of each seed",
                     *heads_at(["over M_P^SFT", "over M_P^RL"])], lines)


def pit_table(seeds: list) -> str:
    lines = [[name, *(cell(gathered(seeds, "at", at, name, f"{ours} over it", judge))
                      for ours in ("PIT", "PIT, iteration 3") for judge in JUDGES
                      for at in PLACES)] for name in seeds[0]["rl_samples"]]
    return markdown(["win - lose over", *heads_at([
        f"{ours}, {judge}" for ours in ("PIT", "iteration 3") for judge in JUDGES.values()])],
        lines)


def aspect_table(seeds: list) -> str:
    """Show the judge's aspects at T = 0.5 and, where a system is at its best, at its own T."""
    return "\n\n".join(aspects_at(seeds, at) for at in ("0.5", "best"))


def aspects_at(seeds: list, at: str) -> str:
    names = list(seeds[0]["at"][at]["PIT"]["aspects"])
    lines = [[system, *(f"{mean(gathered(seeds, 'at', at, system, 'aspects', name)):.3f}"
                        for name in names)] for system in seeds[0]["at"][at]]
    return markdown([f"aspects, {PLACES[at]}", *names], lines)


def headline_table(seeds: list) -> str:
    """Show the main table in short."""
    lines = [[name, str(samples["sampled"]), costs(seeds, "at", "1.0", name)[0],
              *(gold(seeds, "at", at, name) for at in EQUAL),
              *(cell(gathered(seeds, "at", at, name, "PIT over it", judge)) if name != "PIT" else ""
                for judge, places in (("gold", PLACES), ("outside", EQUAL)) for at in places)]
             for name, samples in seeds[0]["rl_samples"].items() if " of y_0" not in name]
    return markdown(["system", "sampled in RL", "tokens an answer", *heads_at(["gold"], EQUAL),
                     *heads_at(["PIT over it"]), *heads_at(["by the other reward model"], EQUAL)],
                    lines)


def variants_table(seeds: list) -> str:
    """Show what variants of PIT's training are worth, and how they compare with y_0 and PIT after
    as many iterations."""
    def variant(name: str) -> str:
        return name.removesuffix(", iteration 3")

    lines = [[name, *(str(n) for n in seeds[0]["rl_samples"][variant(name)].values()),
              costs(seeds, "1.0", name)[0], *(gold(seeds, at, name) for at in PLACES),
              best_temperatures(seeds, variant(name)),
              *(cell(gathered(seeds, at, name, what, judge)) for what, judge in (
                  ("over y_0", "gold"), ("PIT over it", "gold"), ("PIT over it", "outside"))
                for at in PLACES)] for name in seeds[0]["1.0"]]
    return markdown(["PIT with", *RL_HEADS, COST_HEADS[0], *heads_at(["gold"]),
                     "best T of each seed", *heads_at(
                         ["over y_0", "PIT over it", "PIT over it by the other reward model"])],
                    lines)


AGREEMENT_HEADS = ["agrees with labels", "less the ceiling, points", "with the judge"]


def agreement_cells(found: list[dict]) -> list[str]:
    """Format a reward model's agreement, a dict for each seed."""
    labels, ceiling, judge = (gathered(found, what) for what in ("labels", "ceiling", "judge"))
    return [cell(labels, ".3f"), cell([100 * (a - b) for a, b in zip(labels, ceiling)]),
            cell(judge, ".3f")]


def terms_table(seeds: list) -> str:
    found = gathered(seeds, "agreement")
    lines, ceiling = [], gathered(found, "all five", "ceiling")
    r_p = gathered(found, "difference of R_P", "judge")
    for name in found[0]:
        judge = gathered(found, name, "judge")
        lines.append([name, *agreement_cells(gathered(found, name)),
                      cell([100 * (a - b) for a, b in zip(judge, r_p)])])
    return "\n\n".join([
        markdown(["Eq. 2", *AGREEMENT_HEADS, "less R_P's, points"], lines),
        f"The ceiling: the judge agrees with {cell(ceiling, '.3f')} of the labels, ties half.",
        variants_table(gathered(seeds, "pit"))])


def reward_models_table(seeds: list) -> str:
    models = ("R_P", "R_PIT")
    lines = [[name, f"{mean(gathered(seeds, name, 'pairs')):.0f}", *(
        text for model in models for text in agreement_cells(gathered(seeds, name, model)))]
        for name in seeds[0]]
    return markdown(["reward models", "pairs", *(
        f"{model} {what}" for model in models for what in AGREEMENT_HEADS)], lines)


def temperatures_table(seeds: list) -> str:
    lines = [[key, *(gold(seeds, key, name) for name in ("y_0", "PIT", "Self-Refine")), *(
        cell(gathered(seeds, key, name, "over y_0", "gold")) for name in ("PIT", "Self-Refine")), *(
        costs(seeds, key, name)[0] for name in ("PIT", "Self-Refine"))] for key in seeds[0]]
    return markdown(["T of the improver", "gold of y_0", "gold of PIT", "gold of Self-Refine",
                     "PIT over y_0", "Self-Refine over y_0", "tokens an answer of PIT",
                     "tokens an answer of Self-Refine"], lines)


def rubrics_table(seeds: list) -> str:
    lines = [[name, costs(seeds, "1.0", name)[0], *(gold(seeds, t, name) for t in PLACES),
              best_temperatures(seeds, name), *(
        cell(gathered(seeds, t, name, "PIT over it", judge)) if name != "PIT" else ""
        for judge in JUDGES for t in PLACES)] for name in seeds[0]["1.0"]]
    return markdown(["rubric", COST_HEADS[0], *heads_at(["gold"]), "best T of each seed",
                     *heads_at([f"PIT over it, {judge}" for judge in JUDGES.values()])], lines)


def iterations_table(seeds: list) -> str:
    return "\n\n".join(table(seeds) for table in (players_table, told_table, stopping_table))


def players_table(seeds: list) -> str:
    lines = []
    for i, name in enumerate(seeds[0]["1.0"]["players"]):
        chained = name.startswith("PIT")
        lines.append([name, costs(seeds, "1.0", "players", name)[0],
                      *(gold(seeds, t, "players", name) for t in PLACES),
                      *(cell(gathered(seeds, t, "players", name, "elo"), ".0f") for t in PLACES),
                      *(cell(gathered(seeds, t, "copies", i - 1), ".0f") if chained else ""
                        for t in EQUAL)])
    return markdown(["response", COST_HEADS[0], *heads_at(["gold", "Elo"]),
                     *heads_at(["copies in %"], EQUAL)], lines)


def told_table(seeds: list) -> str:
    lines = []
    for drafts in seeds[0]["1.0"]["r_gap"]:
        lines.append([drafts, *(present(gathered(seeds, t, "r_gap", drafts, what), form)
                                for what, form in (("steps", ".0f"), ("gained", "+.3f"),
                                                   ("correlation", ".2f"), ("of", ".0f"),
                                                   ("sign_right", ".2f"))
                                for t in EQUAL)])
    return markdown(["gold of y_ref", *heads_at(
        ["steps", "gain", "rank correlation of r_gap", "steps that changed gold",
         "of these sign right"], EQUAL)], lines)


def stopping_table(seeds: list) -> str:
    return markdown(["when to stop", *heads_at(["gold", "steps"], EQUAL)], [
        [rule, *(gold(seeds, t, "stopping", rule) for t in EQUAL),
         *(cell(gathered(seeds, t, "stopping", rule, "steps"), ".1f") for t in EQUAL)]
        for rule in seeds[0]["1.0"]["stopping"]])


def cost_table(seeds: list) -> str:
    lines = [[name, *(f"{mean(gathered(seeds, 'systems', name, what)) / unit:.{places}f}"
                      for what, unit, places in (
                          ("training", 1, 0), ("tokens_learned", 1e6, 1), ("tokens_drawn", 1e6, 1),
                          ("scored", 1, 0), ("sampled", 1, 0), ("calls", 1, 0), ("tokens", 1, 0),
                          ("read", 1, 0))),
              cell([1000 * s for s in gathered(seeds, "systems", name, "seconds")], ".1f")]
             for name in seeds[0]["systems"]]
    trainings = [[name, cell(gathered(seeds, "trainings", name, "seconds"), ".0f"), *(
        f"{mean(gathered(seeds, 'trainings', name, what)) / 1e6:.1f}" for what in (
            "learned", "drawn"))] for name in seeds[0]["trainings"]]
    heads = ["seconds of training", "millions of tokens read in training", "sampled in training"]
    return "\n\n".join([
        markdown(["system", *heads, *RL_HEADS, "calls an answer", "tokens sampled", "tokens read",
                  "milliseconds"], lines),
        markdown(["training", *heads], trainings)])


def optimisation_table(seeds: list) -> str:
    lines = []
    for name in seeds[0]:
        golds = gathered(seeds, name, "gold")
        n = len(golds[0])
        early, middle, late = ([mean(g[max(0, end - 10):end]) for g in golds]
                               for end in (n // 3, 2 * n // 3, n))
        lines.append([name, *(cell(window, ".3f") for window in (early, middle, late)),
                      cell([b - a for a, b in zip(early, late)], "+.3f"),
                      *(cell([mean(v[-10:]) for v in gathered(seeds, name, what)], ".1f")
                        for what in ("reward", "kl")), gold(seeds, name, "test")])
    return markdown(["stage, coefficient of the KL", *(
        f"gold, ten iterations up to {end}" for end in (n // 3, 2 * n // 3, n)),
        "last less first", "reward at the end (std)", "KL at the end (nats)",
        "gold, test questions"], lines)


def choices_table(seeds: list) -> str:
    def each(setting: str) -> str:
        golds = gathered(seeds, setting)
        return f"{mean(golds):.3f} ({', '.join(f'{gold:.3f}' for gold in golds)})"

    return markdown(["setting", "gold, validation questions (of each seed)"],
                    [[setting, each(setting)] for setting in seeds[0]])


def over(system: str, ours: str = "PIT"):
    """Find what PIT wins over a system of the main table, in a seed's row, at a temperature."""
    return lambda content, at: content["at"][at][system][f"{ours} over it"]["gold"]


def over_variant(name: str):
    """Find what PIT wins over what another rubric, or another curriculum, brings."""
    return lambda content, at: content[at][name]["PIT over it"]["gold"]


def less(other: str):
    """Find by how many points r_gap agrees with labels more often than another model, or the
    ceiling."""
    def points(content, _):
        r_gap = content["agreement"]["all five"]
        rival = r_gap["ceiling"] if other == "ceiling" else content["agreement"][other]["labels"]
        return 100 * (r_gap["labels"] - rival)
    return points


@dataclass
class Target:
    """What was hoped for: the row, where a seed's points are found in it, the least that is enough
    at a temperature, and whether PIT is to win, by an interval that excludes zero."""
    row: str
    points: Callable[[dict, str], float]
    aims: dict[str, float]
    wins: bool = True


LEVEL = dict.fromkeys(EQUAL, 0)
TARGETS = {
    "PIT over y_0 ~ M_P^SFT": Target("main", over("y_0 ~ M_P^SFT"), {"1.0": 45}),
    "PIT over y_0 ~ M_P^RL": Target("main", over("y_0 ~ M_P^RL"), {"1.0": 15, "0.5": 20}),
    "PIT's third iteration over its first, not lower": Target(
        "main", over("PIT", "PIT, iteration 3"), LEVEL, wins=False),
} | {f"PIT over {system}": Target("main", over(system), LEVEL)
     for system in ("RLHF, equal budget", "best of 4")
} | {f"PIT over Self-Refine without {aspect}": Target(
        "rubrics", over_variant(f"without {aspect}"), LEVEL)
     for aspect in ("total", "lines", "kindness", "courtesy", "form")
} | {f"both stages over {name}": Target("curriculum", over_variant(name), LEVEL)
     for name in ("stage 0 alone", "stage 1 alone", "stage 1, then 0")
} | {"r_gap's agreement with labels less the ceiling": Target(
        "terms", less("ceiling"), {"1.0": -2}, wins=False),
     "r_gap's less R_P's, not lower": Target(
        "terms", less("difference of R_P"), {"1.0": 0}, wins=False)}


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
            values = [target.points(seed, at) for seed in seeds] if at in target.aims else []
            cells += [f"{cell(values)} ({target.aims[at]:+d})",
                      verdict(values, target.aims[at], target.wins)] if values else ["", ""]
        lines.append([name, *cells])
    return markdown(["points", *(head for at in EQUAL for head in (f"{PLACES[at]} (aim)", ""))],
                    lines)


TABLES = {"main": main_table, "control": main_table, "curriculum": variants_table,
          "terms": terms_table, "reward-models": reward_models_table,
          "temperatures": temperatures_table, "rubrics": rubrics_table,
          "iterations": iterations_table, "cost": cost_table, "optimisation": optimisation_table}
TABLES |= {f"choices-{system}": choices_table
           for system in ("rlhf", "equal-budget", "pit", "difference", "refiner")}
TABLES |= {f"{row}-headline": headline_table for row in ("main", "control")}


def named(seeds: list[int]) -> str:
    """Say which seeds a table is of."""
    first = ", ".join(map(str, seeds[:-1]))
    return f"Seeds {first} and {seeds[-1]}" if first else f"Seed {seeds[-1]}"


def filled(page: str, rows: dict[str, dict]) -> str:
    """Return the page with each row's table between `<!-- table: row -->` and `<!-- end -->`."""
    def table(match):
        if match[1] == "targets":
            return f"<!-- table: targets -->\n\n{targets_table(rows)}\n\n<!-- end -->"
        seeds = rows.get(match[1].removesuffix("-headline"))
        made = f"{named(list(seeds))}:\n\n{TABLES[match[1]](list(seeds.values()))}" if seeds else (
            "Not made yet.")
        return f"<!-- table: {match[1]} -->\n\n{made}\n\n<!-- end -->"

    return re.sub(r"<!-- table: ([\w-]+) -->.*?<!-- end -->", table, page, flags=re.DOTALL)


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
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()  # it takes none
    guard(lambda: fill_pages(HERE / "results"))
