"""Make tables of the results in benchmarks/results, and fill them into the pages of docs/.

    python benchmarks/tables.py

Figures are means over seeds with 95 % intervals (Student's); a difference is taken seed by seed,
`*`: its interval excludes zero. Gold is at each system's own best temperature, chosen on validation
questions of the same seed. The text of the pages is written by hand and stays. plots.py draws.
"""

import json
import math
import re
from pathlib import Path
from statistics import mean, stdev

from script import ROOT, arguments

from evaluation.show import markdown, with_interval
from runtime.config import Config
from runtime.files import write_whole
from runtime.launch import guard
from runtime.settings import UserError

STUDENT = {2: 12.71, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306,
           10: 2.262}  # 97.5 % quantiles, by the number of seeds
RESULTS = ROOT / "benchmarks" / "results"
RL, PIT, DATA = "M_P^RL", "PIT", ("y_w", "y_l")
Lines = dict[str, list[dict]]  # the results of each line's seeds; "": the config as it is, first


def read(path: Path, *kinds: str) -> dict:
    """Return a result that has one of these keys, if any are named: "rows" or "tried" of ablate.py,
    "gold" of prices.py, "wins" of agreement.py. Raises UserError for a file that is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if {"line", "settings"} <= content.keys() and (not kinds or content.keys() & {*kinds}):
            return content
    except (ValueError, AttributeError):
        pass
    raise UserError(f"{path}: no result that belongs here; delete it, or name another --results")


def results_of(folder: Path, *kinds: str) -> list[dict]:
    """Return a folder's results, as `read` does, by lines and seeds."""
    return sorted((read(path, *kinds) for path in folder.glob("*.json")),
                  key=lambda one: (one["line"], one["seed"]))


def read_results(folder: Path) -> tuple[Lines, list[dict]]:
    """Return the results of each line, by seeds, and what was chosen from."""
    found, choices = {}, []
    for content in results_of(folder, "rows", "tried"):
        if "rows" in content:
            found.setdefault(content["line"], []).append(content)
        else:
            choices.append(content)
    return found, choices


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


def slug(line: str) -> str:
    """Return a line as a part of a file's name."""
    return "-".join("".join(c if c.isalnum() or c in "._=" else " " for c in line).split()) or "own"


def label(line: str) -> str:
    """Return how a line is named in the tables."""
    return f"`{line}`" if line else "as it is"


def row_of(seed: dict, system: str, temperature: float, iteration: int = 1) -> dict:
    """Return the report's row of a system: "PIT" is its last stage, which rewrites M_P^RL's drafts,
    the first or a later time. Responses of the data have no temperature."""
    name = seed["final"] if system == PIT else system
    return next(row for row in seed["rows"] if row["system"] == name
                and row["against"] == ("M_P^SFT" if name == RL else RL)
                and row["iteration"] in (0, iteration)
                and row["temperature"] in (None, temperature))


def best(seed: dict, system: str, iteration: int = 1) -> dict:
    """Return a system's row at the temperature that was best on validation questions."""
    if system in DATA:
        return row_of(seed, system, 1.0)
    golds = seed["valid"][seed["final"] if system == PIT else system]
    return row_of(seed, system, float(max(golds, key=golds.get)), iteration)


def wins(row: dict, other: dict) -> float:
    """Return win - lose of a row's responses over another row's, in points."""
    return 100 * mean((a > b) - (a < b)
                      for a, b in zip(row["grades"], other["grades"], strict=True))


def leads(pairs: list[tuple[dict, dict]], system: str,
          iteration: int = 1) -> tuple[list[float], list[float]]:
    """Return by how much the first rewrite of each pair's first result wins over a system of the
    second: at T = 1, and each at its own best temperature."""
    return ([wins(row_of(a, PIT, 1.0), row_of(b, system, 1.0, iteration)) for a, b in pairs],
            [wins(best(a, PIT), best(b, system, iteration)) for a, b in pairs])


def own_leads(seeds: list[dict], name: tuple[str, int]) -> tuple[list[float], list[float]]:
    """Return by how much PIT's first rewrite wins over a system of the same result, as `leads`."""
    return leads(list(zip(seeds, seeds)), *name)


