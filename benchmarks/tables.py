"""Make tables and a plot of ablate.py's results, and fill the tables into docs/ablations.md.

    python benchmarks/tables.py

Figures are means over seeds with 95 % intervals (Student's); a difference is taken seed by seed,
`*`: its interval excludes zero. Gold is at each system's own best temperature, chosen on validation
questions of the same seed. The text of the page is written by hand and stays.
"""

import json
import math
import re
import textwrap
from pathlib import Path
from statistics import mean, stdev

from script import ROOT, arguments

from runtime.files import write_whole
from runtime.launch import guard
from runtime.settings import UserError

STUDENT = {2: 12.71, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306,
           10: 2.262}  # 97.5 % quantiles, by the number of seeds
RL, PIT = "M_P^RL", "PIT"
Lines = dict[str, list[dict]]  # the results of each line's seeds; "": the config as it is, first


def read(path: Path) -> dict:
    """Return a result. Raises UserError for a file that is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if {"line", "settings"} <= content.keys():
            return content
    except (ValueError, AttributeError):
        pass
    raise UserError(f"{path}: no result of benchmarks/ablate.py; delete it")


def read_results(folder: Path) -> tuple[Lines, list[dict]]:
    """Return the results of each line, by seeds, and what was chosen from."""
    found, choices = {}, []
    for path in folder.glob("*.json"):
        content = read(path)
        if "rows" in content:
            found.setdefault(content["line"], []).append(content)
        else:
            choices.append(content)
    return ({line: sorted(found[line], key=lambda one: one["seed"]) for line in sorted(found)},
            sorted(choices, key=lambda one: one["line"]))


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


def over_seeds(values: list[float], form: str) -> str:
    """Return the mean, and the value of each seed."""
    return f"{format(mean(values), form)} ({', '.join(format(v, form) for v in values)})"


def markdown(heads: list[str], lines: list[list[str]]) -> str:
    """Return a table."""
    return "\n".join(["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
                     + ["| " + " | ".join(line) + " |" for line in lines])


def label(line: str) -> str:
    """Return how a line is named in the tables."""
    return f"`{line}`" if line else "as it is"


def row_of(seed: dict, system: str, temperature: float, iteration: int = 1) -> dict:
    """Return the report's row of M_P^RL, or of PIT's first or later rewrite of its drafts."""
    name, against, iteration = {RL: (RL, "M_P^SFT", 0), PIT: (seed["final"], RL, iteration)}[system]
    return next(row for row in seed["rows"] if (
        row["system"], row["against"], row["iteration"], row["temperature"]) == (
        name, against, iteration, temperature))


def best(seed: dict, system: str) -> dict:
    """Return a system's row at the temperature that was best on validation questions."""
    golds = seed["valid"][RL if system == RL else seed["final"]]
    return row_of(seed, system, float(max(golds, key=golds.get)))


def own_table(lines: Lines) -> str:
    """Return all rows of the config as it is. `*`: every seed's interval excludes zero, on the
    same side."""
    made = []
    for rows in zip(*(seed["rows"] for seed in lines.get("", []))):
        one = rows[0]
        sure = all(r["ci_low"] > 0 for r in rows) or all(r["ci_high"] < 0 for r in rows)
        made.append([one["system"], str(one["temperature"] or ""), str(one["iteration"] or ""),
                     one["against"], over_seeds([r["gold"] for r in rows], ".3f"),
                     over_seeds([r["delta"] for r in rows], "+.1f") + " *" * sure])
    return markdown(["system", "T", "iteration", "against", "gold", "win - lose"], made)


def gold_table(lines: Lines) -> str:
    """Return what each line is worth, and by how much PIT's rewrites win over their drafts."""
    return markdown(
        ["line", "gold of M_P^RL", "gold of PIT", "PIT over M_P^RL, T = 1", "T = 0.5"],
        [[label(line), *(cell([best(one, system)["gold"] for one in seeds], ".3f")
                         for system in (RL, PIT)),
          *(cell([row_of(one, PIT, t)["delta"] for one in seeds]) for t in (1.0, 0.5))]
         for line, seeds in lines.items()])


def differences(lines: Lines) -> dict[str, dict]:
    """Return each line's gold less that of the config as it is, of the seeds that both have: for
    M_P^RL and PIT a list, and the seeds."""
    first, found = {one["seed"]: one for one in lines.get("", [])}, {}
    for line, seeds in lines.items():
        pairs = [(one, first[one["seed"]]) for one in seeds if one["seed"] in first]
        if line and pairs:
            found[line] = {system: [best(a, system)["gold"] - best(b, system)["gold"]
                                    for a, b in pairs] for system in (RL, PIT)} | {
                "seeds": [a["seed"] for a, _ in pairs]}
    return found


def difference_table(lines: Lines) -> str:
    """Return the differences with their intervals."""
    return markdown(["line", RL, PIT, "seeds"], [
        [label(line), *(cell(found[system], "+.3f") if any(found[system]) else "the same"
                        for system in (RL, PIT)), ", ".join(map(str, found["seeds"]))]
        for line, found in differences(lines).items()])


def iteration_table(lines: Lines) -> str:
    """Return what a second rewrite, of the first one, adds, where there is one."""
    def gains(seeds, temperature):
        return [row_of(one, PIT, temperature, 2)["gold"] - row_of(one, PIT, temperature)["gold"]
                for one in seeds]
    return markdown(
        ["line", "y_1, T = 1", "y_2 adds", "y_1, T = 0.5", "y_2 adds"],
        [[label(line), *(text for t in (1.0, 0.5) for text in (
            cell([row_of(one, PIT, t)["gold"] for one in seeds], ".3f"),
            cell(gains(seeds, t), "+.3f")))] for line, seeds in lines.items()
         if all(any(row["iteration"] == 2 for row in one["rows"]) for one in seeds)])


