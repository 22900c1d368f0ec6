"""Run one config with several seeds and print their reports as one table.

    python benchmarks/seeds.py --config configs/quick.toml --seeds 1 2 3 \\
        --eval.equal_budget=true

Each seed has its own data, models and run folder (runs/<name>-seed<n>; finished stages are used
again). Printed for each row of the reports: the mean over seeds, and each seed's win - lose.
"""

import json
import subprocess
import sys
from pathlib import Path
from statistics import mean

from script import ROOT
from tables import markdown

from pretrained.configure import command_line
from runtime.launch import guard
from runtime.settings import UserError


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
    """All rows of the reports, seeds side by side, as markdown."""
    first = reports[0]
    together = list(zip(*(report["rows"] for report in reports)))
    wins, grades, aspects = [], [], list(first["rows"][0]["aspects"])
    for rows in together:
        one = rows[0]
        gold = "" if one["gold"] is None else f"{mean(r['gold'] for r in rows):.3f}"
        sure = all(r["ci_low"] > 0 for r in rows) or all(r["ci_high"] < 0 for r in rows)
        wins.append([one["system"], str(one["temperature"] or ""), str(one["iteration"] or ""),
                     one["against"], gold,
                     over_seeds([r["delta"] for r in rows], "+.1f") + " *" * sure])
        if aspects and one["temperature"] == 0.5:
            grades.append([one["system"], one["against"], str(one["iteration"] or ""),
                           *(f"{mean(r['aspects'][a] for r in rows):.3f}" for a in aspects)])
    agreed = [[name, over_seeds([r["reward"][name]["accuracy"] for r in reports], ".3f")]
              for name in first["reward"]]
    seconds = [r["seconds"] | {"all": sum(r["seconds"].values())} for r in reports]
    spent = [[name, over_seeds([s[name] for s in seconds], ".0f")] for name in seconds[0]]
    parts = [markdown(["system", "T", "iteration", "against", "gold", "win - lose"], wins),
             "`*`: every seed's 95 % interval excludes zero, on the same side.",
             markdown(["agreement", "mean (each seed)"], agreed)]
    if aspects:
        parts.append(markdown(["aspects at T = 0.5", "against", "iteration", *aspects], grades))
    return "\n\n".join([*parts, markdown(["stage", "seconds, mean (each seed)"], spent)])


def main() -> None:
    args, config = command_line(__doc__.splitlines()[0],
                                ("--seeds", {"nargs": "+", "default": ["1", "2", "3"]}))
    overrides = [a for a in sys.argv[1:] if a.startswith("--") and "." in a.partition("=")[0]]
    print(table([run_seed(config, args.config, seed, overrides) for seed in args.seeds]))


if __name__ == "__main__":
    guard(main)
