"""SIGINT and SIGTERM, and Windows' Ctrl-Break, which stands for SIGTERM there: inside of a training
they wait for the end of the step, that it can be saved; elsewhere, or the second time, they end the
program with 128 + their number."""

import os
import signal
import sys
import time

asked = 0         # the signal that waits
since = 0.0       # when it came
waiting = False   # whether a training is on that looks at it


def handle(number: int, _frame) -> None:
    global asked, since
    if not waiting or asked and time.monotonic() > since + 1:  # a scheduler may send it twice
        if os.environ.get("RANK", "0") == "0":  # print() may be what was interrupted
            os.write(2, b"\ninterrupted; what is finished is kept, and the same command goes on\n")
        sys.exit(128 + number)
    asked, since = number, time.monotonic()


def release() -> None:
    """End the program if that was asked for during the training, which is over and saved."""
    global waiting
    waiting = False
    if asked:
        sys.exit(128 + asked)


def leave(saved: str) -> None:
    """End the program between two steps, telling what is saved."""
    if os.environ.get("RANK", "0") == "0":
        print(f"\ninterrupted and saved: {saved}; the same command goes on from there",
              file=sys.stderr)
    sys.exit(128 + (asked or signal.SIGTERM))


def install(of_another: bool) -> None:
    """Handle the signals, or ignore them in a process `of_another` one, which kills it."""
    for name in ("SIGINT", "SIGTERM", "SIGBREAK"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN if of_another else handle)
