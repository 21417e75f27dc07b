"""Named steps at which the world outside a process changes: files, commits and messages.

A program passes each of them before it takes it, and a commit or a message once more after it. In
a test an observer may stop there, fail or end the process: what a crash can leave behind lies
between two of these steps.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

Observer = Callable[[str, object], None]
"""Called with the step's name and what it concerns, such as a path. What it raises is what the step
raises. It may be called from several threads."""

_observers: list[Observer] = []


@contextmanager
def observed(observer: Observer) -> Iterator[None]:
    """Tell `observer` of each step while the block runs."""
    _observers.append(observer)
    try:
        yield
    finally:
        _observers.remove(observer)


def reach(name: str, subject: object = "") -> None:
    """Pass a step: `name` is a verb such as `sync` or `commit`, `subject` what it concerns."""
    for observer in _observers:
        observer(name, subject)
