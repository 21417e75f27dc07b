"""Jobs beside each other, and an operator's hand on them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from headwater.errors import ConflictError, NotFoundError
from tests.system.fleet import Fleet
from tests.system.processes import ENVIRONMENT, eventually
from tests.system.training import job_text, write_job


@pytest.fixture(scope="module")
def busy_fleet(shared_fleet: Fleet) -> Fleet:
    """Two real clients that stay for all tests of this module."""
    shared_fleet.client("ada", "--tag", "site=north")
    shared_fleet.client("bob", "--tag", "site=south")
    return shared_fleet


def test_several_jobs_at_once(busy_fleet: Fleet) -> None:
    """Several jobs at once over the same clients: all complete, none waits for another's end."""
    jobs = [busy_fleet.submit(count=4, seed=n) for n in range(3)]
    for job in jobs:
        rounds = busy_fleet.finish(job)
        assert [(one.state, one.accepted) for one in rounds] == [("committed", 2)] * 4
    begun = [min(one.opened_at.ToMicroseconds() for one in busy_fleet.rounds(x)) for x in jobs]
    ended = [max(one.ended_at.ToMicroseconds() for one in busy_fleet.rounds(x)) for x in jobs]
    assert max(begun) < min(ended)
    for job in jobs:
        for number in range(1, 5):
            assert {row.state for row in busy_fleet.ledger(job, number).values()} == {"accepted"}


def test_pause_resume_and_cancel(busy_fleet: Fleet) -> None:
    """Pause ends the open round and opens no further one; resume goes on; cancel ends for good."""
    job = busy_fleet.submit(count=100_000)
    eventually(lambda: busy_fleet.rounds(job), "a round")
    assert "paused by the operator" in busy_fleet.cli("jobs", "pause", job).out
    eventually(
        lambda: all(one.state == "committed" for one in busy_fleet.rounds(job)), "the round's end"
    )
    before = len(busy_fleet.rounds(job))
    again = busy_fleet.cli("jobs", "pause", job, code=2)
    assert "is paused already" in again.err
    other = busy_fleet.submit(count=1)  # time passes for the paused job
    busy_fleet.finish(other)
    assert len(busy_fleet.rounds(job)) == before
    busy_fleet.cli("jobs", "resume", job)
    eventually(lambda: len(busy_fleet.rounds(job)) > before, "a round after the pause")
    assert "is cancelled: cancelled by the operator" in busy_fleet.cli("jobs", "cancel", job).out
    eventually(
        lambda: all(one.state in ("committed", "abandoned") for one in busy_fleet.rounds(job)),
        "the round's end",
    )
    for action in ("pause", "resume", "cancel"):
        with pytest.raises(ConflictError, match=r"is cancelled already|has ended"):
            busy_fleet.control.change(job, action)


def test_a_cancelled_round_frees_its_clients(busy_fleet: Fleet) -> None:
    """Cancel in the middle of a round: abandoned, the devices hear of it, others go on."""
    device = busy_fleet.device("dan")
    stream = device.attend()
    job = busy_fleet.submit(cohort=3, quorum=3, count=1)
    task = stream.next("assignment").assignment_id
    busy_fleet.control.change(job, "cancel")
    cancel = stream.next("cancel")
    assert cancel.assignment_id == task
    (one,) = busy_fleet.rounds(job)
    assert (one.state, one.reason) == ("abandoned", "cancelled by the operator")
    assert busy_fleet.ledger(job)["dan"].state == "expired"
    device.close()
    busy_fleet.attending("ada", "bob")
    busy_fleet.finish(busy_fleet.submit(count=1))


def test_submit_and_follow(busy_fleet: Fleet, tmp_path: Path) -> None:
    """`submit --follow` prints a line a round and ends with the job; `--json` for programs."""
    path = write_job(tmp_path, count=2, name="followed")
    done = busy_fleet.cli("submit", str(path), "--follow")
    lines = done.out.splitlines()
    assert lines[0] == "job followed is queued"
    assert sum(" committed " in f" {line} " for line in lines) == 3
    assert lines[-1] == "job followed is completed: all 2 rounds are done"
    done = busy_fleet.cli("submit", str(path), "--follow", "--json")
    rounds = [json.loads(line) for line in done.out.splitlines()]
    assert [(one["purpose"], one["number"]) for one in rounds] == [
        ("train", 1),
        ("train", 2),
        ("evaluate", 3),
    ]
    assert {one["job"] for one in rounds} == {"followed-2"}


