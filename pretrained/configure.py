"""The config of a run: a TOML file, arguments on top of it, and what a pretrained model decides."""

import argparse

from pretrained.llama import settle
from runtime.checks import check_config
from runtime.config import Config
from runtime.settings import fill, read_arguments


def load_config(path: str, overrides: list[str] = ()) -> Config:
    """Read the config of a TOML file, with `--section.key=value` arguments on top of it.

    Raises UserError for a file that is missing or no TOML, unknown or ill-typed fields, and
    values out of range.
    """
    config = Config()
    fill(config, path, overrides)
    if config.model.init_from:
        settle(config)
    check_config(config, " ".join([path, *overrides]))
    return config


def command_line(description: str, *arguments) -> tuple[argparse.Namespace, Config]:
    """Parse --config, --section.key=value and the script's own (name, options) arguments."""
    args, overrides = read_arguments(description, *arguments)
    return args, load_config(args.config, overrides)
