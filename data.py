"""Preference pairs as the models read them: folds of token ids, templates, and rows.

A pair is a triple (x, y_w, y_l): a prompt and two responses, y_w preferred. corpus/ reads it in any
of the published formats and splits the pairs into test, valid and three equal folds for SFT, reward
and RL (the paper's split). Their token ids lie in one array of the run's data.pt, mapped to memory.

    M_P and R_P read      <|user|>{x}<|assistant|>, then y                    (template.policy)
    M_PIT and R_PIT read  <|user|>{x}<|draft|>{y_ref}<|better|>, then y       (template.pit)
"""

from dataclasses import dataclass

import torch

from corpus.prepare import prepared, unpacked_tokenizer
from corpus.templates import Template, turn_templates
from corpus.tokens import FOLDS, Column, columns_of
from model import GPT, Rows, pad_rows
from pretrained.vocabulary import Tokenizers
from runtime import checks
from runtime.run import Run


@dataclass
class Pairs:
    """Some pairs, as lists of token ids. Responses are without their end."""
    x: list[list[int]]    # prompts, with the templates of their turns
    y_w: list[list[int]]
    y_l: list[list[int]]

    def __len__(self):
        return len(self.x)


@dataclass
class Fold:
    """All pairs of one fold, in memory or on disk."""
    x: Column
    y_w: Column
    y_l: Column

    def __len__(self):
        return len(self.x)

    def __getitem__(self, indices) -> Pairs:
        x, y_w, y_l = ([column[i] for i in indices] for column in (self.x, self.y_w, self.y_l))
        return Pairs(x=x, y_w=y_w, y_l=y_l)


@dataclass
class Data:
    """All that a run knows of its pairs, and how each model reads them."""
    tokenizer: Tokenizers
    vocab: int                     # rows of the embedding
    turns: dict[str, Template]     # of a prompt, by their role
    opening: dict[str, Template]   # the same of a turn that begins its prompt
    policy_prompt: Template        # what M_P and R_P read before y
    pit_prompt: Template           # what M_PIT and R_PIT read before y
    feedback: Template             # of Self-Refine, what the policy reads before its feedback
    rewrite: Template              # and before its second answer
    folds: dict[str, Fold]
    counts: dict[str, int]         # pairs read, kept in each fold, dropped by reason
    device: torch.device           # where rows are put
    trunk: GPT | None = None       # with LoRA: the frozen weights that all models share

    def prompt(self, text: str) -> list[int]:
        """Encode a user's first turn."""
        user = self.opening["user"]
        return user(self.tokenizer.encode([text], user.spaced["{x}"])[0])

    def response(self, text: str) -> list[int]:
        """Encode a response, without its end."""
        return self.tokenizer.encode([text], self.policy_prompt.spaced[""])[0]

    def add_eos(self, ids: list[int]) -> list[int]:
        """Return a response with its end."""
        return ids + [self.tokenizer.eos]

    def policy_rows(self, x: list, y: list) -> Rows:
        """Put x and y with its end as M_P and R_P read them."""
        return pad_rows([self.policy_prompt(ids) for ids in x],
                        [self.add_eos(ids) for ids in y], self.device)

    def pit_rows(self, x: list, y_ref: list, y: list) -> Rows:
        """Put x, y_ref and y with its end as M_PIT and R_PIT read them."""
        return pad_rows([self.pit_prompt(*pair) for pair in zip(x, y_ref)],
                        [self.add_eos(ids) for ids in y], self.device)

    def strip_eos(self, ids: list[int]) -> list[int]:
        """Return a sampled response without its end, as a reference or for its text."""
        return ids[:-1] if ids and ids[-1] == self.tokenizer.eos else ids


def load_data(run: Run) -> Data:
    """Read the run's data, which the first rank prepares if they are not there yet."""
    config = run.config
    content = prepared(run)
    tokenizer = unpacked_tokenizer(run, content["tokenizer"])
    start = [tokenizer.bos] if tokenizer.bos >= 0 else []
    policy, pit, feedback, rewrite = (Template(text, tokenizer, start, first=True) for text in (
        config.template.policy, config.template.pit, config.refine.feedback, config.refine.rewrite))
    checks.refuse_short_context([policy, pit, feedback, rewrite], config)
    turns, opening = turn_templates(config, tokenizer)
    return Data(tokenizer=tokenizer, vocab=config.model.vocab or tokenizer.vocab,
                turns=turns, opening=opening, policy_prompt=policy, pit_prompt=pit,
                feedback=feedback, rewrite=rewrite,
                folds={name: Fold(**columns_of(content, name)) for name in FOLDS},
                counts=content["counts"], device=run.device)
