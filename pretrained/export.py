"""Write a policy of a finished run as a Hugging Face folder, adapters merged into its weights.

    python -m pretrained.export --config configs/quick.toml --to DIR
"""

from pathlib import Path

from data import load_data
from pretrained import llama
from pretrained.configure import command_line
from pretrained.lora import merged
from runtime.launch import guard
from runtime.run import Run
from runtime.settings import UserError, nearest
from runtime.stages import title
from sample import restore


def main() -> None:
    args, config = command_line(
        __doc__, ("--to", {"required": True, "help": "the folder to write"}),
        ("--model", {"help": "its name in the report; PIT's last stage if there is none"}))
    run = Run(config, trains=False)
    data = load_data(run)
    policies = restore(run, data).policies
    name = args.model or title(config.pit.curriculum[-1])
    if name not in policies:
        raise UserError(f"--model {name!r}: {nearest(name, policies)}")
    llama.write_folder(Path(args.to), merged(policies[name]), config, data.vocab, data.tokenizer)
    print(f"written: {name} in {args.to}")


if __name__ == "__main__":
    guard(main)
