"""From starting Python to the end of the first training step, and what is installed beside torch.

    python benchmarks/startup.py

Ours: import train_pit.py, one step of a small model. TRL: import its PPOTrainer, one step of the
same model by transformers. Each in a fresh process, by turns.
"""

import importlib.metadata
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MODEL = "layers=2, heads=2, kv_heads=2, width=32, hidden=64, context=64"
SIDES = {
    "ours": f"""
import sys; sys.path.insert(0, {str(ROOT)!r})
import torch; torch.set_num_threads(1)
import train_pit
from model import GPT, pad_rows
from train_reward import lm_loss
from runtime.config import ModelSection
model = GPT(ModelSection({MODEL}), 64)
optimizer = torch.optim.AdamW(model.parameters(), fused=True)
loss, count, _ = lm_loss(model, pad_rows([[1, 2, 3]], [[4, 5]]))
(loss / count).backward(); optimizer.step()""",
    "trl": """
import torch; torch.set_num_threads(1)
from trl.experimental.ppo import PPOConfig, PPOTrainer
from transformers import LlamaConfig, LlamaForCausalLM
model = LlamaForCausalLM(LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=64,
                                     num_hidden_layers=2, num_attention_heads=2))
optimizer = torch.optim.AdamW(model.parameters(), fused=True)
tokens = torch.tensor([[1, 2, 3, 4, 5]])
model(input_ids=tokens, labels=tokens).loss.backward(); optimizer.step()"""}


def with_requirements(names: list[str], seen: set[str]) -> set[str]:
    """Return the distributions of these names and all that they require, extras left out."""
    for name in names:
        name = re.sub(r"[-_.]+", "-", name).lower()
        if name in seen:
            continue
        try:
            required = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        seen.add(name)
        with_requirements([re.match(r"[\w.-]+", r)[0] for r in required if "extra ==" not in r],
                          seen)
    return seen


def installed_mb(names: list[str]) -> float:
    """Return the size of the installed files of these distributions, with all that they require,
    but without torch and what torch requires."""
    sizes = [file.locate().stat().st_size
             for name in with_requirements(names, set()) - with_requirements(["torch"], set())
             for file in importlib.metadata.files(name) or [] if file.locate().is_file()]
    return sum(sizes) / 1e6


def main() -> None:
    from common import report

    seconds = {side: [] for side in SIDES}
    for _ in range(6):
        for side, code in SIDES.items():
            start = time.perf_counter()
            subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
            seconds[side].append(time.perf_counter() - start)
    ours, peer = (statistics.median(times[1:]) for times in seconds.values())
    report("start to first step", peer="TRL", ours_s=ours, peer_s=peer, ratio=peer / ours,
           ours_mb=installed_mb(["sentencepiece", "numpy", "tqdm", "pytest"]),
           peer_mb=installed_mb(["trl"]))


if __name__ == "__main__":
    main()
