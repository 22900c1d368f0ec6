"""What a run survives: it is killed, interrupted, starved of disk and given damaged files, goes on
by the same command each time, and has to end as a run that nothing happened to.

    python benchmarks/faults.py                  # 30 kills at random moments, then one fault each
    python benchmarks/faults.py --kills 3 --dir /tmp/faults

Compared are the bytes of metrics.jsonl and samples.jsonl, every weight of every checkpoint, and the
rows of the report. Prints a line a fault, and in the end how many were survived.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch  # noqa: E402

from runtime.files import load  # noqa: E402
from runtime.run import LOGS  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
LIMITED = """import os, resource, sys
size = int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
os.execv(sys.argv[2], sys.argv[2:])"""  # runs a command that may write files of this size
SIZES = ("--sft.steps=200", "--rlhf.iterations=12")  # long enough to be hit


def flat(content: dict) -> list[tuple]:
    """Return values of nested dictionaries with their names (a tokenizer holds the folder's)."""
    return [pair for key, value in content.items() for pair in (
        flat(value) if isinstance(value, dict) else [(key, value)])]


class Faults:
    """Runs of configs/tiny.toml below one folder, compared with an undisturbed one."""

    def __init__(self, folder: Path, sizes: tuple[str, ...] = SIZES):
        self.folder, self.sizes, self.survived, self.tried = folder, sizes, 0, 0
        self.whole = self.content("whole", self.finish("whole"))

    def start(self, name: str, *overrides, file_limit: int | None = None) -> subprocess.Popen:
        command = [sys.executable, "train_pit.py", "--config", "configs/tiny.toml",
                   f"--run.dir={self.folder}", f"--run.name={name}", "--run.device=cpu",
                   *self.sizes, *overrides]
        if file_limit is not None:
            command = [sys.executable, "-c", LIMITED, str(file_limit), *command]
        return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL,
                                stderr=subprocess.PIPE, encoding="utf-8", start_new_session=True)

    def finish(self, name: str, *overrides, **limits) -> tuple[int, str]:
        """Run to the end: the exit code, and what was said beside progress, warnings and counts."""
        process = self.start(name, *overrides, **limits)
        said = process.communicate(timeout=300)[1]
        return process.returncode, "\n".join(
            line for line in said.splitlines() if line.strip() and not any(
                mark in line for mark in ("it/s", "?it", "s/it", "warning:", "data: read")))

    def content(self, name: str, ended: tuple[int, str] = (0, "")) -> dict:
        """Return what a finished run has left."""
        if ended[0]:
            raise SystemExit(f"{name} did not end well: {ended[1]}")
        folder = self.folder / name
        models = {path.name: flat({key: value for key, value in load(path).items()
                                   if key not in ("seconds", "inputs", "tokenizer")})
                  for path in sorted(folder.glob("*.pt"))}
        rows = json.loads((folder / "report.json").read_text(encoding="utf-8"))["rows"]
        return {"models": models, "rows": rows} | {
            log: (folder / log).read_bytes().splitlines() for log in LOGS}

    def same(self, name: str, order=list) -> bool:
        """Return whether a run has ended as the undisturbed one."""
        found, whole = self.content(name), self.whole
        return found["rows"] == whole["rows"] and all(
            order(found[log]) == order(whole[log]) for log in LOGS) and (
            found["models"].keys() == whole["models"].keys()) and all(
            torch.equal(value, other) if torch.is_tensor(value) else value == other
            for file, model in whole["models"].items()
            for (_, value), (_, other) in zip(model, found["models"][file], strict=True))

    def progress(self, name: str) -> int:
        """Count the lines of the metrics and the finished stages."""
        path = self.folder / name / LOGS[0]
        lines = path.read_bytes().count(b"\n") if path.exists() else 0
        return lines + sum(".part" not in p.name for p in path.parent.glob("*.pt"))

    def point(self, stage: str, step: int) -> int:
        """Return the progress at a step of a stage."""
        lines = [json.loads(line) for line in self.whole[LOGS[0]]]
        before = list(dict.fromkeys(line["stage"] for line in lines)).index(stage)
        return 1 + before + next(i for i, line in enumerate(lines, 1)
                                 if (line["stage"], line["step"]) == (stage, step))

    def disturb(self, name: str, target: int, number: int, *overrides) -> tuple[int, str]:
        """Send a signal once a run has come as far as `target`: its exit code, and what it said."""
        process = self.start(name, *overrides)
        target = max(target, self.progress(name) + 1)
        while process.poll() is None and self.progress(name) < target:
            time.sleep(0.002)
        time.sleep(random.random() * 0.03)
        if process.poll() is None:  # else it has ended before
            os.killpg(process.pid, number)  # with the ranks that it has started
        said = process.communicate(timeout=300)[1]
        return process.returncode, said

    def report(self, fault: str, survived: bool, note: str = "") -> None:
        self.tried += 1
        self.survived += survived
        print(f"{'survived' if survived else 'NOT SURVIVED'}: {fault}" + f" ({note})" * bool(note),
              flush=True)


