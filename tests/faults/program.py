"""One of our programs that can be killed at a step: `program.py TRACE FAULT PACKAGE ARGUMENT...`.

It writes every step that it passes to the file TRACE, a line each, and ends by SIGKILL at the fault
`LABEL#N`, when it is about to pass the step LABEL for the N-th time; `-#0` is none. A file's step
is labelled by the function that asked for it, the others by what they concern.
"""

import os
import runpy
import signal
import sys
import threading
from collections import Counter
from types import FrameType

from headwater import steps

_OF_FILES = {
    "write", "flush", "sync", "rename", "move", "replace", "remove", "link", "sync folder",
    "make folder", "put", "stored", "delete",
}  # fmt: skip
_BETWEEN = {"headwater.steps", "headwater.durable_files", "contextlib"}


class Recorder:
    """Counts the steps that the process passes."""

    def __init__(self, trace: str, fault: str) -> None:
        self._trace = os.open(trace, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        self._label, _, number = fault.rpartition("#")
        self._number = int(number)
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()

    def __call__(self, name: str, subject: object) -> None:
        label = label_of(name, subject, sys._getframe(1))
        with self._lock:
            self._counts[label] += 1
            os.write(self._trace, f"{label}\n".encode())
            if label == self._label and self._counts[label] == self._number:
                os.kill(os.getpid(), signal.SIGKILL)


def label_of(name: str, subject: object, frame: FrameType | None) -> str:
    """A step's label, the same in every run."""
    if name not in _OF_FILES:
        return f"{name}: {subject}"
    while frame is not None and frame.f_globals["__name__"] in _BETWEEN:
        frame = frame.f_back
    assert frame is not None
    module = frame.f_globals["__name__"]
    if module.startswith("concurrent."):  # a worker thread was given the operation itself
        return f"{name}: in a worker thread"
    return f"{name}: {module}.{frame.f_code.co_qualname}"


if __name__ == "__main__":
    trace, fault, package, *arguments = sys.argv[1:]
    sys.argv = [package, *arguments]
    with steps.observed(Recorder(trace, fault)):
        runpy.run_module(package, run_name="__main__")
