"""A client at work: attends for ever, and hands what it hears to the worker."""

import asyncio
import logging
import os
import random as standard_random
import socket
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version

from edge_client.assignment import AssignmentRunner
from edge_client.attend import Attendance
from edge_client.backoff import Backoff
from edge_client.cache import BlobCache
from edge_client.checkpoints import Checkpoints
from edge_client.clock import Clock, SystemClock
from edge_client.connection import Connection
from edge_client.delivery import Delivery
from edge_client.identity import Identity
from edge_client.journal import Journal
from edge_client.optimizer_states import OptimizerStates
from edge_client.patience import Patience
from edge_client.preparation import Capability, Preparation
from edge_client.profile import measure_profile
from edge_client.residuals import Residuals
from edge_client.runtime import choose_backend, choose_device, trainer_opener
from edge_client.settings import Settings
from edge_client.state import StateDirectory
from edge_client.status_file import StatusFile
from edge_client.transfer import Transfer
from edge_client.workbench import OpenSource, OpenTrainer, Workbench
from edge_client.worker import Worker
from headwater import sources
from headwater.encodings.names import PARTS
from headwater.errors import DisplacedError, HeadwaterError, UnavailableError, UserError
from headwater.v1.fleet_pb2 import (
    AttendRequest,
    AttendResponse,
    Dataset,
    DeviceProfile,
    Hello,
    Welcome,
)

_SLOW_FIRST_SECONDS = 60.0
_SLOW_LONGEST_SECONDS = 600.0
_AWAITED = 64
"""As many fates as a coordinator lets one Hello ask for; there is one for each job that is kept."""
_log = logging.getLogger("headwater.client")


