"""Draw the pictures of docs/tutorial from a finished run.

    python docs/figures.py --config configs/quick.toml

Each picture is made by the functions that it shows, or from the run's own logs and models. The
runs that fail on purpose (docs/tutorial/7-read-your-run.md has their commands) are drawn if they
are there.
"""

import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import ppo  # noqa: E402
from data import Data, load_data  # noqa: E402
from evaluation import microscope  # noqa: E402
from faster.branches import joined  # noqa: E402
from model import pad_rows  # noqa: E402
from pretrained.configure import command_line  # noqa: E402
from report.page import curves  # noqa: E402
from runtime.launch import guard  # noqa: E402
from runtime.run import LOGS, Run, iterations  # noqa: E402
from runtime.settings import UserError  # noqa: E402
from sample import restore  # noqa: E402

try:
    import matplotlib
    from matplotlib import pyplot
except ImportError:
    matplotlib = None

BLUE, ORANGE, GREEN, GREY = "#8ecae6", "#ffb703", "#90be6d", "#dddddd"
QUESTION = "What is the bill for tea, a coupon and a hat?"
DRAFT = "Of course! 13 in all: tea 5, coupon 2, hat 10."
FAILURES = {"no-kl": "no KL", "chance": "R_PIT untrained", "no-eos": "no_eos_score too high",
            "rate": "learning rate too high"}


def rows_figure(data: Data):
    """Draw a batch of M_PIT's as cells: prompt, draft, response, padding."""
    some = data.folds["sft"][range(3)]
    rows = data.pit_rows(some.x, some.y_l, some.y_w)
    figure, axis = pyplot.subplots(figsize=(14, 1.6))
    for b, tokens in enumerate(rows.tokens.tolist()):
        marks = [t for t, i in enumerate(tokens) if i in data.tokenizer.controls.values()]
        for t, i in enumerate(tokens[:rows.length[b]]):
            part = sum(t > mark for mark in marks[:3])
            colour = GREY if t in marks else (BLUE, BLUE, ORANGE, GREEN)[part]
            axis.add_patch(pyplot.Rectangle((t, -b), 1, -0.9, facecolor=colour, edgecolor="white"))
            axis.text(t + 0.5, -b - 0.45, data.tokenizer.piece(i).strip("\u2581<|>"), ha="center",
                      va="center", fontsize=4.5)
    axis.set_xlim(0, rows.tokens.shape[1])
    axis.set_ylim(-3, 0)
    axis.set_axis_off()
    return figure


def branches_figure():
    """Draw which token sees which where two responses share a prompt."""
    names = [*(f"p{i}" for i in range(4)), *(f"a{i}" for i in range(3)),
             *(f"b{i}" for i in range(3))]
    bias = joined(pad_rows([[1] * 4] * 2, [[1] * 3] * 2), [[0, 1]]).bias[0, 0]
    figure, axis = pyplot.subplots(figsize=(4, 4))
    axis.imshow(bias == 0, cmap="Blues", vmax=1.6)
    axis.set_xticks(range(len(names)), names)
    axis.set_yticks(range(len(names)), names)
    axis.set_xlabel("is seen")
    axis.set_ylabel("sees")
    return figure


def ppo_figure():
    """Draw the clipped loss of a token against rho, and beta against the KL."""
    rho, one = torch.linspace(0.5, 1.5, 201), torch.ones(201, 1)
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3))
    for A, colour in ((1.0, "tab:green"), (-1.0, "tab:red")):
        losses = [ppo.policy_loss(at.log().view(1, 1), torch.zeros(1, 1), A * one[:1],
                                  one[:1].bool(), 0.2)[0].item() for at in rho]
        left.plot(rho, losses, color=colour, label=f"A = {A:+.0f}")
    left.set_xlabel("rho = pi_new / pi_old")
    left.set_ylabel("loss of a token")
    left.legend()
    kl = torch.linspace(0, 8, 200).tolist()
    right.plot(kl, [ppo.kl_coefficient(0.03, one, 3.0, 4.0, 16.0) for one in kl])
    right.set_xlabel("KL (nats a response); kl_target 3")
    right.set_ylabel("the next beta")
    figure.tight_layout()
    return figure


