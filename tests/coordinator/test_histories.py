"""Random histories of a coordinator, against a reference: `HEADWATER_CHAOS=1` draws thousands.

Clients come, go, decline, fail, fall silent and send all that a client may send; the operator
pauses, resumes and cancels; the disk and the database fail for a moment; the coordinator restarts,
or is killed between any two of its calls. Whatever happens, `tests.coordinator.reference` holds
after each step, and in the end every job completes once the world behaves.

The quick profile draws the same histories in every run. The thorough one draws new ones and prints
a failing one as steps to repeat; `HEADWATER_CHAOS_HISTORIES` says how many (3000).
"""

import asyncio
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, event, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from coordinator.compiler.compiled_plan import CompiledPlan
from coordinator.jobs.job_spec import JobSpec
from coordinator.services.submission import submit_job
from headwater.errors import HeadwaterError
from headwater.safetensors import read_weights
from headwater.updates import FRAME_HEADER
from headwater.v1 import control_pb2
from headwater.v1 import fleet_pb2 as pb
from storage.database import open_database
from storage.records import AssignmentState, JobRecord, JobState
from tests.coordinator.reference import Reference
from tests.coordinator.rig import LEASE
from tests.coordinator.simulation import Simulation
from tests.system.device import Update, frames_of, make_update
from tests.system.training import job_text, toml

CHAOS = os.environ.get("HEADWATER_CHAOS") == "1"
HISTORIES = int(os.environ.get("HEADWATER_CHAOS_HISTORIES", "3000")) if CHAOS else 24
STEPS = 60 if CHAOS else 24
PHASES = [Phase.generate, Phase.shrink] if CHAOS else [Phase.generate]
"""To make a failing history shorter takes longer than the quick profile may."""
CLIENTS = 5
DEADLINE = 120.0
CHANGES = (0.25, 0.5, -0.125, -5.0)
"""The last makes a negative variance, which only the fold can see."""
MOMENTUM = {"name": "momentum", "learning_rate": 0.5, "momentum": 0.9, "nesterov": True}

FAILING = ("commit", "committed", "read", "write", "sync", "rename", "move", "sync folder")


class Sent:
    """What a client sends on a stream, as gRPC hands it over."""

    def __init__(self, messages: Iterable[Any] = (), *, ends: bool = False) -> None:
        self.queue: asyncio.Queue[Any] = asyncio.Queue()
        for one in messages:
            self.queue.put_nowait(one)
        if ends:
            self.queue.put_nowait(None)

    def __aiter__(self) -> "Sent":
        return self

    async def __anext__(self) -> Any:
        message = await self.queue.get()
        if message is None:
            raise StopAsyncIteration
        return message


@dataclass
class Client:
    """One device: what it was given, in the order in which it came, and its stream."""

    number: int
    instance: int = 0
    given: list[pb.Assignment] = field(default_factory=list)
    sent: Sent | None = None
    stream: asyncio.Task[None] | None = None

    @property
    def client_id(self) -> str:
        return f"{self.number:032x}"

    @property
    def attends(self) -> bool:
        return self.stream is not None and not self.stream.done()

    def hello(self) -> pb.Hello:
        return pb.Hello(
            client_id=self.client_id, instance_id=f"{self.number:016x}{self.instance:016x}",
            name=f"client-{self.number}", hostname="host", encodings=["fp32"],
            datasets=[pb.Dataset(name="clusters", example_count=8)],
            held_assignment_id=self.given[-1].assignment_id if self.given else 0,
        )  # fmt: skip


clients = st.integers(0, CLIENTS - 1)
haste = st.sampled_from([None, None, None, 0, 1, 2, 3, 5])
"""How many calls take place before the next step; None: all that wait."""


@st.composite
def policies(draw: st.DrawFn) -> dict[str, Any]:
    cohort = draw(st.integers(1, 3))
    return {
        "count": draw(st.integers(1, 3)),
        "cohort": cohort,
        "quorum": draw(st.sampled_from([1, 1, max(1, cohort - 1), cohort])),
        "over_selection": draw(st.sampled_from([1.0, 1.5, 2.0])),
        "without_quorum": draw(st.sampled_from(["abandon", "extend", "lower"])),
        "extensions": draw(st.integers(1, 2)),
        "grace_seconds": draw(st.sampled_from([0, 10])),
        "evaluate": {"on": draw(st.sampled_from([[], ["clients"]]))},
        **draw(
            st.sampled_from(
                [
                    {"rule": "weighted_mean"},
                    {"rule": "median"},
                    {"rule": "weighted_mean", "late": "fold", "largest_staleness": 0},
                    {"rule": "weighted_mean", "late": "fold", "largest_staleness": 1},
                    {"rule": "weighted_mean", "late": "fold"},
                    {"rule": "weighted_mean", "server_optimizer": MOMENTUM},
                    {"rule": "weighted_mean", "server_optimizer": MOMENTUM, "late": "fold"},
                ]
            )
        ),
    }


