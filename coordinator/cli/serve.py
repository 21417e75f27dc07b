"""`headwater serve`: run a coordinator."""

import asyncio
import logging
import os
from math import isfinite
from pathlib import Path

import click

from coordinator.server import Settings
from coordinator.server import serve as serve_until_stopped
from headwater.errors import UsageError
from headwater.logs import configure_logs
from headwater.sources.binding import absent_path, parse_binding
from storage.blob_place import CACHE_BYTES

_log = logging.getLogger("headwater.serve")


@click.command()
@click.option(
    "--listen",
    metavar="HOST:PORT",
    default="127.0.0.1:7070",
    show_default=True,
    envvar="HEADWATER_LISTEN",
    help="Where to listen; port 0 lets the system choose.",
)
@click.option(
    "--data-directory",
    "directory",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("headwater-data"),
    show_default=True,
    envvar="HEADWATER_DATA_DIRECTORY",
    help="Blobs, uploads and the SQLite database.",
)
@click.option(
    "--database",
    metavar="URL",
    envvar="HEADWATER_DATABASE",
    help="sqlite:///PATH or postgresql://USER@HOST/NAME; SQLite in the data directory by default.",
)
@click.option(
    "--blobs",
    metavar="URL",
    envvar="HEADWATER_BLOBS",
    help="Keep blobs in this bucket, s3://BUCKET/PREFIX; in the data directory by default.",
)
@click.option(
    "--blob-cache-gib",
    type=click.FloatRange(0),
    default=CACHE_BYTES / 2**30,
    show_default=True,
    help="What local copies of a bucket's blobs may take, in GiB, beside those in use.",
)
@click.option(
    "--data",
    "bindings",
    metavar="NAME=PATH",
    multiple=True,
    help="Held-out data to evaluate jobs of this data set on; may be given again.",
)
@click.option(
    "--insecure",
    is_flag=True,
    help="Allow an address that others can reach, without encryption or enrollment.",
)
@click.option(
    "--threads",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Threads that a fold and an evaluation may use.",
)
@click.option(
    "--lease-seconds",
    type=click.FloatRange(1),
    default=30.0,
    show_default=True,
    help="Silence after which a client's assignment is given up.",
)
@click.option(
    "--minimum-bytes-per-second",
    type=click.FloatRange(0),
    default=10_000.0,
    show_default=True,
    help="A transfer that is slower for a minute is cut, and may go on where it was; 0 for never.",
)
@click.option(
    "--keep-update-rounds",
    type=click.IntRange(0),
    default=2,
    show_default=True,
    help="Rounds of a job whose updates are kept on disk.",
)
@click.option(
    "--log-format",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    envvar="HEADWATER_LOG_FORMAT",
    help="How log lines look.",
)
def serve(
    listen: str,
    directory: Path,
    database: str | None,
    blobs: str | None,
    blob_cache_gib: float,
    bindings: tuple[str, ...],
    insecure: bool,
    threads: int,
    lease_seconds: float,
    minimum_bytes_per_second: float,
    keep_update_rounds: int,
    log_format: str,
) -> None:
    """Run a coordinator until it is told to stop (SIGTERM or Ctrl-C).

    Jobs continue where they were when it starts again on the same data directory and database.
    """
    if not isfinite(blob_cache_gib):
        raise UsageError(f"--blob-cache-gib {blob_cache_gib} is no size")
    if not isfinite(lease_seconds):
        raise UsageError(f"--lease-seconds {lease_seconds} is no number of seconds")
    configure_logs(log_format)
    directory = directory.resolve()
    settings = Settings(
        listen=listen,
        data=directory,
        database=database or f"sqlite:///{directory / 'headwater.db'}",
        held_out=dict(parse_binding(one) for one in bindings),
        insecure=insecure,
        threads=threads,
        lease_seconds=lease_seconds,
        minimum_bytes_per_second=minimum_bytes_per_second,
        keep_update_rounds=keep_update_rounds,
        blobs=blobs,
        blob_cache_bytes=int(blob_cache_gib * 2**30),
    )
    for name, binding in settings.held_out.items():
        if path := absent_path(binding):
            _log.warning("held-out data of %s: there is no file or folder %s", name, path)
    asyncio.run(serve_until_stopped(settings))
    # A fold or an evaluation that is under way is repeated by the next start: the interpreter
    # would wait for its thread, which may take minutes.
    logging.shutdown()
    os._exit(0)
