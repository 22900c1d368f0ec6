"""What a run survives: it is killed, interrupted, starved of disk and given damaged files, goes on
by the same command each time, and has to end as a run that nothing happened to.

    python tests/faults.py                  # 30 kills at random moments, then one fault each
    python tests/faults.py --kills 3 --dir /tmp/faults

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

import torch

from conftest import ROOT
from runtime.files import load
from runtime.run import LOGS

LIMITED = """import os, resource, sys
size = int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
os.execv(sys.argv[2], sys.argv[2:])"""  # runs a command that may write files of this size
SIZES = ("--sft.steps=200", "--rlhf.iterations=12")  # long enough to be hit
USUAL = ("it/s", "?it", "s/it", "warning:", "data: read")  # progress, warnings and counts


def alike(one, other) -> bool:
    """Whether two nested dictionaries have the same values."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(alike(one[key], other[key]) for key in one)
    return torch.equal(one, other) if torch.is_tensor(one) else one == other


def wait_for(process: subprocess.Popen, condition) -> bool:
    """Wait until it holds; whether the process is still at work then."""
    while process.poll() is None and not condition():
        time.sleep(0.002)
    return process.poll() is None


def ended(process: subprocess.Popen) -> tuple[int, str]:
    """Return the exit code, and what was said beside the USUAL."""
    said = process.communicate(timeout=300)[1].splitlines()
    return process.returncode, "\n".join(
        line for line in said if line.strip() and not any(mark in line for mark in USUAL))


class Faults:
    """Runs of configs/tiny.toml below one folder, compared with an undisturbed one."""

    def __init__(self, folder: Path, sizes: tuple[str, ...] = SIZES):
        self.folder, self.sizes, self.survived, self.tried = folder, sizes, 0, 0
        code, said = self.finish("whole")
        if code:
            raise SystemExit(f"whole did not end well: {said}")

    def start(self, name: str, *overrides, file_limit: int | None = None) -> subprocess.Popen:
        command = [sys.executable, "train_pit.py", "--config", "configs/tiny.toml",
                   f"--run.dir={self.folder}", f"--run.name={name}", "--run.device=cpu",
                   *self.sizes, *overrides]
        if file_limit is not None:
            command = [sys.executable, "-c", LIMITED, str(file_limit), *command]
        return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL,
                                stderr=subprocess.PIPE, encoding="utf-8", start_new_session=True)

    def finish(self, name: str, *overrides, **limits) -> tuple[int, str]:
        """Run to the end."""
        return ended(self.start(name, *overrides, **limits))

    def left(self, name: str, order=list) -> dict:
        """Return what a finished run has left, the lines of its logs in an order."""
        folder = self.folder / name
        found = {path.name: load(path) for path in folder.glob("*.pt")}
        for content in found.values():
            for key in ("seconds", "operations", "inputs", "tokenizer"):  # it holds the folder
                content.pop(key, None)
        found["rows"] = json.loads((folder / "report.json").read_text(encoding="utf-8"))["rows"]
        return found | {log: order((folder / log).read_bytes().splitlines()) for log in LOGS}

    def differing(self, name: str, order=list) -> list[str]:
        """Return what a run has left otherwise than the undisturbed one."""
        one, other = self.left(name, order), self.left("whole", order)
        return [key for key in one | other if not alike(one.get(key), other.get(key))]

    def same(self, name: str, order=list) -> bool:
        """Whether a run has ended as the undisturbed one."""
        return not self.differing(name, order)

    def goes_on(self, name: str) -> tuple[bool, str]:
        """Whether a run that goes on ends as the undisturbed one, and what it said, or what
        differs."""
        code, said = self.finish(name)
        differing = self.differing(name) if code == 0 else [f"exit code {code}"]
        return not differing, "; ".join(filter(None, [said, *differing]))

    def progress(self, name: str) -> int:
        """Count the lines of the metrics and the finished stages."""
        path = self.folder / name / LOGS[0]
        lines = path.read_bytes().count(b"\n") if path.exists() else 0
        return lines + sum(".part" not in p.name for p in path.parent.glob("*.pt"))

    def point(self, stage: str, step: int) -> int:
        """Return the progress at a step of a stage."""
        lines = [json.loads(line) for line in self.left("whole")[LOGS[0]]]
        before = list(dict.fromkeys(line["stage"] for line in lines)).index(stage)
        return 1 + before + next(i for i, line in enumerate(lines, 1)
                                 if (line["stage"], line["step"]) == (stage, step))

    def disturb(self, name: str, target: int, number: int, *overrides) -> int:
        """Send a signal once a run has come as far as `target`: its exit code."""
        process, target = self.start(name, *overrides), max(target, self.progress(name) + 1)
        if wait_for(process, lambda: self.progress(name) >= target):
            time.sleep(random.random() * 0.03)
            if process.poll() is None:
                os.killpg(process.pid, number)  # with the ranks that it has started
        return ended(process)[0]

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
        if faults.disturb("killed", moment, signal.SIGKILL, "--run.save_every=0") == 0:
            break
    faults.report(f"SIGKILL at {len(moments)} random moments", *faults.goes_on("killed"))


