"""A UNIX socket that leads to a port of another network namespace: `doorway.py SOCKET HOST PORT`.

Files are the same in every namespace and ports are not: so a test speaks with a coordinator whose
host it is not on, and none of it passes the link.
"""

import asyncio
import sys


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(2**16):
            writer.write(data)
            await writer.drain()
    except ConnectionError:
        pass  # one end is gone: so is the other, now
    finally:
        writer.close()


async def _serve(path: str, host: str, port: int) -> None:
    async def enter(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner_reader, inner_writer = await asyncio.open_connection(host, port)
        await asyncio.gather(_pump(reader, inner_writer), _pump(inner_reader, writer))

    async with await asyncio.start_unix_server(enter, path) as server:
        print("open", flush=True)
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_serve(sys.argv[1], sys.argv[2], int(sys.argv[3])))
