"""Draw the results of ablate.py: differences of lines, PIT against every system, curves of RL.

    python benchmarks/plots.py              # those in benchmarks/results; needs matplotlib

Of the first edition (evidence.md) it draws anew what long training does to gold, by the KL's beta.

Intervals are 95 % over seeds (Student's), bands are the lowest and the highest seed.
"""

import json
import textwrap
from pathlib import Path
from statistics import mean

import numpy as np
import tables
from script import ROOT, arguments
from tables import PIT, RL, Lines

from runtime.launch import guard
from runtime.settings import UserError

FIRST_EDITION = ROOT / "benchmarks" / "first-edition-results"
SHOWN = {"gold": "gold", "reward": "reward (std)", "kl": "KL (nats)"}  # keys of the log, labels
BETAS = {0.0: "tab:red", 0.03: "tab:purple", 0.1: "tab:blue"}
STAGES = {"rlhf": "RLHF", "rlhf_more": "RLHF, equal budget", "stage0": "PIT, stage 0",
          "stage1": "PIT, stage 1"}


def draw(folder: Path) -> None:
    """Draw what the results of a folder have, beside them."""
    lines, _ = tables.read_results(folder)
    own = lines.get("", [])
    if tables.differences(lines):
        draw_differences(lines, folder / "differences.svg")
    if own and "grades" in own[0]["rows"][0]:  # format 1 had none
        draw_wins(own, folder / "wins.svg")
        draw_curves(own, folder / "curves.svg")
    for line, seeds in lines.items():
        if ".beta=" in line:  # what happens along the iterations matters there
            draw_curves(seeds, folder / f"curves-{tables.slug(line)}.svg")


def new_figure(*rows_and_columns: int, **more):
    """Return a figure and its axes. Raises UserError without matplotlib."""
    try:
        import matplotlib
    except ImportError:
        raise UserError("plots need an extra: pip install matplotlib") from None
    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "pit"  # the same file from the same results
    from matplotlib import pyplot
    return pyplot.subplots(*rows_and_columns, **more)


def saved(figure, path: Path) -> None:
    """Write a figure, and let go of it."""
    from matplotlib import pyplot
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def point(axis, values: list[float], place: float, colour: str, label: str = "") -> None:
    """Draw the mean of some seeds with its interval; of one seed no interval is known."""
    half = tables.half_width(values) if len(values) > 1 else None
    axis.errorbar(mean(values), place, xerr=half, fmt="o", color=colour, capsize=3,
                  label=label or None)


def draw_differences(lines: Lines, path: Path) -> None:
    """Draw each line's gold less that of the config as it is, the best for PIT first; nothing where
    the models are the same."""
    found = tables.differences(lines)
    order = sorted(found, key=lambda line: -mean(found[line][PIT]))
    figure, panels = new_figure(1, 2, sharey=True, figsize=(10, 1.2 + 0.45 * len(found)))
    for panel, system in zip(panels, (RL, PIT)):
        for place, line in enumerate(order):
            if any(found[line][system]):
                point(panel, found[line][system], place, "tab:blue")
        panel.axvline(0, color="black", linewidth=0.8)
        panel.set_title(f"{system} (0: the config as it is)", fontsize=9)
    panels[0].set_yticks(range(len(order)), [textwrap.fill(line, 50) for line in order], fontsize=8)
    figure.supxlabel("difference of gold (95 % interval over seeds)", fontsize=9)
    panels[0].invert_yaxis()
    saved(figure, path)


