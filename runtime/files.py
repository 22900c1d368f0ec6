"""Files that are whole or not there: checkpoints, logs, and the lock of a run folder.

A checkpoint is torch's zip file. torch.load does not look at the check sums of what it reads, so
they are checked first: a flipped bit is an error, not a weight.
"""

import errno
import hashlib
import json
import os
import pickle
import secrets
import zipfile
from contextlib import suppress
from pathlib import Path

import torch

from runtime.settings import UserError, reason_of

WINDOWS = os.name == "nt"
UNFINISHED = ".pit-unfinished"  # how the names of temporary files end


def write_whole(path: Path, write) -> None:
    """Write a file whole or not at all: to a temporary one with a name of its own, synced,
    then renamed over the old one.

    Raises UserError where that fails; what was there before is then still there.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}{UNFINISHED}")
    try:
        with open(temporary, "xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        if not WINDOWS:  # which opens no folders
            folder = os.open(path.parent, os.O_RDONLY)
            os.fsync(folder)  # else the new name could be lost
            os.close(folder)
    except BaseException as error:
        with suppress(OSError):  # a folder that cannot be written has none
            temporary.unlink(missing_ok=True)
        if not isinstance(error, (OSError, RuntimeError)):  # the latter is torch's for a full disk
            raise
        raise UserError(f"{path}: cannot write it ({reason_of(error)}); {remedy(error)} and run "
                        "the same command again: it goes on from what was saved") from None


FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)


def remedy(error: Exception) -> str:
    """Say what to do where a file cannot be written; torch's errors are those of a full disk."""
    kind = getattr(error, "errno", None)
    if kind in (errno.ENOENT, errno.ENOTDIR):
        return "choose a folder that is there"
    if kind in FORBIDDEN:
        return "choose a place that you may read and write"
    return "make room"


def save(path: Path, content: dict) -> None:
    """Write a checkpoint: tensors and plain values."""
    write_whole(path, lambda file: torch.save(content, file))


def load(path: Path, weights: bool = True) -> dict:
    """Read a checkpoint to the CPU. Raises UserError where it is missing, cannot be read, is
    damaged, or holds anything but tensors and plain values (which could run code). Without
    `weights` their check sums are left alone, for who looks at plain values only."""
    try:
        with zipfile.ZipFile(path) as archive:
            if weights and archive.testzip():
                raise zipfile.BadZipFile("its check sums do not fit its content")
        content = torch.load(path, map_location="cpu", weights_only=True,
                             mmap=not WINDOWS)  # which replaces no file that is mapped
        if not isinstance(content, dict) or "inputs" not in content:
            raise zipfile.BadZipFile("it is no checkpoint of a stage")
        return content
    except FileNotFoundError:
        raise UserError(f"{path}: no such checkpoint; train it first") from None
    except pickle.UnpicklingError:
        reason = "it holds more than tensors and plain values"
    except Exception as error:  # zipfile and torch raise several kinds for a damaged file
        reason = reason_of(error)
        if not damaged(error):
            raise UserError(f"{path}: cannot read it ({reason}); fix that and run the same "
                            "command again") from None
    raise UserError(f"{path}: cannot read the checkpoint ({reason}); delete it, and the same "
                    "command makes it again")


def damaged(error: Exception) -> bool:
    """Return whether a read error is the file's fault, not the machine's or its rights'."""
    if isinstance(error, OSError):
        return error.errno in (None, errno.EINVAL)  # a place before the file's beginning
    of_the_machine = ("allocate memory", "unable to mmap", "unable to open")  # torch's words
    return not isinstance(error, MemoryError) and not any(w in str(error) for w in of_the_machine)


def append(path: Path, line: dict) -> str:
    """Add a line to a file of JSON lines, and return it. Raises UserError where that fails."""
    text = json.dumps(line, ensure_ascii=False) + "\n"
    try:
        with open(path, "a", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise UserError(f"{path}: cannot write it ({error.strerror}); {remedy(error)} and run the "
                        "same command again") from None
    return text


def rewrite(path: Path, drop: str, add: list[str]) -> None:
    """Drop the lines of a file that start with `drop`, and a torn last one; add others."""
    text = path.read_bytes() if path.exists() else b""  # as text, U+2028 would end a line too
    lines = [line for line in text.splitlines(keepends=True)
             if line.endswith(b"\n") and not line.startswith(drop.encode())]
    lines += [line.encode() for line in add]
    if b"".join(lines) != text:
        write_whole(path, lambda file: file.write(b"".join(lines)))


def sync(path: Path) -> None:
    """Make sure that what was appended to a file survives a loss of power."""
    if path.exists():
        with open(path, "ab") as file:  # Windows syncs no file that is open for reading
            os.fsync(file.fileno())


class Busy(UserError):
    """Another run is at work in a folder."""


def lock(folder: Path):
    """Make a folder and keep other runs out of it until the returned file is closed or the process
    ends, however it ends; remove what writes that were killed have left there. Raises Busy
    where another run is at work there, UserError where it cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / "lock", "ab")
        take(file)
        for left in folder.glob(f".*{UNFINISHED}"):
            left.unlink()
    except BlockingIOError:
        raise Busy(f"{folder}: another run is at work there; wait for it, or choose another "
                   "--run.name") from None
    except OSError as error:
        raise UserError(f"{folder}: cannot write the run folder, or lock it ({error.strerror}); "
                        "choose another --run.dir") from None
    return file


def take(file) -> None:
    """Lock an open file for this process. Raises BlockingIOError where another one has it."""
    if not WINDOWS:
        import fcntl
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return
    import msvcrt
    try:
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # its first byte, which need not be there
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EDEADLK):
            raise
        raise BlockingIOError(error.errno, error.strerror) from None


def checksum(path: str | Path) -> str:
    """Return the SHA-256 of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
