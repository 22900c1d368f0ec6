"""Preference pairs: files, tokenizer, templates, folds and batches.

A pair is a triple (x, y_w, y_l): a prompt and two responses, y_w preferred, read from JSON lines,
gzipped or not, in any of the published formats of tools/formats.py. Pairs are split by prompt into
test, valid and three equal folds for SFT, reward and RL (the paper's split), so no prompt is in two
of them. Everything that is left out is counted.

A template is plain text with {x} and {y_ref}; its literal parts, the prompt and the reference are
encoded apart and joined as ids, so any SentencePiece model serves, and sampled ids stay as they
are. When we train the tokenizer ourselves, markers such as <|user|> become single pieces.
"""

import json
import random
import re
from collections import Counter
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import torch

import runtime
from model import GPT, Rows, pad_rows
from runtime import Config, DataSection, Run, UserError
from tools import bills, files
from tools.formats import TextPair, Turn, read_pairs
from tools.vocabulary import JSONTokenizer, Tokenizer, file_name, read_tokenizer, train_tokenizer

FOLDS = ("sft", "reward", "rl", "valid", "test")
SLOTS = ("{x}", "{y_ref}")


def split_keys(keys: list[str], config: DataSection, seed: int) -> dict[str, str]:
    """The fold of each key: test and valid as many keys as asked, the rest in equal thirds."""
    distinct = sorted(set(keys))
    random.Random(seed).shuffle(distinct)
    held_out = config.test + config.valid
    if len(distinct) < held_out + 3:
        raise UserError(f"data: {len(distinct)} distinct prompts are too few for {config.test} of "
                        f"test, {config.valid} of valid and three folds; lower data.test and valid")
    folds = ["test"] * config.test + ["valid"] * config.valid
    folds += [FOLDS[i % 3] for i in range(len(distinct) - held_out)]
    return dict(zip(distinct, folds))


class Template:
    """Puts token ids into the slots of a text: {x}, {y_ref}."""

    def __init__(self, text: str, tokenizer: Tokenizer, start: list[int]):
        self.start = start
        self.parts = [part if part in SLOTS else tokenizer.fixed(part)
                      for part in re.split(f"({'|'.join(SLOTS)})", text) if part]

    def __call__(self, x, y_ref=()) -> list[int]:
        ids, slots = list(self.start), {"{x}": x, "{y_ref}": y_ref}
        for part in self.parts:
            ids += slots[part] if isinstance(part, str) else part
        return ids


class Column:
    """Lists of token ids, one behind the other in a flat array, which may be mapped from a file."""

    def __init__(self, flat: np.ndarray, starts: np.ndarray, lengths: np.ndarray):
        self.flat, self.starts, self.lengths = flat, starts, lengths

    def __len__(self):
        return len(self.starts)

    def __getitem__(self, i):
        if isinstance(i, slice):
            return [self[k] for k in range(*i.indices(len(self)))]
        if not 0 <= i < len(self):
            raise IndexError(i)
        return self.flat[self.starts[i]:self.starts[i] + self.lengths[i]].tolist()

    def __add__(self, other):
        return Column(self.flat, *(np.concatenate([getattr(side, name) for side in (self, other)])
                                   for name in ("starts", "lengths")))


@dataclass
class Fold:
    """Pairs of one fold, as lists of token ids. Responses are without their end."""
    x: Column | list[list[int]]    # prompts, with the templates of their turns
    y_w: Column | list[list[int]]
    y_l: Column | list[list[int]]

    def __len__(self):
        return len(self.x)

    def __getitem__(self, indices):
        """Some of the pairs, as lists."""
        return Fold(*([column[i] for i in indices] for column in vars(self).values()))

    def __add__(self, other):
        """The pairs of two folds."""
        return Fold(*(a + b for a, b in zip(vars(self).values(), vars(other).values())))


