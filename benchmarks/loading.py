"""Seconds to prepare as many pairs as HH-RLHF has, and to load them again from the run's cache.

    python benchmarks/loading.py FILE.jsonl.gz [FILE ...] [--pairs 161000]

The pairs are those of the files, over and over, each time with another number in the prompt, so
that no two are the same. Preparing reads JSON, splits conversations, trains or reads the tokenizer,
encodes and splits into folds; loading maps data.pt into memory and decodes the last pair of each
fold.
"""

import argparse
import gzip
import json
import resource
import sys
import tempfile
import time
from itertools import cycle, islice
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common import report  # noqa: E402

from data import load_data  # noqa: E402
from runtime import Run, load_config  # noqa: E402


def many_pairs(paths: list[str], count: int, folder: Path) -> Path:
    """A file of `count` pairs, those of HH-RLHF files over and over."""
    pairs = [json.loads(line) for path in paths for line in gzip.open(path, "rt", encoding="utf-8")]
    many = folder / "pairs.jsonl.gz"
    with gzip.open(many, "wt", encoding="utf-8", compresslevel=1) as file:
        for number, pair in enumerate(islice(cycle(pairs), count)):
            file.write(json.dumps({side: text.replace("Human:", f"Human: {number}:", 1)
                                   for side, text in pair.items()}) + "\n")
    return many


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+")
    parser.add_argument("--pairs", type=int, default=161_000)
    parser.add_argument("--config", default="configs/hh.toml")
    args, fields = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as folder:
        path = many_pairs(args.files, args.pairs, Path(folder))
        config = load_config(args.config, [
            f'--data.files=["{path}"]', f"--run.dir={folder}", "--run.ranks=1", *fields])
        seconds = []
        for _ in range(2):
            start = time.perf_counter()
            data = load_data(Run(config, trains=not seconds))
            for fold in data.folds.values():
                data.tokenizer.decode(fold.y_l[len(fold) - 1])
            seconds.append(time.perf_counter() - start)
        size = (Path(folder) / config.run.name / "data.pt").stat().st_size
        report("loading preference pairs", pairs=data.counts["read"], prepare_s=seconds[0],
               load_s=seconds[1], cache_mb=size / 1e6,
               peak_mb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000,
               counts=data.counts)


if __name__ == "__main__":
    main()
