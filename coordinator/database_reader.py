"""The history in a database, with the questions of `ControlClient`: no coordinator needs to run."""

from functools import partial
from types import TracebackType
from typing import Self

from coordinator.services import queries
from headwater.v1 import control_pb2
from storage.database import open_database


class DatabaseReader:
    """Answers from a database URL; it writes nothing.

    Raises (all methods): NotFoundError; SchemaVersionError and StorageError when it is opened.
    """

    def __init__(self, url: str) -> None:
        self._database = open_database(url)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._database.close()

    def list_jobs(self) -> control_pb2.ListJobsResponse:
        """The jobs, newest first."""
        return self._database.read_now(queries.list_jobs)

    def show_job(self, job: str) -> control_pb2.ShowJobResponse:
        """One job. What it waits for is known to a running coordinator only."""
        found = self._database.read_now(partial(queries.show_job, reference=job))
        return control_pb2.ShowJobResponse(job=found)

    def list_rounds(self, job: str, limit: int = 0) -> control_pb2.ListRoundsResponse:
        """A job's rounds by number."""
        return self._database.read_now(partial(queries.list_rounds, reference=job, limit=limit))

    def show_round(self, job: str, number: int) -> control_pb2.ShowRoundResponse:
        """A round with its ledger."""
        return self._database.read_now(partial(queries.show_round, reference=job, number=number))

    def list_clients(self) -> control_pb2.ListClientsResponse:
        """The clients by name."""
        return self._database.read_now(queries.list_clients)

    def show_client(self, client: str) -> control_pb2.ShowClientResponse:
        """A client with its latest assignments."""
        return self._database.read_now(partial(queries.show_client, name=client))

    def list_models(self, job: str, best: str = "") -> control_pb2.ListModelsResponse:
        """A job's model versions, by number or best first."""
        return self._database.read_now(partial(queries.list_models, reference=job, best=best))
