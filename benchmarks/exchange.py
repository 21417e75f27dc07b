"""The floor of a round: the same bytes between as many processes, and nothing else.

In a round every client sends its bytes, waits until all have sent theirs, and is sent as many back:
over gRPC (grpc.aio, streams of 1 MiB messages, the product's channel options) and over plain TCP.
Nothing is checked, stored or averaged. Run as a command this file is one such client.
"""

import asyncio
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import grpc.aio
import numpy as np

from headwater import durable_files

CHUNK_BYTES = 2**20
METHOD = "/benchmark.Exchange/Round"
WARM_UP = 2
OPTIONS = (
    ("grpc.http2.max_frame_size", 2**20),
    ("grpc.http2.lookahead_bytes", 16 * 2**20),
    ("grpc.use_local_subchannel_pool", 1),
)
"""As the product's bulk channels: about twice the rate of gRPC's own."""


def grpc_seconds(clients: int, size_bytes: int, rounds: int) -> list[float]:
    """Seconds of each of `rounds` rounds over gRPC, after a warm-up."""
    return asyncio.run(_serve_grpc(clients, size_bytes, rounds + WARM_UP))[WARM_UP:]


def tcp_seconds(clients: int, size_bytes: int, rounds: int) -> list[float]:
    """Seconds of each of `rounds` rounds over plain TCP, after a warm-up."""
    return _serve_tcp(clients, size_bytes, rounds + WARM_UP)[WARM_UP:]


def write_seconds(size_bytes: int, repeats: int) -> list[float]:
    """Seconds of each of `repeats` writes of as many bytes to a new file that is then synced."""
    seconds = []
    with TemporaryDirectory(prefix="headwater-benchmark-") as folder:
        for _ in range(repeats):
            began = time.perf_counter()
            path = durable_files.write_temporary(Path(folder), message_of(size_bytes))
            seconds.append(time.perf_counter() - began)
            path.unlink()
    return seconds


def message_of(size_bytes: int) -> list[bytes]:
    """As many random bytes, in pieces of 1 MiB."""
    chunk = np.random.default_rng(1).bytes(min(CHUNK_BYTES, size_bytes))
    whole, rest = divmod(size_bytes, len(chunk))
    return [chunk] * whole + [chunk[:rest]] * bool(rest)


@contextmanager
def _clients(kind: str, count: int, port: int, size_bytes: int, rounds: int) -> Iterator[None]:
    """Client processes that end with the block."""
    command = [sys.executable, __file__, kind, str(port), str(size_bytes), str(rounds + 1)]
    with ExitStack() as stack:
        for _ in range(count):
            process = stack.enter_context(subprocess.Popen(command))
            stack.callback(process.kill)
        yield


async def _serve_grpc(clients: int, size_bytes: int, rounds: int) -> list[float]:
    barrier, chunks = asyncio.Barrier(clients), message_of(size_bytes)
    ended: list[float] = []
    enough = asyncio.Event()

    async def take_part(requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        async for _ in requests:
            pass
        if await barrier.wait() == 0:
            ended.append(time.perf_counter())
            if len(ended) > rounds:
                enough.set()
        for chunk in chunks:
            yield chunk

    server = grpc.aio.server(options=OPTIONS)
    service, _, method = METHOD.removeprefix("/").partition("/")
    handlers: dict[str, Any] = {method: grpc.stream_stream_rpc_method_handler(take_part)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    with _clients("grpc", clients, port, size_bytes, rounds):
        await enough.wait()
    await server.stop(0)
    return np.diff(ended).tolist()


async def _attend_grpc(port: int, size_bytes: int, rounds: int) -> None:
    chunks = message_of(size_bytes)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=OPTIONS) as channel:
        exchange: Any = channel.stream_stream(METHOD)
        for _ in range(rounds):
            async for _ in exchange(iter(chunks)):
                pass


def _serve_tcp(clients: int, size_bytes: int, rounds: int) -> list[float]:
    ended: list[float] = []
    barrier = threading.Barrier(clients, lambda: ended.append(time.perf_counter()))
    chunks = message_of(size_bytes)

    def take_part(connection: socket.socket) -> None:
        with connection:
            for _ in range(rounds + 1):
                _receive(connection, size_bytes)
                barrier.wait()
                _send(connection, chunks)

    with (
        socket.create_server(("127.0.0.1", 0), backlog=clients) as server,
        _clients("tcp", clients, server.getsockname()[1], size_bytes, rounds),
    ):
        threads = [
            threading.Thread(target=take_part, args=(server.accept()[0],)) for _ in range(clients)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return np.diff(ended).tolist()


def _attend_tcp(port: int, size_bytes: int, rounds: int) -> None:
    chunks = message_of(size_bytes)
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(rounds):
            _send(connection, chunks)
            _receive(connection, size_bytes)


def _send(connection: socket.socket, chunks: list[bytes]) -> None:
    for chunk in chunks:
        connection.sendall(chunk)


def _receive(connection: socket.socket, size_bytes: int) -> None:
    buffer = memoryview(bytearray(CHUNK_BYTES))
    while size_bytes:
        got = connection.recv_into(buffer[: min(size_bytes, CHUNK_BYTES)])
        if not got:
            raise ConnectionError("the other side of the exchange ended early")
        size_bytes -= got


if __name__ == "__main__":
    kind, *numbers = sys.argv[1:]
    arguments = [int(number) for number in numbers]
    if kind == "grpc":
        asyncio.run(_attend_grpc(*arguments))
    else:
        _attend_tcp(*arguments)
