"""The demo, as a newcomer runs it."""

import json
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.system.processes import ENVIRONMENT, Process, eventually

HEADWATER = str(Path(sys.executable).with_name("headwater"))
"""The installed command, as a newcomer types it."""


def environment(folder: Path) -> dict[str, str]:
    return {"TMPDIR": str(folder)}


def of_this_demo(folder: Path) -> list[int]:
    """The processes that name the demo's folder in their command line."""
    found = []
    for process in psutil.process_iter(["pid", "cmdline"]):
        command = " ".join(process.info["cmdline"] or [])
        if (str(folder) in command and "serve" in command) or f"--state {folder}" in command:
            found.append(process.info["pid"])
    return found


@pytest.mark.slow
def test_the_demo_in_json(tmp_path: Path) -> None:
    """`headwater demo --json` ends with one line of JSON, accuracy at least 0.90, and the history
    command that it prints works."""
    done = subprocess.run(
        [HEADWATER, "demo", "--json"],
        capture_output=True, text=True, timeout=240, cwd=tmp_path,
        env=ENVIRONMENT | environment(tmp_path),
    )  # fmt: skip
    assert done.returncode == 0, done
    lines = done.stdout.splitlines()
    result = json.loads(lines[-1])
    assert result["accuracy"] >= 0.90
    assert result["rounds"] == 10
    assert {"seconds", "bytes_up", "bytes_down", "database", "model"} <= set(result)
    assert Path(result["model"]).stat().st_size > 1000
    (history,) = [line for line in lines if line.startswith("history")]
    listed = subprocess.run(
        [*shlex.split(history.removeprefix("history")), "--json"],
        capture_output=True, text=True, check=True, cwd=tmp_path, env=ENVIRONMENT,
    )  # fmt: skip
    rounds = json.loads(listed.stdout)
    assert [one["state"] for one in rounds if one["purpose"] == "train"] == ["committed"] * 10
    assert of_this_demo(tmp_path) == []


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_ctrl_c_ends_every_process_of_the_demo(
    tmp_path: Path, number: signal.Signals, code: int
) -> None:
    """Ctrl-C while it trains: no process survives, and the exit code is 130."""
    place = tmp_path / "tmp"
    place.mkdir()
    demo = Process(
        [sys.executable, "-u", HEADWATER, "demo"], tmp_path / "demo.log",
        environment(place),
    )  # fmt: skip
    try:
        eventually(lambda: "coordinator on" in demo.text, "the start of the demo", 60)
        log = eventually(lambda: [*place.glob("*/coordinator.log")], "the coordinator's log")[0]
        eventually(lambda: log.read_text().count(" attends ") == 4, "four clients", 60)
        started = of_this_demo(place)
        assert len(started) == 5, started
        client = psutil.Process(started[-1])
        client.suspend()  # so that the first round is under way when the signal comes
        eventually(lambda: "round opened" in log.read_text(), "the first round", 120)
        demo.popen.send_signal(number)
        client.resume()
        assert demo.end(30) == code
        assert "Traceback" not in demo.text
        assert [pid for pid in started if psutil.pid_exists(pid)] == []
    finally:
        demo.destroy()
