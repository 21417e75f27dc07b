"""Two hosts in network namespaces and the emulated link between them.

The link is `linkemu.py` of the folder `shared` beside this checkout: it carries the packets of two
TUN devices with a rate, a delay, a loss and a queue, which change while connections are open.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.system.processes import ROOT, Process, eventually

EMULATOR = ROOT.parent / "shared" / "tools" / "linkemu.py"
HUB_ADDRESS = "10.77.0.1"
"""Where the emulator puts the hub's end of its first link."""

CONGESTION_CONTROL = "reno"
"""The one that every kernel has, so that figures do not depend on the machine's own choice. At the
small windows of slow links cubic, the usual one, behaves like it."""


def missing() -> str:
    """Why this machine cannot have such a link; empty where it can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    for command in ("ip", "sysctl"):
        if shutil.which(command) is None:
            return f"there is no command `{command}`"
    if not EMULATOR.exists():
        return "the link emulator is not beside this checkout: ../shared/tools/linkemu.py"
    try:
        os.close(os.open("/dev/net/tun", os.O_RDWR))
        with _host(f"headwater-probe-{os.getpid()}"):
            return ""
    except OSError as error:
        return f"/dev/net/tun cannot be used: {error.strerror}"
    except subprocess.CalledProcessError as error:
        return f"this machine gives root no network namespaces: {error.stderr.strip()}"


@dataclass(frozen=True)
class Conditions:
    """How each way of a link is."""

    bits_per_second: float
    delay_seconds: float
    loss: float = 0.0

    def ideal_seconds(self, size_bytes: int) -> float:
        """What so many bytes take one way with nothing lost, nothing added and no waiting."""
        return size_bytes * 8 / self.bits_per_second + self.delay_seconds


class Link:
    """Two hosts, `hub` and `leaf`, by the names of their namespaces."""

    def __init__(self, folder: Path, hub: str, leaf: str) -> None:
        self.folder = folder
        self.hub = hub
        self.leaf = leaf
        command = [sys.executable, str(EMULATOR), str(folder / "link"), hub, leaf]
        self.emulator = Process(command, folder / "link.log")

    def set(self, conditions: Conditions) -> None:
        """Give both ways these conditions."""
        self._tell(
            f"rate={conditions.bits_per_second}",
            f"delay={conditions.delay_seconds}",
            f"loss={conditions.loss}",
        )

    def part(self, seconds: float) -> None:
        """Carry nothing for so long; what is on its way is lost."""
        self._tell("up=0")
        arrived = self.carried_bytes(self.hub)
        time.sleep(seconds)  # the partition itself: nothing is awaited here
        assert self.carried_bytes(self.hub) == arrived, "the partition leaked"
        self._tell("up=1")

    def sent_bytes(self, host: str) -> int:
        """What a host has put on the link: headers, and what was lost and sent again, included."""
        return self._statistics(host)["tx"]

    def carried_bytes(self, host: str) -> int:
        """What the link has brought to a host."""
        return self._statistics(host)["rx"]

    def _statistics(self, host: str) -> dict[str, int]:
        done = _ip("-n", host, "-s", "-j", "link", "show", "type", "tun")
        (device,) = json.loads(done.stdout)
        return {way: device["stats64"][way]["bytes"] for way in ("rx", "tx")}

    def _tell(self, *settings: str) -> None:
        """Change settings, and wait until they are in force: the statistics come after them."""
        said = len(self.emulator.text)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as control:
            for message in (" ".join((self.leaf, *settings)), "stats"):
                control.sendto(message.encode(), str(self.folder / "link"))
        eventually(lambda: len(self.emulator.text) > said, "the emulator's answer")


@contextmanager
def link() -> Iterator[Link]:
    """A link without limits; hosts and processes of it end with it."""
    with ExitStack() as stack:
        # A socket's path may not be longer than 107 characters: not in a test's own folder.
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="headwater-link-")))
        hub, leaf = (stack.enter_context(_host(f"{folder.name}-{end}")) for end in ("hub", "leaf"))
        made = Link(folder, hub, leaf)
        stack.callback(made.emulator.destroy)
        made.emulator.wait_line("ready")
        yield made


@contextmanager
def _host(name: str) -> Iterator[str]:
    _ip("netns", "add", name)
    try:
        control = f"net.ipv4.tcp_congestion_control={CONGESTION_CONTROL}"
        _ip("netns", "exec", name, "sysctl", "-qw", control)
        yield name
    finally:
        _ip("netns", "delete", name)


def _ip(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)
