"""Preference pairs: files, tokenizer, templates, folds and batches.

A pair is a triple (x, y_w, y_l): a prompt and two responses, y_w preferred, read from JSON lines,
gzipped or not, in any of the published formats of tools/formats.py. Pairs are split by prompt into
test, valid and three equal folds for SFT, reward and RL (the paper's split), so no prompt is in two
of them. Everything that is left out is counted.

A template is plain text with {x} and {y_ref}; its literal parts, the prompt and the reference are
encoded apart and joined as ids, so any SentencePiece model serves, and sampled ids stay as they
are. When we train the tokenizer ourselves, markers such as <|user|> become single pieces.
"""

import gzip
import json
import random
import re
import zlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

import runtime
from model import Rows, pad_rows
from runtime import Config, DataSection, Run, UserError
from tools import bills, files
from tools.formats import TextPair, find_reader
from tools.vocabulary import Tokenizer, train_tokenizer

FOLDS = ("sft", "reward", "rl", "valid", "test")


def read_pairs(path: str, dropped: Counter) -> list[TextPair]:
    """All usable pairs of a file of JSON lines; the others are counted in `dropped` by reason.

    Raises UserError with file and line for what cannot be read.
    """
    opener = gzip.open if str(path).endswith(".gz") else open
    pairs = []
    try:
        with opener(path, "rt", encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                where = f"{path}:{number}"
                try:
                    record = json.loads(line)
                except (ValueError, RecursionError) as error:
                    raise UserError(f"{where}: no JSON: {error}") from None
                if not isinstance(record, dict):
                    raise UserError(f"{where}: expected a JSON object a line")
                pair = find_reader(record, where)(record, where)
                if isinstance(pair, str):
                    dropped[pair] += 1
                elif pair.chosen == pair.rejected:
                    dropped["responses equal"] += 1
                elif not (pair.prompt.strip() and pair.chosen.strip() and pair.rejected.strip()):
                    dropped["empty text"] += 1
                else:
                    pairs.append(pair)
    except (OSError, EOFError, UnicodeError, zlib.error) as error:
        raise UserError(f"{path}: cannot read the data: {error}") from None
    return pairs


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
    """Turns the ids of x and y_ref into those of a prompt."""

    def __init__(self, text: str, tokenizer: Tokenizer):
        self.start = [tokenizer.bos] if tokenizer.bos >= 0 else []
        self.parts = [part if part in ("{x}", "{y_ref}") else tokenizer.pieces.encode(part)
                      for part in re.split(r"(\{x\}|\{y_ref\})", text) if part]

    def __call__(self, x, y_ref=()) -> list[int]:
        ids = list(self.start)
        for part in self.parts:
            ids += x if part == "{x}" else y_ref if part == "{y_ref}" else part
        return ids


@dataclass
class Fold:
    """Pairs of one fold, as lists of token ids. Responses are without their end."""
    x: list[list[int]]
    y_w: list[list[int]]
    y_l: list[list[int]]

    def __len__(self):
        return len(self.x)

    def __getitem__(self, indices):
        """Some of the pairs."""
        return Fold(*([column[i] for i in indices] for column in vars(self).values()))


@dataclass
class Data:
    tokenizer: Tokenizer
    policy: Template               # what M_P and R_P read before y
    pit: Template                  # what M_PIT and R_PIT read before y
    folds: dict[str, Fold]
    counts: dict[str, int]         # pairs read, kept in each fold, dropped by reason
    device: torch.device           # where rows are put

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


def encode_pairs(pairs: list[TextPair], config: Config, tokenizer: Tokenizer,
                 dropped: Counter) -> dict[str, Fold]:
    """Encode, drop what is too long, and split. Returns the folds."""
    columns = [tokenizer.encode([getattr(pair, name) for pair in pairs])
               for name in ("prompt", "chosen", "rejected")]
    limits = (config.data.max_prompt, config.data.max_response - 1, config.data.max_response - 1)
    fits = [all(len(ids) <= limit for ids, limit in zip(row, limits)) for row in zip(*columns)]
    dropped["too long"] += len(pairs) - sum(fits)
    if not any(fits):
        raise UserError(f"data: all {len(pairs)} pairs are longer than data.max_prompt or "
                        "data.max_response; raise these and model.context")
    fold_of = split_keys([pair.key for pair, fit in zip(pairs, fits) if fit], config.data,
                         config.run.seed)
    rows = {name: [] for name in FOLDS}
    for pair, fit, row in zip(pairs, fits, zip(*columns)):
        if fit:
            rows[fold_of[pair.key]].append(row)
    return {name: Fold(*map(list, zip(*rows[name]))) for name in FOLDS}


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
    model = Path(config.tokenizer.model or run.folder / "tokenizer.model")
    if not config.tokenizer.model:
        markers = re.findall(r"<\|\w+\|>", config.template.policy + config.template.pit)
        some = random.Random(config.run.seed).sample(pairs, min(len(pairs), 20_000))
        train_tokenizer((text for p in some for text in (p.prompt, p.chosen, p.rejected)),
                        list(dict.fromkeys(markers)), config.tokenizer, model)
    folds = encode_pairs(pairs, config, Tokenizer(model), dropped)
    counts |= {name: len(fold) for name, fold in folds.items()} | {
        f"dropped, {reason}": count for reason, count in dropped.items() if count}
    return {"counts": counts, "tokenizer": model.read_bytes(),  # JSON loads faster than a pickle
            "folds": json.dumps({name: vars(fold) for name, fold in folds.items()})}


def load_data(run: Run) -> Data:
    """The run's data: prepared by the first rank if it is not there yet, and read by all."""
    sections = ("data", "tokenizer", "template")
    content = run.stage("data", sections, lambda: prepare(run) if runtime.rank() == 0 else {})
    if "folds" not in content:
        content = files.load(run.folder / "data.pt")
    path = run.folder / "tokenizer.model"
    if runtime.rank() == 0 and not (path.exists() and path.read_bytes() == content["tokenizer"]):
        files.write_whole(path, lambda file: file.write(content["tokenizer"]))
    runtime.barrier()
    tokenizer = Tokenizer(path)
    folds = {name: Fold(**columns) for name, columns in json.loads(content["folds"]).items()}
    policy, pit = (Template(text, tokenizer) for text in
                   (run.config.template.policy, run.config.template.pit))
    needed = (run.config.data.max_prompt + 2 * run.config.data.max_response
              + max(len(policy([])), len(pit([]))) + 1)  # a cut response is scored with an end
    if needed > run.config.model.context:
        raise UserError(f"model.context = {run.config.model.context} is shorter than max_prompt + "
                        f"2 x max_response and the template: {needed}")
    return Data(tokenizer, policy, pit, folds, content["counts"], run.device)


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
