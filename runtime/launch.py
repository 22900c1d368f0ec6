"""How a script starts and ends: its device, its ranks, what a user sees when something is wrong.

Several ranks are processes of the same command: torchrun's, or on a CPU those that `start_ranks`
starts by itself.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import torch
import torch.distributed as dist

from runtime import checks, files, interrupt
from runtime.settings import UserError

_children: list[subprocess.Popen] = []


def guard(main) -> None:
    """Run a script's main function; a UserError ends it with one line and exit code 2."""
    interrupt.install(of_another="PIT_MEETING" in os.environ)
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # what is typed may be no UTF-8
            stream.reconfigure(encoding="utf-8", errors="replace")
    line, unread = "", False
    try:
        main()
        sys.stdout.flush()
    except UserError as error:
        line = str(error)
    except BrokenPipeError:  # the reader of the output has gone, as head does
        unread = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        if error.errno not in files.FULL + files.FORBIDDEN:
            raise
        line = f"{error.filename or 'a file'}: {error.strerror}; {files.remedy(error)}"
    except RuntimeError as error:
        if "out of memory" in str(error) or "can't allocate memory" in str(error):
            line = ("out of memory; lower model.micro_batch (activations), ppo.batch (prompts and "
                    "cache), run.ranks (each holds the models) or the model, or set run.shard on "
                    "several devices; the same command goes on from the last save")
        elif "gloo" in str(error) and "PIT_MEETING" in os.environ:  # a connection broke
            if not _children:
                sys.exit(2)  # rank 0 says why
            if not another_has_ended():
                raise
            line = last_words("another rank has died; the same command goes on from the last save")
        else:
            raise
    finally:
        stop_ranks(failed=bool(line) or unread or sys.exc_info()[0] is not None)
    if unread:
        sys.exit(128 + 13)  # SIGPIPE, which Windows has not
    if line:
        if os.environ.get("RANK", "0") == "0":
            print(f"error: {line}", file=sys.stderr)
        elif "PIT_MEETING" in os.environ:
            with suppress(OSError):  # rank 0 has ended before, and removed the folder
                Path(os.environ["PIT_MEETING"], "error").write_text(line, encoding="utf-8")
        sys.exit(2)


def another_has_ended(patience: float = 5.0) -> bool:
    """Tell whether another rank has failed. Its connection breaks a moment before its process is
    gone, for which we wait, `patience` seconds at most."""
    until = time.monotonic() + patience
    while not (ended := any(child.poll() for child in _children)) and time.monotonic() < until:
        time.sleep(0.05)
    return ended


def last_words(default: str) -> str:
    """Return the error line of a rank that has ended; the default if it left none."""
    said = Path(os.environ["PIT_MEETING"], "error")
    return said.read_text(encoding="utf-8") if said.exists() else default


def pick_device(name: str) -> torch.device:
    """Return the device of that name; "auto" is a CUDA GPU where there is one, else the CPU. (We
    tried nothing on Apple's MPS; ask for it by name.) Raises UserError if it is absent."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(),
             "cpu": True}
    if name == "auto":
        name = "cuda" if there["cuda"] else "cpu"
    if not there[name]:
        raise UserError(f"run.device = {name!r}: this machine has none; try --run.device=cpu")
    return torch.device(name, int(os.environ.get("LOCAL_RANK", 0)) if name == "cuda" else None)


def choose_for(device: torch.device, config) -> None:
    """Settle in the config what it leaves to the device."""
    run, model, gpu = config.run, config.model, device.type == "cuda"
    model.micro_batch = model.micro_batch or (65_536 if gpu else 2048)
    model.look_every = model.look_every or (16 if gpu else 1)
    run.amp = ("bf16" if gpu else "off") if run.amp == "auto" else run.amp


def usual_ranks(config, device: torch.device) -> int:
    """Return how many processes share a CPU where run.ranks = 0: one for each core, at most 8 and
    no more than the smallest batch can feed; where no script runs (a notebook), one.

    By default torch's number of threads is that of the cores, with MKL that of the
    physical ones; OMP_NUM_THREADS changes it, and a container may have the time of fewer cores."""
    script = getattr(sys.modules["__main__"], "__file__", None)
    if device.type != "cpu" or not script or not Path(sys.argv[0]).is_file():
        return 1
    fits = [getattr(config, name).smallest() for name in checks.FITS]
    return max(1, min(8, torch.get_num_threads(), allotted_cores(),
                      config.ppo.batch // config.ppo.minibatches, config.ppo.prompts() // 2, *fits,
                      config.eval.prompts, config.data.test, config.data.valid))


def allotted_cores() -> int:
    """Return how many cores a Linux container may use; where no limit is set, more than exist."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        return max(1, int(quota) // int(period))
    except (OSError, ValueError):  # another system, or "max"
        return sys.maxsize