class Session:
    """One client, from `run` to `stop`.

    The caller holds the state directory. `open_trainer` and `open_source` replace the trainers and
    sources of this package, for benchmarks and tests; `clock` and `random` replace time and chance.

    Raises:
        MissingExtraError: the trainer that was asked for is not installed.
        StorageError: the state directory cannot be used.
    """

    def __init__(
        self,
        settings: Settings,
        state: StateDirectory,
        identity: Identity,
        *,
        open_trainer: OpenTrainer | None = None,
        open_source: OpenSource | None = None,
        clock: Clock | None = None,
        random: Callable[[], float] = standard_random.random,
    ) -> None:
        self._settings = settings
        self._state = state
        self._identity = identity
        self._clock = clock or SystemClock()
        self._random = random
        self._backend = choose_backend(settings.trainer)
        self._device = choose_device(self._backend, settings.device)
        self._cache = BlobCache(state.cache, settings.cache_bytes)
        self._journal = Journal(state.updates)
        self._residuals = Residuals(state.residuals, settings.coordinator)
        self._workbench = Workbench(
            self._cache,
            settings.data,
            open_trainer
            or trainer_opener(
                self._backend,
                threads=settings.threads,
                device=settings.device,
                compile=settings.compile,
                precision=settings.precision,
            ),
            open_source or sources.open_source,
        )
        self._status = StatusFile(state.status, self._facts(), self._cache)
        self._attending = asyncio.Event()
        self._stopping = asyncio.Event()
        self._attendance: Attendance | None = None
        self._fast = Backoff(random)
        self._slow = Backoff(
            random, first_seconds=_SLOW_FIRST_SECONDS, longest_seconds=_SLOW_LONGEST_SECONDS
        )

    def stop(self) -> None:
        """Make `run` return soon; a step under way is not waited for."""
        self._stopping.set()

    async def run(self) -> None:
        """Attend and work until `stop`."""
        async with Connection(self._settings.coordinator) as connection:
            worker = self._worker(connection)
            tasks = [
                asyncio.create_task(worker.run()),
                asyncio.create_task(self._attend_forever(connection, worker)),
                asyncio.create_task(self._stopping.wait()),
            ]
            try:
                done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
            finally:
                worker.stop()
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                self._status.connected(False)

    def _worker(self, connection: Connection) -> Worker:
        transfer = Transfer(connection, self._cache, self._identity.client_id)
        patience = Patience(self._attending, self._clock, self._random)
        capability = Capability(self._backend, self._profile().memory_bytes)
        checkpoints = Checkpoints(self._state.checkpoints, self._settings.checkpoint_seconds)
        return Worker(
            preparation=Preparation(transfer, self._cache, self._workbench, patience, capability),
            runner=AssignmentRunner(
                self._workbench,
                self._journal,
                OptimizerStates(self._state.optimizer),
                self._residuals,
                checkpoints,
                client_id=self._identity.client_id,
                coordinator=self._settings.coordinator,
                weights_path=self._cache.path,
            ),
            delivery=Delivery(transfer, self._journal, patience),
            journal=self._journal,
            checkpoints=checkpoints,
            residuals=self._residuals,
            status=self._status,
            clock=self._clock,
            coordinator=self._settings.coordinator,
            send=self._send,
        )

    async def _attend_forever(self, connection: Connection, worker: Worker) -> None:
        while True:
            delay = await self._attend_once(connection, worker)
            await self._clock.sleep(delay)

    async def _attend_once(self, connection: Connection, worker: Worker) -> float:
        """Attend until the stream ends; the seconds to stay away."""

        def welcomed(welcome: Welcome) -> None:
            self._welcomed(welcome)
            worker.repeat_last_word()

        self._attendance = Attendance(
            connection.control,
            self._clock,
            on_welcome=welcomed,
            on_message=lambda message: _dispatch(message, worker),
        )
        try:
            come_back = await self._attendance.run(self._hello(worker.held_assignment_id))
            if come_back is None:
                raise UnavailableError("the coordinator ended the stream")
            _log.info("the coordinator has no work for a while: %s", come_back.reason)
            span = max(0, come_back.before_seconds - come_back.after_seconds)
            return come_back.after_seconds + self._random() * span
        except (Exception, asyncio.CancelledError) as error:
            return self._delay_after(error)
        finally:
            if self._attending.is_set():
                self._attending.clear()
                self._status.connected(False)
            self._attendance = None

    def _welcomed(self, welcome: Welcome) -> None:
        self._fast.reset()
        self._attending.set()
        self._status.connected(True)
        _log.info(
            "attending %s as %s (coordinator %s)",
            self._settings.coordinator,
            welcome.client_name,
            welcome.program_version,
        )

    def _delay_after(self, error: BaseException) -> float:
        """How long to stay away after a stream ended in this way."""
        if isinstance(error, asyncio.CancelledError):
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise error
            error = UnavailableError("the stream was broken off")
        fast = not isinstance(error, DisplacedError | UserError) and isinstance(
            error, HeadwaterError
        )
        delay = (self._fast if fast else self._slow).next_seconds()
        if isinstance(error, DisplacedError):
            _log.error(
                "two devices share one identity (%s), again in %.0f s: %s",
                self._identity.client_id,
                delay,
                error,
            )
        elif fast:
            _log.warning(
                "%s is away, again in %.1f s: %s", self._settings.coordinator, delay, error
            )
        else:
            _log.error("%s refuses this client, again in %.0f s: %s",
                       self._settings.coordinator, delay, error)  # fmt: skip
            _log.debug("where it happened", exc_info=error)
        return delay

    def _send(self, message: AttendRequest) -> None:
        if self._attendance is not None and self._attending.is_set():
            self._attendance.send(message)

    def _hello(self, held_assignment_id: int) -> Hello:
        counts = self._workbench.example_counts
        return Hello(
            client_id=self._identity.client_id,
            instance_id=self._identity.instance_id,
            name=self._settings.name,
            hostname=socket.gethostname(),
            tags=self._settings.tag,
            profile=self._profile(),
            datasets=[
                Dataset(name=name, example_count=counts.get(name, -1))
                for name in sorted(self._settings.data)
            ],
            encodings=list(PARTS),
            held_assignment_id=held_assignment_id,
            awaited_assignment_ids=self._residuals.awaited()[-_AWAITED:],
            program_version=program_version(),
        )

    def _profile(self) -> DeviceProfile:
        return measure_profile(
            self._state.path,
            runtime=self._backend,
            device=self._device,
            threads=self._settings.threads,
        )

    def _facts(self) -> dict[str, object]:
        return {
            "client_id": self._identity.client_id,
            "instance_id": self._identity.instance_id,
            "name": self._settings.name,
            "coordinator": self._settings.coordinator,
            "trainer": self._backend,
            "device": self._device,
            "data": dict(self._settings.data),
            "process_id": os.getpid(),
        }


def program_version() -> str:
    """The version of this installation."""
    try:
        return version("headwater")
    except PackageNotFoundError:
        return "0"  # run from a source tree that is not installed


def _dispatch(message: AttendResponse, worker: Worker) -> None:
    match message.WhichOneof("message"):
        case "assignment":
            worker.assign(message.assignment)
        case "cancel":
            worker.cancel(message.cancel)
        case "fate":
            worker.settle(message.fate)
