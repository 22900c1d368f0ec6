"""What the second core is best used for: a training step of the default model on one thread, on two
threads, and on two ranks of one thread each that share the batch.

    python benchmarks/second_core.py

128 rows of 40 tokens (as in configs/synthetic.toml's M_P^SFT), forward, backward, AdamW. The three
ways run by turns, each in processes of its own.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from statistics import median

ROWS, TIME, STEPS = 128, 40, 40
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
WAYS = {"one thread": [__file__, "--threads", "1"], "two threads": [__file__, "--threads", "2"],
        "two ranks": [*TORCHRUN, __file__, "--threads", "1"]}


def seconds_a_step(threads: int) -> float:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    import time

    import torch

    from model import GPT, pad_rows
    from runtime import ModelSection, descend, mine, start_ranks
    from train_reward import lm_loss

    start_ranks(1, torch.device("cpu"))
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model = GPT(ModelSection(), 200)
    tokens = torch.randint(0, 200, (ROWS, TIME)).tolist()
    rows = pad_rows(mine([row[:20] for row in tokens]), mine([row[20:] for row in tokens]))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    seconds = []
    for _ in range(STEPS):
        start = time.perf_counter()
        loss, count, _ = lm_loss(model, rows)
        loss.backward()
        descend(model, optimizer, count, 1.0, "benchmark")
        seconds.append(time.perf_counter() - start)
    return median(seconds[5:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, help="measure in this process")
    args = parser.parse_args()
    if args.threads:
        print(json.dumps(seconds_a_step(args.threads)))
        return
    results = {way: [] for way in WAYS}
    for _ in range(3):
        for way, command in WAYS.items():
            done = subprocess.run([sys.executable, *command], capture_output=True, text=True)
            if done.returncode:
                sys.exit(done.stderr)
            results[way].append(max(json.loads(line) for line in done.stdout.splitlines()))
    from common import report
    ms = {way: 1000 * median(values) for way, values in results.items()}
    report("the second core", one_thread_ms=ms["one thread"], two_threads_ms=ms["two threads"],
           two_ranks_ms=ms["two ranks"], threads_gain=ms["one thread"] / ms["two threads"],
           ranks_gain=ms["one thread"] / ms["two ranks"])


if __name__ == "__main__":
    main()
