"""Real client processes: killed, stopped, and two on one state directory."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from headwater.v1 import fleet_pb2 as pb
from tests.client.fake_fleet import FakeFleet
from tests.client.fakes import TinyJob

ROOT = Path(__file__).parents[2]
PROGRAM = Path(__file__).with_name("client_program.py")
ENVIRONMENT = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'proto'}"}


class Process:
    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    async def end(self) -> tuple[int, str, str]:
        async with asyncio.timeout(20):
            out, err = await self.process.communicate()
        assert self.process.returncode is not None
        return self.process.returncode, out.decode(), err.decode()


@asynccontextmanager
async def started(*arguments: str) -> AsyncIterator[Process]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *arguments,
        env=ENVIRONMENT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield Process(process)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def fake_client(fleet: FakeFleet, state: Path, *more: str) -> tuple[str, ...]:
    return (str(PROGRAM), fleet.address, str(state), *more)


def command(*arguments: str) -> tuple[str, ...]:
    return ("-m", "edge_client", *arguments)


async def test_an_update_finished_before_kill_9_is_delivered_by_the_next_process(
    fleet: FakeFleet, tmp_path: Path
) -> None:
    job = TinyJob(fleet)
    state = tmp_path / "state"
    fleet.offer_answers.append(
        pb.OfferResponse(verdict=pb.OFFER_VERDICT_COME_AT, wait_seconds=1000)
    )
    async with started(*fake_client(fleet, state)) as process:
        client_id = (await fleet.next("welcomed")).client_id
        fleet.push(assignment=job.assignment(1))
        digest = (await fleet.next("offer")).digest
        process.process.kill()
        await process.end()
    async with started(*fake_client(fleet, state)):
        hello = await fleet.next("hello")
        assert (hello.client_id, hello.held_assignment_id) == (client_id, 1)
        assert (await fleet.next("offer")).digest == digest
        await fleet.next("update")


async def test_two_processes_on_one_state_directory(fleet: FakeFleet, tmp_path: Path) -> None:
    state = tmp_path / "state"
    async with started(*fake_client(fleet, state)) as first:
        await fleet.next("welcomed")
        arguments = ("run", "--coordinator", fleet.address, "--state", str(state))
        async with started(*command(*arguments, "--trainer", "onnxruntime")) as second:
            code, out, err = await second.end()
        assert (code, out) == (3, "")
        assert err == (
            f"headwater-client: {state} is in use by the headwater-client process "
            f"{first.process.pid}: stop it, or give this one a state directory of its own with "
            "--state\n"
        )
        async with started(*command("status", "--state", str(state), "--json")) as status:
            code, out, _ = await status.end()
        assert code == 0
        assert json.loads(out)["running"] is True
        assert json.loads(out)["process_id"] == first.process.pid


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
async def test_a_signal_ends_the_process_although_a_step_is_stuck(
    fleet: FakeFleet, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    job = TinyJob(fleet)
    async with started(*fake_client(fleet, tmp_path / "state", "stuck")) as process:
        await fleet.next("welcomed")
        fleet.push(assignment=job.assignment(1))
        assert (await fleet.next("progress")).phase == pb.PHASE_TRAINING
        process.process.send_signal(number)
        returned, out, err = await process.end()
    assert (returned, out) == (code, "")
    lines = [json.loads(line) for line in err.splitlines()]
    assert lines[-1]["message"].endswith("stops")
    assert {line["level"] for line in lines} == {"info"}


async def test_sigterm_ends_a_client_whose_coordinator_is_away(tmp_path: Path) -> None:
    fleet = await FakeFleet().start()
    await fleet.stop()
    arguments = ("--coordinator", fleet.address, "--state", str(tmp_path / "s"))
    data = ("--data", "digits=digits:")
    async with started(*command("run", *arguments, *data, "--trainer", "onnxruntime")) as process:
        assert process.process.stderr is not None
        first = await process.process.stderr.readline()
        assert b"starts" in first
        assert b"is away, again in" in await process.process.stderr.readline()
        process.process.terminate()
        code, out, _ = await process.end()
    assert (code, out) == (0, "")


@pytest.mark.parametrize(
    ("data", "warning"),
    [
        ((), "warning no data set is bound, so no job can use this client: add --data NAME=PATH"),
        (
            ("--data", "digits=/none.npz?input=x"),
            "warning data set digits: there is no file or folder /none.npz",
        ),
    ],
)
async def test_data_that_no_job_can_use_are_told_at_the_start(
    fleet: FakeFleet, tmp_path: Path, data: tuple[str, ...], warning: str
) -> None:
    to, state = ("--coordinator", fleet.address), ("--state", str(tmp_path / "state"))
    async with started(*command("run", *to, *state, "--trainer", "onnxruntime", *data)) as process:
        await fleet.next("welcomed")
        process.process.send_signal(signal.SIGTERM)
        code, _, err = await process.end()
    assert code == 0
    assert warning in err
