"""The finished rows of the evidence as tables, put into benchmarks/evidence.md between its marks.

    python benchmarks/tables.py                  # of what is in benchmarks/results
    python benchmarks/tables.py --results DIR --page FILE

Every figure is a mean over seeds with its 95 % interval (Student's, over seeds; `*`: it excludes
zero). The page's text is written by hand and stays as it is.
"""

import argparse
import json
import math
import re
from collections import defaultdict
from pathlib import Path
from statistics import mean, stdev

HERE = Path(__file__).resolve().parent
STUDENT = {2: 12.71, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571}  # 97.5 % quantiles, by seeds
JUDGES = {"gold": "hidden judge", "outside": "other reward model"}


def read_rows(folder: Path) -> dict[str, list]:
    """The contents of each row, a seed each in their order."""
    rows = defaultdict(list)
    for path in sorted(folder.glob("*.json"), key=lambda path: int(path.stem.split("-")[-1])):
        content = json.loads(path.read_text(encoding="utf-8"))
        rows[content["row"]].append(content["content"])
    return rows


def half_width(values: list[float]) -> float:
    """Of the 95 % interval of a mean over seeds; infinite for one seed."""
    n = len(values)
    return STUDENT.get(n, 1.96) * stdev(values) / math.sqrt(n) if n > 1 else math.inf


def cell(values: list[float], form: str = "+.1f") -> str:
    """Mean and interval; a signed figure whose interval excludes zero gets a star."""
    half = half_width(values)
    star = " *" if "+" in form and abs(mean(values)) > half else ""
    width = f" ± {format(half, form.replace('+', ''))}" if math.isfinite(half) else ""
    return format(mean(values), form) + width + star


