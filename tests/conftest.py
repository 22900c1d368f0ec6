"""Shared by the tests: a CPU, one thread, the repository on the path, tiny models, runs, data."""

import importlib.util
import json
import os
import sys
from pathlib import Path

GPUS = os.environ.setdefault("PIT_TEST_GPUS", os.environ.get("CUDA_VISIBLE_DEVICES", "0"))
os.environ["CUDA_VISIBLE_DEVICES"] = ""  # tests are of a CPU, but for test_gpu.py

import pytest  # noqa: E402
import torch  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
torch.set_num_threads(1)

from corpus import bills  # noqa: E402
from data import load_data  # noqa: E402
from model import GPT  # noqa: E402
from pretrained.vocabulary import Tokenizer, train_tokenizer  # noqa: E402
from runtime.config import Config, ModelSection, TokenizerSection  # noqa: E402
from runtime.run import Run  # noqa: E402
from runtime.settings import set_field  # noqa: E402
from scripts import command  # noqa: E402, F401

needs = pytest.mark.needs  # of libraries that are extras: without one of them a test is skipped
MARKERS = ["<|user|>", "<|assistant|>", "<|draft|>", "<|better|>"]


def pytest_configure(config):
    config.addinivalue_line("markers", "needs(*libraries): a test of what needs these extras")


def pytest_collection_modifyitems(items):
    for item in items:
        for mark in item.iter_markers("needs"):
            for name in mark.args:
                if not is_there(name):
                    item.add_marker(pytest.mark.skip(reason=f"needs an extra: {name}"))


def is_there(name: str) -> bool:
    """Return whether a library, or a part of one, can be imported."""
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # of a part, where the whole is not there
        return False


def ideal_response(question: str, order: str = "first") -> str:
    """Return the response to a question about a bill that the judge grades 1."""
    lines, total = bills.right_answer(question)
    return bills.compose(["Sure!"], total, lines, ".", order)


def tiny_gpt(vocab: int = 11, seed: int = 0, **changes) -> GPT:
    """Make a GPT with random weights; 2 layers, 4 heads, 2 of keys and values, width 16."""
    sizes = dict(layers=2, heads=4, kv_heads=2, width=16, hidden=24, context=48)
    torch.manual_seed(seed)
    return GPT(ModelSection(**sizes | changes), vocab)


def tiny_config(folder: Path, **fields) -> Config:
    """Make a config of a very small run below `folder`; `fields` are section__key=value."""
    config = Config()
    small = dict(
        run__dir=str(folder), run__name="tiny", run__device="cpu", run__log_every=1,
        data__bills=300, data__valid=20, data__test=20, tokenizer__vocab=160, model__layers=1,
        model__heads=2, model__kv_heads=1, model__width=16, model__hidden=24, ppo__batch=8)
    for name, value in (small | fields).items():
        set_field(config, *name.split("__"), value, "test")
    return config


def tiny_run(folder: Path, **fields) -> Run:
    """Open a run of this process, which may have several on one folder."""
    run = Run(tiny_config(folder, **fields))
    run.lock.close()
    return run


def write_lines(path: Path, records: list) -> str:
    """Write a file of JSON lines, a string as it is. Returns the file's path as text."""
    lines = [r if isinstance(r, str) else json.dumps(r) for r in records]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


def read_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory) -> Tokenizer:
    """Train a tokenizer on bills."""
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    texts = [text for pair in bills.make_pairs(200, 1, "first") for text in pair.values()]
    train_tokenizer(texts, MARKERS, TokenizerSection(vocab=160), path)
    return Tokenizer(path)


@pytest.fixture(scope="session")
def bills_run(tmp_path_factory):
    """Return a tiny run on bills, and its data."""
    run = tiny_run(tmp_path_factory.mktemp("bills"))
    return run, load_data(run)
