"""A coordinator and its clients as real processes on loopback, in a folder of a test."""

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from coordinator.compiler.compiled_plan import CompiledPlan
from coordinator.control_client import ControlClient
from headwater.v1 import control_pb2
from tests.system.device import Device
from tests.system.processes import Output, Process, eventually, run
from tests.system.training import job_text, write_examples

LOOPBACK = "127.0.0.1:0"
GATED = Path(__file__).with_name("gated_client.py")


class Fleet:
    """Everything that it starts ends with it. `plan` is what its jobs train.

    `environment` is what the coordinator's has beside the tests' own.
    """

    def __init__(self, folder: Path, plan: CompiledPlan) -> None:
        self.folder = folder
        self.plan = plan
        self.data = folder / "data"
        self.address = LOOPBACK
        self.coordinator: Process | None = None
        self.clients: dict[str, Process] = {}
        self.environment: dict[str, str] = {}
        self._ended: list[Process] = []
        self._devices: list[Device] = []
        self._options: tuple[str, ...] = ()
        self._jobs = 0

    def program(self, name: str, package: str) -> list[str]:
        """The command that runs a program as the process of this name."""
        return [sys.executable, "-m", package]

    # The coordinator.

    def serve(self, *options: str) -> Process:
        """Start it, or start it again on the same data directory and port; wait until it serves."""
        self._options = options or self._options
        (self.data / "address").unlink(missing_ok=True)
        command = [*self.program("coordinator", "coordinator"), "serve", "--listen", self.address]
        command += ["--data-directory", str(self.data), "--data", f"clusters={self.held_out}"]
        log = self.folder / "coordinator.log"
        process = Process([*command, *self._options], log, self.environment)
        self.coordinator = process
        self._ended.append(process)
        process.wait_line("listening on")
        self.address = (self.data / "address").read_text()
        return process

    @cached_property
    def held_out(self) -> Path:
        return write_examples(self.folder / "held-out.npz", seed=1000)

    @property
    def serving(self) -> Process:
        assert self.coordinator is not None
        return self.coordinator

    @property
    def database(self) -> str:
        return f"sqlite:///{self.data / 'headwater.db'}"

    @cached_property
    def control(self) -> ControlClient:
        """The running coordinator's Control service; it survives restarts."""
        return ControlClient(self.address)

    # Devices.

    def client(self, name: str, *options: str, data: Path | str | None = None) -> Process:
        """A real client with a part of the data; wait until it attends."""
        process = self.start_client(name, *options, data=data)
        process.wait_line("attending")
        return process

    def start_client(self, name: str, *options: str, data: Path | str | None = None) -> Process:
        """A real client, which may not attend yet."""
        return self._client(
            name,
            [
                *self.program(name, "edge_client"),
                "run",
                *("--coordinator", self.address, "--name", name),
                *("--state", str(self.state(name)), "--trainer", "onnxruntime", "--threads", "1"),
                *("--data", f"clusters={self.part(name) if data is None else data}", *options),
            ],
        )

    def gated_client(self, name: str, gate: Path, at: str) -> Process:
        """A real client that stays at `at` (train or upload) while the file `gate` is there."""
        arguments = [self.address, str(self.state(name)), name, str(self.part(name)), str(gate), at]
        process = self._client(name, [sys.executable, str(GATED), *arguments])
        process.wait_line("attending")
        return process

    def state(self, name: str) -> Path:
        return self.folder / "state" / name

    def part(self, name: str) -> Path:
        """The client's own examples, by its name alone."""
        path = self.folder / "parts" / f"{name}.npz"
        return path if path.exists() else write_examples(path, seed=sum(name.encode()))

    def device(self, name: str, /, **hello: Any) -> Device:
        """A hand-driven device; not attending yet."""
        device = Device(self.address, name, self.plan, **hello)
        self._devices.append(device)
        return device

    def _client(self, name: str, arguments: list[str]) -> Process:
        process = Process(arguments, self.folder / f"{name}.log")
        self.clients[name] = process
        self._ended.append(process)
        return process

    # Jobs and history.

    def submit(self, **changes: object) -> str:
        """Submit the tiny job with some keys changed; its reference."""
        self._jobs += 1
        path = self.folder / f"job-{self._jobs}.toml"
        path.write_text(job_text(**changes))
        return self.control.submit(path, self.plan).reference

    def job(self, reference: str) -> control_pb2.Job:
        return self.control.show_job(reference).job

    def finish(self, reference: str, state: str = "completed") -> list[control_pb2.Round]:
        """Follow a job to its end; its training rounds."""
        for _ in self.control.follow(reference):
            pass
        job = self.job(reference)
        assert job.state == state, f"{job.state}: {job.state_reason}\n{self.serving.text}"
        return self.rounds(reference)

    def rounds(self, reference: str) -> list[control_pb2.Round]:
        found = self.control.list_rounds(reference).rounds
        return [one for one in found if one.purpose == "train"]

    def ledger(self, reference: str, number: int = 1) -> dict[str, control_pb2.LedgerRow]:
        """The rows of a round by client."""
        found = self.control.show_round(reference, number).assignments
        return {one.client: one for one in found}

    def wait_row(
        self, reference: str, client: str, state: str, number: int = 1
    ) -> control_pb2.LedgerRow:
        """A client's row of a round once it has that state."""

        def look() -> control_pb2.LedgerRow | None:
            if not any(one.number == number for one in self.rounds(reference)):
                return None
            row = self.ledger(reference, number).get(client)
            return row if row is not None and row.state == state else None

        row = eventually(look, f"{state} of {client} in round {number} of {reference}")
        assert row is not None
        return row

    def digests(self, reference: str) -> list[str]:
        """The digests of a job's versions, in order."""
        return [one.weights_digest for one in self.control.list_models(reference).models]

    def attending(self, *names: str) -> None:
        """Wait until exactly these clients attend."""

        def look() -> bool:
            clients = self.control.list_clients().clients
            return sorted(one.name for one in clients if one.attending) == sorted(names)

        eventually(look, f"attendance of {names}")

    def cli(self, *arguments: str, code: int = 0) -> Output:
        """A `headwater` command that speaks to the coordinator; checks its exit code."""
        done = run(*arguments, environment={"HEADWATER_COORDINATOR": self.address})
        assert done.code == code, done
        assert "Traceback" not in done.out + done.err
        return done

    def json(self, *arguments: str) -> Any:
        """What a listing prints with --json."""
        return json.loads(self.cli(*arguments, "--json").out)

    def end(self) -> None:
        for device in self._devices:
            device.close()
        for process in self._ended:
            process.destroy()
        if "control" in self.__dict__:
            self.control.__exit__(None, None, None)


FleetFactory = Callable[[], Fleet]


@contextmanager
def fleets(folder: Path, plan: CompiledPlan) -> Iterator[FleetFactory]:
    """Makes fleets, each in a folder of its own, and ends them all."""
    made: list[Fleet] = []

    def make() -> Fleet:
        place = folder / f"fleet-{len(made)}"
        place.mkdir(parents=True)
        made.append(Fleet(place, plan))
        return made[-1]

    try:
        yield make
    finally:
        for fleet in made:
            fleet.end()
            shutil.rmtree(fleet.data, ignore_errors=True)