def draw_wins(seeds: list[dict], path: Path) -> None:
    """Draw by how much PIT's first rewrite wins over each other system, the weakest first."""
    leads = {name: tables.own_leads(seeds, name)
             for name in tables.systems(seeds) if name != (PIT, 1)}
    shown = sorted(leads, key=lambda name: -mean(leads[name][1]))
    figure, axis = new_figure(figsize=(8, 1.4 + 0.36 * len(shown)))
    for place, name in enumerate(shown):
        at_one, own = leads[name]
        point(axis, at_one, place - 0.13, "tab:blue", "T = 1" * (place == 0))
        point(axis, own, place + 0.13, "tab:orange", "own best T" * (place == 0))
    axis.axvline(0, color="black", linewidth=0.8)
    axis.set_yticks(range(len(shown)), [tables.named(*name) for name in shown], fontsize=8)
    axis.set_xlabel("PIT's first rewrite: win - lose over the system, points; 0: as good as PIT "
                    "(95 % interval over seeds)", fontsize=8)
    axis.invert_yaxis()
    axis.legend(fontsize=8, loc="best")
    saved(figure, path)


def draw_curves(seeds: list[dict], path: Path) -> None:
    """Draw gold, reward and KL along the iterations of each stage: mean and range of the seeds."""
    stages = [stage for stage in STAGES if all(one["log"].get(stage) for one in seeds)]
    figure, axes = new_figure(3, len(stages), figsize=(2.6 * len(stages), 5.4), sharex="col",
                              sharey="row", squeeze=False)
    for column, stage in zip(axes.T, stages):
        column[0].set_title(STAGES[stage], fontsize=9)
        for axis, key, colour in zip(column, SHOWN, ("tab:blue", "tab:orange", "grey")):
            band(axis, [one["log"][stage][key] for one in seeds], colour)
    for axis, label in zip(axes[:, 0], SHOWN.values()):
        axis.set_ylabel(label, fontsize=8)
    figure.supxlabel("iteration (line: mean of the seeds, band: lowest and highest seed)",
                     fontsize=9)
    saved(figure, path)


def band(axis, seeds: list[list[float]], colour: str, label: str = "") -> None:
    """Draw the mean of some seeds along the iterations, and the range from lowest to highest."""
    values = np.array(seeds)
    at = np.arange(1, values.shape[1] + 1)
    axis.plot(at, values.mean(0), color=colour, label=label or None)
    axis.fill_between(at, values.min(0), values.max(0), color=colour, alpha=0.2, linewidth=0)


def draw_optimisation(path: Path) -> None:
    """Draw gold, reward and KL of long training by the KL's coefficient beta, and of beta 0 each
    seed, too: the first edition's results, which have other keys than ours."""
    seeds = [json.loads(file.read_text(encoding="utf-8"))["content"]
             for file in sorted(FIRST_EDITION.glob("optimisation-*.json"))]
    figure, axes = new_figure(3, 2, figsize=(8, 6.5), sharex=True, sharey="row")
    for column, stage in zip(axes.T, ("rlhf", "stage0")):
        column[0].set_title(STAGES[stage], fontsize=9)
        for axis, key in zip(column, SHOWN):
            for beta, colour in BETAS.items():
                curves = [smooth(one[f"{stage}, beta {beta}"][key]) for one in seeds]
                band(axis, curves, colour, f"beta {beta}")
                for curve in curves if beta == 0 else ():
                    axis.plot(range(1, len(curve) + 1), curve, color=colour, linewidth=0.6)
    for axis, label in zip(axes[:, 0], SHOWN.values()):
        axis.set_ylabel(label, fontsize=8)
    axes[0, 0].legend(fontsize=8, loc="best")
    figure.supxlabel("iteration (means of five; line: mean of three seeds, band: lowest and "
                     "highest seed, thin: each seed of beta 0)", fontsize=9)
    saved(figure, path)


def smooth(values: list[float], width: int = 5) -> list[float]:
    """Return the means of each `width` values in a row; fewer at the start."""
    return [mean(values[max(0, end - width):end]) for end in range(1, len(values) + 1)]


def main() -> None:
    arguments(__doc__)  # it takes none
    draw_optimisation(ROOT / "benchmarks" / "plots" / "optimisation.svg")
    for folder in sorted(tables.RESULTS.iterdir()):
        # reward models alone have no systems, two seeds no interval that fits a plot
        if folder.is_dir() and not folder.name.endswith(("-prices", "-fresh")):
            draw(folder)
            print(f"drawn: {folder}")


if __name__ == "__main__":
    guard(main)