def markdown(heads: list[str], lines: list[list[str]]) -> str:
    return "\n".join(["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
                     + ["| " + " | ".join(line) + " |" for line in lines])


def gathered(seeds: list, *path) -> list:
    """What each seed has at the path."""
    found = []
    for content in seeds:
        for key in path:
            content = content[key]
        found.append(content)
    return found


def gold(seeds: list, *path) -> str:
    return cell(gathered(seeds, *path, "gold"), ".3f")


def main_table(seeds: list) -> str:
    """Systems with what they cost and what PIT wins over them."""
    lines = []
    for name in seeds[0]["at"]["1.0"]:
        deltas = [cell(gathered(seeds, "at", at, name, "PIT over it", judge))
                  for at in ("1.0", "0.5", "best") for judge in JUDGES]
        best = "/".join(str(t) for t in gathered(seeds, "best_temperatures", name))
        lines.append([name, str(seeds[0]["rl_samples"][name]),
                      f"{mean(gathered(seeds, 'at', '1.0', name, 'tokens')):.0f}",
                      *(gold(seeds, "at", at, name) for at in ("1.0", "0.5", "best")), best]
                     + (deltas if name != "PIT" else [""] * 6))
    heads = ["system", "RL samples", "tokens an answer", "gold, T = 1", "T = 0.5", "own best T",
             "that T", *(f"PIT over it, {at}, {judge}" for at in ("T = 1", "T = 0.5", "best T")
                         for judge in JUDGES.values())]
    return markdown(heads, lines) + "\n\n" + aspect_table(seeds)


def aspect_table(seeds: list) -> str:
    names = list(seeds[0]["at"]["0.5"]["PIT"]["aspects"])
    lines = [[system, *(f"{mean(gathered(seeds, 'at', '0.5', system, 'aspects', name)):.3f}"
                        for name in names)] for system in seeds[0]["at"]["0.5"]]
    return markdown(["aspects, T = 0.5", *names], lines)


def curriculum_table(seeds: list) -> str:
    return markdown(["curriculum", *VARIANT_HEADS], [
        [name, *variant_cells(seeds, lambda at: (at, name))] for name in seeds[0]["1.0"]])


VARIANT_HEADS = ["gold, T = 1", "T = 0.5", "over y_0, T = 1", "T = 0.5", "PIT over it, T = 1",
                 "T = 0.5"]


def variant_cells(seeds: list, path) -> list[str]:
    """Of a variant of PIT, at path(temperature)."""
    at = ("1.0", "0.5")
    return [gold(seeds, *path(t)) for t in at] + [
        cell(gathered(seeds, *path(t), what, "gold"))
        for what in ("over y_0 ~ M_P^RL", "PIT over it") for t in at]


def terms_table(seeds: list) -> str:
    lines = [[name, *(cell(gathered(seeds, name, what, "accuracy"), ".3f")
                      for what in ("labels", "judge")),
              *variant_cells(seeds, lambda at: (name, "pit", at))]
             for name in seeds[0] if name != "ceiling"]
    ceiling = cell(gathered(seeds, "ceiling", "accuracy"), ".3f")
    return (markdown(["Eq. 2", "agrees with labels", "with the judge", *VARIANT_HEADS], lines)
            + f"\n\nThe labels agree with the judge on {ceiling} of the pairs.")


def temperatures_table(seeds: list) -> str:
    lines = []
    for place in ("drafts at 1", "drafts alike"):
        for key in (key for key in seeds[0] if key.endswith(place)):
            lines.append([key, *(gold(seeds, key, name) for name in ("y_0", "PIT", "Self-Refine")),
                          *(cell(gathered(seeds, key, name, "over y_0", "gold"))
                            for name in ("PIT", "Self-Refine"))])
    return markdown(["T of the improver", "gold of y_0", "of PIT", "of Self-Refine",
                     "PIT over y_0", "Self-Refine over y_0"], lines)


def rubrics_table(seeds: list) -> str:
    at = ("1.0", "0.5")
    lines = [[name, *(gold(seeds, t, name) for t in at), *(
        cell(gathered(seeds, t, name, what, judge)) if what in seeds[0][t][name] else ""
        for what, judge in (("over y_0", "gold"), ("PIT over it", "gold"),
                            ("PIT over it", "outside")) for t in at)] for name in seeds[0]["1.0"]]
    return markdown(["rubric", "gold, T = 1", "T = 0.5", "over y_0, T = 1", "T = 0.5",
                     "PIT over it, T = 1", "T = 0.5", "the same, other reward model, T = 1",
                     "T = 0.5"], lines)


def iterations_table(seeds: list) -> str:
    at, lines = ("1.0", "0.5"), []
    for name in seeds[0]["1.0"]["players"]:
        lines.append([name, *(gold(seeds, t, "players", name) for t in at), *(
            cell(gathered(seeds, t, "players", name, "elo"), ".0f") for t in at), *(
            cell([100 * v for v in gathered(seeds, t, "players", name, "copies")], ".0f")
            if seeds[0][t]["players"][name]["copies"] is not None else "" for t in at)])
    players = markdown(["response", "gold, T = 1", "T = 0.5", "Elo, T = 1", "T = 0.5",
                        "copies in %, T = 1", "T = 0.5"], lines)
    steps = [[f"{i} to {i + 1}", *(cell(gathered(seeds, t, "r_gap", i, what), ".2f") for what in (
        "draft_gold", "correlation", "correlation_over_copy") for t in at), *(
        cell(gathered(seeds, t, "r_gap", i, "gap_of_pit_right", "accuracy"), ".2f") for t in at)]
        for i in range(len(seeds[0]["1.0"]["r_gap"]))]
    told = markdown(["step", "gold of y_ref, T = 1", "T = 0.5", "rank correlation of r_gap, T = 1",
                     "T = 0.5", "less a copy's, T = 1", "T = 0.5", "sign right, T = 1", "T = 0.5"],
                    steps)
    rules = [[name, *(gold(seeds, t, "stopping", name) for t in at), *(
        cell(gathered(seeds, t, "stopping", name, "steps"), ".1f") for t in at)]
        for name in seeds[0]["1.0"]["stopping"]]
    stops = markdown(["when to stop", "gold, T = 1", "T = 0.5", "steps, T = 1", "T = 0.5"], rules)
    return "\n\n".join((players, told, stops))


def cost_table(seeds: list) -> str:
    answers = markdown(["an answer of", "tokens sampled", "milliseconds"], [
        [name, cell(gathered(seeds, "answers", name, "tokens"), ".0f"),
         cell([1000 * s for s in gathered(seeds, "answers", name, "seconds")], ".1f")]
        for name in seeds[0]["answers"]])
    training = markdown(["training", "seconds"], [
        [name, cell(gathered(seeds, "training", name), ".0f")] for name in seeds[0]["training"]])
    return f"{answers}\n\n{training}"


def optimisation_table(seeds: list) -> str:
    lines = []
    for name in seeds[0]:
        golds = gathered(seeds, name, "gold")
        smooth = [[mean(g[max(0, i - 4):i + 1]) for i in range(len(g))] for g in golds]
        best = [g.index(max(g)) for g in smooth]
        lines.append([name, cell([max(g) for g in smooth], ".3f"),
                      "/".join(str(i + 1) for i in best), cell([g[-1] for g in smooth], ".3f"),
                      *(cell([mean(v[-5:]) for v in gathered(seeds, name, what)], ".1f")
                        for what in ("reward", "kl"))])
    return markdown(["stage, coefficient of the KL", "highest gold (means of 5)", "iteration",
                     "gold at the end", "reward at the end (spreads)", "KL at the end (nats)"],
                    lines)


def choices_table(seeds: list) -> str:
    lines = [[system, setting, cell(gathered(seeds, system, setting), ".3f")]
             for system, settings in seeds[0].items() for setting in settings]
    return markdown(["system", "setting", "gold, validation questions"], lines)


TABLES = {"main": main_table, "control": main_table, "curriculum": curriculum_table,
          "terms": terms_table, "temperatures": temperatures_table, "rubrics": rubrics_table,
          "iterations": iterations_table, "cost": cost_table, "optimisation": optimisation_table,
          "choices": choices_table}


def filled(page: str, rows: dict[str, list]) -> str:
    """The page with each row's table between `<!-- table: row -->` and `<!-- end -->`."""
    def table(match):
        seeds = rows.get(match[1])
        made = f"Seeds: {len(seeds)}\n\n{TABLES[match[1]](seeds)}" if seeds else "Not made yet."
        return f"<!-- table: {match[1]} -->\n\n{made}\n\n<!-- end -->"

    return re.sub(r"<!-- table: (\w+) -->.*?<!-- end -->", table, page, flags=re.DOTALL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--page", type=Path, default=HERE / "evidence.md")
    args = parser.parse_args()
    page = args.page.read_text(encoding="utf-8")
    args.page.write_text(filled(page, read_rows(args.results)), encoding="utf-8")
    print(f"written: {args.page}")


if __name__ == "__main__":
    main()
