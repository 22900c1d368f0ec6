"""A report as report.json, report.md and curves.png."""

import json

from evaluation.show import markdown, with_interval
from runtime import files, ranks
from runtime.run import LOGS, Run, iterations
from runtime.stages import rl_inputs


def as_markdown(report: dict) -> str:
    """Return report.json as a page."""
    parts = [f"# {report['name']}, seed {report['seed']}",
             f"{report['prompts']} {report['split']} prompts, judge: {report['judge']}. "
             "Win, tie, lose, delta (win - lose, 95 % interval), responses that were cut off and "
             "copies of y_ref in %. M_PIT^SFT is what Aligner does (arXiv 2402.02416): correction "
             "by supervised training alone.",
             comparisons(report["rows"]), aspects(report["rows"]),
             "## Reward models", agreements(report["reward"]), prices(report["prices"]),
             "## Examples", f"Drawn with seed {report['eval_seed']}, not picked.",
             *map(example, report["examples"]),
             "## Data and time", ", ".join(f"{k}: {v}" for k, v in report["data"].items()),
             "Operations are those of matrix products. The share is that of the "
             f"{report['peak_tflop_a_second']:.3f} TFLOP a second that one large product reached.",
             costs(report["seconds"], report["tflop"], report["peak_tflop_a_second"])]
    return "\n\n".join(filter(None, parts)) + "\n"


def known(value, form: str = "") -> str:
    """Return a value as text; nothing for None."""
    return "" if value is None else format(value, form)


def comparisons(rows: list[dict]) -> str:
    """Return how each system compares with another one."""
    return markdown(
        ["system", "T", "iteration", "gold", "against", "win", "tie", "lose", "delta",
         "delta at equal length", "length", "cut", "copies"],
        [[r["system"], known(r["temperature"]), str(r["iteration"] or ""), known(r["gold"], ".3f"),
          r["against"], *(f"{r[name]:.1f}" for name in ("win", "tie", "lose")),
          with_interval([r["delta"], r["ci_low"], r["ci_high"]]),
          with_interval(r["equal_length"]), f"{r['length']:.1f}", f"{r['cut']:.0f}",
          known(r["copies"], ".0f")] for r in rows])


def aspects(rows: list[dict]) -> str:
    """Return the shares of the judge's aspects, where it has some."""
    names = list(rows[0]["aspects"])
    return "## The judge's aspects\n\n" + markdown(
        ["system", "T", "iteration", "against", *names],
        [[r["system"], known(r["temperature"]), str(r["iteration"] or ""), r["against"],
          *(f"{r['aspects'][name]:.3f}" for name in names)] for r in rows]) if names else ""


def agreements(reward: dict[str, dict]) -> str:
    """Return how often reward models agree with labels and with the judge."""
    return markdown(["agreement", "accuracy", "95 % interval", "pairs"], [
        [name, f"{a['accuracy']:.3f}", f"{a['ci_low']:.3f} to {a['ci_high']:.3f}", str(a["pairs"])]
        for name, a in reward.items()])


def prices(found: dict[str, dict]) -> str:
    """Return what reward models pay for a change, where this is known."""
    return ("What they pay for a change of the right answer without courtesy, and what the labels "
            "make it worth (R_PIT: for a draft with a wrong total).\n\n") + markdown(
        ["change", "right price", "R_P", "R_PIT"],
        [[change, f"{one['right']:+.2f}", *(with_interval(one[name], "+.2f")
                                            for name in ("R_P", "R_PIT"))]
         for change, one in found.items()]) if found else ""


def example(one: dict) -> str:
    """Return a prompt, and its responses one after the other."""
    lines = [f"**{one['x']}** (T = {one['temperature']})", ""]
    for k, step in enumerate(one["steps"]):
        notes = [f"{name} {step[name]:+.2f}" for name in ("r_gap", "a copy", "gold")
                 if step[name] is not None]
        text = step["y"].replace("\n", "\n  ")  # stays in its list item
        lines.append(f"- y_{k}: {text}" + f" ({', '.join(notes)})" * bool(notes))
    return "\n".join(lines)


def costs(seconds: dict[str, float], tflop: dict[str, float], peak: float) -> str:
    """Return what each stage took, and all of them; `peak` in TFLOP a second."""
    both = {name: (seconds[name], tflop[name]) for name in seconds}
    both["all"] = sum(seconds.values()), sum(tflop.values())
    return markdown(["stage", "seconds", "TFLOP", "share"], [
        [name, f"{time:.0f}", f"{done:.1f}", f"{100 * done / max(time, 1e-9) / peak:.0f} %"]
        for name, (time, done) in both.items()])


def curves(run: Run, names: dict[str, str]):
    """Draw figures of metrics.jsonl, each with the text at its axis, along RLHF and PIT's stages,
    those of run.base included; return the picture, None where all logs are lost. It needs
    matplotlib."""
    from matplotlib import pyplot
    logs = {stage: run.used[stage].parent for stage in rl_inputs(run.config)}
    stages = {stage: iterations(log, stage) for stage, log in logs.items()
              if (log / LOGS[0]).exists()}
    if not stages:
        return None
    picture, axes = pyplot.subplots(len(names), len(stages), sharex="col", sharey="row",
                                    figsize=(3 * len(stages) + 1, 1.9 * len(names)), squeeze=False)
    for (stage, lines), column in zip(stages.items(), axes.T):
        column[0].set_title(stage, fontsize=9)
        for name, axis in zip(names, column):
            axis.plot(*zip(*((line["step"], line[name]) for line in lines if name in line)))
    for text, axis in zip(names.values(), axes[:, 0]):
        axis.set_ylabel(text, fontsize=9)
    picture.supxlabel("iteration", fontsize=9)
    picture.tight_layout()
    pyplot.close(picture)  # from pyplot's list; it can still be saved
    return picture


def draw_curves(run: Run) -> None:
    """Draw reward, gold and KL along the PPO stages, where matplotlib is installed."""
    try:
        import matplotlib
    except ImportError:
        return
    matplotlib.use("Agg")
    picture = curves(run, {"reward": "reward (std)", "gold": "gold", "kl": "KL (nats a response)"})
    if picture:
        picture.savefig(run.folder / "curves.png", dpi=120)


def write(run: Run, report: dict) -> None:
    """Write the report into the run's folder and print where it is."""
    if ranks.rank() == 0:
        page = as_markdown(report)
        for name, text in (("report.json", json.dumps(report, indent=1)), ("report.md", page)):
            files.write_whole(run.folder / name, lambda file: file.write(text.encode()))
        print(page.split("## Examples")[0])
        print(f"written: {run.folder / 'report.md'}")
        (run.folder / "evaluation.part.pt").unlink(missing_ok=True)  # when all is written
        draw_curves(run)
