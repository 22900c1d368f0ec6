"""Runs a script of the repository as its users do, in a process of its own.

Most of such a run would be the import of torch, so a server imports it once (multiprocessing's
forkserver) and each run is a fork of it, which imports our own modules anew. Where there are no
forks, and for what is no script, it is a new process.
"""

import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LIMIT = 300  # seconds
PRELOAD = ["torch", "torch._dynamo", "torch.distributed", "numpy", "sentencepiece", "tqdm",
           "pytest"]


def command(*arguments, stdin: str = "", **environment: str) -> subprocess.CompletedProcess:
    """Run a script, or other arguments of python, with one thread."""
    arguments = list(map(str, arguments))
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | environment
    own = environment["OMP_NUM_THREADS"] != "1" or bool(environment.get("CUDA_VISIBLE_DEVICES"))
    if sys.platform == "linux" and not own and arguments[0].endswith(".py"):
        return forked(arguments, stdin, environment)
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, env=environment, input=stdin,
                          capture_output=True, encoding="utf-8", timeout=LIMIT)


def forked(arguments: list[str], stdin: str, environment: dict) -> subprocess.CompletedProcess:
    """Run a script as a fork of the server that has imported torch."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"  # read by the server's torch
    with tempfile.TemporaryDirectory() as folder:
        paths = [os.path.join(folder, name) for name in ("stdin", "stdout", "stderr")]
        Path(paths[0]).write_text(stdin, encoding="utf-8", errors="surrogateescape")
        try:
            process = context.Process(target=be_script, args=(arguments, environment, paths))
            process.start()
        finally:
            os.environ.pop("OMP_NUM_THREADS")
            os.environ |= {"OMP_NUM_THREADS": before} if before is not None else {}
        process.join(LIMIT)
        if process.exitcode is None:
            process.kill()
            raise subprocess.TimeoutExpired(arguments, LIMIT)
        said = (Path(path).read_bytes().decode("utf-8") for path in paths[1:])
        return subprocess.CompletedProcess(arguments, process.exitcode, *said)


def be_script(arguments: list[str], environment: dict, paths: list[str]) -> None:
    """Run the script in the fork."""
    os.chdir(ROOT)
    os.environ.clear()
    os.environ.update(environment)
    for number, path in enumerate(paths):
        os.dup2(os.open(path, os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT), number)
    sys.stdin = open(0, encoding="utf-8", closefd=False)
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = open(2, "w", encoding="utf-8", buffering=1, closefd=False)
    sys.path[0] = str(ROOT)
    sys.argv = arguments
    runpy.run_path(arguments[0], run_name="__main__")