def aspect_table(lines: Lines) -> str:
    """Return totals and courtesy of each line at T = 0.5, the mean and each seed."""
    def shares(seeds, system, aspect):
        return over_seeds([row_of(one, system, 0.5)["aspects"][aspect] for one in seeds], ".2f")
    return markdown(
        ["line", "right totals, M_P^RL", "PIT", "courtesy, M_P^RL", "PIT"],
        [[label(line), *(shares(seeds, system, aspect) for aspect in ("total", "courtesy")
                         for system in (RL, PIT))] for line, seeds in lines.items()])


def spent(seeds: list[dict], stage: str) -> str:
    """Return the mean operations of RLHF, or of all stages "stage...", in TFLOP."""
    sums = [sum(value for name, value in one["tflop"].items()
                if re.fullmatch(rf"{stage}\d*", name)) for one in seeds]
    return f"{mean(sums):.4g}"


def cost_table(lines: Lines) -> str:
    """Return the operations of RLHF, and of PIT's stages."""
    return markdown(["line", "TFLOP of RLHF", "of PIT's stages"], [
        [label(line), spent(seeds, "rlhf"), spent(seeds, "stage")]
        for line, seeds in lines.items()])


def choice_table(choices: list[dict]) -> str:
    """Return the gold of each setting on validation questions of the first seed."""
    made = []
    for content in choices:
        for part, tried in content["tried"].items():
            most = max(tried, key=tried.get)
            made.append([label(content["line"]), {"rlhf": RL, "pit": PIT}[part], "; ".join(
                f"{setting}: {'**' * (setting == most)}{gold:.3f}{'**' * (setting == most)}"
                for setting, gold in tried.items())])
    return markdown(["line", "policy", "(lr_scale, kl_target): gold"], made)


def tables(lines: Lines, choices: list[dict]) -> dict[str, str]:
    """Return all tables by their names."""
    return {"own": own_table(lines), "gold": gold_table(lines),
            "difference": difference_table(lines), "iterations": iteration_table(lines),
            "aspects": aspect_table(lines), "cost": cost_table(lines),
            "choices": choice_table(choices)}


def plot(lines: Lines, path: Path) -> None:
    """Draw the differences with their intervals; none where the models are the same."""
    import matplotlib
    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "pit"  # the same file from the same results
    from matplotlib import pyplot
    found = differences(lines)
    figure, panels = pyplot.subplots(1, 2, sharey=True, figsize=(10, 1.2 + 0.45 * len(found)))
    for panel, system in zip(panels, (RL, PIT)):
        for place, line in enumerate(found):
            values = found[line][system]
            if not any(values):
                continue  # the same models
            half = half_width(values) if len(values) > 1 else None  # one seed tells no width
            panel.errorbar(mean(values), place, xerr=half, fmt="o", color="tab:blue", capsize=3)
        panel.axvline(0, color="grey", linewidth=1)
        panel.set_title(system, fontsize=9)
    names = [textwrap.fill(line, 50) for line in found]
    panels[0].set_yticks(range(len(found)), names, fontsize=8)
    figure.supxlabel("gold, less that of the config as it is (95 % interval over seeds)",
                     fontsize=9)
    panels[0].invert_yaxis()
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def write(results: Path) -> str:
    """Write tables.md and, where matplotlib is there, differences.svg beside the results; return
    the tables."""
    heads = {"difference": "Gold, less that of the config as it is (`*`: not zero, at 95 %)",
             "gold": "Gold, and PIT's lead in points", "iterations": "What a second rewrite adds",
             "aspects": "Totals and courtesy, T = 0.5 (each seed)", "cost": "What RL costs",
             "choices": "What was chosen from", "own": "All rows of the config as it is"}
    lines, choices = read_results(results)
    made = tables(lines, choices)
    text = "\n\n".join(f"{head}:\n\n{made[name]}" for name, head in heads.items()
                       if made[name].count("\n") > 1) + "\n"
    write_whole(results / "tables.md", lambda file: file.write(text.encode()))
    try:
        plot(lines, results / "differences.svg")
    except ImportError:
        text += "\nno plot: it needs an extra, pip install matplotlib\n"
    return text


def filled(page: str, results: Path) -> str:
    """Return the page with each table between `<!-- table: name -->` and `<!-- end -->`."""
    for name, table in tables(*read_results(results)).items():
        made = f"<!-- table: {name} -->\n\n{table}\n\n<!-- end -->"
        page = re.sub(rf"(?s)<!-- table: {name} -->.*?<!-- end -->", lambda _: made, page)
    return page


def main() -> None:
    """Fill the tables of the page in anew, and draw the plot."""
    arguments(__doc__)  # it takes none
    page, results = ROOT / "docs" / "ablations.md", ROOT / "benchmarks" / "results" / "quick"
    if not read_results(results)[0]:
        raise UserError(f"{results}: no results; docs/ablations.md has the command that makes them")
    made = filled(page.read_text(encoding="utf-8"), results).encode()
    write_whole(page, lambda file: file.write(made))  # its text has no other copy
    write(results)
    print(f"written: {page}")


if __name__ == "__main__":
    guard(main)