def test_following_a_job_that_is_cancelled(busy_fleet: Fleet, tmp_path: Path) -> None:
    """`submit --follow` of a job that ends badly: exit code 1."""
    path = write_job(tmp_path, count=100_000, name="doomed")
    command = [sys.executable, "-m", "coordinator", "submit", str(path), "--follow"]
    with subprocess.Popen(
        [*command, "--coordinator", busy_fleet.address],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=ENVIRONMENT, text=True,
    ) as following:  # fmt: skip
        assert following.stdout is not None
        for line in following.stdout:
            if "committed" in line:
                busy_fleet.control.change("doomed", "cancel")
                break
        rest = following.stdout.read()
        assert following.wait(30) == 1
    assert rest.splitlines()[-1] == "job doomed is cancelled: cancelled by the operator"


def test_early_stopping(busy_fleet: Fleet) -> None:
    """A job ends when its metric stops improving, and says so."""
    stop = {"metric": "accuracy", "patience": 2, "minimum_change": 0.9}
    job = busy_fleet.submit(count=50, stop=stop)
    rounds = busy_fleet.finish(job)
    assert len(rounds) == 3
    assert "accuracy has not improved on" in busy_fleet.job(job).state_reason
    assert "for 2 evaluations" in busy_fleet.job(job).state_reason


def test_starting_from_an_earlier_version(busy_fleet: Fleet) -> None:
    """`[model] start = "JOB@VERSION"`: begins from those bits; a missing version is refused."""
    first = busy_fleet.submit(count=2)
    busy_fleet.finish(first)
    for start, version in ((f"{first}@1", 1), (f"{first}@latest", 2)):
        text = job_text(count=1).replace("[train]", f'start = "{start}"\n[train]')
        path = busy_fleet.folder / "from.toml"
        path.write_text(text)
        second = busy_fleet.control.submit(path, busy_fleet.plan).reference
        busy_fleet.finish(second)
        assert busy_fleet.digests(second)[0] == busy_fleet.digests(first)[version]
        models = busy_fleet.control.list_models(second).models
        assert models[0].parent == f"{first}@{version}"
    path.write_text(job_text().replace("[train]", f'start = "{first}@7"\n[train]'))
    with pytest.raises(NotFoundError, match=f"{first}@2"):
        busy_fleet.control.submit(path, busy_fleet.plan)


def test_a_start_that_does_not_fit_the_model(busy_fleet: Fleet, tmp_path: Path) -> None:
    """A mismatching start: refused with the tensor, before anything runs."""
    first = busy_fleet.submit(count=1)
    busy_fleet.finish(first)
    path = write_job(tmp_path, factory="model:Wider")
    path.write_text(path.read_text().replace("[train]", f'start = "{first}@1"\n[train]'))
    failed = busy_fleet.cli("submit", str(path), code=2)
    message = failed.err.splitlines()[-1]
    assert message.startswith(f"headwater: version {first}@1 cannot be started from: ")
    assert "0.bias" in message or "0.weight" in message


def test_a_job_that_waits_says_for_whom(busy_fleet: Fleet) -> None:
    """Too few eligible clients: `jobs show` and `clients list` say who is missing and why."""
    where = """site == 'north'"""
    path = busy_fleet.folder / "where.toml"
    path.write_text(job_text() + f'[clients]\nwhere = "{where}"\n')
    job = busy_fleet.control.submit(path, busy_fleet.plan).reference
    shown = eventually(lambda: busy_fleet.control.show_job(job).waiting_for, "a reason to wait")
    assert shown.startswith(
        "waits for 1 more eligible client: 1 of 2 attending can take part, the quorum is 2 "
        "(bob: where: "
    )
    clients = {one.name: one for one in busy_fleet.control.list_clients().clients}
    assert clients["bob"].ineligible_reason.startswith("where: ")
    assert clients["ada"].ineligible_reason == ""
    busy_fleet.control.change(job, "cancel")
    assert busy_fleet.job(job).state == "cancelled"
