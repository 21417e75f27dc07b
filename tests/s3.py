"""An S3-compatible server for tests: a child of this process, on loopback.

Use it from any test package by importing the fixture into its conftest:
`from tests.s3 import s3_server`.
"""

import importlib.util
import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from urllib.parse import parse_qs, urlsplit
from urllib.request import Request, urlopen

import pytest

from tests.system.processes import Process

CREDENTIALS = {"AWS_ACCESS_KEY_ID": "tester", "AWS_SECRET_ACCESS_KEY": "secret"}
"""What the server takes: by default it takes any."""


class S3Server:
    """One server; `new_bucket` gives a test a bucket of its own."""

    def __init__(self, folder: Path, environment: Mapping[str, str] | None = None) -> None:
        self._process = Process(
            [sys.executable, "-m", "tests.s3_program"], folder / "s3.log", environment
        )
        self.endpoint = self._process.wait_line("serving at").split()[-1]
        self._numbers = count(1)

    def new_bucket(self) -> str:
        """The URL of a prefix in a new bucket."""
        name = f"bucket-{next(self._numbers)}"
        with urlopen(Request(f"{self.endpoint}/{name}", method="PUT")):
            return f"s3://{name}/some/prefix?endpoint={self.endpoint}"

    def remove_bucket(self, place: str) -> None:
        """Remove the empty bucket of a store's place."""
        name = urlsplit(place.split()[0]).netloc
        with urlopen(Request(f"{self.endpoint}/{name}", method="DELETE")):
            pass

    @contextmanager
    def away(self) -> Iterator[None]:
        """Connections are refused while the block runs."""
        before = self._process.text
        self._process.popen.send_signal(signal.SIGUSR1)
        self._wait_more(before, "away")
        try:
            yield
        finally:
            before = self._process.text
            self._process.popen.send_signal(signal.SIGUSR2)
            self._wait_more(before, "serving")

    def _wait_more(self, before: str, word: str) -> None:
        end = time.monotonic() + 60
        while word not in self._process.text[len(before) :]:
            assert self._process.alive and time.monotonic() < end, self._process.text
            time.sleep(0.01)

    def end(self) -> None:
        self._process.destroy()


def needs_s3() -> None:
    """Skip where the client or the server is not installed."""
    for module in ("obstore", "moto", "flask_cors"):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed: pip install 'headwater[dev]'")


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A server that takes any credentials; those of the tests are set while it runs."""
    needs_s3()
    server = S3Server(tmp_path_factory.mktemp("s3"))
    with pytest.MonkeyPatch.context() as patch:
        for name in [one for one in os.environ if one.startswith("AWS_")]:
            patch.delenv(name)
        for name, value in CREDENTIALS.items():
            patch.setenv(name, value)
        yield server
    server.end()


def overwrite(url: str, path: str, content: bytes) -> None:
    """Put other bytes where an object is, past every check of ours."""
    import obstore
    from obstore.store import S3Store

    parts = urlsplit(url)
    endpoint = parse_qs(parts.query)["endpoint"][0]
    options = {"allow_http": True}
    bucket = S3Store(parts.netloc, prefix=parts.path, endpoint=endpoint, client_options=options)
    obstore.put(bucket, path, content)