def start_ranks(count: int, device: torch.device) -> None:
    """Join torchrun's ranks, or on a CPU start `count` - 1 more processes of this command.

    Each rank works with one thread: matrices this small do not gain from a second one.
    """
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if device.type == "cpu":
        torch.set_num_threads(1)
        loopback = {"linux": "lo", "darwin": "lo0"}  # on Windows gloo finds it by itself
        if sys.platform in loopback:
            os.environ.setdefault("GLOO_SOCKET_IFNAME", loopback[sys.platform])
        if count > 1 and "RANK" not in os.environ:
            folder = tempfile.mkdtemp()
            os.environ.update(WORLD_SIZE=str(count), PIT_MEETING=folder, RANK="0")
            try:
                start_children(count)
                wait_for_children(Path(folder))
            except BaseException:
                stop_ranks(failed=True)  # a notebook goes on
                raise
        elif os.environ.get("RANK", "0") != "0" and "PIT_MEETING" in os.environ:
            Path(os.environ["PIT_MEETING"], f"rank{os.environ['RANK']}").touch()
    if int(os.environ.get("WORLD_SIZE", 1)) > 1 and not dist.is_initialized():
        folder = os.environ.get("PIT_MEETING")
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
            init_method=meeting_url(Path(folder, "ranks")) if folder else "env://",
            rank=int(os.environ["RANK"]), world_size=int(os.environ["WORLD_SIZE"]))


def start_children(count: int) -> None:
    """Start the ranks from 1 on. From their first moment they ignore SIGINT and SIGTERM, which a
    terminal sends to all: rank 0 ends them."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    handlers = {} if files.WINDOWS else {
        number: signal.signal(number, signal.SIG_IGN) for number in numbers}  # is inherited
    try:
        for rank in range(1, count):
            _children.append(subprocess.Popen(
                [sys.executable, *sys.argv], env=os.environ | {"RANK": str(rank)},
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0)))
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def wait_for_children(folder: Path) -> None:
    """Wait until each has left a file in the folder: torch waits for half an hour, and takes no
    signal meanwhile. Raises UserError if one has ended before."""
    while sum(1 for _ in folder.glob("rank[0-9]*")) < len(_children):
        if any(child.poll() is not None for child in _children):
            raise UserError(last_words("another rank has ended before the run began; see what it "
                                       "said above, or set run.ranks = 1"))
        time.sleep(0.02)


def meeting_url(path: Path) -> str:
    """Return the address of a file where ranks find each other, as torch reads it: after file://
    it takes a path as it is, but on Windows, where file:///C:/a%20b is C:\\a b."""
    return path.as_uri() if files.WINDOWS else f"file://{path}"


def stop_ranks(failed: bool) -> None:
    """Leave the process group and end the processes that this one started."""
    if dist.is_initialized() and not failed:
        dist.destroy_process_group()
    for child in _children:
        if failed:
            child.kill()
        child.wait()
    _children.clear()
    if "PIT_MEETING" in os.environ and os.environ["RANK"] == "0":
        shutil.rmtree(os.environ["PIT_MEETING"], ignore_errors=True)
        for name in ("RANK", "WORLD_SIZE", "PIT_MEETING"):
            del os.environ[name]
