"""A submission's blobs, from their arrival to the job that refers to them."""

import asyncio
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
from sqlalchemy import select

from coordinator.compiler.compiled_plan import CompiledPlan
from coordinator.engine.engine import Engine
from coordinator.engine.world import World
from coordinator.services.control import ControlService
from coordinator.services.submission import submit_job
from headwater import steps
from headwater.errors import JobFileError
from headwater.v1 import control_pb2
from storage import blobs, jobs
from storage.records import JobRecord
from storage.schema import BlobPin
from tests.system.training import job_text


def send(world: World, plan: CompiledPlan) -> None:
    """What the command line does before it submits."""
    for content in (plan.manifest.to_bytes(), *plan.members.values()):
        digest = world.blobs.write(content)
        now = world.clock.now()
        world.database.write_now(partial(blobs.pin, digest=digest, holder="submission", now=now))


def pinned(world: World) -> set[str]:
    return set(world.database.read_now(lambda s: s.scalars(select(BlobPin.digest)).all()))


def submit(world: World, plan: CompiledPlan, **changes: object) -> JobRecord:
    request = control_pb2.SubmitJobRequest(
        job_file=job_text(**changes), job_file_name="job.toml", plan_digest=plan.digest
    )
    return asyncio.run(submit_job(world, request))


def test_a_refused_submission_pins_nothing_any_more(world: World, plan: CompiledPlan) -> None:
    send(world, plan)
    with pytest.raises(JobFileError, match="compile the job file again"):
        submit(world, plan, metrics=[])
    assert pinned(world) == set()


def test_a_job_file_with_other_labels_than_the_plan_is_refused(
    world: World, plan: CompiledPlan
) -> None:
    send(world, plan)
    target = {"shape": [], "dtype": "int64", "labels": ["a", "b", "c"]}
    with pytest.raises(JobFileError, match="was compiled for other targets: compile"):
        submit(world, plan, target=target)
    with pytest.raises(JobFileError, match="was compiled for other inputs: compile"):
        submit(world, plan, input={"shape": [6], "dtype": "float32", "name": "points"})


def test_a_job_file_that_cannot_be_read_ends_the_pins_too(world: World, plan: CompiledPlan) -> None:
    send(world, plan)
    with pytest.raises(JobFileError):
        submit(world, plan, cohort=0)
    assert pinned(world) == set()


def test_the_first_weights_are_pinned_until_the_job_refers_to_them(
    world: World, plan: CompiledPlan
) -> None:
    send(world, plan)
    world.database.write_now(partial(blobs.unpin_all, holder="submission"))
    unpinned: list[str] = []

    def look(step: str, path: Path) -> None:
        if step == "rename" and path.name not in pinned(world):
            unpinned.append(path.name)

    with steps.observed(look):
        job = submit(world, plan)
    assert world.blobs.exists(job.latest_weights_digest)
    assert unpinned == []
    assert pinned(world) == set()


def test_a_job_whose_author_is_gone_is_driven_all_the_same(
    world: World, plan: CompiledPlan
) -> None:
    """It stands in the database: without this it would begin after the next restart."""
    send(world, plan)

    async def test() -> None:
        engine = Engine(world)
        service = ControlService(engine)
        request = control_pb2.SubmitJobRequest(job_file=job_text(), plan_digest=plan.digest)
        call = asyncio.create_task(service.SubmitJob(request, cast(Any, None)))
        async with asyncio.timeout(30):
            while not await world.database.read(jobs.unfinished):
                await asyncio.sleep(0.001)
            call.cancel()
            while not engine.runs:
                await asyncio.sleep(0.001)
        await engine.stop()

    asyncio.run(test())
