"""Preference pairs: files, tokenizer, templates, folds and batches.

A pair is a triple (x, y_w, y_l): a prompt and two responses, y_w preferred, in any of the published
formats of corpus/formats.py. Pairs are split into test, valid and three equal folds for SFT, reward
and RL (the paper's split): by the user's first turn, bills by their things, summaries by their
post, so that no fold asks what another one has seen. Everything that is left out is counted. Token
ids lie in one array in the run's data.pt, which is mapped into memory.

A template is plain text with slots such as {x} and {y_ref}; its literal parts, the turns of a
prompt and the reference are encoded apart and joined as ids, so that any tokenizer serves, and
sampled ids stay as they are. When we train the tokenizer ourselves, markers such as <|user|> become
single pieces.
"""

import json
import random
import re
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from corpus import bills
from corpus.formats import ROLES, TextPair, read_pairs
from corpus.tokens import CUT, FOLDS, Column, columns_of, encode_prompts, flattened, fold_keys
from model import GPT, Rows, pad_rows
from pretrained.vocabulary import (JSONTokenizer, Tokenizer, file_name, read_tokenizer,
                                   train_tokenizer)
from runtime import checks, files, ranks
from runtime.config import Config, DataSection
from runtime.run import Run
from runtime.settings import UserError

SLOTS = ("{x}", "{y_ref}", "{feedback}")


def split_keys(keys: list[str], config: DataSection, seed: int) -> dict[str, str]:
    """The fold of each key: test and valid as many keys as asked, the rest in equal thirds."""
    distinct = sorted(set(keys))
    random.Random(seed).shuffle(distinct)
    held_out = config.test + config.valid
    if len(distinct) < held_out + 3 * ranks.ranks():  # each rank needs a part of each fold
        raise UserError(f"data: {len(distinct)} distinct prompts are too few for {config.test} of "
                        f"test, {config.valid} of valid and three folds of {ranks.ranks()}; "
                        "lower data.test and valid" + ", or run.ranks" * (ranks.ranks() > 1))
    folds = ["test"] * config.test + ["valid"] * config.valid
    folds += [FOLDS[i % 3] for i in range(len(distinct) - held_out)]
    return dict(zip(distinct, folds))


class Template:
    """Puts token ids into the slots of a text. A space before a slot, or at the end, belongs to the
    text that comes there: `spaced` has what is before each slot, and at "" before the response.

    `start` are the ids that begin a sequence, if the tokenizer has such; `first` says that the text
    stands at its beginning, where some tokenizers put a space before it."""

    def __init__(self, text: str, tokenizer: Tokenizer | JSONTokenizer, start=(),
                 first: bool = False):
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


@dataclass
class Fold:
    """Pairs of one fold, as lists of token ids. Responses are without their end."""
    x: Column | list[list[int]]    # prompts, with the templates of their turns
    y_w: Column | list[list[int]]
    y_l: Column | list[list[int]]

    def __len__(self):
        return len(self.x)

    def __getitem__(self, indices):
        """Return some of the pairs, as lists."""
        x, y_w, y_l = ([column[i] for i in indices] for column in (self.x, self.y_w, self.y_l))
        return Fold(x=x, y_w=y_w, y_l=y_l)