class History(RuleBasedStateMachine):
    """One coordinator's life."""

    def __init__(self, plan: CompiledPlan, template: Path) -> None:
        super().__init__()
        self.plan, self.layout = plan, plan.manifest.layout
        self.folder = Path(tempfile.mkdtemp(prefix="headwater-history-"))
        (self.folder / "copies").mkdir()
        path = shutil.copy(template, self.folder / "headwater.db")
        self.database = open_database(f"sqlite:///{path}")
        self.reference = Reference(path, self.folder / "copies", self.layout)
        self.clients = [Client(number) for number in range(CLIENTS)]
        self.jobs: list[JobRecord] = []
        self.broken = False

    @initialize(seed=st.integers(0, 2**16), policies=st.lists(policies(), min_size=1, max_size=2))
    def begin(self, seed: int, policies: list[dict[str, Any]]) -> None:
        self.simulation = Simulation(self.folder, self.database, seed, self.reference.states)
        for policy in policies:
            self._submit(policy)

    # Clients.

    @rule(number=clients, anew=st.booleans(), haste=haste)
    def attend(self, number: int, anew: bool, haste: int | None) -> None:
        """A client comes, or comes again before its old stream has ended."""
        self._attend(self.clients[number], anew=anew)
        self._then(haste)

    @rule(haste=haste)
    def all_attend(self, haste: int | None) -> None:
        for one in self.clients:
            if not one.attends:
                self._attend(one)
        self._then(haste)

    @rule(number=clients, haste=haste)
    def leave(self, number: int, haste: int | None) -> None:
        stream = self.clients[number].stream
        if stream is not None:
            stream.cancel()
        self._then(haste)

    @rule(
        number=clients,
        said=st.sampled_from(["training", "uploading", "decline", "failure"]),
        older=st.sampled_from([0, 0, 0, 1]),
        haste=haste,
    )
    def say(self, number: int, said: str, older: int, haste: int | None) -> None:
        client = self.clients[number]
        assignment = _given(client, older)
        if assignment is not None and client.attends and client.sent is not None:
            client.sent.queue.put_nowait(_said(said, assignment.assignment_id))
        self._then(haste)

    @rule(
        number=clients, older=st.sampled_from([0, 0, 0, 0, 1, 2]), change=st.sampled_from(CHANGES),
        fault=st.sampled_from(["", "", "breaks off", "is damaged"]), haste=haste,
    )  # fmt: skip
    def deliver(
        self, number: int, older: int, change: float, fault: str, haste: int | None
    ) -> None:
        """An update of this or an older assignment; again, or another one in its place."""
        client = self.clients[number]
        assignment = _given(client, older)
        if assignment is not None:
            self.simulation.task(self._deliver(client, assignment, change, fault))
        self._then(haste)

    @rule(
        changes=st.sampled_from([CHANGES[:2], CHANGES[1:2], CHANGES[:3], CHANGES[2:], CHANGES]),
        step=st.sampled_from(["", *FAILING]), haste=haste,
    )  # fmt: skip
    def all_deliver(self, changes: tuple[float, ...], step: str, haste: int | None) -> None:
        """Whatever is owed comes at once, so that a round may close; a step of it may fail."""
        for client in self.clients:
            if not client.attends:
                self._attend(client)
        self._then(None)
        if step:
            self.simulation.faults.arm(step, 1)
        for client in self.clients:
            if client.given:
                change = changes[client.number % len(changes)]
                self.simulation.task(self._deliver(client, client.given[-1], change))
        self._then(haste)

    # The world.

    @rule(seconds=st.sampled_from([1.0, 11.0, LEASE, 61.0, DEADLINE]), haste=haste)
    def time_passes(self, seconds: float, haste: int | None) -> None:
        self.simulation.jump(seconds)
        self._then(haste)

    @rule(haste=st.integers(1, 20))
    def calls_take_place(self, haste: int) -> None:
        self._then(haste)

    @rule(
        at=st.integers(0, 1),
        state=st.sampled_from(
            [JobState.PAUSED] * 2 + [JobState.RUNNING] * 2 + [JobState.CANCELLED]
        ),
        haste=haste,
    )  # fmt: skip
    def operate(self, at: int, state: JobState, haste: int | None) -> None:
        """Pause, resume or cancel a job."""
        self.simulation.task(self._change(self.jobs[at % len(self.jobs)], state))
        self._then(haste)

    @rule(killed=st.booleans(), unseen=st.integers(0, 3), returning=st.booleans(), haste=haste)
    def restart(self, killed: bool, unseen: int, returning: bool, haste: int | None) -> None:
        """Kill or stop the coordinator, wherever it is, and start it again."""
        attended = [one for one in self.clients if one.attends]
        self._event("killed" if killed else "stopped")
        with self._watched():
            if not killed:
                self.simulation.do(self.simulation.engine.stop())
            self.simulation.kill(unseen)
            self.simulation.begin()
            self.simulation.faults.disarm()
            self.simulation.do(self.simulation.engine.start())
        for one in attended if returning else []:
            self._attend(one)
        self._then(haste)

    @rule(step=st.sampled_from(FAILING), times=st.integers(1, 3), haste=haste)
    def fail(self, step: str, times: int, haste: int | None) -> None:
        """The disk or the database fails for a moment, soon."""
        self.simulation.faults.arm(step, times)
        self._then(haste)

    @precondition(lambda self: self.reference.open_updates())
    @rule(at=st.integers(0, 5))
    def damage(self, at: int) -> None:
        """The disk damages an accepted update that was not folded yet."""
        found = self.reference.open_updates()
        digest = found[at % len(found)]
        path = self.simulation.world.blobs.path(digest)
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
        self.reference.damaged.add(digest)
        self._event("damaged")
        self._then(0)

    # How it is done.

    def teardown(self) -> None:
        try:
            if not self.broken and self.jobs:
                self._finish()
        finally:
            self._close()

    def _finish(self) -> None:
        """From now on the world behaves, and every job comes to its end."""
        self.simulation.faults.disarm()
        self._event(f"failures {min(3, self.simulation.faults.struck)}")
        for _ in range(60):
            for client in self.clients:
                self._attend(client, anew=True)
            for job in self.jobs:
                self.simulation.task(self._change(job, JobState.RUNNING))
            self._then(None)
            for client in self.clients:
                if client.given:
                    self.simulation.task(self._deliver(client, client.given[-1], 0.25))
            self._then(None)
            if self.reference.ended():
                return
            self.simulation.jump(LEASE)
        raise AssertionError("a job does not come to its end")

    def _close(self) -> None:
        if hasattr(self, "simulation"):  # no step failed before the first
            self.simulation.end()
        self.reference.close()
        self.database.close()
        shutil.rmtree(self.folder)

    def _then(self, calls: int | None) -> None:
        """Let time for some calls, and look at what came of it."""
        with self._watched():
            self.simulation.go_on(calls)
            self.reference.check()
            self.simulation.check_tasks()

    @contextmanager
    def _watched(self) -> Iterator[None]:
        """After a failure there is nothing left to finish."""
        try:
            yield
        except BaseException:
            self.broken = True
            raise

    def _event(self, text: str) -> None:
        if CHAOS:
            event(text)

    def _submit(self, policy: dict[str, Any]) -> None:
        aggregation = {
            key: policy.pop(key) for key in ("rule", "server_optimizer") if key in policy
        }
        table = "".join(f"{key} = {toml(value)}\n" for key, value in aggregation.items())
        text = f"{job_text(**policy)}[aggregation]\n{table}"
        world = self.simulation.world
        world.blobs.write(self.plan.manifest.to_bytes())
        for member in self.plan.manifest.members:
            world.blobs.write(self.plan.read(member))
        request = control_pb2.SubmitJobRequest(job_file=text, plan_digest=self.plan.digest)
        record = self.simulation.do(submit_job(world, request))
        first = read_weights(world.blobs.path(record.latest_weights_digest), self.layout)
        self.reference.job(record.id, JobSpec.from_dict(record.spec), first)
        self.simulation.do(self.simulation.engine.take_up(record))
        self.jobs.append(record)

    def _attend(self, client: Client, *, anew: bool = False) -> None:
        client.instance += anew
        client.sent = Sent([pb.AttendRequest(hello=client.hello())])
        client.stream = self.simulation.task(self._listen(client, client.sent))

    async def _listen(self, client: Client, sent: Sent) -> None:
        try:
            async for message in self.simulation.fleet.Attend(sent, None):  # type: ignore[arg-type]
                self._hear(client, message)
        except HeadwaterError:
            return

    def _hear(self, client: Client, message: pb.AttendResponse) -> None:
        match message.WhichOneof("message"):
            case "assignment":
                client.given.append(message.assignment)
            case "fate" if message.fate.state == AssignmentState.ACCEPTED:
                self.reference.fate(message.fate.assignment_id, message.fate.folded)

    async def _deliver(
        self, client: Client, assignment: pb.Assignment, change: float, fault: str = ""
    ) -> None:
        """Offer and send; a refusal or a failure ends it, and the client may come again."""
        evaluates = assignment.purpose == pb.PURPOSE_EVALUATE
        update = None if evaluates else self.reference.keep(make_update(self.layout, change))
        fleet = self.simulation.fleet
        try:
            answer = await fleet.Offer(_offer(client, assignment, update), None)  # type: ignore[arg-type]
            if answer.verdict == pb.OFFER_VERDICT_SEND and update is not None:
                messages = _upload(client, assignment, update, answer.from_byte, fault)
                receipt = (await fleet.Submit(Sent(messages, ends=True), None)).receipt  # type: ignore[arg-type]
                if receipt.state in (AssignmentState.ACCEPTED, AssignmentState.LATE):
                    self.reference.receipt(receipt.assignment_id, receipt.digest)
            elif answer.verdict == pb.OFFER_VERDICT_HAVE_IT:
                self.reference.receipt(answer.receipt.assignment_id, answer.receipt.digest)
        except HeadwaterError:
            return

    async def _change(self, job: JobRecord, state: JobState) -> None:
        reason = "the operator's" if state is not JobState.RUNNING else "resumed"
        try:
            await self.simulation.engine.change(job.reference, state, reason)
        except HeadwaterError:
            return
        if state is JobState.CANCELLED:
            self.reference.cancelled.add(job.id)


