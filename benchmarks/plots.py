"""The evidence as pictures, benchmarks/plots/*.svg, of the rows in benchmarks/results.

    pip install matplotlib
    python benchmarks/plots.py                   # --results DIR --out DIR

Points are means over seeds, bars and bands their 95 % intervals (Student's), thin lines seeds.
"""

import argparse
import sys
from pathlib import Path
from statistics import mean

from tables import gathered, half_width, read_rows

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from report.rubric import ASPECTS  # noqa: E402

HERE = Path(__file__).resolve().parent
COLOURS = {"1.0": "tab:blue", "0.5": "tab:orange"}


def pyplot():
    """Import matplotlib's pyplot, set up for small files that are the same each time."""
    try:
        import matplotlib
    except ImportError:
        raise SystemExit("error: plots need matplotlib: pip install matplotlib") from None
    matplotlib.use("svg")
    matplotlib.rcParams |= {"svg.fonttype": "none", "svg.hashsalt": "pit", "font.size": 9,
                            "axes.spines.top": False, "axes.spines.right": False,
                            "axes.grid": True, "grid.alpha": 0.3, "legend.frameon": False}
    from matplotlib import pyplot as plt
    return plt


def intervals(rows) -> tuple[list[float], list[float]]:
    """Return means and half widths over seeds of each point, 0 where there is one seed."""
    rows = list(rows)
    return [mean(row) for row in rows], [half_width(row) if len(row) > 1 else 0 for row in rows]


def with_interval(axis, x, seeds: list[list[float]], label: str, colour: str,
                  style: str = "o-") -> None:
    """Draw a line of means over seeds with a band; seeds are lists of the values at x."""
    means, halves = intervals(zip(*seeds))
    axis.plot(x, means, style, ms=3, color=colour, label=label)
    if len(seeds) > 1:
        axis.fill_between(x, [m - h for m, h in zip(means, halves)],
                          [m + h for m, h in zip(means, halves)], color=colour, alpha=0.15, lw=0)


def with_bars(axis, x, seeds: list[list[float]], label: str, colour: str) -> None:
    """Draw points of means over seeds with bars."""
    axis.errorbar(x, *intervals(zip(*seeds)), fmt="o", ms=3, capsize=2, color=colour, label=label)


def bars(plt, names: list[str], values: dict[str, list[list[float]]], label: str):
    """Draw horizontal bars, for each temperature the values of each name over seeds."""
    figure, axis = plt.subplots(figsize=(7, 0.36 * len(names) + 1))
    for k, (temperature, rows) in enumerate(values.items()):
        places = [i + 0.18 * (2 * k - 1) for i in range(len(names))]
        means, halves = intervals(rows)
        axis.barh(places, means, 0.34, xerr=halves, color=COLOURS[temperature],
                  label=f"T = {temperature}", error_kw={"lw": 0.8, "capsize": 2})
    axis.set_yticks(range(len(names)), names)
    axis.invert_yaxis()
    axis.axvline(0, color="black", lw=0.8)
    axis.set_xlabel(label)
    axis.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2)  # above, clear of the bars
    return figure


def main_plot(plt, seeds: list):
    names = [name for name in seeds[0]["at"]["1.0"] if " of y_0" not in name and name != "PIT"]
    return bars(plt, names, {t: [gathered(seeds, "at", t, name, "PIT over it", "gold")
                                 for name in names] for t in COLOURS},
                "win - lose of PIT, one iteration, in points (hidden judge)")


def curriculum_plot(plt, seeds: list):
    names = list(seeds[0]["1.0"])
    return bars(plt, names, {t: [gathered(seeds, t, name, "over y_0", "gold")
                                 for name in names] for t in COLOURS},
                "win - lose over y_0 ~ M_P^RL, in points")


def terms_plot(plt, seeds: list):
    names = list(seeds[0]["agreement"])
    return bars(plt, names, {t: [gathered(seeds, "pit", t, name, "over y_0", "gold")
                                 for name in names] for t in COLOURS},
                "win - lose of PIT over y_0 ~ M_P^RL, in points, by the terms of Eq. 2")


def temperatures_plot(plt, seeds: list):
    figure, axes = plt.subplots(1, 2, figsize=(8, 3), sharey=True)
    for axis, place in zip(axes, ("drafts at 1", "drafts alike")):
        keys = [key for key in seeds[0] if key.endswith(place)]
        x = [float(key.split(",")[0]) for key in keys]
        for name, colour in (("y_0", "tab:gray"), ("PIT", "tab:blue"),
                             ("Self-Refine", "tab:green")):
            with_interval(axis, x, [[content[key][name]["gold"] for key in keys]
                                    for content in seeds], name, colour)
        axis.set_xlabel("temperature of the improver" if place == "drafts at 1" else
                        "temperature of draft and improver")
    axes[0].set_ylabel("gold")
    axes[0].legend()
    return figure


