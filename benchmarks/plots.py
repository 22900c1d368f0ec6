"""Draw the results of ablate.py: differences of lines, PIT against every system, curves of RL.

    python benchmarks/plots.py              # those in benchmarks/results; needs matplotlib

Intervals are 95 % over seeds (Student's), bands are the lowest and the highest seed.
"""

import textwrap
from pathlib import Path
from statistics import mean

import numpy as np
import tables
from script import arguments
from tables import PIT, RL, Lines

from runtime.launch import guard
from runtime.settings import UserError

STAGES = {"rlhf": "RLHF", "rlhf_more": "RLHF, equal budget", "stage0": "PIT, stage 0",
          "stage1": "PIT, stage 1"}


def draw(folder: Path) -> None:
    """Draw what the results of a folder have, beside them. Raises UserError without matplotlib."""
    try:
        import matplotlib
    except ImportError:
        raise UserError("plots need an extra: pip install matplotlib") from None
    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "pit"  # the same file from the same results
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
    from matplotlib import pyplot
    found = tables.differences(lines)
    order = sorted(found, key=lambda line: -mean(found[line][PIT]))
    figure, panels = pyplot.subplots(1, 2, sharey=True, figsize=(10, 1.2 + 0.45 * len(found)))
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
    from matplotlib import pyplot
    leads = {name: tables.leads(seeds, *name)
             for name in tables.systems(seeds) if name != (PIT, 1)}
    shown = sorted(leads, key=lambda name: -mean(leads[name][1]))
    figure, axis = pyplot.subplots(figsize=(8, 1.4 + 0.36 * len(shown)))
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
    from matplotlib import pyplot
    stages = [stage for stage in STAGES if all(one["log"].get(stage) for one in seeds)]
    figure, axes = pyplot.subplots(3, len(stages), figsize=(2.6 * len(stages), 5.4), sharex="col",
                                   sharey="row", squeeze=False)
    for column, stage in zip(axes.T, stages):
        column[0].set_title(STAGES[stage], fontsize=9)
        for axis, key, colour in zip(column, ("gold", "reward", "kl"),
                                     ("tab:blue", "tab:orange", "grey")):
            values = np.array([one["log"][stage][key] for one in seeds])
            at = np.arange(1, values.shape[1] + 1)
            axis.plot(at, values.mean(0), color=colour)
            axis.fill_between(at, values.min(0), values.max(0), color=colour, alpha=0.25)
    for axis, label in zip(axes[:, 0], ("gold", "reward (std)", "KL (nats)")):
        axis.set_ylabel(label, fontsize=8)
    figure.supxlabel("iteration (line: mean of the seeds, band: lowest and highest seed)",
                     fontsize=9)
    saved(figure, path)


def main() -> None:
    """Draw all results anew."""
    arguments(__doc__)  # it takes none
    for folder in sorted(tables.RESULTS.iterdir()):
        if folder.is_dir() and not folder.name.endswith("-prices"):
            draw(folder)
            print(f"drawn: {folder}")


if __name__ == "__main__":
    guard(main)