def evaluation(faults: Faults) -> None:
    """Kill an evaluation (SIGKILL) once it has sampled something."""
    process, part = faults.start("evaluated"), faults.folder / "evaluated" / "evaluation.part.pt"
    if wait_for(process, part.exists):
        os.killpg(process.pid, signal.SIGKILL)
    ended(process)
    note = "" if part.exists() else "it had ended before"
    survived, said = faults.goes_on("evaluated")
    faults.report("SIGKILL in the evaluation", survived, note or said)


def signals(faults: Faults) -> None:
    """Check that SIGINT and SIGTERM save what is there and end with 128 + their number."""
    for number in (signal.SIGINT, signal.SIGTERM):
        name = number.name.lower()
        code = faults.disturb(name, faults.point("sft", 60), number)
        saved = [path.name for path in (faults.folder / name).glob("*.part.pt")]
        survived = faults.goes_on(name)[0] and code == 128 + number and len(saved) == 1
        faults.report(number.name, survived, f"exit code {code}, saved {', '.join(saved)}")


def refused_once(faults: Faults, fault: str, name: str, said: str, fix=lambda: None,
                 overrides=(), **limits) -> None:
    """Try a run that has to be refused in one line with exit code 2 and, once fixed, to end well; a
    stage that had to be made again has its lines at the end of the logs."""
    code, line = faults.finish(name, *overrides, **limits)
    fix()
    faults.finish(name)
    faults.report(fault, code == 2 and said in line and "\n" not in line
                  and faults.same(name, sorted), line)


def damages(faults: Faults) -> None:
    """Cut files short, or flip a bit in them, while nothing runs."""
    half = faults.point("rlhf", 4)
    for fault in ("truncated checkpoint", "bit-flipped checkpoint", "bit-flipped part of a stage"):
        name = fault.replace(" ", "-")
        faults.disturb(name, half, signal.SIGTERM)
        path = next((faults.folder / name).glob("*.part.pt" if "part" in fault else "rp.pt"))
        raw = bytearray(path.read_bytes())
        raw[len(raw) // 2] ^= 1
        path.write_bytes(raw[:len(raw) // 2] if "truncated" in fault else raw)
        refused_once(faults, fault, name, "cannot read the checkpoint", path.unlink)
    faults.disturb("torn", half, signal.SIGTERM)
    path = faults.folder / "torn" / LOGS[0]
    path.write_bytes(path.read_bytes()[:-20])
    faults.report("last line of metrics.jsonl cut short", *faults.goes_on("torn"))


def disk(faults: Faults) -> None:
    """Leave no room for a checkpoint, or no permission to write."""
    size = (faults.folder / "whole" / "sft.pt").stat().st_size  # M_P^SFT's part: three times that
    refused_once(faults, "file-size limit (as a full disk)", "full", "rlhf.part.pt: cannot write",
                 overrides=["--run.save_every=0"], file_limit=4 * size)  # and PPO's six
    code, line = faults.finish("unwritable", "--run.dir=/proc")  # where not even root may write
    faults.report("run folder that cannot be written", code == 2
                  and "cannot write the run folder" in line and "\n" not in line, line)


def company(faults: Faults) -> None:
    """Start two runs on one folder, and end ranks."""
    first = faults.start("twice")
    wait_for(first, (faults.folder / "twice" / "data.pt").exists)
    code, line = faults.finish("twice")
    faults.report("second run on one folder", code == 2 and "another run is at work" in line
                  and ended(first)[0] == 0 and faults.same("twice"), line)
    code = faults.disturb("group", faults.point("sft", 60), signal.SIGTERM, "--run.ranks=2")
    saved = list((faults.folder / "group").glob("sft.part.pt"))
    faults.report("SIGTERM to both of two ranks", code == 143 and len(saved) == 1
                  and faults.finish("group", "--run.ranks=2")[0] == 0, f"exit code {code}")
    process = faults.start("rank", "--run.ranks=2", "--run.save_every=0")
    wait_for(process, lambda: faults.progress("rank") >= faults.point("rlhf", 4))
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text("ascii").split()
    os.kill(int(children[0]), signal.SIGKILL)
    code, said = ended(process)
    line = said.splitlines()[-1]
    again = faults.finish("rank", "--run.ranks=2")[0]
    faults.report("one of two ranks killed", code == 2 and again == 0
                  and "goes on from the last save" in line, line)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--dir", help="where the runs go; else a temporary folder")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        faults = Faults(Path(args.dir or temporary))
        kills(faults, args.kills)
        for fault in (evaluation, signals, damages, disk, company):
            fault(faults)
    print(f"{faults.survived} of {faults.tried} faults survived")
    sys.exit(faults.survived < faults.tried)


if __name__ == "__main__":
    main()
