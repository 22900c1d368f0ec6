"""Typed settings: a dataclass of sections, filled from a TOML file and --section.key=value.

Unknown names are refused with the nearest known one, values of another type with both types. No
imports of ours, so that all else can stand on this.
"""

import argparse
import dataclasses
import difflib
import json
import sys
import tomllib
import typing
from pathlib import Path

RETIRED = (("run", "compile", False),)  # what the config.toml of older runs says and has no meaning


class UserError(Exception):
    """Something that the user can fix. Its one line says what, where, and how."""


def reason_of(error: Exception) -> str:
    """Return what an error says, in a line, without the file that it names; at least its kind."""
    said = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return said.splitlines()[0]


def nearest(word: str, words) -> str:
    """Return a hint at the nearest known word, or the list of them."""
    close = difflib.get_close_matches(word, words, n=1)
    return f"did you mean {close[0]!r}?" if close else f"known are: {', '.join(words)}"


def choices(kind) -> tuple:
    """Return the values that a Literal, or a list of it, allows; () for other types."""
    kind = typing.get_args(kind)[0] if typing.get_origin(kind) is list else kind
    return typing.get_args(kind) if typing.get_origin(kind) is typing.Literal else ()


def typed(value, kind, where: str):
    """Return `value` as type `kind` (int, float, str, bool, a Literal of strings, or list of
    these), or raise UserError. Whether a Literal allows it is checked with the whole config."""
    if choices(kind):
        kind = list[str] if typing.get_origin(kind) is list else str
    if typing.get_origin(kind) is list:
        if isinstance(value, list):
            return [typed(item, typing.get_args(kind)[0], where) for item in value]
    elif kind is float and type(value) in (int, float):
        return float(value)
    elif type(value) is kind:
        return value
    name = getattr(kind, "__name__", str(kind)) if typing.get_origin(kind) is None else str(kind)
    form = (", such as '[0.5, 1.0]'" if kind == list[float] else
            ", such as '[\"one\", \"two\"]'" if typing.get_origin(kind) is list else "")
    raise UserError(f"{where}: {value!r} is not of type {name}{form}")


def set_field(settings, section: str, key: str, value, where: str) -> None:
    """Set one field, refusing unknown names with the nearest known one."""
    sections = [f.name for f in dataclasses.fields(settings)]
    if section not in sections:
        raise UserError(f"{where}: unknown section {section!r}; {nearest(section, sections)}")
    target = getattr(settings, section)
    kinds = typing.get_type_hints(type(target))
    if key not in kinds:
        raise UserError(f"{where}: unknown key {key!r} in [{section}]; {nearest(key, kinds)}")
    setattr(target, key, typed(value, kinds[key], f"{where}: {section}.{key}"))


def fill(settings, path: str, overrides: list[str]) -> None:
    """Set the fields that a TOML file names, then those of `--section.key=value` arguments.

    Raises UserError for a file that is missing or no TOML, and for unknown or ill-typed fields.
    """
    try:
        sections = tomllib.loads(Path(path).read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UserError(f"{path}: cannot read the config: {error}") from None
    for section, keys in sections.items():
        if not isinstance(keys, dict):
            raise UserError(f"{path}: {section!r} stands outside of any [section]")
        for key, value in keys.items():
            if (section, key, value) not in RETIRED:
                set_field(settings, section, key, value, path)
    for argument in overrides:
        name, equals, text = argument.removeprefix("--").partition("=")
        section, dot, key = name.partition(".")
        if not (argument.startswith("--") and equals and dot):
            raise UserError(f"argument {argument!r}: expected --section.key=value")
        try:
            value = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            value = text  # a bare word is a string
            if section in ("template", "refine") and "\\n" in text:
                raise UserError(f"argument {argument!r}: for a line's end write it as TOML, in "
                                f"quotes: --{name}='\"{text}\"'") from None
        set_field(settings, section, key, value, f"argument --{name}")


def read_arguments(doc: str, *arguments) -> tuple[argparse.Namespace, list[str]]:
    """Parse --config and the script's own (name, options) arguments; the others are overrides.

    Raises UserError for arguments that cannot be understood.
    """
    def refuse(message: str):
        raise UserError(f"{message}; --help lists the arguments")

    parser = argparse.ArgumentParser(description=doc.splitlines()[0], allow_abbrev=False,
                                     epilog="any field: --section.key=value, see runtime/config.py")
    parser.error = refuse
    parser.add_argument("--config", required=True, help="a TOML file, see configs/")
    for name, options in arguments:
        parser.add_argument(name, **options)
    for argument in sys.argv[1:]:
        try:
            argument.encode()
        except UnicodeEncodeError:
            raise UserError(f"argument {argument!r} is not UTF-8; type it so") from None
    return parser.parse_known_args()


def to_toml(settings) -> str:
    """Return the settings as TOML text."""
    lines = []
    for section, keys in dataclasses.asdict(settings).items():
        lines.append(f"\n[{section}]")
        lines += [f"{key} = {json.dumps(v, ensure_ascii=False)}" for key, v in keys.items()]
    return "\n".join(lines) + "\n"
