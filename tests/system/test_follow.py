"""`submit --follow`: what an author sees of a job, to its end."""

import sys
from pathlib import Path

from tests.system.fleet import Fleet
from tests.system.processes import Process, eventually
from tests.system.training import write_job


def follow(fleet: Fleet, tmp_path: Path, **changes: object) -> Process:
    """An author's terminal that submits the tiny job and follows it."""
    job_file = write_job(tmp_path / "author", **changes)
    command = [sys.executable, "-m", "coordinator", "submit", str(job_file), "--follow"]
    return Process([*command, "--coordinator", fleet.address], tmp_path / "author.log")


def test_an_author_follows_a_job_across_a_restart_of_the_coordinator(
    fleet: Fleet, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    gate.touch()
    fleet.client("alice")
    fleet.gated_client("bob", gate, "train")
    author = follow(fleet, tmp_path)
    try:
        author.wait_line("job tiny is queued")
        fleet.wait_row("tiny", "alice", "accepted")
        fleet.serving.kill()
        author.wait_line("goes on, and so does this when it is back")
        fleet.serve()
        gate.unlink()
        assert author.end() == 0, author.text
        assert author.text.count("committed") >= 3
        assert "job tiny is completed" in author.text
    finally:
        author.destroy()


def test_the_round_that_was_open_when_the_job_was_paused_is_still_told(
    fleet: Fleet, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    gate.touch()
    fleet.client("alice")
    fleet.gated_client("bob", gate, "train")
    author = follow(fleet, tmp_path)
    try:
        author.wait_line("job tiny is queued")
        fleet.wait_row("tiny", "alice", "accepted")
        fleet.control.change("tiny", "pause")
        gate.unlink()
        assert author.end() == 1, author.text
        eventually(lambda: "1  committed" in author.text, "the round's row")
        assert "job tiny is paused" in author.text
    finally:
        author.destroy()
