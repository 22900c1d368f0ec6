"""The evidence as pictures, benchmarks/plots/*.svg, of the rows in benchmarks/results.

    pip install matplotlib
    python benchmarks/plots.py                   # --results DIR: plots beside this folder

Points are means over seeds, bars and bands their 95 % intervals (Student's), thin lines seeds.
"""

from pathlib import Path
from statistics import mean

from script import ROOT, arguments
from tables import gathered, half_width, read_rows

from report.rubric import ASPECTS

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


def intervals(points: list[list[float]]) -> tuple[list[float], list[float]]:
    """Of each point's values over seeds the means and half widths, 0 where there is one seed."""
    return [mean(values) for values in points], [
        half_width(values) if len(values) > 1 else 0 for values in points]


def with_interval(axis, x, points: list[list[float]], label: str, colour: str, style="o-") -> None:
    """Draw a line of means over seeds with a band; points are the seeds' values at each x."""
    means, halves = intervals(points)
    axis.plot(x, means, style, ms=3, color=colour, label=label)
    if any(len(values) > 1 for values in points):
        axis.fill_between(x, [m - h for m, h in zip(means, halves)],
                          [m + h for m, h in zip(means, halves)], color=colour, alpha=0.15, lw=0)


def with_bars(axis, x, points: list[list[float]], label: str, colour: str) -> None:
    """Points of means over seeds with bars."""
    axis.errorbar(x, *intervals(points), fmt="o", ms=3, capsize=2, color=colour, label=label)


def bars(plt, seeds: list, names: list[str], path: str, label: str):
    """Horizontal bars, for each temperature the figure of each name."""
    figure, axis = plt.subplots(figsize=(7, 0.36 * len(names) + 1))
    for k, (at, colour) in enumerate(COLOURS.items()):
        places = [i + 0.18 * (2 * k - 1) for i in range(len(names))]
        means, halves = intervals([gathered(seeds, path, at=at, name=name) for name in names])
        axis.barh(places, means, 0.34, xerr=halves, color=colour, label=f"T = {at}",
                  error_kw={"lw": 0.8, "capsize": 2})
    axis.set_yticks(range(len(names)), names)
    axis.invert_yaxis()
    axis.axvline(0, color="black", lw=0.8)
    axis.set_xlabel(label)
    axis.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2)  # above, clear of the bars
    return figure


def main_plot(plt, seeds: list):
    names = [name for name in seeds[0]["at"]["1.0"] if " of y_0" not in name and name != "PIT"]
    return bars(plt, seeds, names, "at/{at}/{name}/PIT over it/gold",
                "win - lose of PIT, one iteration, in points (hidden judge)")


def curriculum_plot(plt, seeds: list):
    return bars(plt, seeds, list(seeds[0]["1.0"]), "{at}/{name}/over y_0/gold",
                "win - lose over y_0 ~ M_P^RL, in points")


def terms_plot(plt, seeds: list):
    return bars(plt, seeds, list(seeds[0]["agreement"]), "pit/{at}/{name}/over y_0/gold",
                "win - lose of PIT over y_0 ~ M_P^RL, in points, by the terms of Eq. 2")


def temperatures_plot(plt, seeds: list):
    figure, axes = plt.subplots(1, 2, figsize=(8, 3), sharey=True)
    for axis, place, words in zip(axes, ("drafts at 1", "drafts alike"), (
            "temperature of the improver", "temperature of draft and improver")):
        keys = [key for key in seeds[0] if key.endswith(place)]
        x = [float(key.split(",")[0]) for key in keys]
        for name, colour in (("y_0", "tab:gray"), ("PIT", "tab:blue"),
                             ("Self-Refine", "tab:green")):
            points = [gathered(seeds, f"{key}/{name}/gold") for key in keys]
            with_interval(axis, x, points, name, colour)
        axis.set_xlabel(words)
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
            draw(axis, x, [gathered(seeds, f"{t}/{name}/gold") for name in rubrics],
                 f"Self-Refine, T = {t}", colour)
            with_interval(axis, x, [gathered(seeds, f"{t}/PIT/gold")] * len(x), f"PIT, T = {t}",
                          colour, "--")
        axis.set_xticks(x, ticks)
        axis.set_xlabel(f"rubric: {words}")
    axes[0].set_ylabel("gold")
    axes[0].legend()
    figure.tight_layout()
    return figure


def iterations_plot(plt, seeds: list):
    names = [n for n in seeds[0]["1.0"]["players"] if n == "y_0" or n.startswith("PIT")]
    drafts = [d for d in seeds[0]["1.0"]["r_gap"] if not any(
        None in gathered(seeds, f"{t}/r_gap/{d}/sign_right") for t in COLOURS)]
    sign = "sign of r_gap right (gold changed)"
    panels = (("players", names, "gold", "iteration", "gold"),
              ("players", names, "elo", "iteration", "Elo"),
              ("r_gap", drafts, "sign_right", "gold of y_ref", sign))
    figure, axes = plt.subplots(1, 3, figsize=(10, 3))
    for axis, (under, lines, what, x_label, y_label) in zip(axes, panels):
        for t, colour in COLOURS.items():
            points = [gathered(seeds, f"{t}/{under}/{line}/{what}") for line in lines]
            with_interval(axis, range(len(lines)), points, f"T = {t}", colour)
        axis.set_xlabel(x_label)
        axis.set_ylabel(y_label)
    axes[2].set_xticks(range(len(drafts)), [d.replace(" to ", "–") for d in drafts], fontsize=8)
    axes[0].legend()
    figure.tight_layout()
    return figure


def means_of_five(values: list[float]) -> list[float]:
    return [mean(values[i:i + 5]) for i in range(0, len(values), 5)]


def optimisation_plot(plt, seeds: list):
    """Draw gold along training, and against the reward and the KL that it has then."""
    stages = list(dict.fromkeys(name.split(",")[0] for name in seeds[0]))
    figure, axes = plt.subplots(len(stages), 3, figsize=(10, 2.6 * len(stages)), squeeze=False)
    for row, stage in zip(axes, stages):
        names = [name for name in seeds[0] if name.startswith(stage)]
        for name, colour in zip(names, ("tab:red", "tab:purple", "tab:blue", "tab:green")):
            for axis, (what, words) in zip(row, (("step", "iteration"), ("kl", "KL (nats)"),
                                                 ("reward", "reward (std)"))):
                for content in seeds:
                    axis.plot(means_of_five(content[name][what]),
                              means_of_five(content[name]["gold"]), lw=0.8, color=colour,
                              label=name if content is seeds[0] else None)
                axis.set_xlabel(words)
                axis.set_ylabel("gold")
        row[0].legend()
    figure.tight_layout()
    return figure


PLOTS = {"main": main_plot, "control": main_plot, "curriculum": curriculum_plot,
         "terms": terms_plot, "temperatures": temperatures_plot, "rubrics": rubrics_plot,
         "iterations": iterations_plot, "optimisation": optimisation_plot}


def main() -> None:
    results = arguments(__doc__, ("--results", {
        "type": Path, "default": ROOT / "benchmarks" / "results"})).results
    plt, rows, out = pyplot(), read_rows(results), results.resolve().parent / "plots"
    if not rows:
        raise SystemExit(f"error: --results {results}: no finished rows there")
    out.mkdir(exist_ok=True)
    for name in [name for name in PLOTS if name in rows]:
        figure = PLOTS[name](plt, list(rows[name].values()))
        figure.savefig(out / f"{name}.svg", bbox_inches="tight", metadata={"Date": None})
        plt.close(figure)
        print(f"written: {out / name}.svg")


if __name__ == "__main__":
    main()
