"""What a frozen model's states tell of people's preferences, by the number of pairs: a linear R_P.

    python benchmarks/probe.py --config configs/smollm2-helpful.toml

The trunk stays as model.init_from has it, and reads x with each response of a pair once. R_P is
linear in three things: the state of the response's last token, the mean of its tokens' states, and
its length. It learns with Bradley and Terry's loss; the ridge is the one with the best agreement in
five-fold cross-validation. So hours of training become minutes, and pairs of all three folds can be
asked. What a trained trunk adds is not in it. Intervals are 95 %, pairs of one prompt as one.
"""

import sys

import numpy as np
import script  # noqa: F401  (the project's modules are found from here on)
import torch
import torch.nn.functional as F
from tqdm import tqdm

from data import Data, Fold, load_data
from evaluation import measure
from faster.branches import make_branches
from model import GPT, Rows
from pretrained import llama
from pretrained.configure import command_line
from runtime.batching import micro_batches
from runtime.files import write_whole
from runtime.launch import guard
from runtime.run import Run
from runtime.settings import UserError
from runtime.state import load_weights
from tables import markdown

SIZES, RIDGES, DRAWS = (250, 500, 1000, 2000), (1.0, 10.0, 100.0, 1000.0, 10_000.0), 5


def features(states: torch.Tensor, rows: Rows) -> torch.Tensor:
    """Return of states [B, T, D] that of each response's last token, the mean of its tokens', and
    their number [B, 2D + 1]."""
    mask = rows.mask[..., None].float()
    last = states[torch.arange(len(states)), rows.length - 1]
    return torch.cat([last, (states * mask).sum(1) / mask.sum(1), mask.sum(1)], 1)


@torch.no_grad()
def differences(data: Data, trunk: GPT, fold: Fold) -> torch.Tensor:
    """Return the features of y_w less those of y_l [n, 2D + 1]."""
    prompts = [data.policy_prompt(ids) for ids in fold.x]
    lengths = torch.tensor([sum(map(len, row)) + 2 for row in zip(prompts, fold.y_w, fold.y_l)])
    found = torch.zeros(len(fold), 2 * trunk.config.width + 1)
    for part in tqdm(list(micro_batches(lengths, trunk.config.micro_batch)), file=sys.stderr):
        both = make_branches([prompts[i] for i in part], *(
            [data.add_eos(y[i]) for i in part] for y in (fold.y_w, fold.y_l)), data.device)
        states = trunk(both.rows.tokens, both.positions, both.bias)            # [B, T, D]
        found[part] = (features(states, both.a) - features(states, both.b)).cpu()
    return found


def kept(run: Run, data: Data, trunk: GPT, name: str) -> torch.Tensor:
    """Return the differences of a fold, which are computed once."""
    path = run.folder / f"probe-{name}.pt"
    if not path.exists():
        made = differences(data, trunk, data.folds[name])
        write_whole(path, lambda file: torch.save(made, file))
    return torch.load(path)


def fitted(x: torch.Tensor, ridge: float) -> torch.Tensor:
    """Return the weights [F] that minimise -log sigmoid(x w), summed, plus ridge |w|^2 / 2."""
    w = torch.zeros(x.shape[1], requires_grad=True)
    optimizer = torch.optim.LBFGS([w], max_iter=100, line_search_fn="strong_wolfe")

    def loss():
        optimizer.zero_grad()
        value = -F.logsigmoid(x @ w).sum() + ridge * w.square().sum() / 2
        value.backward()
        return value
    optimizer.step(loss)
    return w.detach()


def right(x: torch.Tensor, w: torch.Tensor) -> np.ndarray:
    """Return 1 for each pair that the weights put in the right order, for a tie 1/2."""
    return ((1 + (x @ w).sign()) / 2).numpy()


def chosen_ridge(x: torch.Tensor) -> float:
    """Return the ridge that agrees best in five-fold cross-validation."""
    parts = torch.arange(len(x)) % 5
    return max(RIDGES, key=lambda ridge: np.mean([
        right(x[parts == k], fitted(x[parts != k], ridge)).mean() for k in range(5)]))


def main() -> None:
    """Print the curve."""
    _, config = command_line(__doc__.splitlines()[0])
    if not config.model.init_from:
        raise UserError("there is no frozen model to ask: name one in model.init_from")
    config.run.ranks = 1
    run = Run(config)
    data = load_data(run)
    trunk = GPT(config.model, data.vocab)
    load_weights(trunk, llama.read_weights(config.model.init_from, config.model))
    trunk = trunk.to(run.device)
    with run.precision():
        valid, *known = (kept(run, data, trunk, name)
                         for name in ("valid", "reward", "sft", "rl"))
    known = torch.cat(known)
    scale = known.std(0).clamp_min(1e-6)
    valid, known = valid / scale, known / scale
    prompts, longer = (measure.prompts_of(data.folds["valid"]),
                       (1 + np.sign(measure.longer_by(data.folds["valid"]))) / 2)
    form = "{:.3f} [{:.3f}, {:.3f}]".format
    signed = "{:+.3f} [{:+.3f}, {:+.3f}]".format
    lines = [["the longer response", form(*measure.mean_interval(longer, prompts)), "", ""]]
    for size in (*(size for size in SIZES if size < len(known)), len(known)):
        each, generator = [], torch.Generator().manual_seed(config.run.seed)
        for _ in range(DRAWS if size < len(known) else 1):
            some = known[torch.randperm(len(known), generator=generator)[:size]]
            each.append(right(valid, fitted(some, chosen_ridge(some))))
        mean = np.mean(each, 0)  # of each pair, over the draws
        lines.append([f"{size:,} pairs", form(*measure.mean_interval(mean, prompts)),
                      signed(*measure.mean_interval(mean - longer, prompts)),
                      ", ".join(f"{one.mean():.3f}" for one in each)])
    print(markdown([f"{len(valid)} held-out pairs", "agrees", "less the longer response",
                    "each draw"], lines))


if __name__ == "__main__":
    guard(main)
