"""The config of a run: a TOML file, arguments on top of it, and what a pretrained model decides."""

import argparse
from pathlib import Path

from pretrained.llama import settle
from runtime.checks import check_config
from runtime.config import Config
from runtime.files import checksum
from runtime.settings import UserError, fill, read_arguments


def load_config(path: str, overrides: list[str] = ()) -> Config:
    """Read the config of a TOML file, with `--section.key=value` arguments on top of it.

    Raises UserError for a file that is missing or no TOML, unknown or ill-typed fields, and
    values out of range.
    """
    config = Config()
    fill(config, path, overrides)
    if config.model.init_from:
        settle(config)
    note_score_files(config)
    check_config(config, " ".join([path, *overrides]))
    return config


def note_score_files(config: Config) -> None:
    """Note the checksum of each file with a reward of the user's own, so that no stage is taken for
    one of another function. Raises UserError where it cannot be read."""
    for name in ("rlhf", "pit"):
        section = getattr(config, name)
        file, colon, _ = section.score.rpartition(":")
        try:
            section.score_file = checksum(Path(file)) if colon else ""
        except OSError as error:
            raise UserError(f"{name}.score = {section.score!r}: cannot read {file} "
                            f"({error.strerror})") from None


def command_line(doc: str, *arguments) -> tuple[argparse.Namespace, Config]:
    """Parse --config, --section.key=value and the script's own (name, options) arguments."""
    args, overrides = read_arguments(doc, *arguments)
    return args, load_config(args.config, overrides)
