"""Lists of token ids: prompts of several turns, many lists in one array, batches of similar length.
"""

from itertools import chain

import numpy as np
import torch

from corpus.formats import Turn

FOLDS = ("sft", "reward", "rl", "valid", "test")  # in the order in which they are kept
CUT = "first turns"  # of prompts that are kept without them


def cut_from_left(turns: list[list[int]], roles: list[str], limit: int,
                  opening: list[list[int]] | None = None) -> list[int]:
    """Return the ids of a prompt's turns as one list of at most `limit`, if need be without its
    first turns: it then begins at a later turn of the user's, after the system's. [] if none fits.
    `opening` has the turns as they are where they begin the prompt, if that differs."""
    opening, system = opening or turns, int(roles[0] == "system")
    for first in [system] + [i for i in range(system + 1, len(roles)) if roles[i] == "user"]:
        kept = [*range(system), *range(first, len(roles))]
        ids = opening[kept[0]] + [i for k in kept[1:] for i in turns[k]]
        if len(ids) <= limit:
            return ids
    return []


def encode_prompts(prompts: list[list[Turn]], turns: dict, opening: dict, tokenizer,
                   limit: int) -> tuple[list[list[int]], list[bool]]:
    """Encode each prompt's turns in the templates of their roles (`turns`, and `opening` for the
    one that begins the prompt), and say whether first turns were cut off; [] for a prompt whose
    last turn alone is too long."""
    texts = {role: iter(tokenizer.encode([text for prompt in prompts for who, text in prompt
                                          if who == role], turns[role].spaced["{x}"]))
             for role in turns}
    encoded, cut = [], []
    for prompt in prompts:
        roles = [role for role, _ in prompt]
        given = [(role, next(texts[role])) for role in roles]
        later, first = ([own[role](ids) for role, ids in given] for own in (turns, opening))
        encoded.append(cut_from_left(later, roles, limit, first))
        cut.append(0 < len(encoded[-1]) < len(first[0]) + sum(map(len, later[1:])))
    return encoded, cut


def fold_keys(keys: list[str], *links: list) -> list[str]:
    """Return what decides each pair's fold. Pairs of one key stay together, and so do those that
    have something else in common, such as the prompt once first turns are cut off: each of `links`
    has a list or a text for each pair. The name of a group is the least of its keys."""
    leader: dict = {}  # of each key and link one that is nearer to its group's name

    def find(name):
        while (above := leader.setdefault(name, name)) != name:
            leader[name] = leader[above]  # the next search is shorter
            name = above
        return name

    for key, *linked in zip(keys, *links):
        for link in filter(None, linked):
            ends = find(key), find(("text", link) if isinstance(link, str) else tuple(link))
            least, other = sorted(ends, key=lambda name: (isinstance(name, tuple), name))
            leader[other] = least
    return [find(key) for key in keys]


class Column:
    """Lists of token ids, one after the other in a flat array, which may be mapped from a file."""

    def __init__(self, flat: np.ndarray, starts: np.ndarray, lengths: np.ndarray):
        self.flat, self.starts, self.lengths = flat, starts, lengths

    @classmethod
    def of(cls, lists: list[list[int]]):
        lengths = np.array([len(ids) for ids in lists], np.int64)
        return cls(np.fromiter(chain(*lists), np.int32), lengths.cumsum() - lengths, lengths)

    def __len__(self):
        return len(self.starts)

    def __getitem__(self, i):
        """Return list i, from 0, or a slice of them."""
        if isinstance(i, slice):
            return [self[k] for k in range(*i.indices(len(self)))]
        if not 0 <= i < len(self):
            raise IndexError(i)
        return self.flat[self.starts[i]:self.starts[i] + self.lengths[i]].tolist()


def flattened(rows: dict[str, list]) -> dict[str, torch.Tensor]:
    """Flatten the rows of all folds, column by column, into an array of tokens; note lengths."""
    lists = [ids for fold in rows.values() for column in zip(*fold) for ids in column]
    return {"tokens": torch.from_numpy(np.fromiter(chain(*lists), np.int32)),
            "lengths": torch.tensor([len(ids) for ids in lists])}


def columns_of(content: dict, name: str) -> dict[str, Column]:
    """Return the three columns of a fold that `flattened` has kept, on the same memory."""
    flat, lengths = content["tokens"].numpy(), content["lengths"].numpy()
    starts, size = lengths.cumsum() - lengths, content["counts"][name]
    first = 3 * sum(content["counts"][other] for other in FOLDS[:FOLDS.index(name)])
    places = [slice(first + k * size, first + (k + 1) * size) for k in range(3)]
    return {side: Column(flat, starts[at], lengths[at])
            for side, at in zip(("x", "y_w", "y_l"), places)}


def batches(lengths: np.ndarray, size: int, steps: int, rng: np.random.Generator):
    """Yield `steps` arrays of `size` indices, of rows of similar length.

    Every epoch shuffles the rows, sorts stretches of 32 batches by length and shuffles the
    batches: little padding, at the price of batches that are random only within their stretch.
    """
    size = min(size, len(lengths))
    while steps > 0:
        order = rng.permutation(len(lengths))[:len(lengths) // size * size]
        stretches = [order[i:i + 32 * size] for i in range(0, len(order), 32 * size)]
        ready = []
        for stretch in stretches:
            stretch = stretch[np.argsort(lengths[stretch], kind="stable")]
            ready += [stretch[i:i + size] for i in range(0, len(stretch), size)]
        yield from (ready[i] for i in rng.permutation(len(ready))[:steps])
        steps -= len(ready)


def turn_by_turn(size: int, seeds: list[int], start: int, number: int) -> list[int]:
    """Return `number` indices, from the one at `start` on, of a walk that goes through `size` items
    again and again, in another random order each time."""
    turns = range(start // size, (start + number - 1) // size + 1)
    order = np.concatenate([np.random.default_rng([*seeds, turn]).permutation(size)
                            for turn in turns])
    return order[start % size:start % size + number].tolist()
