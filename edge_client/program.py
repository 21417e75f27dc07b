"""A client as a process: its signals, its state directory and its end."""

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Callable, Mapping

from edge_client.identity import load_identity
from edge_client.memory_limit import limit_memory
from edge_client.profile import memory_bytes
from edge_client.session import Session
from edge_client.settings import Settings
from edge_client.state import held_state
from edge_client.workbench import OpenSource, OpenTrainer
from headwater.freed_memory import keep_freed_memory
from headwater.logs import configure_logs
from headwater.sources.binding import absent_path

INTERRUPTED = 130
_BROKEN = 3
_LAST_WORD_SECONDS = 3.0
_log = logging.getLogger("headwater.client")


def run_client(
    settings: Settings,
    *,
    verbose: bool = False,
    open_trainer: OpenTrainer | None = None,
    open_source: OpenSource | None = None,
    hear: Callable[[Callable[[], None]], None] | None = None,
) -> int:
    """Run until SIGTERM (returns 0) or SIGINT (returns 130); see `Session` for the factories.

    `hear` is told how to end the client from any thread, when it cannot go on (returns 3).

    Raises:
        HeldError: another process uses the state directory.
        HeadwaterError: the client cannot start.
    """
    with held_state(settings.state) as state:
        identity = load_identity(state)
        configure_logs(settings.log_format, verbose=verbose, client=identity.client_id)
        keep_freed_memory()
        limit_memory(memory_bytes())
        session = Session(
            settings, state, identity, open_trainer=open_trainer, open_source=open_source
        )
        _log.info("client %s (%s) starts", identity.client_id, settings.name)
        _warn_of_data(settings.data)
        code = asyncio.run(_until_ended(session, hear))
        _log.info("client %s stops", identity.client_id)
    return code


def _warn_of_data(data: Mapping[str, str]) -> None:
    """Say what will keep jobs from using this client. It runs all the same: a disk may come."""
    if not data:
        _log.warning("no data set is bound, so no job can use this client: add --data NAME=PATH")
    for name, binding in data.items():
        if path := absent_path(binding):
            _log.warning("data set %s: there is no file or folder %s", name, path)


def end_process(code: int) -> None:
    """End now: a training step under way in native code must not hold up the exit."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


async def _until_ended(session: Session, hear: Callable[[Callable[[], None]], None] | None) -> int:
    code = 0

    def stop(exit_code: int) -> None:
        nonlocal code
        code = exit_code
        session.stop()

    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stop, 0)
    loop.add_signal_handler(signal.SIGINT, stop, INTERRUPTED)
    if hear is not None:
        # after a moment, in which the coordinator hears why the assignment failed
        hear(lambda: _call_later(loop, stop))
    await session.run()
    return code


def _call_later(loop: asyncio.AbstractEventLoop, stop: Callable[[int], None]) -> None:
    loop.call_soon_threadsafe(loop.call_later, _LAST_WORD_SECONDS, stop, _BROKEN)
