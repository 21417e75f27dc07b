"""`submit --follow`: what an author sees of a job, to its end."""

import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.fleet import Fleet
from tests.system.processes import Process
from tests.system.training import write_job


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    """While this file is there, the client bob does not train."""
    path = tmp_path / "gate"
    path.touch()
    return path


@pytest.fixture
def author(fleet: Fleet, tmp_path: Path, gate: Path) -> Iterator[Process]:
    """An author's terminal that follows the tiny job, in whose first round bob is awaited."""
    fleet.client("alice")
    fleet.gated_client("bob", gate, "train")
    job_file = write_job(tmp_path / "author")
    command = [sys.executable, "-m", "coordinator", "submit", str(job_file), "--follow"]
    author = Process([*command, "--coordinator", fleet.address], tmp_path / "author.log")
    try:
        author.wait_line("job tiny is queued")
        fleet.wait_row("tiny", "alice", "accepted")
        yield author
    finally:
        author.destroy()


def test_an_author_follows_a_job_across_a_restart_of_the_coordinator(
    fleet: Fleet, author: Process, gate: Path
) -> None:
    fleet.serving.kill()
    author.wait_line("goes on, and so does this when it is back")
    fleet.serve()
    gate.unlink()
    assert author.end() == 0, author.text
    assert author.text.count("committed") >= 3
    assert "job tiny is completed" in author.text


def test_ctrl_c_ends_the_following_and_says_that_the_job_goes_on(
    fleet: Fleet, author: Process, gate: Path
) -> None:
    assert author.stop(signal.SIGINT) == 130
    assert "job tiny goes on: headwater jobs show tiny, headwater jobs cancel tiny" in author.text
    gate.unlink()
    fleet.finish("tiny")


def test_the_round_that_was_open_when_the_job_was_paused_is_still_told(
    fleet: Fleet, author: Process, gate: Path
) -> None:
    fleet.control.change("tiny", "pause")
    gate.unlink()
    assert author.end() == 1, author.text
    assert "1  committed" in author.text
    assert "job tiny is paused" in author.text
