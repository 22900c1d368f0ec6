"""Other scores for PPO than R_P and r_gap (rlhf.score, pit.score): the difference of R_P, or a
reward of your own, a Python function of texts:

    # brevity.py
    def shorter(x, y_ref, y):
        return [len(before) - len(after) for before, after in zip(y_ref, y)]

    python train_pit.py --config configs/quick.toml --pit.score=brevity.py:shorter

The lists have as many texts as there are responses (of a rank, each calls it for its share), and
any may be empty; in RLHF all of y_ref's are. The numbers are shifted and scaled as those of a
reward model are (train_pit.measure_scale).
"""

from functools import partial

import torch

import reward
from data import Data
from evaluation.show import prompt_text
from model import Rows
from ppo import Prompts
from reward import RewardModel
from runtime.config import Config
from runtime.own import asked, loaded


def difference_score(data: Data, rp: RewardModel, prompts: Prompts, rows: Rows):
    """Return R_P(x, y) - R_P(x, y_ref)."""
    y = [data.strip_eos(ids) for ids in rows.responses()]
    return (reward.score(rp, data.policy_rows(prompts.x, y))
            - reward.score(rp, data.policy_rows(prompts.x, prompts.y_ref)))


def other_score(data: Data, rp: RewardModel, named: str):
    """Return the score of a Task by its name in the config: "difference", or "file.py:function"."""
    return partial(difference_score, data, rp) if named == "difference" else partial(
        own_score, data, named)


def load_functions(config: Config) -> None:
    """Load the config's functions, so that a mistake is told before anything is trained."""
    for where in (config.rlhf.score, config.pit.score, config.eval.judge):
        if ":" in where:
            loaded(where)


def try_functions(config: Config, data: Data) -> None:
    """Ask the config's functions for one validation pair: what fails now would fail after all
    training. Raises UserError."""
    pair = data.folds["valid"][[0]]
    x = [prompt_text(data, pair.x[0])]
    y, y_ref = ([data.tokenizer.decode(side[0])] for side in (pair.y_w, pair.y_l))
    for where, draft in (config.rlhf.score, [""]), (config.pit.score, y_ref):
        if ":" in where:
            asked(where, x, draft, y)
    if config.eval.judge:
        asked(config.eval.judge, x, y)


def own_score(data: Data, where: str, prompts: Prompts, rows: Rows):
    """Return a function's numbers [B] of the texts of x, y_ref and y."""
    decode = data.tokenizer.decode
    y = [decode(data.strip_eos(ids)) for ids in rows.responses()]
    x, y_ref = [prompt_text(data, ids) for ids in prompts.x], list(map(decode, prompts.y_ref))
    return torch.tensor(asked(where, x, y_ref, y), device=rows.tokens.device)
