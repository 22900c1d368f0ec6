"""What makes a config impossible, and what in a training calls for a warning."""

import dataclasses
import math
import re
import sys
import typing
from pathlib import Path

import torch
from tqdm import tqdm

from runtime import files
from runtime.settings import UserError, choices, nearest

FITS = ("sft", "pit_sft", "rp", "rpit", "judge")


class NotFinite(UserError):
    """A number that a training must not go on with."""


def fields_of(config):
    """Yield each field of each section: its name, value, allowed values (none: any), bounds."""
    for section in dataclasses.fields(config):
        content = getattr(config, section.name)
        kinds = typing.get_type_hints(type(content))
        for f in dataclasses.fields(content):
            yield (f"{section.name}.{f.name}", getattr(content, f.name), choices(kinds[f.name]),
                   f.metadata.get("low", 1e-12), f.metadata.get("high", sys.float_info.max))


def problems(config):
    """Yield what cannot work, each in a line that names the field."""
    for name, value, allowed, low, high in fields_of(config):
        allowed = config.stages() if name == "pit.curriculum" else allowed
        for item in value if isinstance(value, list) else [value]:
            if allowed and item not in allowed:
                hint, known = nearest(item, allowed), ", ".join(allowed)
                yield f"{name}: {item!r}; {hint}" + f" (all are {known})" * (known not in hint)
            if type(item) in (int, float) and not low <= item <= high:
                yield f"{name} = {item} is out of range: it must be finite" + (
                    " and above 0" * (0 < low < 1) + f" and {low} or more" * (low in (0, 1, 2))
                    + f" and {high} at most" * (high < sys.float_info.max))
    model, rows = config.model, config.ppo.minibatches * config.run.ranks  # 0: they will fit
    halves = any(getattr(config, name).reference == "improved" for name in config.pit.curriculum
                 if name in config.stages())
    model_ranks = config.run.ranks * (1 + halves)
    triple = 2 * config.data.max_prompt + 6 * config.data.max_response  # positions that it takes
    for wrong, message in [
        ((model.head_width % 2 if model.head_width else model.width % (2 * model.heads)),
         "model.width must be an even multiple of model.heads"),
        (model.heads % model.kv_heads, "model.heads must be a multiple of model.kv_heads"),
        (config.ppo.batch % config.ppo.minibatches or config.ppo.batch % 2,
         f"ppo.batch must be even and a multiple of ppo.minibatches ({config.ppo.minibatches})"),
        (config.ppo.advantage == "group" and config.ppo.batch % (2 * config.ppo.group),
         f"ppo.batch must be a multiple of twice ppo.group ({config.ppo.group})"),
        (config.ppo.batch < rows,
         f"ppo.batch must be at least {rows}, a response a rank in each of ppo.minibatches"),
        (not (config.pit.curriculum and config.reward.terms and config.eval.temperatures),
         "pit.curriculum, reward.terms and eval.temperatures must not be empty"),
        (any(len(set(names)) < len(names) for names in (
            config.pit.curriculum, config.reward.terms, config.eval.temperatures)),
         "pit.curriculum, reward.terms and eval.temperatures must not have anything twice"),
        (min(config.eval.prompts, config.data.test, config.data.valid) < max(2, config.run.ranks),
         f"eval.prompts, data.test and data.valid must be at least {max(2, config.run.ranks)}" + (
             ", one for each rank") * (config.run.ranks > 2)),
        (any(getattr(config, fit).smallest() < config.run.ranks for fit in FITS),
         "a batch, or pairs, is smaller than run.ranks"),
        (len(config.data.things) != 2 or config.data.things != sorted(config.data.things),
         "data.things needs two numbers, the fewest things of a bill and the most"),
        (config.run.name in ("", ".", "..") or Path(config.run.name).name != config.run.name,
         f"run.name = {config.run.name!r} must be the name of a folder, without a path: that is "
         "run.dir"),
        (config.run.base and not Path(config.run.base, "config.toml").is_file(),
         f"run.base = {config.run.base!r}: there is no such run folder"),
        (config.run.shard and 0 < model.micro_batch < 2 * triple,
         f"with run.shard model.micro_batch must be at least {2 * triple}, two triples of R_PIT"),
        (len(model.rope_scaling) not in (0, 4),
         "model.rope_scaling needs four numbers: factor, low and high factor, original context"),
        *((text.count("{x}") != 1, f"template.{name} lacks {{x}}, or has it twice")
          for name, text in vars(config.template).items()),
        *((slot in text and (name, slot) != ("pit", "{y_ref}"),
           f"template.{name}: {slot} is filled by nothing there")
          for name, text in vars(config.template).items() for slot in ("{y_ref}", "{feedback}")),
        ("{feedback}" in config.refine.feedback,
         "refine.feedback: {feedback} is filled by nothing there"),
        (bool(config.refine.feedback) != bool(config.refine.rewrite),
         "refine.feedback and refine.rewrite belong together"),
        (config.refine.rewrite and not all(
            "{x}" in text and "{y_ref}" in text
            for text in (config.refine.feedback, config.refine.rewrite)),
         "refine.feedback and refine.rewrite need {x} and {y_ref}"),
        (config.refine.rewrite and "{feedback}" not in config.refine.rewrite,
         "refine.rewrite lacks {feedback}"),
        (config.rlhf.score and ".py:" not in config.rlhf.score,
         f"rlhf.score = {config.rlhf.score!r}: expected 'file.py:function'"),
        (config.pit.score not in ("gap", "difference") and ".py:" not in config.pit.score,
         f"pit.score = {config.pit.score!r}: expected 'gap', 'difference' or 'file.py:function'"),
        (config.eval.judge and ".py:" not in config.eval.judge,
         f"eval.judge = {config.eval.judge!r}: expected 'file.py:function'"),
        *((getattr(config, name).score, f"{name}.score: the stages of PIT share pit.score")
          for name in config.stages()),
        (config.ppo.prompts() < model_ranks,
         f"ppo.batch must have at least {model_ranks} prompts, one for each rank"
         + " of either half" * halves + ": ppo.batch / ppo.group" * (
             config.ppo.advantage == "group")),
        (config.refine.lessons and (config.data.files or config.refine.rewrite),
         "refine.lessons teaches from the judge of bills, with templates of its own"),
        (config.lora.rank and not model.init_from,
         "lora.rank adapts a trained model: name it in model.init_from, or set lora.rank = 0"),
        (config.lora.rank and config.run.shard,
         "run.shard = true is for full training: with lora.rank each rank holds the frozen trunk"),
        (config.lora.rank and not config.lora.linears, "lora.linears must not be empty"),
        ("{y_ref}" not in config.template.pit, "template.pit needs both {x} and {y_ref}"),
    ]:
        if wrong:
            yield message


