"""Preference pairs from files into a run's data.pt: read, split and encoded; what drops out counts.

Pairs are split into test, valid and three equal folds for SFT, reward and RL (the paper's split):
by the user's first turn, bills by their things, summaries by their post, so that no fold asks what
another one has seen.
"""

import json
import random
import sys
from collections import Counter
from pathlib import Path

from tqdm import tqdm

from corpus import bills
from corpus.formats import TextPair, key_of, read_pairs
from corpus.templates import Template, turn_templates
from corpus.tokens import CUT, FOLDS, encode_prompts, flattened, fold_keys
from pretrained.vocabulary import Tokenizers, file_name, read_tokenizer, train_tokenizer
from runtime import checks, files, ranks
from runtime.config import Config, DataSection, TemplateSection
from runtime.run import Run
from runtime.settings import UserError
from runtime.stages import inputs_of


def split_keys(keys: list[str], config: DataSection, seed: int) -> dict[str, str]:
    """Choose the fold of each key: test and valid as many keys as asked, the rest in thirds."""
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


def encode_pairs(pairs: list[TextPair], config: Config, tokenizer,
                 dropped: Counter) -> dict[str, list]:
    """Encode, drop what is too long, and split by the groups of `fold_keys`. Returns the rows
    (x, y_w, y_l) of each fold, first one of each group, then the others."""
    x, cut = encode_prompts([pair.prompt for pair in pairs], *turn_templates(config, tokenizer),
                            tokenizer, config.data.max_prompt)
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
    keys = fold_keys([pair.key for pair in pairs], x, [key_of(pair.prompt) for pair in pairs])
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


def second_system(pairs: list[TextPair], template: TemplateSection) -> dict[str, int]:
    """Count the prompts, too long ones included, whose system message comes after one of
    template.policy, if there are any."""
    opening = template.system.partition("{x}")[0].strip()
    count = sum(pair.prompt[0][0] == "system" for pair in pairs)
    known = opening and opening in template.policy.partition("{x}")[0]
    return {checks.SECOND: count} if known and count else {}


def prepare(run: Run) -> dict:
    """Read or make the pairs, train the tokenizer, encode and split; return what data.pt holds."""
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
    if len(config.data.files) > 1:  # they are mixed: the first pairs of a fold are of all of them
        random.Random(config.run.seed).shuffle(pairs)
    if not config.data.files:
        for pair in pairs:  # a bill in other words is no other question
            pair.key = ", ".join(bills.things_of(pair.key))
    for role in {role for pair in pairs if len(pair.prompt) > 1 for role, _ in pair.prompt}:
        if getattr(config.template, role) == "{x}":
            raise UserError(f"{', '.join(sources)}: prompts have several turns, or a system "
                            f"message; set template.{role}, to tell them apart (see "
                            "configs/hh.toml)")
    model = Path(config.tokenizer.model or run.folder / "tokenizer.model")
    if not config.tokenizer.model:
        some = random.Random(config.run.seed).sample(pairs, min(len(pairs), 20_000))
        texts = (text for p in some for text in (
            *(text for _, text in p.prompt), p.chosen, p.rejected))
        train_tokenizer(texts, checks.markers(vars(config.template), r"<\|\w+\|>"),
                        config.tokenizer, model)
    tokenizer = read_tokenizer(model, config.tokenizer.eos)
    rows = encode_pairs(pairs, config, tokenizer, dropped)
    counts["prompts without their first turns"] = dropped.pop(CUT)
    counts |= second_system(pairs, config.template)
    counts |= {name: len(fold) for name, fold in rows.items()} | {
        f"dropped, {reason}": count for reason, count in dropped.items() if count}
    tqdm.write("data: " + "; ".join(f"{name} {n:,}" for name, n in counts.items()), sys.stderr)
    checksums = {path: files.checksum(path) for path in config.data.files}
    return {"counts": counts, "tokenizer": model.read_bytes(),
            "checksums": checksums} | flattened(rows)


def prepared(run: Run) -> dict:
    """Return what data.pt holds, which the first rank makes if it is not there yet."""
    if run.trains:
        run.refuse_others(inputs_of(run.config))
    content = run.stage("data", inputs_of(run.config)["data"],
                        lambda: prepare(run) if ranks.rank() == 0 else {})
    if "tokens" not in content:
        content = files.load(run.folder / "data.pt")
    if run.trains:
        if ranks.rank() == 0:
            checks.refuse_changed(content["checksums"])
        checks.warn_once(run.told, "data", checks.scarce(run.config, content["counts"]))
    return content


def unpacked_tokenizer(run: Run, content: bytes) -> Tokenizers:
    """Write the tokenizer that data.pt holds into the run's folder, and read it from there; a
    run that does not train reads the one beside data.pt."""
    path = (run.folder if run.trains else run.used["data"].parent) / file_name(content)
    if ranks.rank() == 0 and not (path.exists() and path.read_bytes() == content):
        files.write_whole(path, lambda file: file.write(content))
    ranks.barrier()
    tokenizer = read_tokenizer(path, run.config.tokenizer.eos)
    if 0 < run.config.model.vocab < tokenizer.vocab:
        raise UserError(f"tokenizer.model has {tokenizer.vocab} pieces, but the embedding of "
                        f"model.init_from {run.config.model.vocab} rows; they do not belong "
                        "together")
    checks.warn_once(run.told, "template", checks.odd_markers(run.config, tokenizer))
    return tokenizer