def failures_figure(run: Run):
    """Draw stage 1 of the runs that fail on purpose, over the healthy run's in grey."""
    healthy = iterations(run.used["stage1"].parent, "stage1")
    found = {}
    for name, title in FAILURES.items():
        folder = run.folder.parent / f"{run.config.run.name}-{name}"
        if (folder / LOGS[0]).exists():
            found[title] = iterations(folder, "stage1")
    found = {title: lines for title, lines in found.items() if lines}
    if not found:
        return None
    names = ("reward", "gold", "kl", "eos_rate")
    figure, axes = pyplot.subplots(len(names), len(found), figsize=(2.6 * len(found), 7),
                                   sharex=True, squeeze=False)
    for (title, lines), column in zip(found.items(), axes.T):
        column[0].set_title(title, fontsize=9)
        for name, axis in zip(names, column):
            for some, colour in ((healthy, "lightgrey"), (lines, "tab:red")):
                axis.plot([line["step"] for line in some], [line[name] for line in some],
                          color=colour)
    for name, axis in zip(names, axes[:, 0]):
        axis.set_ylabel(name, fontsize=9)
    figure.supxlabel("iteration of stage 1", fontsize=9)
    figure.tight_layout()
    return figure


def microscope_figure(run: Run, data: Data):
    """Draw one rewrite of stage 1, a column a token (sample.py --explain prints the same)."""
    draft = data.prompt(QUESTION), data.response(DRAFT)
    with run.precision():
        *_, columns = microscope.examined(run, data, restore(run, data), draft,
                                          run.generator("explain"))
    tokens, names = columns.pop("token"), list(columns)
    figure, axis = pyplot.subplots(figsize=(0.75 * len(tokens), 0.3 * len(names) + 0.5))
    for y, name in enumerate(names):
        most = max(map(abs, columns[name])) if name == "R_PIT" else 1.0
        for x, number in enumerate(columns[name]):
            colour = pyplot.cm.RdYlGn(0.5 + number / most / 2) if name in ("R_PIT", "A") else "w"
            axis.add_patch(pyplot.Rectangle((x, -y), 1, -1, facecolor=colour, edgecolor="white"))
            axis.text(x + 0.5, -y - 0.5, f"{number:.2f}", ha="center", va="center", fontsize=7)
    axis.set_xlim(0, len(tokens))
    axis.set_ylim(-len(names), 0)
    axis.set_xticks([x + 0.5 for x in range(len(tokens))],
                    [token.strip("\u2581") for token in tokens], fontsize=8)
    axis.set_yticks([-y - 0.5 for y in range(len(names))], names, fontsize=8)
    axis.xaxis.tick_top()
    axis.tick_params(length=0)
    for side in axis.spines.values():
        side.set_visible(False)
    return figure


def main() -> None:
    if matplotlib is None:
        raise UserError("the pictures need an extra: pip install matplotlib")
    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "pit"
    args, config = command_line(__doc__, (
        "--to", {"type": Path, "default": ROOT / "docs" / "tutorial", "help": "a folder"}))
    run = Run(config, trains=False)
    data = load_data(run)
    figures = {
        "rows": rows_figure(data), "branches": branches_figure(), "ppo": ppo_figure(),
        "microscope": microscope_figure(run, data),
        "curves": curves(run, {key: key for key in ("reward", "gold", "kl", "entropy")}),
        "failures": failures_figure(run)}
    for name, figure in figures.items():
        if figure:
            figure.savefig(args.to / f"{name}.svg", metadata={"Date": None}, bbox_inches="tight")


if __name__ == "__main__":
    guard(main)
