"""Whether a prompt is like those that the models were trained on.

M_P^SFT's own likelihood of a prompt does not tell: it learns to predict responses only, and finds
"Write a poem" as likely as a question about a bill. What tells is which pieces stand side by side:
beside the share that is new in a prompt stands the largest of the held-out prompts.
"""

import numpy as np

from data import Data
from tools.tokens import Column

ENOUGH = 10_000  # prompts of a fold


class Familiar:
    """The neighbours in the prompts of the training folds, and how new held-out prompts are."""

    def __init__(self, data: Data):
        self.tokenizer = data.tokenizer
        self.known = np.unique(np.concatenate([
            neighbours(data.folds[name].x[:ENOUGH]) for name in ("sft", "reward", "rl")]))
        self.most = max(self.share_new(x) for name in ("valid", "test")
                        for x in data.folds[name].x[:ENOUGH])

    def share_new(self, x: list[int]) -> float:
        """The share of a prompt's neighbours that no training prompt has."""
        return float((~np.isin(neighbours([x]), self.known)).mean())

    def doubts(self, x: list[int], text: str):
        """Yield what speaks against an answer to the prompt `text`, encoded as x."""
        unknown = self.tokenizer.unknown(text)
        if unknown:
            yield (f"characters {unknown!r} of the prompt are none that this tokenizer knows: the "
                   "models do not see them")
        share = self.share_new(x)
        if share > self.most:
            yield (f"this prompt is unlike the data that the models were trained on: {share:.0%} "
                   "of its neighbouring pieces stand together in no training prompt, of the held-out "
                   f"prompts at most {self.most:.0%}; the answers may be noise")


def neighbours(prompts: list[list[int]]) -> np.ndarray:
    """Each pair of pieces that stand side by side, as one number; -1 stands before and after a
    prompt."""
    column = Column.of(prompts)
    row = np.repeat(np.arange(len(column)), column.lengths)
    pieces = np.full(len(column.flat) + len(column) + 1, -1, np.int64)
    pieces[np.arange(len(column.flat)) + row + 1] = column.flat
    return pieces[:-1] << 32 | pieces[1:] & 0xffffffff
