"""Functions of the user's own, "file.py:function", that grade texts: rlhf.score, pit.score and
eval.judge."""

import importlib.util
import math
import traceback
from functools import cache
from pathlib import Path

from runtime.ranks import gather
from runtime.settings import UserError


@cache
def loaded(where: str):
    """Return a user's function. Raises UserError where there is none."""
    file, _, name = where.rpartition(":")
    spec = importlib.util.spec_from_file_location(Path(file).stem, file)
    try:
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return getattr(module, name)
    except Exception as error:  # whatever a user's file raises
        raise UserError(f"{where}: cannot load it: {type(error).__name__}: {error}") from None


def asked(where: str, *texts: list[str]) -> list[float]:
    """Return a function's numbers for this rank's responses, the last of its lists of texts. Raises
    UserError, on all ranks, where it fails or returns anything but finite numbers, one a
    response."""
    numbers, wrong = answered(loaded(where), *texts)
    for problem in filter(None, gather([wrong])):
        raise UserError(f"{where} {problem}")
    return numbers


def answered(function, *texts: list[str]) -> tuple[list[float], str]:
    """Return a function's numbers, and what is wrong with them, or ""."""
    try:
        numbers = [float(number) for number in function(*texts)]
    except Exception as error:  # whatever a user's function raises
        where = traceback.extract_tb(error.__traceback__)[-1]
        return [], (f"failed: {type(error).__name__}: {error} (line {where.lineno} of "
                    f"{Path(where.filename).name})")
    if len(numbers) != len(texts[-1]):
        return [], f"returned {len(numbers)} numbers for {len(texts[-1])} responses"
    for number, response in zip(numbers, texts[-1]):
        if not math.isfinite(number):
            return [], f"returned {number} for the response {response!r}; expected finite numbers"
    return numbers, ""
