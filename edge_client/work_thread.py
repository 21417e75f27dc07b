"""One long-lived thread for everything that computes, so that the event loop stays free.

One thread and not a pool: runtimes keep pools of their own for each thread that calls them, and a
client does one assignment at a time. It is a daemon, because a step under way cannot be stopped and
must not hold up the end of the process.
"""

import asyncio
import queue
import threading
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class WorkThread:
    """Runs one call after another."""

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._serve, name="headwater-work", daemon=True)
        self._thread.start()

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call `function` in the thread; its result, or what it raises."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()

        def call() -> None:
            try:
                result = function(*args, **kwargs)
            except BaseException as error:
                _deliver(loop, future, error=error)
            else:
                _deliver(loop, future, result=result)

        self._calls.put(call)
        return await future

    def close(self) -> None:
        """End the thread after the call under way."""
        self._calls.put(None)

    def _serve(self) -> None:
        while (call := self._calls.get()) is not None:
            call()


def _deliver(
    loop: asyncio.AbstractEventLoop,
    future: "asyncio.Future[Any]",
    *,
    result: object = None,
    error: BaseException | None = None,
) -> None:
    def settle() -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)

    # The loop is closed when the process ends while a step is under way: nobody waits then.
    if not loop.is_closed():
        loop.call_soon_threadsafe(settle)
