"""Who attends now: one entry a client identity, the newest stream wins.

A stream that another instance of the same identity displaced may be a device that was cloned. When
the displaced instance comes back while the other still attends, two devices share one identity, and
that is refused and reported.
"""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field

from headwater.v1 import fleet_pb2

OUTBOX_MESSAGES = 64
"""Directives that may wait for a client that does not read; more ends its stream."""


@dataclass(eq=False)
class Attendee:
    """One attending client: what it said of itself, and the messages on their way to it."""

    client_id: str
    instance_id: str
    name: str
    hostname: str
    hello: fleet_pb2.Hello
    outbox: asyncio.Queue[fleet_pb2.AttendResponse | None] = field(
        default_factory=lambda: asyncio.Queue(OUTBOX_MESSAGES)
    )

    def push(self, message: fleet_pb2.AttendResponse | None) -> None:
        """Queue a directive; None ends the stream, and so does a client that does not read."""
        try:
            self.outbox.put_nowait(message)
        except asyncio.QueueFull:
            self.outbox.get_nowait()
            self.outbox.put_nowait(None)


class Attendance:
    """The attending clients. Used on the event loop only."""

    def __init__(self) -> None:
        self._by_client: dict[str, Attendee] = {}
        self._displaced: dict[str, set[str]] = {}

    def __len__(self) -> int:
        return len(self._by_client)

    def __iter__(self) -> Iterator[Attendee]:
        return iter(list(self._by_client.values()))

    def get(self, client_id: str) -> Attendee | None:
        """The client's attending instance."""
        return self._by_client.get(client_id)

    def tell(self, client_id: str, message: fleet_pb2.AttendResponse) -> None:
        """Queue a directive for the client, if it attends."""
        if (attendee := self._by_client.get(client_id)) is not None:
            attendee.push(message)

    def rival(self, client_id: str, instance_id: str) -> Attendee | None:
        """The attending instance that displaced this one before: both use one identity."""
        present = self._by_client.get(client_id)
        returns = instance_id in self._displaced.get(client_id, ())
        return present if present and present.instance_id != instance_id and returns else None

    def enter(self, attendee: Attendee) -> None:
        """Let it attend; an older stream of the same identity is told so and ends."""
        before = self._by_client.get(attendee.client_id)
        self._by_client[attendee.client_id] = attendee
        if before is None:
            return
        if before.instance_id != attendee.instance_id:
            self._displaced.setdefault(attendee.client_id, set()).add(before.instance_id)
            reason = (
                f"another instance of this client attends now, from host {attendee.hostname}; "
                "if that is another device, delete the state directory on one of the two"
            )
            before.push(fleet_pb2.AttendResponse(displaced=fleet_pb2.Displaced(reason=reason)))
        before.push(None)

    def leave(self, attendee: Attendee) -> bool:
        """Its stream ended; False when a newer one had taken its place before."""
        if self._by_client.get(attendee.client_id) is not attendee:
            return False
        del self._by_client[attendee.client_id]
        self._displaced.pop(attendee.client_id, None)
        return True