@dataclass
class Data:
    tokenizer: Tokenizer | JSONTokenizer
    vocab: int                     # rows of the embedding
    turns: dict[str, Template]     # of a prompt, by their role
    opening: dict[str, Template]   # the same of a turn that begins its prompt
    policy: Template               # what M_P and R_P read before y
    pit: Template                  # what M_PIT and R_PIT read before y
    feedback: Template             # of Self-Refine, what the policy reads before its feedback
    rewrite: Template              # and before its second answer
    folds: dict[str, Fold]
    counts: dict[str, int]         # pairs read, kept in each fold, dropped by reason
    device: torch.device           # where rows are put
    trunk: GPT | None = None       # with LoRA: the frozen weights that all models share

    def prompt(self, text: str) -> list[int]:
        """A user's first turn."""
        user = self.opening["user"]
        return user(self.tokenizer.encode([text], user.spaced["{x}"])[0])

    def response(self, text: str) -> list[int]:
        """A response, without its end."""
        return self.tokenizer.encode([text], self.policy.spaced[""])[0]

    def add_eos(self, ids: list[int]) -> list[int]:
        """A response with its end."""
        return ids + [self.tokenizer.eos]

    def policy_rows(self, x: list, y: list) -> Rows:
        """x with y and its end, as M_P and R_P read them."""
        return pad_rows([self.policy(ids) for ids in x],
                        [self.add_eos(ids) for ids in y], self.device)

    def pit_rows(self, x: list, y_ref: list, y: list) -> Rows:
        """x and y_ref with y and its end, as M_PIT and R_PIT read them."""
        return pad_rows([self.pit(*pair) for pair in zip(x, y_ref)],
                        [self.add_eos(ids) for ids in y], self.device)

    def strip_eos(self, ids: list[int]) -> list[int]:
        """A sampled response without its end, as a reference or for its text."""
        return ids[:-1] if ids and ids[-1] == self.tokenizer.eos else ids


def encode_pairs(pairs: list[TextPair], config: Config, tokenizer, turns: dict[str, Template],
                 dropped: Counter) -> dict[str, list]:
    """Encode, drop what is too long, and split by the groups of `fold_keys`. Returns the rows
    (x, y_w, y_l) of each fold, first one of each group, then the others."""
    x, cut = encode_prompts([pair.prompt for pair in pairs], turns,
                            opening_templates(config, tokenizer), tokenizer, config.data.max_prompt)
    spaced = Template(config.template.policy, tokenizer).spaced[""]
    y_w, y_l = (tokenizer.encode([getattr(pair, side) for pair in pairs], spaced)
                for side in ("chosen", "rejected"))
    checks.refuse_inner_ends(y_w + y_l, tokenizer)
    longest = [max(len(w), len(l)) for w, l in zip(y_w, y_l)]
    fits = [bool(ids) and most < config.data.max_response for ids, most in zip(x, longest)]
    no_prompt = sum(not ids for ids in x)
    dropped["prompt too long"] += no_prompt
    dropped["response too long"] += len(pairs) - no_prompt - sum(fits)
    dropped[CUT] += sum(c and fit for c, fit in zip(cut, fits))
    keys = fold_keys([pair.key for pair in pairs], x)
    if not any(fits):
        raise UserError(f"data: all {len(pairs)} pairs are longer than data.max_prompt or "
                        f"data.max_response: {no_prompt} prompts are, and the "
                        f"median response has {sorted(longest)[len(longest) // 2]} tokens; raise "
                        "these and model.context")
    fold_of = split_keys([key for key, fit in zip(keys, fits) if fit], config.data, config.run.seed)
    first, later, seen = {name: [] for name in FOLDS}, {name: [] for name in FOLDS}, set()
    for key, fit, row in zip(keys, fits, zip(x, y_w, y_l)):
        if fit:
            (later if key in seen else first)[fold_of[key]].append(row)
            seen.add(key)
    return {name: first[name] + later[name] for name in FOLDS}


def turn_templates(config: Config, tokenizer, first: bool = False) -> dict[str, Template]:
    """The templates of a prompt's turns, by role."""
    return {role: Template(getattr(config.template, role), tokenizer, first=first)
            for role in ROLES}


def opening_templates(config: Config, tokenizer) -> dict[str, Template]:
    """Return the templates of a prompt's first turn. Where template.policy begins with {x}, that
    turn begins the sequence, and gets the space that some tokenizers put there. (template.pit
    should begin alike, since its prompts are the same ids.)"""
    return turn_templates(config, tokenizer, first=config.template.policy.startswith("{x}"))


