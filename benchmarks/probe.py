"""What a frozen model's states tell of people's preferences, by the number of pairs: a linear R_P.

    python benchmarks/probe.py --config configs/smollm2-helpful.toml

The trunk stays as model.init_from has it, and reads each pair once. R_P is linear in three things:
the state of the response's last token, the mean of its tokens' states, and its length. It learns
with Bradley and Terry's loss, on some of the pairs of all three folds; the ridge is the one with
the best held-out loss in five-fold cross-validation. We do not train the trunk, so this is less
than R_P could know. Intervals are 95 % over the held-out prompts (pairs of one prompt are
taken for copies of each other); what another draw of the training pairs changes stands beside them.
"""

import numpy as np
import script  # noqa: F401  (the project's modules are found from here on)
import torch
import torch.nn.functional as F
from tqdm import tqdm

from data import Data, Fold, load_data
from evaluation import measure
from evaluation.show import markdown, with_interval
from faster.branches import joined
from model import GPT, Rows, pad_rows
from pretrained.configure import command_line
from pretrained.lora import frozen_trunk
from runtime.batching import micro_batches
from runtime.launch import guard
from runtime.run import Run
from runtime.settings import UserError
from runtime.stages import BASE

SIZES, DRAWS = (250, 500, 1000, 2000), 5
RIDGES = tuple(10.0 ** power for power in range(7))


def features(states: torch.Tensor, rows: Rows) -> torch.Tensor:
    """Return the state of each response's last token, the mean of its tokens' states [B, T, D], and
    their number: [B, 2D + 1]."""
    mask = rows.mask[..., None].float()
    last = states[torch.arange(len(states), device=states.device), rows.length - 1]
    return torch.cat([last, (states * mask).sum(1) / mask.sum(1), mask.sum(1)], 1)


@torch.no_grad()
def differences(data: Data, trunk: GPT, fold: Fold) -> torch.Tensor:
    """Return the features of y_w less those of y_l [n, 2D + 1]."""
    prompts = [data.policy_prompt(ids) for ids in fold.x]
    lengths = torch.tensor([sum(map(len, row)) + 2 for row in zip(prompts, fold.y_w, fold.y_l)])
    found = torch.zeros(len(fold), 2 * trunk.config.width + 1)
    for part in tqdm(list(micro_batches(lengths, trunk.config.micro_batch))):
        responses = [data.add_eos(y[i]) for y in (fold.y_w, fold.y_l) for i in part]
        rows = pad_rows([prompts[i] for i in part] * 2, responses, data.device)
        both = joined(rows, [[i, len(part) + i] for i in range(len(part))])
        states = trunk(both.rows.tokens, both.positions, both.bias)            # [n, L, D]
        y_w, y_l = features(states.flatten(0, 1)[both.places], rows).chunk(2)
        found[part] = (y_w - y_l).cpu()
    return found


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


def chosen_ridge(x: torch.Tensor) -> float:
    """Return the ridge whose fit gives pairs that it has not seen the least loss, in five folds."""
    parts = torch.arange(len(x)) % 5
    return min(RIDGES, key=lambda ridge: sum(
        -F.logsigmoid(x[parts == k] @ fitted(x[parts != k], ridge)).sum().item()
        for k in range(5)))


def learned(x: torch.Tensor) -> tuple[torch.Tensor, float]:
    """Return the weights that pairs x [n, F] teach, for features as they come, and the ridge."""
    scale = x.square().mean(0).sqrt().clamp_min(1e-6)  # of both orders of a pair: the mean is 0
    ridge = chosen_ridge(x / scale)
    return fitted(x / scale, ridge) / scale, ridge


def curve(known: torch.Tensor, valid: torch.Tensor, longer: np.ndarray, prompts: list,
          generator: torch.Generator) -> list[list[str]]:
    """Return the lines of the table: how often the held-out pairs `valid` [n, F] are put in the
    right order, by the longer response [n] and by what pairs drawn from `known` teach."""
    def shown(values, form: str) -> str:
        return with_interval(measure.mean_interval(values, prompts), form)
    lines = [["the longer response", shown(longer, ".3f"), "", "", ""]]
    for size in [size for size in SIZES if size < len(known)] + [len(known)]:
        each, ridges = [], []
        for _ in range(DRAWS if size < len(known) else 1):
            w, ridge = learned(known[torch.randperm(len(known), generator=generator)[:size]])
            each.append((1 + (valid @ w).sign().numpy()) / 2)  # a tie is half right
            ridges.append(ridge)
        right = np.mean(each, 0)
        lines.append([f"{size:,} pairs", shown(right, ".3f"), shown(right - longer, "+.3f"),
                      ", ".join(f"{one.mean():.3f}" for one in each),
                      ", ".join(f"{ridge:g}" for ridge in ridges)])
    return lines


def main() -> None:
    _, config = command_line(__doc__)
    if not config.model.init_from:
        raise UserError("there is no frozen model to ask: name a pretrained one in "
                        "model.init_from")
    config.run.ranks = 1
    run = Run(config)
    data = load_data(run)
    trunk = frozen_trunk(run, GPT(config.model, data.vocab))
    with run.precision():
        valid, *known = (run.stage(f"probe_{name}", BASE, lambda: {
            "made": differences(data, trunk, data.folds[name])})["made"]
            for name in ("valid", "reward", "rl", "sft"))
    fold = data.folds["valid"]
    longer = (1 + np.sign(measure.longer_by(fold))) / 2
    print(markdown(
        [f"{len(fold)} held-out pairs", "agrees", "less the longer response", "each draw",
         "ridges"], curve(torch.cat(known), valid, longer, measure.prompts_of(fold),
                          run.generator("probe"))))


if __name__ == "__main__":
    guard(main)