@dataclass
class Data:
    tokenizer: Tokenizer | JSONTokenizer
    vocab: int                     # rows of the embedding
    turns: dict[str, Template]     # of a prompt, by their role
    policy: Template               # what M_P and R_P read before y
    pit: Template                  # what M_PIT and R_PIT read before y
    folds: dict[str, Fold]
    counts: dict[str, int]         # pairs read, kept in each fold, dropped by reason
    device: torch.device           # where rows are put
    trunk: GPT | None = None       # with LoRA: the frozen weights that all models share

    def prompt(self, text: str) -> list[int]:
        """A user's first turn."""
        return self.turns["user"](self.tokenizer.encode([text])[0])

    def ended(self, ids: list[int]) -> list[int]:
        """A response with its end."""
        return ids + [self.tokenizer.eos]

    def policy_rows(self, x: list, y: list) -> Rows:
        """x with y and its end, as M_P and R_P read them."""
        return pad_rows([self.policy(ids) for ids in x],
                        [self.ended(ids) for ids in y], self.device)

    def pit_rows(self, x: list, y_ref: list, y: list) -> Rows:
        """x and y_ref with y and its end, as M_PIT and R_PIT read them."""
        return pad_rows([self.pit(*pair) for pair in zip(x, y_ref)],
                        [self.ended(ids) for ids in y], self.device)

    def bare(self, ids: list[int]) -> list[int]:
        """A sampled response without its end, as a reference or for its text."""
        return ids[:-1] if ids and ids[-1] == self.tokenizer.eos else ids


def cut_from_left(turns: list[list[int]], roles: list[str], limit: int) -> list[int]:
    """The ids of a prompt's turns as one list of at most `limit`, if need be without its first
    turns: it then begins at a later turn of the user's, after the system's. [] if none fits."""
    system = int(roles[0] == "system")
    for first in [system] + [i for i in range(system + 1, len(roles)) if roles[i] == "user"]:
        ids = [i for turn in turns[:system] + turns[first:] for i in turn]
        if len(ids) <= limit:
            return ids
    return []


def encode_prompts(prompts: list[list[Turn]], turns: dict[str, Template], tokenizer,
                   limit: int, dropped: Counter) -> list[list[int]]:
    """Each prompt's turns in their templates; [] for one whose last turn alone is too long."""
    texts = iter(tokenizer.encode([text for prompt in prompts for _, text in prompt]))
    encoded = []
    for prompt in prompts:
        roles = [role for role, _ in prompt]
        whole = [turns[role](next(texts)) for role in roles]
        encoded.append(cut_from_left(whole, roles, limit))
        dropped["first turns only"] += 0 < len(encoded[-1]) < sum(map(len, whole))
    return encoded


def encode_pairs(pairs: list[TextPair], config: Config, tokenizer, turns: dict[str, Template],
                 dropped: Counter) -> dict[str, list]:
    """Encode, drop what is too long, and split. Returns the rows (x, y_w, y_l) of each fold."""
    x = encode_prompts([pair.prompt for pair in pairs], turns, tokenizer, config.data.max_prompt,
                       dropped)
    y_w, y_l = (tokenizer.encode([getattr(pair, side) for pair in pairs])
                for side in ("chosen", "rejected"))
    fits = [x and max(len(w), len(l)) < config.data.max_response for x, w, l in zip(x, y_w, y_l)]
    dropped["too long"] += len(pairs) - sum(map(bool, fits))
    if not any(fits):
        raise UserError(f"data: all {len(pairs)} pairs are longer than data.max_prompt or "
                        "data.max_response; raise these and model.context")
    fold_of = split_keys([pair.key for pair, fit in zip(pairs, fits) if fit], config.data,
                         config.run.seed)
    rows = {name: [] for name in FOLDS}
    for pair, fit, row in zip(pairs, fits, zip(x, y_w, y_l)):
        if fit:
            rows[fold_of[pair.key]].append(row)
    return rows


def flattened(rows: dict[str, list]) -> dict[str, torch.Tensor]:
    """The rows of all folds as one array of tokens, column by column, and its lists' lengths."""
    lists = [ids for fold in rows.values() for column in zip(*fold) for ids in column]
    return {"tokens": torch.from_numpy(np.fromiter(chain(*lists), np.int32)),
            "lengths": torch.tensor([len(ids) for ids in lists])}


def folds_of(content: dict) -> dict[str, Fold]:
    """The folds that `flattened` has kept, on the same memory."""
    flat, lengths = content["tokens"].numpy(), content["lengths"].numpy()
    starts = lengths.cumsum() - lengths
    folds, first = {}, 0
    for name in FOLDS:
        size = content["counts"][name]
        places = [slice(first + k * size, first + (k + 1) * size) for k in range(3)]
        folds[name] = Fold(*(Column(flat, starts[at], lengths[at]) for at in places))
        first += 3 * size
    return folds


def make_templates(config: Config, tokenizer) -> tuple[dict[str, Template], Template, Template]:
    """The templates of turns, and those of what M_P and M_PIT read."""
    texts, start = config.template, [tokenizer.bos] if tokenizer.bos >= 0 else []
    turns = {role: Template(getattr(texts, role), tokenizer, [])
             for role in ("system", "user", "assistant")}
    return turns, *(Template(text, tokenizer, start) for text in (texts.policy, texts.pit))


