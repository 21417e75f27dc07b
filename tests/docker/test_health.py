"""The health checks of the images, run as the programs that they are."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from edge_client.state import held_state

ROOT = Path(__file__).parents[2]


def check(name: str, **environment: str) -> tuple[int, str]:
    """The exit code and the line that one of the checks ends with."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "proto")])
    result = subprocess.run(
        [sys.executable, str(ROOT / "docker" / f"{name}_health.py")],
        env={**os.environ, "PYTHONPATH": path, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.stderr == ""
    return result.returncode, result.stdout.strip()


@contextmanager
def health_server(state: int) -> Iterator[str]:
    """The address of a gRPC server that gives this answer."""
    server = grpc.server(ThreadPoolExecutor(1))
    servicer = health.HealthServicer()
    servicer.set("", state)
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait()


@pytest.mark.parametrize(("state", "code"), [("SERVING", 0), ("NOT_SERVING", 1)])
def test_the_coordinators_own_word_decides(tmp_path: Path, state: str, code: int) -> None:
    value = health_pb2.HealthCheckResponse.ServingStatus.Value(state)
    with health_server(value) as address:
        (tmp_path / "address").write_text(address)
        assert check("coordinator", HEADWATER_DATA_DIRECTORY=str(tmp_path)) == (code, state)


def test_a_coordinator_that_is_gone_is_unhealthy(tmp_path: Path) -> None:
    with health_server(health_pb2.HealthCheckResponse.SERVING) as address:
        (tmp_path / "address").write_text(address)
    answer = check("coordinator", HEADWATER_DATA_DIRECTORY=str(tmp_path))
    assert answer == (1, f"the coordinator at {address} does not answer: UNAVAILABLE")


def test_a_coordinator_that_never_listened_is_unhealthy(tmp_path: Path) -> None:
    code, line = check("coordinator", HEADWATER_DATA_DIRECTORY=str(tmp_path))
    assert code == 1
    assert line.startswith("the coordinator has not started yet: ")


def test_a_client_that_does_not_run_is_unhealthy(tmp_path: Path) -> None:
    assert check("client", XDG_STATE_HOME=str(tmp_path)) == (1, "no client is running")


@pytest.mark.parametrize(
    ("since", "answer"),
    [
        (None, (1, "not connected to the coordinator")),
        ("2026-01-02T03:04:05+00:00", (0, "attends far:7070 since 2026-01-02T03:04:05+00:00")),
    ],
)
def test_a_client_is_healthy_while_it_attends(
    tmp_path: Path, since: str | None, answer: tuple[int, str]
) -> None:
    with held_state(tmp_path / "headwater-client") as state:
        state.status.write_text(json.dumps({"coordinator": "far:7070", "connected_since": since}))
        assert check("client", XDG_STATE_HOME=str(tmp_path)) == answer


def test_a_damaged_status_file_is_named(tmp_path: Path) -> None:
    with held_state(tmp_path / "headwater-client") as state:
        state.status.write_text("{")
        code, line = check("client", XDG_STATE_HOME=str(tmp_path))
    assert code == 1
    assert line.startswith(f"{state.status} is damaged: ")