def systems(seeds: list[dict]) -> list[tuple[str, int]]:
    """Return the systems that every seed's report has, each with its iteration, PIT's last stage as
    "PIT"; the best first."""
    if not seeds:
        return []
    each = [dict.fromkeys((PIT if row["system"] == one["final"] else row["system"],
                           row["iteration"]) for row in one["rows"]) for one in seeds]
    common = [name for name in each[0] if all(name in other for other in each)]
    return sorted(common, key=lambda name: -mean(best(one, *name)["gold"] for one in seeds))


def named(system: str, iteration: int) -> str:
    """Return how a system is named in the tables."""
    more = f", rewrite {iteration}" if iteration > 1 else ""
    data = " of the data" if system in DATA else ""
    return {"M_PIT^SFT": "M_PIT^SFT (Aligner)"}.get(system, system) + data + more


def gold_table(lines: Lines) -> str:
    """Return what each line is worth, and by how much PIT's rewrites win over their drafts."""
    return markdown(
        ["line", "gold of M_P^RL", "gold of PIT", "PIT over M_P^RL, T = 1", "T = 0.5"],
        [[label(line), *(cell([best(one, system)["gold"] for one in seeds], ".3f")
                         for system in (RL, PIT)),
          *(cell([row_of(one, PIT, t)["delta"] for one in seeds]) for t in (1.0, 0.5))]
         for line, seeds in lines.items()])


def paired(lines: Lines) -> dict[str, list[tuple[dict, dict]]]:
    """Return each line's results beside those of the config as it is, of the seeds that both
    have."""
    own = {one["seed"]: one for one in lines.get("", [])}
    pairs = {line: [(one, own[one["seed"]]) for one in seeds if one["seed"] in own]
             for line, seeds in lines.items() if line}
    return {line: both for line, both in pairs.items() if both}


def differences(lines: Lines) -> dict[str, dict]:
    """Return each line's gold less that of the config as it is, of the seeds that both have: for
    M_P^RL and PIT a list, and the seeds."""
    return {line: {system: [best(a, system)["gold"] - best(b, system)["gold"] for a, b in pairs]
                   for system in (RL, PIT)} | {"seeds": seeds_of([a for a, _ in pairs])}
            for line, pairs in paired(lines).items()}


def rewrite_table(lines: Lines) -> str:
    """Return how the first rewrites of each line's PIT compare with those of the config's, question
    by question."""
    made = []
    for line, pairs in paired(lines).items():
        made.append([label(line), cell([best(a, PIT)["gold"] for a, _ in pairs], ".3f"),
                     cell([best(b, PIT)["gold"] for _, b in pairs], ".3f"),
                     *map(cell, leads(pairs, PIT))])
    return markdown(["line", "gold of its PIT", "of the config's PIT", "win - lose, T = 1",
                     "own best T"], made)


def rival_table(lines: Lines) -> str:
    """Return what M_P^RL of each line is worth, where it is not the config's, and by how much PIT
    of the config wins over it."""
    made = []
    for line, pairs in paired(lines).items():
        if any(a["log"]["rlhf"] != b["log"]["rlhf"] for a, b in pairs):
            found = [best(a, RL) for a, _ in pairs]
            made.append([label(line), cell([row["gold"] for row in found], ".3f"),
                         cell([row["aspects"]["total"] for row in found], ".2f"),
                         spent([a for a, _ in pairs], "rlhf"),
                         *map(cell, leads([(b, a) for a, b in pairs], RL))])
    return markdown(["line", "gold of its M_P^RL", "right totals", "TFLOP of RLHF",
                     "the config's PIT over it, T = 1", "own best T"], made)


