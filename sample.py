"""Answer a prompt and improve the answer: y_0 ~ M_P^RL(. | x), y_i ~ M_PIT^RL(. | x, y_{i-1}).

    python sample.py --config configs/quick.toml --prompt "How much is tea, a pen and a hat?"
    python sample.py --config configs/quick.toml --prompt "..." --ref "a response to improve"
    python sample.py --config configs/quick.toml              # asks for prompts

Each step shows its r_gap, which only ranks rewrites of the same draft: compare it with that of a
copy, beside it. --stop ends with the last step that R_PIT finds better than a copy. --explain shows
what PPO learned from: one rewrite token by token.
"""

import sys
from dataclasses import dataclass

import torch

import reward
from data import Data, load_data
from evaluation.familiar import Familiar, encoded, encoded_response
from evaluation.microscope import explained
from evaluation.show import gold_note, marked
from faster.sampling import sample
from model import GPT
from pretrained.configure import command_line
from runtime.launch import guard
from runtime.ranks import gather, in_step, random_numbers, shard
from runtime.run import Run
from runtime.settings import UserError
from runtime.stages import rl_inputs, title
from train_reward import Models, new_gpt, train_start


def restore(run: Run, data: Data) -> Models:
    """Return the models of a finished run that does not train. Raises UserError where one is
    missing, or was made with other settings."""
    models = train_start(run, data)
    for name, inputs in rl_inputs(run.config).items():
        content = run.stage(name, inputs, make=None)
        models.policies[title(name)] = run.placed(new_gpt(run, data), content["model"])
    return models


@dataclass
class Sampler:
    """What sampling needs; of the run the batch and the longest response."""
    run: Run
    data: Data
    temperature: float
    generator: torch.Generator


def responses_to(sampler: Sampler, policy: GPT, prompts: list[list[int]]) -> list[list[int]]:
    """Sample a response to each prompt, as token ids, most with their end; the ranks share them."""
    config, eos = sampler.run.config, sampler.data.tokenizer.eos
    uniforms = random_numbers(len(prompts), config.data.max_response, sampler.generator)
    own, found = shard(prompts), []
    for some in torch.arange(len(own)).tensor_split(in_step(-(-len(own) // config.ppo.batch))):
        found += sample(policy, [own[i] for i in some], uniforms[some], sampler.temperature,
                        eos)[0].responses()
    return gather(found)


def generate(sampler: Sampler, policy: GPT, prompts: list[list[int]]) -> list[list[int]]:
    """Sample a response to each prompt, as token ids without its end."""
    return [sampler.data.strip_eos(ids) for ids in responses_to(sampler, policy, prompts)]


def answer(sampler: Sampler, policy: GPT, x: list) -> list[list[int]]:
    """Sample y_0 ~ M_P(. | x) for each x."""
    return generate(sampler, policy, [sampler.data.policy_prompt(ids) for ids in x])


def improve(sampler: Sampler, policy: GPT, x: list, y_ref: list) -> list[list[int]]:
    """Sample y ~ M_PIT(. | x, y_ref) for each x and y_ref."""
    return generate(sampler, policy, [sampler.data.pit_prompt(*pair) for pair in zip(x, y_ref)])


def show_improvements(sampler: Sampler, models: Models, prompt: str, args) -> None:
    """Print x, y_0 (or the given response) and each improvement with its r_gap."""
    run, data = sampler.run, sampler.data
    x = [encoded(run, data, prompt)]
    if args.ref is None:
        y = answer(sampler, models.policies["M_P^RL"], x)
    else:
        y = [encoded_response(run, data, args.ref)]
    text = data.tokenizer.decode(y[0])
    print(f"x    {prompt}\ny_0  {text}{gold_note(run, prompt, text)}")
    if args.explain:
        print(explained(run, data, models, (x[0], y[0]), sampler.generator))
        return
    for i in range(1, args.iters + 1):
        y_ref, before = y, text
        policy = models.policies[title(run.config.pit.curriculum[-1])]
        y = improve(sampler, policy, x, y_ref)
        text = data.tokenizer.decode(y[0])
        gap, copy = reward.score(models.rpit, data.pit_rows(x * 2, y_ref * 2, y + y_ref)).tolist()
        print(f"y_{i}  {marked(before, text)}  r_gap {gap:+.2f} (a copy {copy:+.2f})"
              f"{gold_note(run, prompt, text)}")
        if args.stop and (y == y_ref or gap <= copy):
            print(f"no better than a copy: y_{i - 1} stays")
            break


def respond(run: Run, data: Data, models: Models, args) -> None:
    """Improve the response to --prompt, or to each prompt that is typed in."""
    sampler = Sampler(run, data, args.temperature, run.generator("sample", args.seed))
    familiar = Familiar(data)
    if args.prompt is None:
        print("A prompt a line; an empty line ends.")
    prompts = [args.prompt] if args.prompt is not None else iter(
        lambda: sys.stdin.readline().strip(), "")
    for prompt in prompts:
        try:
            for doubt in familiar.doubts(encoded(run, data, prompt), prompt, args.ref):
                print(f"warning: {doubt}", file=sys.stderr)
            show_improvements(sampler, models, prompt, args)
        except UserError as error:
            if args.prompt is not None:
                raise
            print(error)


def main() -> None:
    args, config = command_line(
        __doc__, ("--prompt", {"help": "answer this, a user's first turn, and improve the answer"}),
        ("--ref", {"help": "improve this response instead of one of M_P^RL's"}),
        ("--iters", {"type": int, "default": 3, "help": "improvements, one after another"}),
        ("--explain", {"action": "store_true", "help": "show one rewrite as PPO sees it"}),
        ("--stop", {"action": "store_true", "help": "stop where R_PIT finds no improvement"}),
        ("--temperature", {"type": float, "default": 0.5}),
        ("--seed", {"type": int, "help": "of the samples; else run.seed"}))
    if not 0 <= args.temperature < float("inf") or args.iters < 0:
        raise UserError("--temperature and --iters must be numbers from 0")
    if args.prompt == "" or args.ref is not None and args.prompt is None:
        raise UserError("--prompt must not be empty; --ref needs the --prompt that it responds to")
    run = Run(config, trains=False)
    data = load_data(run)
    with run.precision():
        respond(run, data, restore(run, data), args)


if __name__ == "__main__":
    guard(main)
