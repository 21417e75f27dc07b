"""A small real job whose processes are killed at steps, and what must hold after it."""

import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from coordinator.compiler.compiled_plan import CompiledPlan
from headwater.errors import HeadwaterError
from headwater.v1 import control_pb2
from storage.blob_place import open_blobs
from storage.database import open_database
from storage.verify import verify
from tests.s3 import CREDENTIALS
from tests.system.fleet import Fleet
from tests.system.processes import PATIENCE_SECONDS

CLIENTS = ("ann", "bob")
ROUNDS = 2


@dataclass(frozen=True)
class Fault:
    """Which program dies, when it is about to pass a step for the n-th time."""

    program: str
    label: str
    occurrence: int

    def __str__(self) -> str:
        return f"{self.program} at {self.label}#{self.occurrence}"


class FaultyFleet(Fleet):
    """A fleet that kills each of its programs once at most, and starts what died again."""

    def __init__(
        self, folder: Path, plan: CompiledPlan, *faults: Fault, database: str = "", blobs: str = ""
    ) -> None:
        super().__init__(folder, plan)
        self.blobs = blobs
        self.environment.update(CREDENTIALS)
        self.where = database or self.database
        self._faults = list(faults)
        self.restarts: Counter[str] = Counter()

    def program(self, name: str, package: str) -> list[str]:
        """The program behind a recorder of its steps."""
        ours = [one for one in self._faults if one.program == name]
        fault = f"{ours[0].label}#{ours[0].occurrence}" if ours else "-#0"
        if ours:
            self._faults.remove(ours[0])
        recorder = [sys.executable, "-m", "tests.faults.program", str(self.trace(name)), fault]
        return [*recorder, package]

    def trace(self, name: str) -> Path:
        """The steps that a program passed, a line each."""
        return self.folder / f"{name}.steps"

    def passed(self, name: str) -> Counter[str]:
        """How often a program passed each step."""
        return Counter(self.trace(name).read_text().splitlines())

    def run_job(self) -> str:
        """Train a job to its end, whatever dies; its reference.

        Raises:
            AssertionError: it does not end, or a program ends that was not killed.
        """
        self._serve_again("--lease-seconds", "20", "--database", self.where, "--blobs", self.blobs)
        for name in CLIENTS:
            self.start_client(name)
        job = self._submitted()
        end = time.monotonic() + PATIENCE_SECONDS
        while (state := self._look(job)) != "completed":
            assert state in ("", "queued", "running"), f"the job {state}: {self.serving.text}"
            assert time.monotonic() < end, f"the job does not end:\n{self.serving.text}"
            self._revive()
            time.sleep(0.02)
        self._revive()
        return job

    def _serve_again(self, *options: str) -> None:
        """Start the coordinator, and again for as long as it is killed while it starts."""
        while True:
            try:
                self.serve(*options)
                return
            except AssertionError:
                if not self._died("coordinator"):
                    raise
                self.restarts["coordinator"] += 1

    def _died(self, name: str) -> bool:
        """Whether a program was killed; any other end is a failure."""
        process = self.serving if name == "coordinator" else self.clients[name]
        code = process.popen.poll()
        assert code in (None, -9), f"{name} ended with {code}:\n{process.text}"
        return code == -9

    def _revive(self) -> None:
        if self._died("coordinator"):
            self.restarts["coordinator"] += 1
            self._serve_again()
        for name in CLIENTS:
            if self._died(name):
                self.restarts[name] += 1
                self.start_client(name)

    def _submitted(self) -> str:
        """Submit once: a coordinator that died may have the job already."""
        while True:
            try:
                jobs = self.control.list_jobs().jobs
                return jobs[0].reference if jobs else self.submit(count=ROUNDS, **JOB)
            except HeadwaterError:
                if not self._died("coordinator"):
                    time.sleep(0.02)
                self._revive()

    def _look(self, job: str) -> str:
        try:
            return self.job(job).state
        except HeadwaterError:
            return ""

    def check(self, job: str, expected: list[str]) -> list[control_pb2.Round]:
        """What must hold whatever was killed; returns the job's rounds.

        Raises:
            AssertionError: the versions are others, a round was lost or made twice, an update is
                not accepted, or database and blobs do not agree with each other.
        """
        assert self.digests(job) == expected
        rounds = self.rounds(job)
        assert [(one.number, one.state, one.accepted) for one in rounds] == [
            (n + 1, "committed", len(CLIENTS)) for n in range(ROUNDS)
        ]
        for one in rounds:
            rows = self.ledger(job, one.number)
            assert {name: row.state for name, row in rows.items()} == dict.fromkeys(
                CLIENTS, "accepted"
            )
        blobs = open_blobs(self.blobs, self.data / "blobs", self.folder / "copies", 2**20)
        with open_database(self.where) as database:
            found = verify(database, blobs)
        assert not found.findings, found.findings
        return rounds


JOB: dict[str, object] = {
    "updates": {"encoding": "topk:0.2+zstd"},  # with error feedback: what it keeps must survive too
    "deadline_seconds": 3600,
    "evaluate": {"every": 1, "on": ["clients", "coordinator"]},
    "optimizer": {"name": "sgd", "learning_rate": 0.05, "momentum": 0.9},
    "optimizer_state": "keep",
}
