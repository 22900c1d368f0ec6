"""Shared by the speed benchmarks: workloads, alternating timings, the machine's limits, JSON lines.

Workload W: Llama architecture, 4 layers, 4 heads, width 256, SwiGLU 688, vocabulary 512, tied.
W2: 12 layers, width 768, 12 heads, SwiGLU 2048, vocabulary 32000, context 512, tied. Both in
float32 on one thread.
"""

import json
import platform
import random
import statistics
import time

import script  # noqa: F401  (the project's modules are found from here on)
import torch

from model import GPT
from runtime.config import ModelSection

WORKLOADS = {
    "W": (ModelSection(layers=4, heads=4, kv_heads=4, width=256, hidden=688, context=128,
                       micro_batch=2048), 512),
    "W2": (ModelSection(layers=12, heads=12, kv_heads=12, width=768, hidden=2048, context=512,
                        micro_batch=2048), 32000),
}
torch.set_num_threads(1)


def ours(workload: str) -> GPT:
    torch.manual_seed(0)
    return GPT(*WORKLOADS[workload])


def llama_config(model: ModelSection, vocab: int):
    """Return the same model as a LlamaConfig of transformers."""
    from transformers import LlamaConfig
    return LlamaConfig(
        vocab_size=vocab, hidden_size=model.width, intermediate_size=model.hidden,
        num_hidden_layers=model.layers, num_attention_heads=model.heads,
        num_key_value_heads=model.kv_heads, max_position_embeddings=model.context,
        tie_word_embeddings=True, bos_token_id=None, eos_token_id=None, pad_token_id=None)


def hf(workload: str):
    from transformers import LlamaForCausalLM
    torch.manual_seed(0)
    return LlamaForCausalLM(llama_config(*WORKLOADS[workload]))


def hf_scorer(workload: str):
    """Make the same model with a scalar head on the last token."""
    from transformers import LlamaForSequenceClassification
    config = llama_config(*WORKLOADS[workload])
    config.num_labels, config.pad_token_id = 1, 0
    return LlamaForSequenceClassification(config)


def random_lists(chance: random.Random, number: int, low: int, high: int, vocab: int) -> list:
    """Draw lists of `low` to `high` token ids."""
    return [[chance.randrange(1, vocab) for _ in range(chance.randint(low, high))]
            for _ in range(number)]


def forward_flops(workload: str) -> int:
    """Count the operations of one token's forward pass, without attention over other tokens: two
    for each weight of the linear layers and the output layer, which is the tied embedding."""
    return 2 * sum(p.numel() for p in ours(workload).parameters() if p.dim() == 2)


def alternate(sides: dict, repeats: int, of_times=statistics.median) -> dict:
    """Time each side, in seconds: medians over `repeats` rounds, the sides by turns, after a
    warm-up."""
    seconds = {name: [] for name in sides}
    for turn in range(repeats + 1):
        for name, side in sides.items():
            start = time.perf_counter()
            side()
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return {name: of_times(times) for name, times in seconds.items()}


def fastest(function) -> float:
    """Time the fastest of five calls, in seconds, after one to warm up."""
    return alternate({"": function}, 5, min)[""]


def gemm_peak() -> float:
    """Measure the machine's limit, operations a second: the best float32 product of square
    matrices, by either of the libraries that torch has on a CPU."""
    a, b = torch.randn(2, 2048, 2048)
    libraries = [lambda: a @ b]
    if torch.backends.mkldnn.is_available():
        libraries.append(lambda: torch.ops.mkldnn._linear_pointwise(a, b, None, "none", [], ""))
    return max(2 * 2048 ** 3 / fastest(product) for product in libraries)


def report(row: str, **figures) -> None:
    """Print the row as one JSON line, with what it was measured on."""
    rounded = {name: float(f"{value:.4g}") if isinstance(value, float) else value
               for name, value in figures.items()}
    machine = f"{platform.machine()}, {platform.system()}, torch {torch.__version__}"
    print(json.dumps({"row": row} | rounded | {"machine": machine}))


def report_peer(row: str, peer: str, ours_s: float, peer_s: float, least: float, **more) -> None:
    """Print both sides' seconds, and which part of ours the machine needs at `least`."""
    report(row, peer=peer, ours_s=ours_s, peer_s=peer_s, ratio=peer_s / ours_s,
           of_peak=least / ours_s, **more)