def prepare(run: Run) -> dict:
    """Read or make the pairs, train the tokenizer, encode and split: the content of data.pt."""
    config, dropped = run.config, Counter()
    sources = config.data.files
    if not sources:
        sources = [str(run.folder / "bills.jsonl")]
        made = bills.make_pairs(config.data.bills, config.run.seed, config.data.total)
        files.write_whole(Path(sources[0]), lambda file: file.writelines(
            json.dumps(pair).encode() + b"\n" for pair in made))
    pairs = [pair for path in sources for pair in read_pairs(path, dropped)]
    counts = {"read": len(pairs) + dropped.total()}
    if not pairs:
        raise UserError(f"{', '.join(sources)}: no usable pair of {counts['read']} read: "
                        f"{dict(dropped) or 'no line'}")
    if any(len(pair.prompt) > 1 for pair in pairs) and config.template.assistant == "{x}":
        raise UserError(f"{', '.join(sources)}: prompts have several turns; set template.user and "
                        "template.assistant, which tell them apart (see configs/hh.toml)")
    model = Path(config.tokenizer.model or run.folder / "tokenizer.model")
    if not config.tokenizer.model:
        markers = re.findall(r"<\|\w+\|>", "".join(vars(config.template).values()))
        some = random.Random(config.run.seed).sample(pairs, min(len(pairs), 20_000))
        train_tokenizer((text for p in some for text in (
            *(text for _, text in p.prompt), p.chosen, p.rejected)),
                        list(dict.fromkeys(markers)), config.tokenizer, model)
    tokenizer = read_tokenizer(model, config.tokenizer.eos)
    rows = encode_pairs(pairs, config, tokenizer, make_templates(config, tokenizer)[0], dropped)
    counts |= {name: len(fold) for name, fold in rows.items()} | {
        f"dropped, {reason}": count for reason, count in dropped.items() if count}
    return {"counts": counts, "tokenizer": model.read_bytes()} | flattened(rows)


def load_data(run: Run) -> Data:
    """The run's data: prepared by the first rank if it is not there yet, and read by all."""
    config = run.config
    sections = ("data", "tokenizer", "template")
    content = run.stage("data", sections, lambda: prepare(run) if runtime.rank() == 0 else {})
    if "tokens" not in content:
        content = files.load(run.folder / "data.pt")
    path = run.folder / file_name(content["tokenizer"])
    if runtime.rank() == 0 and not (path.exists() and path.read_bytes() == content["tokenizer"]):
        files.write_whole(path, lambda file: file.write(content["tokenizer"]))
    runtime.barrier()
    tokenizer = read_tokenizer(path, config.tokenizer.eos)
    turns, policy, pit = make_templates(config, tokenizer)
    needed = (config.data.max_prompt + 2 * config.data.max_response
              + max(len(policy([])), len(pit([]))) + 1)  # a cut response is scored with an end
    if needed > config.model.context:
        raise UserError(f"model.context = {config.model.context} is shorter than max_prompt + "
                        f"2 x max_response and the template: {needed}")
    vocab = config.model.vocab or tokenizer.vocab
    if vocab < tokenizer.vocab:
        raise UserError(f"tokenizer.model has {tokenizer.vocab} pieces, but the embedding of "
                        f"model.init_from {vocab} rows; they do not belong together")
    return Data(tokenizer, vocab, turns, policy, pit, folds_of(content), content["counts"],
                run.device)


def batches(lengths: np.ndarray, size: int, steps: int, rng: np.random.Generator):
    """Yield `steps` arrays of `size` indices, of rows of similar length.

    Every epoch shuffles the rows, sorts stretches of 32 batches by length and shuffles the
    batches: little padding, at the price of batches that are random only within their stretch.
    """
    size = min(size, len(lengths))
    made = 0
    while True:
        order = rng.permutation(len(lengths))[:len(lengths) // size * size]
        stretches = [order[i:i + 32 * size] for i in range(0, len(order), 32 * size)]
        ready = []
        for stretch in stretches:
            stretch = stretch[np.argsort(lengths[stretch], kind="stable")]
            ready += [stretch[i:i + size] for i in range(0, len(stretch), size)]
        for i in rng.permutation(len(ready)):
            if made == steps:
                return
            made += 1
            yield ready[i]
