"""A coordinator and its clients as processes of this machine, as an operator would start them."""

import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Self

from coordinator.control_client import ControlClient, SendablePlan
from coordinator.database_reader import DatabaseReader
from coordinator.demo.processes import Processes
from headwater.errors import WorldError
from headwater.v1 import control_pb2

COORDINATOR = "coordinator"
_ENDED = ("completed", "failed", "cancelled", "paused")


class Deployment:
    """`headwater serve` on loopback with SQLite and blobs on disk, and client processes.

    All of it lives in one temporary folder inside `folder`, and ends with the `with` block.
    """

    def __init__(self, options: Sequence[str] = (), folder: Path | None = None) -> None:
        self._options = options
        self._parent = folder
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            temporary = tempfile.TemporaryDirectory(
                prefix="headwater-benchmark-", dir=self._parent, ignore_cleanup_errors=True
            )
            self.folder = Path(stack.enter_context(temporary))
            self._processes = stack.enter_context(Processes(self.folder))
            self.address = "127.0.0.1:0"
            self.serve()
            self._control = stack.enter_context(ControlClient(self.address))
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def serve(self) -> float:
        """Start the coordinator, again on its port; the seconds until it listens."""
        began, place = time.monotonic(), self.folder / "data" / "address"
        place.unlink(missing_ok=True)
        command = [sys.executable, "-m", "coordinator", "serve", "--listen", self.address]
        command += ["--data-directory", str(self.folder / "data"), *self._options]
        self._processes.start(COORDINATOR, command, {"HEADWATER_DATABASE": ""})
        self.address = self._processes.wait_for(place)
        return time.monotonic() - began

    def kill(self, name: str) -> None:
        """End a process as a power cut would."""
        self._processes.kill(name)

    @property
    def log(self) -> str:
        """What the coordinator wrote since it was started last."""
        return self._processes.log(COORDINATOR).read_text()

    @property
    def control(self) -> ControlClient:
        """The coordinator's Control service."""
        return self._control

    def start_client(self, name: str, program: Sequence[str], options: Sequence[str]) -> None:
        """Start one: `program` is followed by the options of `headwater-client run`."""
        command = [*program, "--coordinator", self.address, "--name", name, *options]
        self._processes.start(name, [*command, "--state", str(self.folder / name)], {})

    def run(
        self,
        job_file: Path,
        plan: SendablePlan,
        told: Callable[[control_pb2.Round], None] = lambda _: None,
    ) -> list[control_pb2.Round]:
        """Run a job to its end; its rounds as the database has them. `told` hears each as it ends.

        Raises:
            WorldError: a process ended, or the job did not complete.
        """
        reference = self._control.submit(job_file, plan).reference
        for news in self._control.follow(reference):
            self._processes.check()
            if news.HasField("round"):
                told(news.round)
            elif news.job.job.state in _ENDED:
                if news.job.job.state != "completed":
                    raise WorldError(
                        f"the job is {news.job.job.state}: {news.job.job.state_reason}"
                    )
                break
        with DatabaseReader(f"sqlite:///{self.folder / 'data' / 'headwater.db'}") as database:
            return list(database.list_rounds(reference).rounds)

    def process_id(self, name: str) -> int:
        """The coordinator's, or a client's."""
        return self._processes.process_id(name)

    def peak_memory_mib(self, name: str) -> float:
        """The most that a process has had resident, mapped files included."""
        status = Path(f"/proc/{self.process_id(name)}/status").read_text()
        line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
        return float(line.split()[1]) / 1024


def periods(rounds: Sequence[control_pb2.Round]) -> list[float]:
    """Seconds from each round's opening to the next one's, which leaves nothing out."""
    opened = [one.opened_at.ToNanoseconds() / 1e9 for one in rounds]
    return [after - before for before, after in pairwise(opened)]