def check_config(config, where: str) -> None:
    """Raise UserError for values that cannot work."""
    for problem in problems(config):
        raise UserError(f"{where}: {problem}")


def troubles(figures: dict, kl_target: float):
    """Yield what experience calls trouble in a rollout, with what to do about it."""
    if figures["kl"] > 5 * kl_target:
        yield (f"KL {figures['kl']:.1f} nats a response, target {kl_target:g}: the policy runs "
               "away; lower ppo.lr")
    if figures["kl"] < -0.5:
        yield (f"negative KL {figures['kl']:.2f}: rollout and anchor are at odds; see "
               "docs/troubleshooting.md")
    if figures["eos_rate"] < 0.1:
        yield (f"ends are rare ({figures['eos_rate']:.0%} of the responses): raise "
               "data.max_response, or train M_P^SFT longer")
    if figures["copies"] > 0.5:
        yield (f"copies of y_ref are {figures['copies']:.0%} of the responses: r_gap finds nothing "
               "to gain; look at the accuracy of R_PIT")
    if figures["empty"] > 0.1:
        yield (f"empty responses are {figures['empty']:.0%}: what the reward model makes of them "
               "stands in metrics.jsonl, step 0 (copy_mean); lower the stage's kl_target")


def refuse_not_finite(figures: dict, where: str) -> None:
    """Raise NotFinite, naming them, if some figures are not finite."""
    bad = [name for name, value in figures.items() if not math.isfinite(value)]
    if bad:
        raise NotFinite(f"{where}: {', '.join(bad)} not finite; what was good is saved; lower "
                        "ppo.lr under another --run.name")


