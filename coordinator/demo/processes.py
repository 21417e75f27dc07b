"""Child processes that never outlive the demo, and say why when they die early."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from headwater.errors import WorldError

STOP_SECONDS = 8.0
WATCH_SECONDS = 0.5
_BLOCK = "import sys; sys.modules['{module}'] = None; import runpy; sys.argv[0] = '{command}'; "
_RUN = "runpy.run_module('{package}', run_name='__main__')"


def without(module: str, package: str) -> list[str]:
    """The command of a package run where importing `module` fails, which proves it is not needed.

    A module that is None in `sys.modules` raises ImportError at every import of it.
    """
    code = (_BLOCK + _RUN).format(module=module, package=package, command=package)
    return [sys.executable, "-c", code]


class Processes:
    """Named child processes with a log file each; all of them end with the `with` block."""

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, command: Sequence[str], environment: Mapping[str, str]) -> None:
        """Start one. It gets a session of its own, so that Ctrl-C reaches the demo alone."""
        with self.log(name).open("wb") as log:
            self._running[name] = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | dict(environment),
                start_new_session=True,
            )

    def kill(self, name: str) -> None:
        """End one with SIGKILL, and forget it."""
        process = self._running.pop(name)
        process.kill()
        process.wait()

    def process_id(self, name: str) -> int:
        """The operating system's number of a process."""
        return self._running[name].pid

    def log(self, name: str) -> Path:
        """Where a process's output goes."""
        return self._logs / f"{name}.log"

    def check(self) -> None:
        """Raise WorldError with the end of its log where one has ended."""
        for name, process in self._running.items():
            code = process.poll()
            if code is not None:
                tail = self.log(name).read_text(errors="replace").strip().splitlines()[-5:]
                raise WorldError(f"{name} ended with exit code {code}:\n" + "\n".join(tail))

    @contextmanager
    def watched(self, on_end: Callable[[], None]) -> Iterator[None]:
        """While the block runs, call `on_end` once if a process ends early."""
        done = threading.Event()

        def watch() -> None:
            while not done.wait(WATCH_SECONDS):
                if any(one.poll() is not None for one in self._running.values()):
                    on_end()
                    return

        thread = threading.Thread(target=watch, name="watch", daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def wait_for(self, path: Path, seconds: float = 60.0) -> str:
        """The text of a file that a process writes when it is ready."""
        end = time.monotonic() + seconds
        while not path.exists():
            self.check()
            if time.monotonic() > end:
                raise WorldError(f"{path.name} did not appear within {seconds:.0f} s")
            time.sleep(0.02)
        return path.read_text()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for process in self._running.values():
            process.send_signal(signal.SIGTERM)
        end = time.monotonic() + STOP_SECONDS
        for process in self._running.values():
            try:
                process.wait(max(0.0, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
