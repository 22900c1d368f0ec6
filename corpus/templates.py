"""Templates: plain text with slots such as {x} and {y_ref}.

The literal parts, the turns of a prompt and the reference are encoded apart and joined as ids, so
that any tokenizer serves, and sampled ids stay as they are.
"""

import re

from corpus.formats import ROLES
from pretrained.vocabulary import Tokenizers
from runtime.config import Config

SLOTS = ("{x}", "{y_ref}", "{feedback}")


class Template:
    """Puts token ids into the slots of a text. A space before a slot, or at the end, belongs to the
    text that comes there: `spaced` has what is before each slot, and at "" before the response.

    `start` are the ids that begin a sequence, if the tokenizer has such; `first` says that the text
    stands at its beginning, where some tokenizers put a space before it."""

    def __init__(self, text: str, tokenizer: Tokenizers, start=(), first: bool = False):
        self.start, self.parts = start, []
        self.spaced = {}
        for literal, slot in re.findall(rf"(.*?)({'|'.join(SLOTS)}|\Z)", text, re.DOTALL):
            self.spaced.setdefault(slot, literal.endswith(" ") if literal or self.parts else None)
            literal = literal.removesuffix(" ")
            if literal:
                self.parts.append(tokenizer.fixed(literal, first and not self.parts))
            self.parts += [slot] if slot else []

    def __call__(self, x, y_ref=(), feedback=()) -> list[int]:
        ids, slots = list(self.start), dict(zip(SLOTS, (x, y_ref, feedback)))
        for part in self.parts:
            ids += slots[part] if isinstance(part, str) else part
        return ids


def turn_templates(config: Config, tokenizer) -> tuple[dict[str, Template], dict[str, Template]]:
    """Return the templates of a prompt's turns, by role, and those of its first turn. Where
    template.policy begins with {x}, that turn begins the sequence, and gets the space that some
    tokenizers put there. (template.pit should begin alike, since its prompts are the same ids.)"""
    turns, opening = ({role: Template(getattr(config.template, role), tokenizer, first=first)
                       for role in ROLES}
                      for first in (False, config.template.policy.startswith("{x}")))
    return turns, opening