def _given(client: Client, older: int) -> pb.Assignment | None:
    return client.given[-1 - older] if len(client.given) > older else None


def _said(what: str, assignment_id: int) -> pb.AttendRequest:
    if what == "decline":
        said = pb.Decline(assignment_id=assignment_id, reason="busy")
        return pb.AttendRequest(decline=said)
    if what == "failure":
        return pb.AttendRequest(failure=pb.Failure(assignment_id=assignment_id, reason="broke"))
    phase = pb.PHASE_UPLOADING if what == "uploading" else pb.PHASE_TRAINING
    return pb.AttendRequest(progress=pb.Progress(assignment_id=assignment_id, phase=phase))


def _offer(client: Client, assignment: pb.Assignment, update: Update | None) -> pb.OfferRequest:
    return pb.OfferRequest(
        assignment_id=assignment.assignment_id, client_id=client.client_id,
        digest=update.digest if update else "", size_bytes=len(update.encoded) if update else 0,
        encoding="fp32", base_weights_digest=assignment.weights_digest,
        summary=pb.UpdateSummary(
            examples=client.number + 1, metrics_before={"loss": 2.0}, metrics_after={"loss": 1.0}
        ),
    )  # fmt: skip


def _upload(
    client: Client, assignment: pb.Assignment, update: Update, from_byte: int, fault: str
) -> list[pb.SubmitRequest]:
    header = pb.SubmitHeader(
        assignment_id=assignment.assignment_id, client_id=client.client_id, digest=update.digest,
        from_byte=from_byte,
    )  # fmt: skip
    frames = frames_of(update)
    ends = list(accumulate((len(one.payload) + FRAME_HEADER.size for one in frames), initial=0))
    rest = frames[ends.index(from_byte) :]
    if fault == "breaks off":
        rest = rest[:1]
    if fault == "is damaged" and rest:
        rest[-1] = pb.Frame(checksum=rest[-1].checksum ^ 1, payload=rest[-1].payload)
    return [pb.SubmitRequest(header=header), *(pb.SubmitRequest(frame=one) for one in rest)]


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty database, to be copied."""
    path = tmp_path_factory.mktemp("template") / "headwater.db"
    open_database(f"sqlite:///{path}", create=True).close()
    return path


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # of those that were killed
@pytest.mark.timeout(6 * 3600 if CHAOS else 300)
def test_whatever_happens_the_ledger_and_the_weights_are_right(
    plan: CompiledPlan, template: Path
) -> None:
    profile = settings(
        max_examples=HISTORIES, stateful_step_count=STEPS, deadline=None, database=None,
        derandomize=not CHAOS, print_blob=CHAOS, suppress_health_check=list(HealthCheck),
        phases=PHASES, report_multiple_bugs=False,
    )  # fmt: skip
    run_state_machine_as_test(lambda: History(plan, template), settings=profile)
