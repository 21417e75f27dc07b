"""A coordinator on one host and its clients on another, with a link between them."""

import sys
from functools import cached_property
from pathlib import Path

from coordinator.compiler.compiled_plan import CompiledPlan
from coordinator.control_client import ControlClient
from tests.network.link import HUB_ADDRESS, Link
from tests.system.fleet import Fleet
from tests.system.processes import Process

DOORWAY = Path(__file__).with_name("doorway.py")


class DistantFleet(Fleet):
    """A fleet whose coordinator is the hub of a link, and whose clients are its leaf."""

    def __init__(self, folder: Path, plan: CompiledPlan, link: Link) -> None:
        super().__init__(folder, plan)
        self.link = link
        self.address = f"{HUB_ADDRESS}:0"

    def program(self, name: str, package: str) -> list[str]:
        """The program on its host."""
        host = self.link.hub if name == "coordinator" else self.link.leaf
        return [*_on(host), *super().program(name, package)]

    @cached_property
    def control(self) -> ControlClient:
        """The coordinator's Control service, past the link."""
        socket = self.link.folder / "doorway"
        command = [sys.executable, str(DOORWAY), str(socket), *self.address.split(":")]
        doorway = Process([*_on(self.link.hub), *command], self.folder / "doorway.log")
        self._ended.append(doorway)
        doorway.wait_line("open")
        return ControlClient(f"unix:{socket}")

    def received_bytes(self) -> int:
        """What the coordinator has of updates on their way in."""
        return _size(self.data / "spool", "*.part")

    def fetched_bytes(self, name: str) -> int:
        """What a client has of blobs on their way to it."""
        return _size(self.state(name) / "cache", "*.partial")


def _on(host: str) -> list[str]:
    return ["ip", "netns", "exec", host]


def _size(folder: Path, pattern: str) -> int:
    """The bytes of files that may come and go meanwhile."""
    sizes = 0
    for path in folder.glob(pattern):
        try:
            sizes += path.stat().st_size
        except FileNotFoundError:
            continue
    return sizes
