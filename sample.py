"""Answer a prompt and improve the answer: y_0 ~ M_P^RL(. | x), y_i ~ M_PIT^RL(. | x, y_{i-1}).

    python sample.py --config configs/synthetic.toml --prompt "How much is tea, a pen and a hat?"
    python sample.py --config configs/synthetic.toml --prompt "..." --ref "a response to improve"
    python sample.py --config configs/synthetic.toml              # asks for prompts
    python sample.py --config configs/synthetic.toml --export DIR # as a Hugging Face folder

Each step shows its r_gap, how much better R_PIT finds it than the one before, on a scale of its own
for each x and y_ref: nothing makes it 0 for a copy, whose r_gap stands beside. Quality need not
rise with every step; --stop ends with the last that R_PIT finds better than a copy.
"""

import sys
from pathlib import Path

import torch

import reward
from data import Data, load_data
from evaluation.familiar import Familiar
from evaluation.show import gold_note, marked
from model import GPT, merged, sample
from pretrained import llama
from pretrained.configure import command_line
from runtime.launch import guard
from runtime.ranks import gather, in_step, mine, random_numbers
from runtime.run import Run
from runtime.settings import UserError, nearest
from train_reward import Models, new_gpt, rl_inputs, train_start


def title(stage: str) -> str:
    """Return what the report calls the policy of a stage of RL: of stage0 "PIT stage 0"."""
    others = {"rlhf": "M_P^RL", "rlhf_more": "RLHF equal budget"}
    return others.get(stage, f"PIT stage {stage.removeprefix('stage')}")


def restore(run: Run, data: Data) -> Models:
    """Return the models of a finished run that does not train. Raises UserError where one is
    missing, or was made with other settings."""
    models = train_start(run, data)
    for name, inputs in rl_inputs(run.config).items():
        content = run.stage(name, inputs, make=None)
        models.policies[title(name)] = run.placed(new_gpt(run, data), content["model"])
    return models


def in_batches(run: Run, data: Data, policy: GPT, prompts: list, uniforms, temperature: float):
    """A response to each of this rank's prompts as token ids, ends included; ppo.batch at once."""
    responses, parts = [], in_step(-(-len(prompts) // run.config.ppo.batch))
    for some in torch.arange(len(prompts)).tensor_split(parts):
        responses += sample(policy, [prompts[i] for i in some], uniforms[some], temperature,
                            data.tokenizer.eos).responses()
    return responses


def generate(run: Run, data: Data, policy: GPT, prompts: list[list[int]], temperature: float,
             generator) -> list[list[int]]:
    """A response to each prompt as token ids without their end, shared among the ranks."""
    uniforms = random_numbers(len(prompts), run.config.data.max_response, generator)
    responses = in_batches(run, data, policy, mine(prompts), uniforms, temperature)
    return gather([data.strip_eos(ids) for ids in responses])


def answer(run: Run, data: Data, policy: GPT, x: list, temperature: float, generator) -> list:
    """y_0 ~ M_P(. | x) for each x."""
    return generate(run, data, policy, [data.policy(ids) for ids in x], temperature, generator)


def improve(run: Run, data: Data, policy: GPT, x: list, y_ref: list, temperature: float,
            generator) -> list:
    """y ~ M_PIT(. | x, y_ref) for each x and y_ref."""
    prompts = [data.pit(ids, ref) for ids, ref in zip(x, y_ref)]
    return generate(run, data, policy, prompts, temperature, generator)


def encoded(run: Run, data: Data, prompt: str) -> list[int]:
    """A user's first turn as token ids. Raises UserError where it is too long."""
    x = data.prompt(prompt)
    if len(x) > run.config.data.max_prompt:
        raise UserError(f"the prompt has {len(x)} tokens, but data.max_prompt is "
                        f"{run.config.data.max_prompt}; shorten it")
    return x


def show_improvements(run: Run, data: Data, models: Models, prompt: str, args, generator) -> None:
    """Print x, y_0 (or the given response) and each improvement with its r_gap."""
    x = [encoded(run, data, prompt)]
    if args.ref is None:
        y = answer(run, data, models.policies["M_P^RL"], x, args.temperature, generator)
    else:
        y = [data.response(args.ref)]
        if len(y[0]) >= run.config.data.max_response:
            raise UserError(f"the response to improve has {len(y[0])} tokens, but "
                            f"data.max_response is {run.config.data.max_response}; shorten it")
    text = data.tokenizer.decode(y[0])
    print(f"x    {prompt}\ny_0  {text}{gold_note(run, prompt, text)}")
    for i in range(1, args.iters + 1):
        y_ref, before = y, text
        policy = models.policies[title(run.config.pit.curriculum[-1])]
        y = improve(run, data, policy, x, y_ref, args.temperature, generator)
        text = data.tokenizer.decode(y[0])
        gap, copy = reward.score(models.rpit, data.pit_rows(x * 2, y_ref * 2, y + y_ref)).tolist()
        print(f"y_{i}  {marked(before, text)}  r_gap {gap:+.2f} (a copy {copy:+.2f})"
              f"{gold_note(run, prompt, text)}")
        if args.stop and (y == y_ref or gap <= copy):
            print(f"no better than a copy: y_{i - 1} stays")
            break


def respond(run: Run, data: Data, models: Models, args) -> None:
    """Improve the response to --prompt, or to each prompt that is typed in."""
    generator, familiar = run.generator("sample", args.seed), Familiar(data)
    if args.prompt is None:
        print("A prompt a line; an empty line ends.")
    prompts = [args.prompt] if args.prompt is not None else iter(
        lambda: sys.stdin.readline().strip(), "")
    for prompt in prompts:
        try:
            for doubt in familiar.doubts(encoded(run, data, prompt), prompt):
                print(f"warning: {doubt}", file=sys.stderr)
            show_improvements(run, data, models, prompt, args, generator)
        except UserError as error:
            if args.prompt is not None:
                raise
            print(error)


def main() -> None:
    args, config = command_line(
        __doc__.splitlines()[0],
        ("--prompt", {"help": "answer this, a user's first turn, and improve the answer"}),
        ("--ref", {"help": "improve this response instead of one of M_P^RL's"}),
        ("--iters", {"type": int, "default": 3, "help": "improvements, one after another"}),
        ("--stop", {"action": "store_true", "help": "stop where R_PIT finds no improvement"}),
        ("--temperature", {"type": float, "default": 0.5}),
        ("--seed", {"type": int, "help": "of the samples; else run.seed"}),
        ("--export", {"help": "write a policy as a Hugging Face folder"}),
        ("--model", {"help": "which, by its name in the report; else PIT's last stage"}))
    if not 0 <= args.temperature < float("inf") or args.iters < 0:
        raise UserError("--temperature and --iters must be numbers from 0")
    if args.ref is not None and args.prompt is None:
        raise UserError("--ref needs the --prompt that it responds to")
    if args.model and not args.export:
        raise UserError("--model goes with --export")
    if args.export and (args.prompt is not None or args.stop or args.seed is not None):
        raise UserError("--export goes without --prompt, --stop and --seed")
    config.run.ranks = 1
    run = Run(config, trains=False)
    data = load_data(run)
    with run.precision():
        models = restore(run, data)
        if args.export:
            name = args.model or title(config.pit.curriculum[-1])
            if name not in models.policies:
                raise UserError(f"--model {name!r}: {nearest(name, models.policies)}")
            llama.write_folder(Path(args.export), merged(models.policies[name]), config,
                               data.vocab, data.tokenizer)
            print(f"written: {name} in {args.export}")
        else:
            respond(run, data, models, args)


if __name__ == "__main__":
    guard(main)
