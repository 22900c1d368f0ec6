"""The results of evidence.py as tables, between their marks in docs/ablations.md.

    python benchmarks/tables.py

Figures are means over seeds with 95 % intervals (Student's); a difference is taken seed by seed,
`*`: its interval excludes zero. The text of the page is written by hand and stays.
"""

import json
import math
import re
from pathlib import Path
from statistics import mean, stdev

import evidence
from script import ROOT, arguments

from runtime.files import write_whole
from runtime.launch import guard

STUDENT = {2: 12.71, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306,
           10: 2.262}  # 97.5 % quantiles, by the number of seeds
RL, PIT = "M_P^RL", "PIT"


def read_results(folder: Path) -> dict[str, list[dict]]:
    """Return the results of each arm, by seeds, in the order of evidence.ARMS."""
    found: dict[str, list[dict]] = {arm: [] for arm in evidence.ARMS}
    for path in folder.glob("*.json"):
        content = json.loads(path.read_text(encoding="utf-8"))
        if "rows" in content and content["arm"] in found:
            found[content["arm"]].append(content)
    return {arm: sorted(seeds, key=lambda one: one["seed"])
            for arm, seeds in found.items() if seeds}


def half_width(values: list[float]) -> float:
    """Return half the 95 % interval of a mean over seeds; infinite for one seed, and from 11 seeds
    on a little too wide."""
    n = len(values)
    return STUDENT[min(n, max(STUDENT))] * stdev(values) / math.sqrt(n) if n > 1 else math.inf


def cell(values: list[float], form: str = "+.1f") -> str:
    """Return the mean and the interval; a signed figure whose interval excludes zero has a star."""
    half = half_width(values)
    width = f" ± {format(half, form.replace('+', ''))}" if math.isfinite(half) else ""
    return format(mean(values), form) + width + " *" * ("+" in form and abs(mean(values)) > half)


def markdown(heads: list[str], lines: list[list[str]]) -> str:
    """Return a table."""
    return "\n".join(["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
                     + ["| " + " | ".join(line) + " |" for line in lines])


def row_of(seed: dict, system: str, temperature: float) -> dict:
    """Return the report's row of M_P^RL, or of PIT's first rewrite of its drafts."""
    name, against, iteration = {RL: (RL, "M_P^SFT", 0), PIT: (seed["final"], RL, 1)}[system]
    return next(row for row in seed["rows"] if (
        row["system"], row["against"], row["iteration"], row["temperature"]) == (
        name, against, iteration, temperature))


def best(seed: dict, system: str) -> dict:
    """Return a system's row at the temperature that was best on validation questions."""
    golds = seed["valid"]["rlhf" if system == RL else "pit"]
    return row_of(seed, system, float(max(golds, key=golds.get)))


def gold_table(arms: dict[str, list[dict]]) -> str:
    """Return what each arm is worth, and by how much PIT's rewrites win over their drafts."""
    return markdown(
        ["arm", "gold of M_P^RL", "gold of PIT", "PIT over M_P^RL, T = 1", "T = 0.5"],
        [[arm, *(cell([best(one, system)["gold"] for one in seeds], ".3f") for system in (RL, PIT)),
          *(cell([row_of(one, PIT, t)["delta"] for one in seeds]) for t in (1.0, 0.5))]
         for arm, seeds in arms.items()])


def difference_table(arms: dict[str, list[dict]]) -> str:
    """Return each arm's gold less the first arm's, of the seeds that both have."""
    first = {one["seed"]: one for one in arms.get(evidence.FIRST, [])}
    lines = []
    for arm, seeds in arms.items():
        pairs = [(one, first[one["seed"]]) for one in seeds if one["seed"] in first]
        if arm != evidence.FIRST and pairs:
            lines.append([arm, *(cell([best(a, system)["gold"] - best(b, system)["gold"]
                                       for a, b in pairs], "+.3f") for system in (RL, PIT)),
                          ", ".join(str(a["seed"]) for a, _ in pairs)])
    return markdown(["arm", "M_P^RL", "PIT", "seeds"], lines)


def aspect_of(seeds: list[dict], system: str, aspect: str) -> str:
    """Return the mean share of an aspect at T = 0.5, and each seed's."""
    values = [row_of(one, system, 0.5)["aspects"][aspect] for one in seeds]
    return f"{mean(values):.2f} ({', '.join(f'{value:.2f}' for value in values)})"


def aspect_table(arms: dict[str, list[dict]]) -> str:
    """Return totals and courtesy of each arm."""
    return markdown(
        ["arm", "right totals, M_P^RL", "PIT", "courtesy, M_P^RL", "PIT"],
        [[arm, *(aspect_of(seeds, system, aspect) for aspect in ("total", "courtesy")
                 for system in (RL, PIT))] for arm, seeds in arms.items()])


def spent(seeds: list[dict], what: str, stage: str) -> str:
    """Return the mean sum of seconds or operations of the stages whose names begin so."""
    sums = [sum(value for name, value in one[what].items() if name.startswith(stage))
            for one in seeds]
    return f"{mean(sums):.4g}"


def cost_table(arms: dict[str, list[dict]]) -> str:
    """Return the seconds and the operations of RLHF, and of PIT's stages, on the machine of the
    results."""
    return markdown(
        ["arm", "seconds of RLHF", "of PIT's stages", "TFLOP of RLHF", "of PIT's stages"],
        [[arm, *(spent(seeds, what, stage) for what in ("seconds", "tflop")
                 for stage in ("rlhf", "stage"))] for arm, seeds in arms.items()])


def choice_table(folder: Path) -> str:
    """Return the gold of each setting on validation questions of the first seed."""
    lines = []
    for path in sorted(folder.glob("choices-*.json")):
        content = json.loads(path.read_text(encoding="utf-8"))
        for part, tried in content["tried"].items():
            most = max(tried, key=tried.get)
            lines.append([content["arm"], {"rlhf": RL, "pit": PIT}[part], "; ".join(
                f"{setting}: {'**' * (setting == most)}{gold:.3f}{'**' * (setting == most)}"
                for setting, gold in tried.items())])
    return markdown(["arm", "policy", "(lr_scale, kl_target): gold"], lines)


def tables(results: Path) -> dict[str, str]:
    """Return all tables by their names."""
    arms = read_results(results)
    return {"gold": gold_table(arms), "difference": difference_table(arms),
            "aspects": aspect_table(arms), "cost": cost_table(arms),
            "choices": choice_table(results)}


def filled(page: str, results: Path) -> str:
    """Return the page with each table between `<!-- table: name -->` and `<!-- end -->`."""
    for name, table in tables(results).items():
        made = f"<!-- table: {name} -->\n\n{table}\n\n<!-- end -->"
        page = re.sub(rf"<!-- table: {name} -->.*?<!-- end -->", made.replace("\\", r"\\"), page,
                      flags=re.DOTALL)
    return page


def main() -> None:
    """Fill the tables of the page in anew."""
    arguments(__doc__)  # it takes none
    page = ROOT / "docs" / "ablations.md"
    made = filled(page.read_text(encoding="utf-8"), ROOT / "benchmarks" / "results").encode()
    write_whole(page, lambda file: file.write(made))  # its text has no other copy
    print(f"written: {page}")


if __name__ == "__main__":
    guard(main)