def rubrics_plot(plt, seeds: list):
    """Draw Self-Refine by k aspects, weightiest first or last, and by all but one; and PIT."""
    x, k = range(len(ASPECTS)), range(1, len(ASPECTS) + 1)
    first, last = ([f"{end} {number}" for number in k] for end in ("first", "last"))
    lacking = [f"without {aspect}" for aspect in ASPECTS]
    last[-2:] = lacking[0], first[-1]  # the same rubrics by their names in the row
    panels = (("the k weightiest aspects", first, k, with_interval),
              ("the k lightest aspects", last, k, with_interval),
              ("all aspects but", lacking, ASPECTS, with_bars))
    figure, axes = plt.subplots(1, 3, figsize=(10, 3), sharey=True)
    for axis, (words, rubrics, ticks, draw) in zip(axes, panels):
        for t, colour in COLOURS.items():
            draw(axis, x, [[content[t][name]["gold"] for name in rubrics] for content in seeds],
                 f"Self-Refine, T = {t}", colour)
            with_interval(axis, x, [[content[t]["PIT"]["gold"]] * len(x) for content in seeds],
                          f"PIT, T = {t}", colour, "--")
        axis.set_xticks(x, ticks)
        axis.set_xlabel(f"rubric: {words}")
    axes[0].set_ylabel("gold")
    axes[0].legend()
    figure.tight_layout()
    return figure


def iterations_plot(plt, seeds: list):
    figure, axes = plt.subplots(1, 3, figsize=(10, 3))
    names = [n for n in seeds[0]["1.0"]["players"] if n == "y_0" or n.startswith("PIT")]
    drafts = [d for d in seeds[0]["1.0"]["r_gap"] if None not in [
        content[t]["r_gap"][d]["sign_right"] for content in seeds for t in COLOURS]]
    for t, colour in COLOURS.items():
        for axis, what in zip(axes, ("gold", "elo")):
            with_interval(axis, range(len(names)), [
                [content[t]["players"][name][what] for name in names] for content in seeds],
                f"T = {t}", colour)
        with_interval(axes[2], range(len(drafts)), [
            [content[t]["r_gap"][d]["sign_right"] for d in drafts] for content in seeds],
            f"T = {t}", colour)
    for axis, label in zip(axes, ("gold", "Elo", "sign of r_gap right (gold changed)")):
        axis.set_xlabel("iteration" if axis is not axes[2] else "gold of y_ref")
        axis.set_ylabel(label)
    axes[2].set_xticks(range(len(drafts)), [d.replace(" to ", "–") for d in drafts], fontsize=8)
    axes[0].legend()
    figure.tight_layout()
    return figure


def means_of_five(*lists: list[float]) -> list[list[float]]:
    return [[mean(values[i:i + 5]) for i in range(0, len(values), 5)] for values in lists]


def optimisation_plot(plt, seeds: list):
    """Draw gold along training, and against the reward and the KL that it has then."""
    stages = list(dict.fromkeys(name.split(",")[0] for name in seeds[0]))
    figure, axes = plt.subplots(len(stages), 3, figsize=(10, 2.6 * len(stages)), squeeze=False)
    for row, stage in zip(axes, stages):
        for name, colour in zip((n for n in seeds[0] if n.startswith(stage)),
                                ("tab:red", "tab:purple", "tab:blue", "tab:green")):
            for axis, (what, words) in zip(row, (("step", "iteration"), ("kl", "KL (nats)"),
                                                 ("reward", "reward (std)"))):
                for content in seeds:
                    axis.plot(*means_of_five(content[name][what], content[name]["gold"]), lw=0.8,
                              color=colour, label=name if content is seeds[0] else None)
                axis.set_xlabel(words)
                axis.set_ylabel("gold")
        row[0].legend()
    figure.tight_layout()
    return figure


PLOTS = {"main": main_plot, "control": main_plot, "curriculum": curriculum_plot,
         "terms": terms_plot, "temperatures": temperatures_plot, "rubrics": rubrics_plot,
         "iterations": iterations_plot, "optimisation": optimisation_plot}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--out", type=Path, default=HERE / "plots")
    args = parser.parse_args()
    plt, rows = pyplot(), read_rows(args.results)
    if not rows:
        parser.error(f"--results {args.results}: no finished rows there")
    args.out.mkdir(parents=True, exist_ok=True)
    for name in [name for name in PLOTS if name in rows]:
        figure = PLOTS[name](plt, list(rows[name].values()))
        figure.savefig(args.out / f"{name}.svg", bbox_inches="tight", metadata={"Date": None})
        plt.close(figure)
        print(f"written: {args.out / name}.svg")


if __name__ == "__main__":
    main()
