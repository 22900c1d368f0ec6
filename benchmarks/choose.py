"""Choose one setting of a PPO stage on validation prompts, by one rule for RLHF and for PIT.

    python benchmarks/choose.py --config configs/synthetic.toml \\
        --field rlhf.kl_target --values 1 2 3

Trains the stage of the field once for each value, on top of the finished stages of the config's
run folder, and prints for each the gold quality of its responses (PIT's: of one and of four
improvements of M_P^RL's) at temperatures 1.0 and 0.5, and the aspect that it lowers most at 0.5
against what it starts from (M_P^SFT's responses; M_P^RL's). The rule: of the values that lower no
aspect by more than 2 points, the one with the highest gold, averaged over all that is printed.
"""

import json
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import train_pit  # noqa: E402
from data import Data, load_data  # noqa: E402
from runtime import Run, UserError, command_line, rank  # noqa: E402
from sample import STAGES, answer, improve  # noqa: E402
from tools.launch import guard  # noqa: E402
from tools.report import Judge  # noqa: E402
from tools.settings import set_field  # noqa: E402
from train_reward import Models  # noqa: E402


def responses(run, data, models, stage: str, x, temperature):
    """What the stage starts from, and what it makes of it (once, and four times for PIT)."""
    generator = run.generator(f"choose {temperature}", run.device)
    if stage == "rlhf":
        before = answer(run, data, models.policies["M_P^SFT"], x, temperature, generator)
        return before, [answer(run, data, models.policies["M_P^RL"], x, temperature, generator)]
    chain = [answer(run, data, models.policies["M_P^RL"], x, temperature, generator)]
    policy = models.policies[STAGES[stage]]
    for _ in range(run.config.eval.iterations):
        chain.append(improve(run, data, policy, x, chain[-1], temperature, generator))
    return chain[0], [chain[1], chain[-1]]


def trial(config, base: str, stage: str, label: str) -> dict:
    """Train with the config and measure on validation prompts."""
    config.run.base, config.run.name = base, f"{Path(base).name}-{label}"
    names = config.pit.curriculum
    config.pit.curriculum = names[:names.index(stage) + 1] if stage in names else []
    run = Run(config)
    data = load_data(run)
    with run.precision():
        return measured(run, data, train_pit.train_all(run, data), stage, label)


def measured(run: Run, data: Data, models: Models, stage: str, label: str) -> dict:
    """Mean gold quality on validation prompts, and the aspect that falls most."""
    x = data.folds["valid"].x[:]
    judge, row = Judge(data, models, x), {"value": label, "gold": []}
    for temperature in (1.0, 0.5):
        before, after = responses(run, data, models, stage, x, temperature)
        row["gold"] += [round(float(judge.grades(y).mean()), 4) for y in after]
    means = [{name: np.mean([a[name] for a in judge.aspects(y)]) for name in
              ("total", "lines", "courtesy", "kindness", "form")} for y in (before, after[0])]
    loss, aspect = min((means[1][name] - means[0][name], name) for name in means[0])
    row |= {"start": round(float(judge.grades(before).mean()), 4), "worst": aspect,
            "worst_points": round(100 * float(loss), 1),
            "mean": round(float(np.mean(row["gold"])), 4)}
    return row


def main() -> None:
    args, config = command_line(
        __doc__.splitlines()[0], ("--field", {"required": True, "help": "such as rlhf.kl_target"}),
        ("--values", {"nargs": "+", "required": True}))
    if config.data.files:
        raise UserError("choose.py asks the hidden judge, which only the bills have")
    section, _, key = args.field.partition(".")
    base = str(Path(config.run.dir) / config.run.name)
    rows = []
    for value in args.values:
        _, config = command_line("", ("--field", {}), ("--values", {"nargs": "+"}))
        set_field(config, section, key, json.loads(value), f"--values {value}")
        rows.append(trial(config, base, section, f"{args.field}-{value}"))
        if rank() == 0:
            print(json.dumps(rows[-1]), flush=True)
    harmless = [row for row in rows if row["worst_points"] >= -2]
    if rank() == 0:
        best = max(harmless or rows, key=lambda row: row["mean"])
        print(f"chosen: {best['value']}" + " (all lower an aspect)" * (not harmless))


if __name__ == "__main__":
    guard(main)
