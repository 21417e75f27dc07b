"""Child processes of a test: started, awaited by what they say, and ended whatever happens."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

ROOT = Path(__file__).parents[2]
PATIENCE_SECONDS = float(os.environ.get("PATIENCE", "120"))
"""How long a test waits for a signal before it fails; never how long it takes."""

ENVIRONMENT = {
    name: value for name, value in os.environ.items() if not name.startswith("HEADWATER_")
} | {"PYTHONPATH": f"{ROOT}:{ROOT / 'proto'}", "COLUMNS": "200"}

T = TypeVar("T")


def eventually(look: Callable[[], T], what: str, seconds: float = PATIENCE_SECONDS) -> T:
    """The first true value that `look` returns."""
    end = time.monotonic() + seconds
    while not (found := look()):
        if time.monotonic() > end:
            raise AssertionError(f"{what} did not happen within {seconds:.0f} s")
        time.sleep(0.01)
    return found


# A shell that starts the tests in the background has them ignore SIGINT, and what is ignored here
# is ignored in the children: with a handler of ours they begin with the default again.
signal.signal(signal.SIGINT, signal.default_int_handler)


class Process:
    """A child in a session of its own, with its output in a file."""

    def __init__(
        self,
        command: Sequence[str],
        log: Path,
        environment: Mapping[str, str] | None = None,
        folder: Path | None = None,
    ) -> None:
        self.log = log
        self._from = log.stat().st_size if log.exists() else 0
        with log.open("ab") as output:
            self.popen = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=ENVIRONMENT | dict(environment or {}),
                cwd=folder or log.parent,
                start_new_session=True,
            )

    @property
    def text(self) -> str:
        """What it wrote since this process began."""
        with self.log.open("rb") as file:
            file.seek(self._from)
            return file.read().decode(errors="replace")

    @property
    def alive(self) -> bool:
        return self.popen.poll() is None

    def wait_line(self, pattern: str, seconds: float = PATIENCE_SECONDS) -> str:
        """The first line that matches; fails at once when the process ends without one."""

        def look() -> str:
            ended = not self.alive
            lines = [line for line in self.text.splitlines() if re.search(pattern, line)]
            if ended and not lines:
                raise AssertionError(f"it ended without {pattern!r}:\n{self.text}")
            return lines[0] if lines else ""

        return eventually(look, f"a line {pattern!r} in\n{self.log}", seconds)

    def kill(self) -> None:
        """End it as a power cut would: SIGKILL."""
        self.popen.kill()
        self.popen.wait()

    def stop(self, number: signal.Signals = signal.SIGTERM, seconds: float = 20.0) -> int:
        """Ask it to end; its exit code."""
        self.popen.send_signal(number)
        return self.popen.wait(seconds)

    def end(self, seconds: float = PATIENCE_SECONDS) -> int:
        """Wait until it ends by itself; its exit code."""
        return self.popen.wait(seconds)

    def destroy(self) -> None:
        """End it and every process of its session."""
        if self.alive:
            os.killpg(self.popen.pid, signal.SIGKILL)
            self.popen.wait()


@dataclass(frozen=True)
class Output:
    """How a command ended."""

    code: int
    out: str
    err: str


def run(
    *arguments: str,
    package: str = "coordinator",
    environment: Mapping[str, str] | None = None,
    folder: Path | None = None,
) -> Output:
    """Run `headwater ARGUMENTS` (or `headwater-client`) as a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", package, *arguments],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        env=ENVIRONMENT | dict(environment or {}),
        cwd=folder,
        timeout=PATIENCE_SECONDS,
    )
    return Output(done.returncode, done.stdout, done.stderr)
