"""Run one config with several seeds and print their reports as one table.

    python benchmarks/seeds.py --config configs/synthetic.toml --seeds 1 2 3 \\
        --eval.equal_budget=true

Each seed has its own data, models and run folder (runs/<name>-seed<n>; finished stages are used
again). Printed for each row of the reports: the mean over seeds, and each seed's win - lose.
"""

import json
import subprocess
import sys
from pathlib import Path
from statistics import mean

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pretrained.configure import command_line  # noqa: E402
from runtime.launch import guard  # noqa: E402
from runtime.settings import UserError  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]


def run_seed(config, config_path: str, seed: str, overrides: list[str]) -> dict:
    """Run train_pit.py with a seed (finished stages are used again); returns the report."""
    name = f"{config.run.name}-seed{seed}"
    report = Path(config.run.dir) / name / "report.json"
    command = [sys.executable, str(ROOT / "train_pit.py"), "--config", config_path, *overrides,
               f"--run.seed={seed}", f"--run.name={name}"]
    if subprocess.run(command, stdout=subprocess.DEVNULL).returncode:
        raise UserError(f"seed {seed}: the run failed; its message stands above")
    return json.loads(report.read_text(encoding="utf-8"))


def over_seeds(values: list[float], form: str) -> str:
    """Format the mean of the seeds' values, and each of them."""
    return f"{format(mean(values), form)} ({', '.join(format(v, form) for v in values)})"


def table(reports: list[dict]) -> str:
    """Return all rows of the reports, seeds side by side, as markdown."""
    lines = ["| system | T | iteration | against | gold | win - lose |",
             "|---|---|---|---|---|---|"]
    for rows in zip(*(report["rows"] for report in reports)):
        first = rows[0]
        gold = "" if first["gold"] is None else f"{mean(r['gold'] for r in rows):.3f}"
        excludes_zero = (all(r["ci_low"] > 0 for r in rows)
                         or all(r["ci_high"] < 0 for r in rows))
        lines.append(f"| {first['system']} | {first['temperature'] or ''} | "
                     f"{first['iteration'] or ''} | {first['against']} | {gold} | "
                     f"{over_seeds([r['delta'] for r in rows], '+.1f')}{' *' * excludes_zero} |")
    lines += ["", "`*`: every seed's 95 % interval excludes zero, on the same side.", "",
              "| agreement | mean (each seed) |", "|---|---|"]
    for name in reports[0]["reward"]:
        lines.append(f"| {name} | "
                     f"{over_seeds([r['reward'][name]['accuracy'] for r in reports], '.3f')} |")
    aspects = list(reports[0]["rows"][0]["aspects"])
    if aspects:
        lines += ["", f"| aspects at T = 0.5 | against | iteration | {' | '.join(aspects)} |",
                  "|---|---|---|" + "---|" * len(aspects)]
        for rows in zip(*(report["rows"] for report in reports)):
            if rows[0]["temperature"] == 0.5:
                grades = " | ".join(f"{mean(r['aspects'][a] for r in rows):.3f}" for a in aspects)
                lines.append(f"| {rows[0]['system']} | {rows[0]['against']} | "
                             f"{rows[0]['iteration'] or ''} | {grades} |")
    lines += ["", "| stage | seconds, mean (each seed) |", "|---|---|"]
    for name in reports[0]["seconds"]:
        lines.append(f"| {name} | {over_seeds([r['seconds'][name] for r in reports], '.0f')} |")
    lines.append(f"| all | {over_seeds([sum(r['seconds'].values()) for r in reports], '.0f')} |")
    return "\n".join(lines)


def main() -> None:
    args, config = command_line(__doc__.splitlines()[0],
                                ("--seeds", {"nargs": "+", "default": ["1", "2", "3"]}))
    overrides = [a for a in sys.argv[1:] if a.startswith("--") and "." in a.partition("=")[0]]
    print(table([run_seed(config, args.config, seed, overrides) for seed in args.seeds]))


if __name__ == "__main__":
    guard(main)
