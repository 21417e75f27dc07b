"""The state directory: what a client remembers from one run to the next, held by one process.

identity.json   who the device is                 lock         held while a client runs
cache/          plans and weights, by digest      updates/     the finished update, until
optimizer/      optimizer state of kept jobs                   the coordinator has it
checkpoints/    training under way           residuals/   what encodings left out
status.json     what the client does now
"""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from headwater import durable_files
from headwater.errors import HeldError

_ATTEMPTS = 3
_ATTEMPT_SECONDS = 0.05


class StateDirectory:
    """The paths inside a state directory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.identity = path / "identity.json"
        self.lock = path / "lock"
        self.status = path / "status.json"
        self.cache = path / "cache"
        self.updates = path / "updates"
        self.optimizer = path / "optimizer"
        self.checkpoints = path / "checkpoints"
        self.residuals = path / "residuals"


def default_state_path() -> Path:
    """`headwater-client` below XDG_STATE_HOME, which is ~/.local/state unless set."""
    home = os.environ.get("XDG_STATE_HOME")
    return (Path(home) if home else Path.home() / ".local" / "state") / "headwater-client"


@contextmanager
def held_state(path: Path) -> Iterator[StateDirectory]:
    """Hold a state directory for this process alone, creating it where it is missing.

    Raises:
        HeldError: another process holds it; the message has its process id.
        StorageError: it cannot be created or written.
    """
    state = StateDirectory(path)
    durable_files.make_folder(path, 0o700)
    with durable_files.disk_errors(state.lock):
        # Without a buffer, which would be written again when the file is closed.
        lock = state.lock.open("a+b", buffering=0)
    with lock:
        if not _locked(lock.fileno()):
            raise HeldError(
                f"{path} is in use by the headwater-client process {_holder(state)}: stop it, or "
                "give this one a state directory of its own with --state"
            )
        with durable_files.disk_errors(state.lock):
            lock.truncate(0)
            lock.write(str(os.getpid()).encode())
        yield state


def running_process(path: Path) -> str | None:
    """The process id of the client that holds a state directory, or None."""
    state = StateDirectory(path)
    try:
        with state.lock.open("r") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _holder(state)
    except OSError:
        return None
    return None


def _locked(descriptor: int) -> bool:
    """Try a few times: `status` holds the lock for an instant when it looks."""
    for attempt in range(_ATTEMPTS):
        if attempt:
            time.sleep(_ATTEMPT_SECONDS)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            continue
        return True
    return False


def _holder(state: StateDirectory) -> str:
    return state.lock.read_text().strip() or "(unknown)"
