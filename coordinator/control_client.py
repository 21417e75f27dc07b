"""A coordinator's Control service, for command lines and for Python.

from coordinator.author import compile_job
from coordinator.control_client import ControlClient

with ControlClient("127.0.0.1:7070") as control:
    job = control.submit("job.toml", compile_job("job.toml"))
    for news in control.follow(job.reference):
        print(news)
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Protocol, Self

import grpc

from headwater.errors import UnavailableError
from headwater.manifest import Manifest
from headwater.plan import MANIFEST, Plan
from headwater.status import error_of
from headwater.v1 import control_pb2, control_pb2_grpc

CHUNK_BYTES = 2**20
CALL_SECONDS = 30.0


class SendablePlan(Protocol):
    """What `submit` needs of a plan, compiled just now or opened from a file."""

    @property
    def manifest(self) -> Manifest:
        """What the plan needs, gives and contains."""

    @property
    def digest(self) -> str:
        """The plan's digest, which is its manifest's."""

    def read(self, member: str) -> bytes:
        """The bytes of a member."""


class ControlClient:
    """Commands and questions to a running coordinator.

    Raises (all methods): what the coordinator says (NotFoundError, ConflictError, …), or
    UnavailableError where none answers.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self._channel = grpc.insecure_channel(
            address,
            options=(
                ("grpc.max_receive_message_length", 64 * 2**20),
                ("grpc.enable_http_proxy", 0),
            ),
        )
        self._stub = control_pb2_grpc.ControlStub(self._channel)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the connection; calls under way fail."""
        self._channel.close()

    def submit(self, job_file: str | Path, plan: SendablePlan) -> control_pb2.Job:
        """Send what the coordinator lacks of the plan, then the job."""
        path = Path(job_file)
        names = {member.digest: name for name, member in plan.manifest.members.items()}
        with self._answers():
            request = control_pb2.MissingRequest(digests=[plan.digest, *names])
            for digest in self._stub.Missing(request, timeout=CALL_SECONDS).digests:
                whole = digest == plan.digest
                content = plan.manifest.to_bytes() if whole else plan.read(names[digest])
                self._stub.Store(_chunks(digest, content))
            submission = control_pb2.SubmitJobRequest(
                job_file=path.read_text(), job_file_name=path.name, plan_digest=plan.digest
            )
            return self._stub.SubmitJob(submission, timeout=CALL_SECONDS).job

    def change(self, job: str, action: str) -> control_pb2.Job:
        """Pause, resume or cancel a job."""
        with self._answers():
            request = control_pb2.ChangeRequest(job=job, action=action)
            return self._stub.Change(request, timeout=CALL_SECONDS).job

    def list_jobs(self) -> control_pb2.ListJobsResponse:
        """The jobs, newest first."""
        with self._answers():
            return self._stub.ListJobs(control_pb2.ListJobsRequest(), timeout=CALL_SECONDS)

    def show_job(self, job: str) -> control_pb2.ShowJobResponse:
        """One job, and what it waits for."""
        with self._answers():
            return self._stub.ShowJob(control_pb2.ShowJobRequest(job=job), timeout=CALL_SECONDS)

    def list_rounds(self, job: str, limit: int = 0) -> control_pb2.ListRoundsResponse:
        """A job's rounds by number."""
        with self._answers():
            request = control_pb2.ListRoundsRequest(job=job, limit=limit)
            return self._stub.ListRounds(request, timeout=CALL_SECONDS)

    def show_round(self, job: str, number: int) -> control_pb2.ShowRoundResponse:
        """A round with its ledger."""
        with self._answers():
            request = control_pb2.ShowRoundRequest(job=job, number=number)
            return self._stub.ShowRound(request, timeout=CALL_SECONDS)

    def list_clients(self) -> control_pb2.ListClientsResponse:
        """The clients by name."""
        with self._answers():
            return self._stub.ListClients(control_pb2.ListClientsRequest(), timeout=CALL_SECONDS)

    def show_client(self, client: str) -> control_pb2.ShowClientResponse:
        """A client with its latest assignments."""
        with self._answers():
            request = control_pb2.ShowClientRequest(client=client)
            return self._stub.ShowClient(request, timeout=CALL_SECONDS)

    def list_models(self, job: str, best: str = "") -> control_pb2.ListModelsResponse:
        """A job's model versions, by number or best first."""
        with self._answers():
            request = control_pb2.ListModelsRequest(job=job, best=best)
            return self._stub.ListModels(request, timeout=CALL_SECONDS)

    def pull(self, job: str, version: int, file: BinaryIO) -> control_pb2.ModelVersion:
        """Write a version's weights (-1: the latest) to a file; its record."""
        model = control_pb2.ModelVersion()
        with self._answers():
            for part in self._stub.Pull(control_pb2.PullRequest(job=job, version=version)):
                if part.HasField("model"):
                    model = part.model
                file.write(part.data)
        return model

    def plan(self, job: str) -> Plan:
        """The plan that a job runs; its members are fetched when they are read."""
        return Plan(self._member(job, MANIFEST), partial(self._member, job))

    def _member(self, job: str, member: str) -> bytes:
        with self._answers():
            request = control_pb2.PullPlanRequest(job=job, member=member)
            return b"".join(part.data for part in self._stub.PullPlan(request))

    def follow(self, job: str, after_round: int = 0) -> Iterator[control_pb2.FollowResponse]:
        """What happened to the job since a round, and what happens, until it ends."""
        with self._answers():
            request = control_pb2.FollowRequest(job=job, after_round=after_round)
            yield from self._stub.Follow(request)

    def _answers(self) -> "_Answers":
        return _Answers(self.address)


class _Answers:
    """Turns failed calls into our errors; says which coordinator did not answer."""

    def __init__(self, address: str) -> None:
        self._address = address

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if not isinstance(error, grpc.RpcError):
            return
        ours = error_of(error)
        if isinstance(ours, UnavailableError):
            ours = UnavailableError(
                f"no coordinator answers at {self._address} ({ours}): start one with headwater "
                "serve, or name it with --coordinator"
            )
        raise ours from error


def _chunks(digest: str, content: bytes) -> Iterator[control_pb2.StoreRequest]:
    yield control_pb2.StoreRequest(digest=digest, data=content[:CHUNK_BYTES])
    for start in range(CHUNK_BYTES, len(content), CHUNK_BYTES):
        yield control_pb2.StoreRequest(data=content[start : start + CHUNK_BYTES])
