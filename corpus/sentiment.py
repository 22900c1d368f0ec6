"""Pairs of real sentences with labels that can be trusted: a lexicon's verdict instead of people's.

    python -m corpus.sentiment data/hh-rlhf/helpful-*/test.jsonl.gz --to data/sentiment.jsonl
    python train_pit.py --config configs/sentiment.toml

The conversations are people's. A response is the first sentence of an assistant's reply; its grade
is its sentiment by VADER (Hutto and Gilbert 2014), from -1 to 1. Labels are drawn from the grades
as those of bills are, and a sixth goes wrong. The report's judge is VADER itself (eval.judge); a
training knows the labels alone. It needs one extra: pip install vaderSentiment
"""

import argparse
import json
import random
import re
from collections import Counter
from functools import cache
from pathlib import Path

from corpus.bills import second_preferred
from corpus.formats import TextPair, read_pairs
from runtime.files import write_whole
from runtime.launch import guard
from runtime.settings import UserError

SENTENCE = re.compile(r".+?[.!?](?=\s|$)", re.DOTALL)


@cache
def lexicon():
    """Load VADER. Raises UserError where it is not installed."""
    try:
        from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer
    except ImportError:
        raise UserError("sentiment needs vaderSentiment: pip install vaderSentiment") from None
    return SentimentIntensityAnalyzer()


def grades(x: list[str], y: list[str]) -> list[float]:
    """Grade texts by their sentiment, from -1 (negative) to 1 (positive); the prompts do not count.
    The function of eval.judge."""
    return [lexicon().polarity_scores(text)["compound"] for text in y]


def relabelled(pair: TextPair, rng: random.Random) -> dict | str:
    """Return a pair's first sentences in the order that the lexicon's grades draw, in the form of
    TRL's conversations, or in a word why there is none."""
    found = [SENTENCE.match(text.strip()) for text in (pair.chosen, pair.rejected)]
    if not all(found):
        return "no sentence"
    sides = [match.group() for match in found]
    first, second = grades([], sides)
    if first == second:
        return "grades equal"
    if second_preferred(first - second, rng):
        sides.reverse()
    chosen, rejected = ([{"role": "assistant", "content": text}] for text in sides)
    return {"prompt": [{"role": role, "content": text} for role, text in pair.prompt],
            "chosen": chosen, "rejected": rejected}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+", help="preference pairs, in any format of data.files")
    parser.add_argument("--to", type=Path, required=True, help="the file to write")
    parser.add_argument("--seed", type=int, default=1, help="of the labels")
    args = parser.parse_args()
    if args.to.is_dir() or args.to.resolve() in [Path(path).resolve() for path in args.files]:
        raise UserError(f"--to={args.to}: name a new file")
    rng, counts, lines = random.Random(args.seed), Counter(), []
    for pair in (pair for path in args.files for pair in read_pairs(path, counts)):
        made = relabelled(pair, rng)
        if isinstance(made, str):
            counts[made] += 1
        else:
            lines.append(json.dumps(made) + "\n")
    left = ", ".join(f"{reason} {number:,}" for reason, number in counts.items()) or "none"
    if not lines:
        raise UserError(f"{', '.join(args.files)}: no pair is left; left out: {left}")
    write_whole(args.to, lambda file: file.write("".join(lines).encode()))
    print(f"{args.to}: {len(lines):,} pairs; left out: {left}")


if __name__ == "__main__":
    guard(main)
