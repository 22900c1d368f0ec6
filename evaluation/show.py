"""How prompts, responses and figures are shown, on a terminal, in logs and on pages."""

import difflib
import sys
from itertools import chain

from corpus import bills
from data import Data
from runtime.run import Run


def marked(before: str, after: str) -> str:
    """Return `after`; words that are not in `before` are bold where the output is a terminal."""
    if not sys.stdout.isatty():
        return after
    old, new = before.split(), after.split()
    parts = []
    for kind, _, _, start, end in difflib.SequenceMatcher(None, old, new).get_opcodes():
        words = " ".join(new[start:end])
        parts += [words if kind == "equal" else f"\033[1;32m{words}\033[0m"] * bool(words)
    return " ".join(parts)


def prompt_text(data: Data, x: list[int]) -> str:
    """Return a prompt as text; one of a single turn without its template."""
    first, later = data.opening["user"].parts, data.turns["user"].parts
    at = first.index("{x}")
    before, after = list(chain(*first[:at])), list(chain(*first[at + 1:]))
    again = list(chain(*later[:at]))
    others = [i for i in range(len(before), len(x)) if x[i:i + len(again)] == again]
    if before and (x[:len(before)] != before or others):
        return data.tokenizer.show(x)
    return data.tokenizer.decode(x[len(before):len(x) - len(after)])


def gold_note(run: Run, prompt: str, text: str) -> str:
    """Return the hidden judge's grade, where the prompt is a question that it can judge."""
    try:
        return f"  gold {bills.grade(prompt, text):.2f}" if not run.config.data.files else ""
    except ValueError:
        return ""


def markdown(heads: list[str], lines: list[list[str]]) -> str:
    """Return a table."""
    return "\n".join(["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
                     + ["| " + " | ".join(line) + " |" for line in lines])


def with_interval(figures, form: str = "+.1f") -> str:
    """Return a figure with its interval, of (figure, low, high)."""
    value, low, high = (format(figure, form) for figure in figures)
    return f"{value} [{low}, {high}]"