def kills(faults: Faults, count: int) -> None:
    """Kill one run at random moments (SIGKILL), in all stages; it goes on each time."""
    end = faults.progress("whole")
    moments = sorted(random.Random(0).sample(range(1, end), min(count, end - 1)))
    for moment in moments:
        code, _ = faults.disturb("killed", moment, signal.SIGKILL, "--run.save_every=0")
        if code == 0:
            break
    ended = faults.finish("killed")
    faults.report(f"SIGKILL at {len(moments)} random moments",
                  ended[0] == 0 and faults.same("killed"), ended[1])


def evaluation(faults: Faults) -> None:
    """Kill an evaluation (SIGKILL) once it has sampled something."""
    process, part = faults.start("evaluated"), faults.folder / "evaluated" / "evaluation.part.pt"
    while process.poll() is None and not part.exists():
        time.sleep(0.002)
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=300)
    note = "" if part.exists() else "it had ended before"
    ended = faults.finish("evaluated")
    faults.report("SIGKILL in the evaluation", ended[0] == 0 and faults.same("evaluated"),
                  note or ended[1])


def signals(faults: Faults) -> None:
    """Check that SIGINT and SIGTERM save what is there and end with 128 + their number."""
    for number in (signal.SIGINT, signal.SIGTERM):
        name = number.name.lower()
        code, _ = faults.disturb(name, faults.point("sft", 60), number)
        saved = list((faults.folder / name).glob("*.part.pt"))
        faults.finish(name)
        faults.report(number.name, code == 128 + number and len(saved) == 1 and faults.same(name),
                      f"exit code {code}, saved {', '.join(p.name for p in saved)}")


def refused_once(faults: Faults, fault: str, name: str, said: str, fix=lambda: None,
                 overrides=(), **limits) -> None:
    """Try a run that has to be refused in one line with exit code 2 and, once fixed, to end well; a
    stage that had to be made again has its lines at the end of the logs."""
    code, line = faults.finish(name, *overrides, **limits)
    fix()
    faults.finish(name)
    faults.report(fault, code == 2 and said in line and line.count("\n") == 0
                  and faults.same(name, sorted), line)


def damages(faults: Faults) -> None:
    """Cut files short, or flip a bit in them, while nothing runs."""
    half = faults.point("rlhf", 4)
    for fault in ("truncated checkpoint", "bit-flipped checkpoint", "bit-flipped part of a stage"):
        name = fault.replace(" ", "-")
        faults.disturb(name, half, signal.SIGTERM)
        pattern = "*.part.pt" if "part" in fault else "rp.pt"
        path = next((faults.folder / name).glob(pattern))
        raw = bytearray(path.read_bytes())
        raw[len(raw) // 2] ^= 1
        path.write_bytes(raw[:len(raw) // 2] if "truncated" in fault else raw)
        refused_once(faults, fault, name, "cannot read the checkpoint", path.unlink)
    faults.disturb("torn", half, signal.SIGTERM)
    path = faults.folder / "torn" / LOGS[0]
    path.write_bytes(path.read_bytes()[:-20])
    ended = faults.finish("torn")
    faults.report("last line of metrics.jsonl cut short", ended[0] == 0 and faults.same("torn"))


def disk(faults: Faults) -> None:
    """Leave no room for a checkpoint, or no permission to write."""
    size = (faults.folder / "whole" / "sft.pt").stat().st_size  # M_P^SFT's part: three times that
    refused_once(faults, "file-size limit (as a full disk)", "full", "rlhf.part.pt: cannot write",
                 overrides=["--run.save_every=0"], file_limit=4 * size)  # and PPO's six
    process = faults.start("unwritable", "--run.dir=/proc")  # where not even root may write
    line = process.communicate(timeout=300)[1]
    faults.report("run folder that cannot be written", process.returncode == 2
                  and "cannot write the run folder" in line and line.count("\n") == 1, line.strip())


def company(faults: Faults) -> None:
    """Start two runs on one folder, and end ranks."""
    first = faults.start("twice")
    while not (faults.folder / "twice" / "data.pt").exists():
        time.sleep(0.01)
    code, line = faults.finish("twice")
    first.communicate(timeout=300)
    faults.report("second run on one folder", code == 2 and "another run is at work" in line
                  and first.returncode == 0 and faults.same("twice"), line)
    code, _ = faults.disturb("group", faults.point("sft", 60), signal.SIGTERM, "--run.ranks=2")
    saved = list((faults.folder / "group").glob("sft.part.pt"))
    faults.report("SIGTERM to both of two ranks", code == 143 and len(saved) == 1
                  and faults.finish("group", "--run.ranks=2")[0] == 0, f"exit code {code}")
    process = faults.start("rank", "--run.ranks=2", "--run.save_every=0")
    while faults.progress("rank") < faults.point("rlhf", 4):
        time.sleep(0.01)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text("ascii").split()
    os.kill(int(children[0]), signal.SIGKILL)
    line = process.communicate(timeout=60)[1].splitlines()[-1]
    again = faults.finish("rank", "--run.ranks=2")
    faults.report("one of two ranks killed", process.returncode == 2 and again[0] == 0
                  and "goes on from the last save" in line, line)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--dir", help="where the runs go; else a temporary folder")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        faults = Faults(Path(args.dir or temporary))
        kills(faults, args.kills)
        evaluation(faults)
        signals(faults)
        damages(faults)
        disk(faults)
        company(faults)
    print(f"{faults.survived} of {faults.tried} faults survived")
    sys.exit(faults.survived < faults.tried)


if __name__ == "__main__":
    main()
