"""How responses are shown: by sample.py on a terminal, in training in samples.jsonl."""

import difflib
import sys
from itertools import chain

import torch

from data import Data
from model import Rows
from ppo import Prompts
from runtime import Run, all_sum
from tools import bills


def marked(before: str, after: str) -> str:
    """`after`, with the words that are not in `before` in bold where the output is a terminal."""
    if not sys.stdout.isatty():
        return after
    old, new = before.split(), after.split()
    parts = []
    for kind, _, _, start, end in difflib.SequenceMatcher(None, old, new).get_opcodes():
        words = " ".join(new[start:end])
        parts += [words if kind == "equal" else f"\033[1;32m{words}\033[0m"] * bool(words)
    return " ".join(parts)


def prompt_text(data: Data, x: list[int]) -> str:
    """A prompt as text; one of a single turn without its template."""
    user = data.turns["user"].parts
    at = user.index("{x}")
    before, after = list(chain(*user[:at])), list(chain(*user[at + 1:]))
    turns = [i for i in range(len(x)) if x[i:i + len(before)] == before]
    if before and turns != [0]:
        return data.tokenizer.show(x)
    return data.tokenizer.decode(x[len(before):len(x) - len(after)])


def gold_note(run: Run, prompt: str, text: str) -> str:
    """The hidden judge's grade, where the prompt is a question that it can judge."""
    try:
        return f"  gold {bills.grade(prompt, text):.2f}" if not run.config.data.files else ""
    except ValueError:
        return ""


def observe(run: Run, data: Data, name: str, step: int, prompts: Prompts, rows: Rows, score,
            kl) -> dict:
    """What to look at in a rollout: one sample in samples.jsonl, copies by the source of y_ref, and
    the gold quality where there is a judge; nothing is trained on it."""
    decode, written = data.tokenizer.decode, [data.bare(ids) for ids in rows.responses()]
    responses = [decode(ids) for ids in written]
    i = -(step % 2)  # the first row and the last in turn: in stage 0 these have y_l and y_w
    run.log("samples.jsonl", {
        "stage": name, "step": step, "x": prompt_text(data, prompts.x[i]),
        "source": prompts.source[i],
        "y_ref": decode(prompts.y_ref[i]), "y": responses[i],
        "score_in_spreads": score[i].item(), "kl": kl[i].item()})
    copies = copies_of_each(prompts, written)
    if run.config.data.files:
        return copies
    grades = [bills.grade(prompt_text(data, x), y) for x, y in zip(prompts.x, responses)]
    gold, count = all_sum(torch.tensor([sum(grades), float(len(grades))])).tolist()
    return copies | {"gold": gold / count}


def copies_of_each(prompts: Prompts, responses: list[list[int]]) -> dict[str, float]:
    """In stage 0 the share of y_l, and of y_w, that is copied (over all ranks, one of which may
    have y_l alone); elsewhere the references have one source, and ppo.figures_of counts them."""
    sides = ("y_l", "y_w")
    if prompts.source[0] not in sides:
        return {}
    sums = torch.zeros(2, 2)  # of each side: copies, responses
    for source, y, y_ref in zip(prompts.source, responses, prompts.y_ref):
        sums[sides.index(source)] += torch.tensor([float(y == y_ref), 1.0])
    return {f"copies {side}": copied / count
            for side, (copied, count) in zip(sides, all_sum(sums).tolist())}
