"""SIGINT and SIGTERM: inside of a training they wait for the end of the step, that it can be saved;
elsewhere, or the second time, they end the program with 128 + their number."""

import signal
import sys

asked = 0         # the signal that waits
waiting = False   # whether a training is on that looks at it


def handle(number: int, _frame) -> None:
    global asked
    if asked or not waiting:
        sys.exit(128 + number)
    asked = number


def install(numbers: tuple) -> None:
    for number in numbers:
        signal.signal(number, handle)
