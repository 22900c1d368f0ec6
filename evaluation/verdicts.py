"""Pairs of responses for a judge outside, and its verdicts back, in AlpacaEval's JSON format:

    [{"instruction", "output_1", "generator_1", "output_2", "generator_2", "preference"}, ...]

`preference` is what the judge fills in: 1 if output_1 is better, 2 if output_2 is, 1.5 (or 0) for a
tie, or a number between 1 and 2 that leans to one side. Which system stands first is shuffled for
each pair, so that a judge that likes the first or the second place favours neither system.

    python -m evaluation.verdicts runs/hh/report.json pairs.json   # writes the pairs of a report
    python -m evaluation.verdicts runs/hh/report.json pairs.json   # judged: shows the verdicts
"""

import argparse
import json
import random
from pathlib import Path

import numpy as np

from evaluation.measure import comparison
from evaluation.show import markdown, with_interval
from runtime.files import write_whole
from runtime.launch import guard
from runtime.settings import UserError, reason_of

TIES = (0, 1.5)


def write_pairs(path: Path, comparisons: list[dict], seed: int) -> int:
    """Write comparisons, each {"system", "y", "against", "y_other", "x", "temperature"} with lists
    of texts; returns the number of pairs. The temperature stands in "dataset"."""
    order, entries = random.Random(seed), []
    for one in comparisons:
        for x, *texts in zip(one["x"], one["y"], one["y_other"]):
            sides = list(zip((one["system"], one["against"]), texts))
            order.shuffle(sides)
            entries.append({"dataset": f"T = {one['temperature']}", "instruction": x} | {
                f"{key}_{k}": value for k, side in enumerate(sides, 1)
                for key, value in zip(("generator", "output"), side)} | {"preference": None})
    write_whole(path, lambda file: file.write(
        json.dumps(entries, ensure_ascii=False, indent=1).encode()))
    return len(entries)


def read_verdicts(path: Path) -> list[dict]:
    """Return win, tie, lose and their difference of each two systems in a judged file, in %.

    Raises UserError for a file without verdicts, or with unreadable ones.
    """
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        found: dict[tuple, list] = {}
        for number, entry in enumerate(entries):
            verdict = entry.get("preference")
            if verdict is None:
                continue
            if type(verdict) not in (int, float) or not (verdict == 0 or 1 <= verdict <= 2):
                raise UserError(f"{path}, item {number}: preference = {verdict!r} is no number "
                                "from 1 to 2, and not 0")
            names = entry["generator_1"], entry["generator_2"]
            length = len(entry["output_2"]) - len(entry["output_1"])
            better = 0 if verdict in TIES else 1 if verdict > 1.5 else -1  # of the second
            sign = 1 if names[0] < names[1] else -1
            key = (entry.get("dataset", ""), *sorted(names))
            found.setdefault(key, []).append((sign * better, sign * length))
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise UserError(f"{path}: no judged pairs in AlpacaEval's format: "
                        f"{type(error).__name__}: {error}") from None
    if not found:
        raise UserError(f"{path}: holds no verdicts yet; let a judge fill in 'preference', or name "
                        "another file to write the pairs again")
    rows = []
    for (dataset, against, system), pairs in found.items():
        better, longer = np.array(pairs, dtype=float).T
        rows.append({"dataset": dataset, "system": system, "against": against,
                     "pairs": len(pairs)} | comparison(better, longer))
    return rows


def as_markdown(rows: list[dict]) -> str:
    """Return what a judge has found, as a table."""
    return markdown(
        ["pairs", "system", "against", "n", "win", "tie", "lose", "delta", "at equal length"],
        [[r["dataset"], r["system"], r["against"], str(r["pairs"]),
          *(f"{r[name]:.1f}" for name in ("win", "tie", "lose")),
          with_interval([r["delta"], r["ci_low"], r["ci_high"]]),
          with_interval(r["equal_length"])] for r in rows])


def read_report(path: Path) -> dict:
    """Return a run's report. Raises UserError for a file that is none."""
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        return {"responses": report["responses"], "eval_seed": report["eval_seed"]}
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise UserError(f"{path}: no report.json of a run ({reason_of(error)}); train_pit.py "
                        "writes one") from None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("report", type=Path, help="report.json of a run")
    parser.add_argument("pairs", type=Path, help="the file of pairs; with verdicts they are shown")
    args = parser.parse_args()
    if not args.pairs.parent.is_dir():
        raise UserError(f"{args.pairs}: there is no folder {args.pairs.parent}; make it first")
    if args.pairs.exists():
        print(as_markdown(read_verdicts(args.pairs)))
        return
    report = read_report(args.report)
    count = write_pairs(args.pairs, report["responses"], report["eval_seed"])
    print(f"written: {count} pairs in {args.pairs}; once a judge has filled in 'preference', the "
          "same command shows its verdicts")


if __name__ == "__main__":
    guard(main)
