"""Shared by the speed benchmarks: workloads, alternating timings, the machine's limits, JSON lines.

Workload W: Llama architecture, 4 layers, 4 heads, width 256, SwiGLU 688, vocabulary 512, tied.
W2: 12 layers, width 768, 12 heads, SwiGLU 2048, vocabulary 32000, context 512, tied. Both in
float32 on one thread.
"""

import json
import platform
import random
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch  # noqa: E402

from model import GPT  # noqa: E402
from runtime.config import ModelSection  # noqa: E402

WORKLOADS = {
    "W": (ModelSection(layers=4, heads=4, kv_heads=4, width=256, hidden=688, context=128,
                       portion=2048), 512),
    "W2": (ModelSection(layers=12, heads=12, kv_heads=12, width=768, hidden=2048, context=512,
                        portion=2048), 32000),
}
torch.set_num_threads(1)


def ours(workload: str) -> GPT:
    torch.manual_seed(0)
    return GPT(*WORKLOADS[workload])


def hf_config(workload: str):
    """Return the same model as a LlamaConfig of transformers."""
    return llama_config(*WORKLOADS[workload])


def llama_config(model: ModelSection, vocab: int):
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=vocab, hidden_size=model.width, intermediate_size=model.hidden,
        num_hidden_layers=model.layers, num_attention_heads=model.heads,
        num_key_value_heads=model.kv_heads, max_position_embeddings=model.context,
        tie_word_embeddings=True, bos_token_id=None, eos_token_id=None, pad_token_id=None)


def hf(workload: str):
    from transformers import LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(hf_config(workload))


def random_lists(chance: random.Random, number: int, low: int, high: int, vocab: int) -> list:
    """Draw lists of `low` to `high` token ids."""
    return [[chance.randrange(1, vocab) for _ in range(chance.randint(low, high))]
            for _ in range(number)]


def forward_flops(workload: str) -> int:
    """Count the operations of one token's forward pass, see product_flops."""
    return product_flops(*WORKLOADS[workload])


def product_flops(model: ModelSection, vocab: int) -> int:
    """Count the operations of one token's forward pass, the attention over other tokens left out:
    two for each weight of the linear layers and the output layer."""
    width = model.width // model.heads
    layer = model.width * (2 * model.heads + 2 * model.kv_heads) * width
    return 2 * (model.layers * (layer + 3 * model.width * model.hidden) + vocab * model.width)


def alternate(sides: dict, repeats: int) -> dict:
    """Return seconds of each side: medians over `repeats` turns, alternating, after a warm-up."""
    seconds = {name: [] for name in sides}
    for turn in range(repeats + 1):
        for name, side in sides.items():
            start = time.perf_counter()
            side()
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(times) for name, times in seconds.items()}


def fastest(function, repeats: int = 5) -> float:
    """Return the seconds of the fastest of some calls, after one to warm up."""
    function()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


def gemm_peak() -> float:
    """Measure the machine's limit, operations a second: the best float32 product of square
    matrices, by either of the libraries that torch has on a CPU."""
    a, b = torch.randn(2, 2048, 2048)
    libraries = [lambda: a @ b]
    if torch.backends.mkldnn.is_available():
        libraries.append(lambda: torch.ops.mkldnn._linear_pointwise(a, b, None, "none", [], ""))
    return max(2 * 2048 ** 3 / fastest(product) for product in libraries)


def bandwidth() -> float:
    """Measure the machine's limit, bytes a second read from memory (a sum over 512 MB)."""
    numbers = torch.ones(1 << 27)
    return numbers.numel() * 4 / fastest(numbers.sum)


def report(row: str, **figures) -> None:
    """Print the row as one JSON line, with what it was measured on."""
    rounded = {name: float(f"{value:.4g}") if isinstance(value, float) else value
               for name, value in figures.items()}
    machine = f"{platform.machine()}, {platform.system()}, torch {torch.__version__}"
    print(json.dumps({"row": row} | rounded | {"machine": machine}))