def prepare(run: Run) -> dict:
    """Read or make the pairs, train the tokenizer, encode and split: the content of data.pt."""
    config, dropped = run.config, Counter()
    sources = config.data.files
    if not sources:
        sources = [str(run.folder / "bills.jsonl")]
        known = bills.questions_of(*config.data.things)
        if config.data.bills > known / 2:
            raise UserError(f"data.bills = {config.data.bills:,} of the {known:,} questions that "
                            "data.things allows: that is more than half; lower it, or allow more "
                            "things")
        made = bills.make_pairs(config.data.bills, config.run.seed, config.data.total,
                                *config.data.things)
        files.write_whole(Path(sources[0]), lambda file: file.writelines(
            json.dumps(pair).encode() + b"\n" for pair in made))
    pairs = [pair for path in sources for pair in read_pairs(path, dropped)]
    counts = {"read": len(pairs) + dropped.total()}
    if not pairs:
        raise UserError(f"{', '.join(sources)}: no usable pair of {counts['read']} read: "
                        f"{dict(dropped) or 'no line'}")
    if not config.data.files:
        for pair in pairs:  # a bill in other words is no other question
            pair.key = bills.bill_of(pair.key)
    for role in {role for pair in pairs if len(pair.prompt) > 1 for role, _ in pair.prompt}:
        if getattr(config.template, role) == "{x}":
            raise UserError(f"{', '.join(sources)}: prompts have several turns; set "
                            f"template.{role}, to tell them apart (see configs/hh.toml)")
    model = Path(config.tokenizer.model or run.folder / "tokenizer.model")
    if not config.tokenizer.model:
        some = random.Random(config.run.seed).sample(pairs, min(len(pairs), 20_000))
        texts = (text for p in some for text in (
            *(text for _, text in p.prompt), p.chosen, p.rejected))
        train_tokenizer(texts, checks.markers(vars(config.template), r"<\|\w+\|>"),
                        config.tokenizer, model)
    tokenizer = read_tokenizer(model, config.tokenizer.eos)
    rows = encode_pairs(pairs, config, tokenizer, turn_templates(config, tokenizer), dropped)
    counts["prompts without their first turns"] = dropped.pop(CUT)
    counts |= {name: len(fold) for name, fold in rows.items()} | {
        f"dropped, {reason}": count for reason, count in dropped.items() if count}
    tqdm.write("data: " + "; ".join(f"{name} {n:,}" for name, n in counts.items()), sys.stderr)
    checksums = {path: files.checksum(path) for path in config.data.files}
    return {"counts": counts, "tokenizer": model.read_bytes(),
            "checksums": checksums} | flattened(rows)


def load_data(run: Run) -> Data:
    """The run's data: prepared by the first rank if it is not there yet, and read by all."""
    config = run.config
    sections = ("data", "tokenizer", "template")
    content = run.stage("data", sections, lambda: prepare(run) if ranks.rank() == 0 else {})
    if "tokens" not in content:
        content = files.load(run.folder / "data.pt")
    if ranks.rank() == 0:
        checks.refuse_changed(content["checksums"])
    if run.trains:
        checks.warn_once(run.told, "data", checks.scarce(config, content["counts"]))
    path = run.folder / file_name(content["tokenizer"])
    if ranks.rank() == 0 and not (path.exists() and path.read_bytes() == content["tokenizer"]):
        files.write_whole(path, lambda file: file.write(content["tokenizer"]))
    ranks.barrier()
    tokenizer = read_tokenizer(path, config.tokenizer.eos)
    checks.warn_once(run.told, "template", checks.odd_markers(config, tokenizer))
    start = [tokenizer.bos] if tokenizer.bos >= 0 else []
    policy, pit, feedback, rewrite = (Template(text, tokenizer, start, first=True) for text in (
        config.template.policy, config.template.pit, config.refine.feedback, config.refine.rewrite))
    checks.refuse_short_context([policy, pit, feedback, rewrite], config)
    vocab = config.model.vocab or tokenizer.vocab
    if vocab < tokenizer.vocab:
        raise UserError(f"tokenizer.model has {tokenizer.vocab} pieces, but the embedding of "
                        f"model.init_from {vocab} rows; they do not belong together")
    return Data(tokenizer=tokenizer, vocab=vocab, turns=turn_templates(config, tokenizer),
                opening=opening_templates(config, tokenizer), policy=policy, pit=pit,
                feedback=feedback, rewrite=rewrite,
                folds={name: Fold(*columns_of(content, name)) for name in FOLDS},
                counts=content["counts"], device=run.device)
