"""Imports go one way, and the root holds the method and nothing else."""

import ast
import subprocess
import sys

import pytest

from conftest import ROOT

LAYERS = [["runtime"], ["pretrained"], ["corpus"], ["model"], ["data", "reward"], ["faster"],
          ["ppo"],
          ["evaluation"], ["train_reward"], ["sample"], ["report", "pretrained.export"],
          ["ablations"], ["train_pit"]]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
FOLDERS = ("runtime", "corpus", "pretrained", "faster", "evaluation", "report", "ablations")
OWN = (ROOT / ".gitignore").read_text().split()  # a reader's files, such as mine.py
METHOD = [path for path in ROOT.glob("*.py") if f"/{path.name}" not in OWN]
FILES = [*METHOD, *(path for folder in FOLDERS for path in (ROOT / folder).glob("*.py"))]


def name_of(path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def level(module: str) -> int | None:
    """Return the level of one of our modules; None for others' libraries."""
    parts = module.split(".")
    return LEVEL.get(".".join(parts[:2]), LEVEL.get(parts[0]))


def imported(path) -> set[str]:
    """Return what a file imports, at its head or inside of a function."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("path", FILES, ids=map(name_of, FILES))
def test_imports_go_one_way(path):
    own = level(name_of(path))
    for module in imported(path):
        other = level(module)
        same_folder = module.split(".")[0] == name_of(path).split(".")[0]
        assert other is None or other < own or other == own and same_folder, module


def test_the_root_holds_the_method_and_nothing_else():
    assert {path.stem for path in METHOD} == {
        "model", "data", "reward", "ppo", "train_reward", "sample", "train_pit"}


def test_the_model_needs_little():
    code = "import sys, model; print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    loaded = done.stdout.split()
    assert [name for name in loaded if name.split(".")[0] in FOLDERS] == [
        "runtime", "runtime.config"]
    assert "torch" in loaded and "sentencepiece" not in loaded
