"""The coordinator process: opens what it needs, listens, and stops in order."""

import asyncio
import contextlib
import logging
import signal
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

import grpc.aio
from grpc_health.v1 import health, health_pb2_grpc

from coordinator.engine.attendance import Attendance
from coordinator.engine.clock import Clock, SystemClock
from coordinator.engine.engine import Engine
from coordinator.engine.world import World
from coordinator.housekeeping import housekeeping
from coordinator.recovery import recover
from coordinator.services.control import ControlService
from coordinator.services.enrollment import EnrollmentService
from coordinator.services.fleet import FleetService
from coordinator.services.uploads import Uploads
from headwater import durable_files
from headwater.errors import HeldError, UnavailableError, UsageError
from headwater.freed_memory import keep_freed_memory
from headwater.status import StatusInterceptor
from headwater.v1 import control_pb2_grpc, enrollment_pb2_grpc, fleet_pb2_grpc
from storage.blob_place import BLOB_CACHE, BLOBS, CACHE_BYTES, open_blobs
from storage.database import open_database, shown
from storage.hold import hold_directory

_log = logging.getLogger("headwater.server")

STOP_SECONDS = 1.0
"""How long running calls may go on after a stop was asked for."""

ADDRESS_FILE = "address"
"""In the data directory: where the coordinator listens, for those who let it choose the port."""

CHANNEL_OPTIONS = (
    # Larger frames and look-ahead than gRPC's own: bulk uploads run at about twice the rate.
    ("grpc.http2.max_frame_size", 2**20),
    ("grpc.http2.lookahead_bytes", 16 * 2**20),
    ("grpc.max_receive_message_length", 8 * 2**20),
    ("grpc.max_send_message_length", 8 * 2**20),
    # A machine that is gone is noticed within seconds: by TCP, which gRPC gives the keepalive's
    # timeout. The answer to a ping waits behind the blocks of an update, long on a slow link.
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.ping_timeout_ms", 60_000),
    # Clients may ping as often as that.
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.http2.max_pings_without_data", 0),
    # Two coordinators on one port would share its clients between them.
    ("grpc.so_reuseport", 0),
)


@dataclass(frozen=True)
class Settings:
    """What an operator decides. `threads` is what a fold and an evaluation may use.

    `blobs` is the URL of a bucket, None for the data directory; `blob_cache_bytes` bounds the
    copies of a bucket's blobs on this machine.
    """

    listen: str
    data: Path
    database: str
    held_out: Mapping[str, str]
    insecure: bool = False
    threads: int = 1
    lease_seconds: float = 30.0
    minimum_bytes_per_second: float = 10_000.0
    keep_update_rounds: int = 2
    blobs: str | None = None
    blob_cache_bytes: int = CACHE_BYTES

    @property
    def loopback(self) -> bool:
        """Whether only this machine can connect."""
        host = self.listen.rpartition(":")[0].strip("[]")
        try:
            return host == "localhost" or ip_address(host).is_loopback
        except ValueError:
            return False


async def serve(settings: Settings, stop: asyncio.Event | None = None) -> None:
    """Run a coordinator until SIGTERM, SIGINT or `stop`.

    Raises:
        UsageError: another address than loopback without `insecure`.
        UnavailableError: the port is taken.
        HeldError, SchemaVersionError, StorageError: the data directory, database or bucket.
    """
    _check_address(settings)
    keep_freed_memory()
    stop = stop or asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with running(settings) as (address, engine):
        durable_files.write(settings.data / ADDRESS_FILE, [address.encode()])
        _log.info("listening on %s, database %s", address, shown(settings.database))
        endings = [asyncio.create_task(one.wait()) for one in (stop, engine.displaced)]
        await asyncio.wait(endings, return_when=asyncio.FIRST_COMPLETED)
        for one in endings:
            one.cancel()
        _log.info("stopping")
    if engine.displaced.is_set():
        raise HeldError(f"another process has taken over the database {shown(settings.database)}")
    _log.info("stopped")


@asynccontextmanager
async def running(
    settings: Settings, clock: Clock | None = None
) -> AsyncIterator[tuple[str, Engine]]:
    """A coordinator in this event loop; yields the address that it listens on, and its engine."""
    durable_files.make_folder(settings.data)
    holder = f"headwater serve --listen {settings.listen}"
    with (
        hold_directory(settings.data, holder),
        open_database(settings.database, create=True) as database,
        database.hold(holder),
    ):
        spool = settings.data / "spool"
        durable_files.make_folder(spool)
        world = World(
            database=database,
            blobs=open_blobs(
                settings.blobs,
                settings.data / BLOBS,
                settings.data / BLOB_CACHE,
                settings.blob_cache_bytes,
            ),
            spool=spool,
            clock=clock or SystemClock(),
            attendance=Attendance(),
            held_out=settings.held_out,
            threads=settings.threads,
            lease_seconds=settings.lease_seconds,
            minimum_bytes_per_second=settings.minimum_bytes_per_second,
        )
        engine = Engine(world)
        server, port, healthy = _server(engine, settings)
        await recover(engine)
        await server.start()
        keeper = asyncio.create_task(housekeeping(world, settings.keep_update_rounds))
        try:
            yield f"{settings.listen.rpartition(':')[0]}:{port}", engine
        finally:
            keeper.cancel()
            await healthy.enter_graceful_shutdown()
            for attendee in world.attendance:
                attendee.push(None)
            await engine.stop()
            await server.stop(STOP_SECONDS)
            with contextlib.suppress(asyncio.CancelledError):
                await keeper
            world.end()


def _server(
    engine: Engine, settings: Settings
) -> tuple[grpc.aio.Server, int, health.aio.HealthServicer]:
    server = grpc.aio.server(interceptors=[StatusInterceptor()], options=CHANNEL_OPTIONS)
    fleet = FleetService(engine, Uploads(engine), insecure=not settings.loopback)
    fleet_pb2_grpc.add_FleetServicer_to_server(fleet, server)
    control_pb2_grpc.add_ControlServicer_to_server(ControlService(engine), server)
    enrollment_pb2_grpc.add_EnrollmentServicer_to_server(EnrollmentService(), server)
    healthy = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(healthy, server)
    try:
        port = server.add_insecure_port(settings.listen)
    except RuntimeError as error:
        raise UnavailableError(
            f"cannot listen on {settings.listen}: the port is in use, or the address is not this "
            "machine's; choose another with --listen"
        ) from error
    return server, port, healthy


def _check_address(settings: Settings) -> None:
    host, colon, port = settings.listen.rpartition(":")
    if not colon or not host or not port.isdigit() or int(port) > 65535:
        raise UsageError(f"--listen {settings.listen!r}: write HOST:PORT, such as 127.0.0.1:7070")
    if settings.loopback:
        return
    if not settings.insecure:
        raise UsageError(
            f"--listen {settings.listen} is open to the network, and there is no enrollment yet: "
            "anyone who reaches it could join. Listen on 127.0.0.1, or accept that with --insecure"
        )
    _log.warning(
        "INSECURE: %s is open to the network without encryption or enrollment; anyone who "
        "reaches it can join, read models and send updates",
        settings.listen,
    )
