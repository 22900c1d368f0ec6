"""Whether a prompt is like those that the models were trained on, and whether it fits.

M_P^SFT's own likelihood of a prompt does not tell, since it learns to predict responses only: on
bills (seed 1) "Write a poem" has -8.4 nats a piece, and a twentieth of the held-out questions have
less. What tells is which pieces stand side by side. We compare the share of neighbours that are new
in a prompt with that of held-out prompts.
"""

import numpy as np

from data import Data
from runtime.run import Run
from runtime.settings import UserError

ENOUGH = 10_000  # prompts of a fold
USUAL = 0.99     # of the held-out prompts are like the data


class Familiar:
    """The neighbours in the prompts of the training folds, and how new held-out prompts are."""

    def __init__(self, data: Data):
        self.tokenizer = data.tokenizer
        trained = [x for name in ("sft", "reward", "rl") for x in data.folds[name].x[:ENOUGH]]
        self.known = {pair for x in trained for pair in neighbours(x)}
        lengths = [len(x) for x in trained]
        self.shortest, self.longest = min(lengths), max(lengths)
        shares = [self.share_new(x) for name in ("valid", "test")
                  for x in data.folds[name].x[:ENOUGH]]
        self.usual = float(np.quantile(shares, USUAL))

    def share_new(self, x: list[int]) -> float:
        """Return the share of a prompt's neighbours that no training prompt has."""
        return float(np.mean([pair not in self.known for pair in neighbours(x)]))

    def doubts(self, x: list[int], text: str, response: str | None = None):
        """Yield a warning for each reason to expect no good answer to the prompt `text`, encoded as
        x, or no good rewrite of a response to it."""
        unknown = self.tokenizer.unknown(text + (response or ""))
        if unknown:
            yield f"the models never saw the characters {unknown!r}, and do not see them here"
        share = self.share_new(x)
        if share > self.usual:
            yield (f"this prompt is unlike the data that the models were trained on: {share:.0%} "
                   "of its neighbouring pieces are together in none of the training prompts that "
                   f"we looked at (of {USUAL:.0%} of the held-out prompts at most "
                   f"{self.usual:.0%}); the answers may be noise")
        elif not self.shortest <= len(x) <= self.longest:
            yield (f"this prompt has {len(x)} tokens, those that the models were trained on "
                   f"{self.shortest} to {self.longest}; the answers may be wrong")


def neighbours(x: list[int]) -> list[tuple[int, int]]:
    """Return the pieces that stand side by side in a prompt; -1 stands before and after it."""
    return list(zip([-1, *x], [*x, -1]))


def encoded(run: Run, data: Data, prompt: str) -> list[int]:
    """Encode a user's first turn. Raises UserError where it is too long."""
    x = data.prompt(prompt)
    if len(x) > run.config.data.max_prompt:
        raise UserError(f"the prompt has {len(x)} tokens, but data.max_prompt is "
                        f"{run.config.data.max_prompt}; shorten it")
    return x


def encoded_response(run: Run, data: Data, response: str) -> list[int]:
    """Encode a response that is to be improved. Raises UserError where it is too long."""
    y = data.response(response)
    if len(y) >= run.config.data.max_response:
        raise UserError(f"the response to improve has {len(y)} tokens, but data.max_response is "
                        f"{run.config.data.max_response}; shorten it")
    return y