def warn_once(told: dict | None, stage: str, lines) -> None:
    """Print warnings, once in a stage for each kind, which is the text before a number, ( or :;
    `told` is None where another rank does."""
    for line in lines if told is not None else []:
        if told.setdefault((stage, re.split(r":|\(| -?\d", line)[0]), line) is line:
            tqdm.write(f"warning: {stage}: {line}", file=sys.stderr)


def emulated(device: str, amp: str):
    """Yield a warning where bfloat16 is asked for and an x86 CPU has no instruction for it."""
    cpu = torch.cpu.get_capabilities()
    if (device == "cpu" and amp == "bf16" and cpu.get("architecture") == "x86_64"
            and not (cpu.get("avx512_bf16") or cpu.get("amx_bf16"))):
        yield ("run.amp: this CPU only emulates bfloat16, and is several times slower so than in "
               "float32: --run.amp=off")


def doubts(device: str, config, trains: bool):
    """Yield a warning for what can work, but hardly as it was meant."""
    yield from emulated(device, config.run.amp)
    if not trains:
        return
    for name in FITS:
        fit, idle = getattr(config, name), name == "judge" and not config.trains_judge()
        if fit.warmup >= fit.steps and not idle:
            yield (f"{name}.warmup = {fit.warmup} is not below {name}.steps = {fit.steps}: the "
                   "learning rate does no more than rise")
    warmup = config.ppo.critic_warmup * (config.ppo.advantage == "critic")
    for name in ("rlhf", *config.pit.curriculum):
        iterations = getattr(config, name).iterations
        if iterations <= warmup:
            yield (f"{name}.iterations = {iterations} are not above ppo.critic_warmup = {warmup}: "
                   "only its critic would learn")


def within_range(no_eos_score: float, scores):
    """Yield a warning where a response without its end scores no lower than more than 1 % of those
    with theirs; `scores` are the latter's, in standard deviations."""
    reached = scores <= no_eos_score
    if reached.sum() > len(scores) / 100:
        yield (f"ppo.no_eos_score = {no_eos_score:g} is no lower than what {reached.mean():.0%} of "
               f"the responses get that end (from {scores.min():.1f} on): lower it")


def refuse_inner_ends(responses: list[list[int]], tokenizer) -> None:
    """Raise UserError where the token that should end a response stands inside of one."""
    count = sum(tokenizer.eos in ids for ids in responses)
    if count:
        raise UserError(f"tokenizer.eos: what is to end a response stands inside of {count} of "
                        f"{len(responses)} responses; name a token that no text has")


def refuse_short_context(templates, config) -> None:
    """Raise UserError where a template of the longest texts, with the longest response after it,
    does not fit model.context."""
    response = range(config.data.max_response)
    needed = 1 + len(response) + max(  # 1: the end of a cut response
        len(template(range(config.data.max_prompt), response, response)) for template in templates)
    if needed > config.model.context:
        raise UserError(f"model.context = {config.model.context} is too short for the templates "
                        "with a prompt of data.max_prompt tokens and responses of "
                        f"data.max_response; raise it to {needed}")


def refuse_changed(checksums: dict[str, str]) -> None:
    """Raise UserError where a data file is there but has changed."""
    for path, known in checksums.items():
        if Path(path).exists() and files.checksum(path) != known:
            raise UserError(f"{path}: has changed since this run's data were made of it; choose "
                            "another --run.name, without a --run.base of the earlier data")


