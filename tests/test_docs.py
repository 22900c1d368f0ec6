"""The pages say what is so: names, links, anchors and config lines in them exist."""

import importlib
import inspect
import re
import shlex

import pytest

from conftest import ROOT
from runtime.checks import check_config
from runtime.config import Config
from runtime.settings import fill

TUTORIAL = sorted((ROOT / "docs" / "tutorial").glob("*.md"))
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *TUTORIAL]
METHOD = ("model", "data", "reward", "ppo", "train_reward", "train_pit", "sample")
ids = [page.relative_to(ROOT).as_posix() for page in PAGES]


def without_code(text: str) -> str:
    return re.sub(r"```.*?```", "", text, flags=re.DOTALL)


def anchors(page) -> set[str]:
    """Return the anchors that GitHub gives to a page's headings."""
    heads = re.findall(r"(?m)^#+ (.+)$", without_code(page.read_text(encoding="utf-8")))
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)]+)\)", without_code(page.read_text(encoding="utf-8")))
    for link in links:
        if link.startswith("https://"):
            continue
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def is_there(name: str) -> bool:
    """Return whether module.name is a name of the method, or section.key one of the config."""
    module, _, rest = name.partition(".")
    section = getattr(Config(), module, None)
    return hasattr(section, rest) or module in METHOD and hasattr(
        importlib.import_module(module), rest)


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_names_of_the_code_and_of_the_config_are_there(page):
    spans = re.findall(r"`([^`\n]+)`", without_code(page.read_text(encoding="utf-8")))
    sections = "|".join([*METHOD, *vars(Config())])
    for span in spans:
        if re.fullmatch(rf"({sections})\.\w+", span) and not span.endswith((
                ".py", ".pt", ".json", ".jsonl", ".model")):
            assert is_there(span), span
        elif re.fullmatch(r"[\w/]+\.(py|toml)", span):
            folders = ("", "docs", "runtime", "corpus", "pretrained", "faster", "evaluation",
                       "report", "ablations", "benchmarks", "configs", "tests")
            assert span in OLD or any((ROOT / folder / span).exists() for folder in folders), span


OLD = {"config.toml", "mine.py", "tricks.py", "second_core.py", "lora.py", "loading.py",
       "scaling.py"}


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_lines_of_the_config_are_taken(page):
    text = page.read_text(encoding="utf-8")
    asked = re.sub(r"""--line=(["'])(.+?)\1""", lambda line: re.sub(
        r"(^|\s)(\w+\.\w+)=(\S+)", r" --\2='\3'", line[2]), text)
    lines = re.findall(r"--(\w+\.\w+)=('[^']*'|[^\s`']+)", asked)
    for field, value in lines:
        if field not in ("section.key", "run.base"):  # a placeholder, a folder that a run makes
            config = Config()
            fill(config, str(ROOT / "configs" / "tiny.toml"), [f"--{field}={value.strip(chr(39))}"])
            check_config(config, field)


def commands(page) -> list[list[str]]:
    """Return the Python commands of a page's code blocks, as lists of words."""
    blocks = re.findall(r"```sh\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    parts = [part for block in blocks for line in block.replace("\\\n", "").splitlines()
             for part in line.split("  #")[0].split(" && ")]
    words = [shlex.split(part) for part in parts if part.startswith(".venv/bin/")]
    return [line[1:] for line in words if line[0] in (".venv/bin/python", ".venv/bin/torchrun")]


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_commands_name_scripts_configs_and_options_that_are_there(page):
    for words in commands(page):
        if words[:2] == ["-m", "pytest"]:
            continue
        script = ROOT / (words[1].replace(".", "/") + ".py" if words[0] == "-m" else next(
            word for word in words if word.endswith(".py")))
        text = script.read_text(encoding="utf-8")
        if "import ablate\n" in text:  # whose arguments it takes, too
            text += (ROOT / "benchmarks" / "ablate.py").read_text(encoding="utf-8")
        for option in words[words.index(words[1] if words[0] == "-m" else script.relative_to(
                ROOT).as_posix()) + 1:]:
            name = option.partition("=")[0]
            if option.startswith("configs/"):
                assert (ROOT / option).exists(), option
            elif name.startswith("--") and "." not in name and name != "--config":
                assert f'"{name}"' in text, f"{script.name} {name}"


def blocks_of(page) -> list[tuple[str, str]]:
    """Return the blocks of Python of a page, each with the line above it."""
    return re.findall(r"(?s)(?:(`[^`\n]+`):\n\n)?```python\n(.*?)\n```",
                      page.read_text(encoding="utf-8"))


@pytest.mark.parametrize("page", TUTORIAL, ids=[page.name for page in TUTORIAL])
def test_the_code_that_the_tutorial_shows_is_the_source(page):
    for name, block in blocks_of(page):
        file, _, function = name.strip("`").partition(":")
        module = importlib.import_module(file.removesuffix(".py").replace("/", "."))
        assert block == inspect.getsource(getattr(module, function)).rstrip(), name


def test_the_tutorial_shows_the_equations():
    shown = {name for page in TUTORIAL for name, _ in blocks_of(page)}
    assert {"`reward.py:gap_loss`", "`ppo.py:train`", "`ppo.py:policy_loss`"} <= shown


def test_the_readme_is_short():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    prose = [line for line in without_code(text).splitlines() if not line.startswith("|")]
    assert text.count("\n") <= 200
    assert len(re.findall(r"(?<![\w.])\d[\d,.]*", "\n".join(prose))) <= 60