def difference_table(lines: Lines) -> str:
    """Return the differences with their intervals."""
    return markdown(["line", RL, PIT, "seeds"], [
        [label(line), *(cell(found[system], "+.3f") if any(found[system]) else "the same"
                        for system in (RL, PIT)), found["seeds"]]
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
        ["line", "right totals, M_P^RL", "PIT", "courtesy, M_P^RL", "PIT", "seeds"],
        [[label(line), *(shares(seeds, system, aspect) for aspect in ("total", "courtesy")
                         for system in (RL, PIT)), seeds_of(seeds)]
         for line, seeds in lines.items()])


def seeds_of(results: list[dict]) -> str:
    """Return the seeds of some results."""
    return ", ".join(str(one["seed"]) for one in results)


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


def headline_table(lines: Lines) -> str:
    """Return of each system its gold, and by how much PIT's first rewrite wins over it."""
    made, seeds = [], lines.get("", [])
    for name in systems(seeds):
        golds = [[row_of(one, name[0], t, name[1])["gold"] for one in seeds] for t in (1.0, 0.5)]
        own = [best(one, *name)["gold"] for one in seeds]
        made.append([named(*name), *(cell(golds, ".3f") for golds in (*golds, own)),
                     *("" if name == (PIT, 1) else cell(points)
                       for points in own_leads(seeds, name))])
    return markdown(["system", "gold, T = 1", "T = 0.5", "own best T", "PIT over it, T = 1",
                     "own best T"], made)


def lead_table(lines: Lines) -> str:
    """Return by how much PIT's first rewrite wins over each system, the mean and each seed."""
    seeds = lines.get("", [])
    return markdown(["PIT over", "T = 1", "own best T"], [
        [named(*name), *(over_seeds(points, "+.1f") for points in own_leads(seeds, name))]
        for name in systems(seeds) if name != (PIT, 1)])


def system_table(lines: Lines) -> str:
    """Return the shares of the judge's aspects, each system at its own best temperature."""
    seeds = lines.get("", [])
    aspects = list(seeds[0]["rows"][0]["aspects"]) if seeds else []
    return markdown(["system", *aspects], [
        [named(*name), *(cell([best(one, *name)["aspects"][aspect] for one in seeds], ".2f")
                         for aspect in aspects)]
        for name in systems(seeds)])


def budget_table(lines: Lines) -> str:
    """Return what each system took: responses sampled in RL, operations of RL and of all stages;
    means over seeds."""
    made, seeds = [], lines.get("", [])
    stages = seeds[0]["settings"]["pit.curriculum"] if seeds else []
    budgets = {RL: (["sft", "rp"], ["rlhf"]),
               "RLHF equal budget": (["sft", "sft_more", "rp"], ["rlhf_more"]),
               PIT: (["sft", "pit_sft", "rp", "rpit"], ["rlhf", *stages])}
    for system, (supervised, of_rl) in budgets.items():
        if all(stage in one["tflop"] for one in seeds for stage in of_rl) and seeds:
            number = mean(sum(sampled(one)[stage] for stage in of_rl) for one in seeds)
            made.append([system, f"{number:,.0f}", *(
                f"{mean(sum(one['tflop'][stage] for stage in some) for one in seeds):.4g}"
                for some in (of_rl, supervised + of_rl))])
    return markdown(["system", "responses sampled", "TFLOP of RL", "of all"], made)


def sampled(seed: dict) -> dict[str, int]:
    """Return how many responses each stage of RL samples, drafts included."""
    config = Config()
    for key, value in seed["settings"].items():
        section, _, name = key.partition(".")
        if name:
            setattr(getattr(config, section), name, value)
    batches = {"rlhf": config.rlhf.iterations} | {
        stage: getattr(config, stage).batches(config.ppo) for stage in config.pit.curriculum}
    return {stage: config.ppo.batch * number
            for stage, number in (batches | {"rlhf_more": sum(batches.values())}).items()}


def choice_table(folder: Path) -> str:
    """Return the gold of each setting on validation questions of the first seed."""
    made, (_, choices) = [], read_results(folder)
    for content in choices:
        for part, tried in content["tried"].items():
            most = max(tried, key=tried.get)
            made.append([label(content["line"]), {"rlhf": RL, "pit": PIT}[part], "; ".join(
                f"{setting}: {'**' * (setting == most)}{gold:.3f}{'**' * (setting == most)}"
                for setting, gold in tried.items())])
    return markdown(["line", "policy", "(lr_scale, kl_target): gold"], made)


def price_table(folder: Path) -> str:
    """Return what R_P and R_PIT pay in each line of prices.py's results, how often they agree with
    labels, and the gold of what they choose."""
    found, made = {}, []
    for content in results_of(folder, "gold"):
        found.setdefault(content["line"], []).append(content)
    each = [one["prices"] for seeds in found.values() for one in seeds]
    right = {change: mean(prices[change]["right"] for prices in each) for change in each[0]}
    for line, seeds in found.items():
        for model, choice, agreement in (("R_P", "best of 4 by R_P", "R_P"),
                                         ("R_PIT", "best of 4 by r_gap", "R_PIT wl>lw")):
            columns = [(f"{change} ({price:+.2f})", "+.2f",
                        [one["prices"][change][model][0] for one in seeds])
                       for change, price in right.items()]
            columns += [("agrees", ".3f", [one["agreements"][agreement] for one in seeds]),
                        ("best of 4", ".3f", [one["gold"][choice] for one in seeds])]
            made.append([label(line), model, *(over_seeds(values, form) if len(seeds) > 1 else
                                               format(values[0], form)
                                               for _, form, values in columns)])
    return markdown(["line", "", *(head for head, *_ in columns)], made)


def agreement_table(folder: Path) -> str:
    """Return what reward models know of people's preferences in each line of agreement.py's
    results, seed by seed; with 95 % intervals over prompts."""
    made = []
    for one in results_of(folder, "wins"):
        for model, choice in (("R_P", "best of 4 by R_P"), ("R_PIT", "best of 4 by r_gap"),
                              ("M_PIT^SFT", "M_PIT^SFT"), ("judge", ""), ("longer", "")):
            agrees, less = map(one["agreements"].get, (model, f"{model} less longer"))
            made.append([label(one["line"]), str(one["seed"]), model,
                         with_interval(agrees, ".3f") if agrees else "",
                         with_interval(less, "+.3f") if less else "",
                         f"{choice}: {with_interval(one['wins'][choice]['equal_length'])}"
                         if choice else ""])
    return markdown(["line", "seed", "", "agrees", "less the longer response",
                     "win - lose over one answer at equal length"], made)


OF_FOLDERS = {  # whose files are no results of a line's whole run
    "choices": choice_table, "prices": price_table, "agreement": agreement_table}
TABLES = {  # each with its heading
    "headline": (headline_table, "The config as it is: gold, and PIT over each system in points"),
    "leads": (lead_table, "PIT over each system in points (each seed)"),
    "systems": (system_table, "Aspects, each system at its own best T"),
    "budget": (budget_table, "What each system took"),
    "difference": (difference_table, "Gold, less that of the config as it is"),
    "gold": (gold_table, "Gold, and PIT's lead in points"),
    "rewrites": (rewrite_table, "PIT of each line over PIT of the config as it is, in points"),
    "rivals": (rival_table, "PIT of the config as it is over M_P^RL of each line, in points"),
    "iterations": (iteration_table, "What a second rewrite adds"),
    "aspects": (aspect_table, "Totals and courtesy, T = 0.5 (each seed)"),
    "cost": (cost_table, "What RL costs")}


def write(results: Path) -> str:
    """Write tables.md beside the results; return it."""
    lines, _ = read_results(results)
    made = [(head, table(lines)) for table, head in TABLES.values()]
    made.append(("What was chosen from", choice_table(results)))
    text = "\n\n".join(f"{head}:\n\n{table}" for head, table in made
                       if table.count("\n") > 1) + "\n"
    write_whole(results / "tables.md", lambda file: file.write(text.encode()))
    return text


def filled(page: str, results: Path) -> str:
    """Return the page with each table between `<!-- table: folder/name -->` and `<!-- end -->`.
    Raises UserError for a mark of a table that is not there."""
    def table(mark: re.Match) -> str:
        folder, name = results / mark[2], mark[3]
        if not folder.is_dir() or name not in [*TABLES, *OF_FOLDERS]:
            raise UserError(f"{mark[1]}: no such table of {results}")
        text = (OF_FOLDERS[name](folder) if name in OF_FOLDERS else
                TABLES[name][0](read_results(folder)[0]))
        return f"{mark[1]}\n\n{text}\n\n<!-- end -->"
    return re.sub(r"(?s)(<!-- table: ([\w-]+)/(\w+) -->).*?<!-- end -->", table, page)


def main() -> None:
    arguments(__doc__)  # it takes none
    for name in ("results.md", "ablations.md"):
        page = ROOT / "docs" / name
        text = filled(page.read_text(encoding="utf-8"), RESULTS).encode()
        write_whole(page, lambda file: file.write(text))  # what we wrote by hand has no other copy
        print(f"written: {page}")


if __name__ == "__main__":
    guard(main)