def markers(templates: dict[str, str], pattern: str) -> list[str]:
    """Return what looks like a marker in some templates, each once."""
    return list(dict.fromkeys(re.findall(pattern, "".join(templates.values()))))


def odd_markers(config, tokenizer):
    """Yield a warning where the templates' markers are no single tokens of the tokenizer, and where
    they have slots that nothing fills."""
    texts = vars(config.template) | {
        name: getattr(config.refine, name) for name in ("feedback", "rewrite")}
    odd = [marker for marker in markers(texts, r"<\|\w+\|>|</?s>")
           if len(tokenizer.fixed(marker)) != 1]
    if odd:
        yield (f"{', '.join(odd)}: not single tokens of this tokenizer, but spelt out; take the "
               "chat template of the model in [template], see docs/data.md")
    unknown = [slot for slot in markers(texts, r"\{\w+\}")
               if slot not in ("{x}", "{y_ref}", "{feedback}")]
    if unknown:
        yield f"{', '.join(unknown)}: no slot of a template, but text that each prompt gets"


SECOND = "prompts with two system messages"
FOLD_OF = {"sft": "sft", "pit_sft": "sft", "rp": "reward", "rpit": "reward", "judge": "rl"}
REMEDIES = {f"{what} too long": f"raise data.max_{what} and with it model.context"
            for what in ("prompt", "response")}


def scarce(config, counts: dict[str, int]):
    """Yield a warning where the data are hardly what was meant: more than a third of the pairs
    dropped for one reason, more held out than trained on, a training that goes over its fold more
    than ten times."""
    for name, count in counts.items():
        reason = name.removeprefix("dropped, ")
        if name != reason and count > counts["read"] / 3:
            remedy = REMEDIES.get(reason, "is it the file that you meant?")
            yield f"{reason}: {count:,} of {counts['read']:,} pairs are dropped; {remedy}"
    if counts.get(SECOND):
        yield (f"{SECOND}: {counts[SECOND]:,}, their own after that of template.policy; leave "
               "either out")
    held_out = counts["valid"] + counts["test"]
    trained = sum(counts[fold] for fold in ("sft", "reward", "rl"))
    if held_out > trained:
        yield (f"held out are {held_out:,} pairs, more than the {trained:,} that are trained on: "
               "lower data.test and data.valid")
    for name in FITS if config.trains_judge() else FITS[:-1]:
        fit, pairs = getattr(config, name), counts[FOLD_OF[name]]
        if fit.pairs > pairs:
            yield f"{name}.pairs = {fit.pairs:,}, but its fold has {pairs:,}: it reads these"
        pairs = min(fit.pairs or pairs, pairs)
        passes = fit.steps * min(fit.batch, pairs) / pairs
        if passes > 10:
            yield (f"{name}.steps = {fit.steps} go {passes:.0f} times over {pairs:,} pairs of their"
                   f" fold, and learn them by heart: lower {name}.steps, or bring more pairs"
                   + " (train_pit.py trains it, for the report)" * (name == "judge"))


def unproven(agreement: dict):
    """Yield a warning where a reward model's agreement with held-out pairs is not significantly
    above chance; `agreement` is of evaluation/measure.py."""
    if agreement["ci_low"] <= 0.5:
        yield ("validation pairs: agreement {accuracy:.3f} [{ci_low:.3f}, {ci_high:.3f}] of "
               "{pairs:,} may be chance: RL against this reward model may teach nothing; it needs "
               "more pairs, fewer passes over them or a better trunk").format(**agreement)


def chance(accuracy: float):
    """Yield a warning where a reward model has learned nothing from its own training pairs."""
    if accuracy < 0.55:
        yield (f"agreement with the training pairs is {accuracy:.3f}, near chance: nothing can be "
               "built on this reward model; it needs more pairs, more steps or a better trunk")
