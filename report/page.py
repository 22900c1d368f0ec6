"""A report as report.json, report.md and curves.png."""

import json

from runtime import files, ranks
from runtime.run import LOGS, Run, iterations
from runtime.stages import rl_inputs


def as_markdown(report: dict) -> str:
    """Return report.json as a page."""
    lines = [f"# {report['name']}, seed {report['seed']}", "",
             f"{report['prompts']} {report['split']} prompts, judge: {report['judge']}. "
             "Win, tie, lose, delta (win - lose, 95 % interval), responses that were cut off and "
             "copies of y_ref in %. M_PIT^SFT is what Aligner does (arXiv 2402.02416): correction "
             "by supervised training alone.", "",
             "| system | T | iteration | gold | against | win | tie | lose | delta | "
             "delta at equal length | length | cut | copies |",
             "|---|---|---|---|---|---|---|---|---|---|---|---|---|"]
    for r in report["rows"]:
        gold = "" if r["gold"] is None else f"{r['gold']:.3f}"
        equal = "{:+.1f} [{:+.1f}, {:+.1f}]".format(*r["equal_length"])
        copies = "" if r["copies"] is None else f"{r['copies']:.0f}"
        lines.append(
            f"| {r['system']} | {'' if r['temperature'] is None else r['temperature']} | "
            f"{r['iteration'] or ''} | {gold} | {r['against']} | {r['win']:.1f} | {r['tie']:.1f} | "
            f"{r['lose']:.1f} | {r['delta']:+.1f} [{r['ci_low']:+.1f}, {r['ci_high']:+.1f}] | "
            f"{equal} | {r['length']:.1f} | {r['cut']:.0f} | {copies} |")
    names = list(report["rows"][0]["aspects"])
    if names:
        lines += ["", "## The judge's aspects", "", f"| system | T | iteration | against | "
                  f"{' | '.join(names)} |", "|---|---|---|---|" + "---|" * len(names)]
        lines += [f"| {r['system']} | {'' if r['temperature'] is None else r['temperature']} | "
                  f"{r['iteration'] or ''} | {r['against']} | "
                  f"{' | '.join(format(r['aspects'][name], '.3f') for name in names)} |"
                  for r in report["rows"]]
    lines += ["", "## Reward models", "", "| agreement | accuracy | 95 % interval | pairs |",
              "|---|---|---|---|"]
    lines += [f"| {name} | {a['accuracy']:.3f} | {a['ci_low']:.3f} to {a['ci_high']:.3f} | "
              f"{a['pairs']} |" for name, a in report["reward"].items()]
    if report["prices"]:
        lines += ["", "What they pay for a change of the right answer without courtesy, and what "
                  "the labels make it worth (R_PIT: for a draft with a wrong total).", "",
                  "| change | right price | R_P | R_PIT |", "|---|---|---|---|"]
        lines += [f"| {change} | {prices['right']:+.2f} | " + " | ".join(
            "{:+.2f} [{:+.2f}, {:+.2f}]".format(*prices[model]) for model in ("R_P", "R_PIT"))
            + " |" for change, prices in report["prices"].items()]
    lines += ["", "## Examples", "", f"Drawn with seed {report['eval_seed']}, not picked."]
    for example in report["examples"]:
        lines += ["", f"**{example['x']}** (T = {example['temperature']})", ""]
        for k, step in enumerate(example["steps"]):
            notes = [f"{name} {step[name]:+.2f}" for name in ("r_gap", "a copy", "gold")
                     if step[name] is not None]
            lines.append(f"- y_{k}: {step['y']}" + f" ({', '.join(notes)})" * bool(notes))
    lines += ["", "## Data and time", "", ", ".join(f"{k}: {v}" for k, v in report["data"].items()),
              "", "Operations are those of matrix products. The share is that of the "
              f"{report['peak_tflop_a_second']:.3f} TFLOP a second that one large product reached.",
              "", "| stage | seconds | TFLOP | share |", "|---|---|---|---|"]
    costs = [(name, report["seconds"][name], report["tflop"][name]) for name in report["seconds"]]
    costs.append(("all", sum(report["seconds"].values()), sum(report["tflop"].values())))
    for name, seconds, done in costs:
        share = done / max(seconds, 1e-9) / report["peak_tflop_a_second"]
        lines.append(f"| {name} | {seconds:.0f} | {done:.1f} | {100 * share:.0f} % |")
    return "\n".join(lines) + "\n"


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
