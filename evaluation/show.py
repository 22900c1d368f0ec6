"""How responses are shown: by sample.py on a terminal, in training in samples.jsonl."""

import difflib
import sys
from itertools import chain

import numpy as np

from corpus import bills
from data import Data
from ppo import Prompts, Rollout, Task
from runtime import checks
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


def observe(run: Run, data: Data, name: str, step: int, prompts: Prompts,
            rollout: Rollout) -> dict:
    """Log one sample of a rollout in samples.jsonl; return the copies by the source of y_ref, and
    the gold quality where there is a judge. Nothing is trained on it."""
    decode = data.tokenizer.decode
    written = [data.strip_eos(ids) for ids in rollout.rows.responses()]
    responses = [decode(ids) for ids in written]
    i = -(step % 2)  # the first row and the last in turn: in stage 0 these have y_l and y_w
    run.log("samples.jsonl", {
        "stage": name, "step": step, "x": prompt_text(data, prompts.x[i]),
        "source": prompts.source[i],
        "y_ref": decode(prompts.y_ref[i]), "y": responses[i],
        "reward": rollout.score[i].item(), "kl": rollout.kl.sum(1)[i].item()})
    copies = copies_of_each(prompts, written)
    if run.config.data.files:
        return copies
    grades = [bills.grade(prompt_text(data, x), y) for x, y in zip(prompts.x, responses)]
    return copies | {"gold": sum(grades) / len(grades)}


def copies_of_each(prompts: Prompts, responses: list[list[int]]) -> dict[str, float]:
    """Return the share of y_l, and of y_w, that is copied in stage 0; elsewhere the references have
    one source, and ppo.figures_of counts them."""
    sides = ("y_l", "y_w")
    if prompts.source[0] not in sides:
        return {}
    copied = {side: [y == y_ref for source, y, y_ref in zip(
        prompts.source, responses, prompts.y_ref) if source == side] for side in sides}
    return {f"copies {side}": sum(same) / len(same) for side, same in copied.items()}


def observe_scale(run: Run, task: Task, scale: tuple[float, float], ended: np.ndarray,
                  copies: np.ndarray) -> None:
    """Log what a stage's scores look like before RL: their scale (mean, std), those of responses
    that have their end (ppo.no_eos_score should lie below, but for outliers), and those of copies,
    (x, y_ref, y_ref), for RLHF of empty responses."""
    mean, std = scale
    normalised = (ended - mean) / std
    run.log("metrics.jsonl", {
        "stage": task.name, "step": 0, "score_mean": mean, "score_std": std,
        "copy_mean": float(copies.mean()), "copy_std": float(copies.std()),
        "score_min": float(normalised.min()) if len(normalised) else None})
    checks.warn_once(run.told, task.name,
                     checks.within_range(run.config.ppo.no_eos_score, normalised))
