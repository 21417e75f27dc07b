"""What a coordinator takes up from its database when it starts."""

import asyncio

from coordinator.compiler.compiled_plan import CompiledPlan
from coordinator.engine.engine import Engine
from coordinator.engine.world import World
from storage import rounds
from storage.records import JobState, RoundState
from tests.coordinator.test_submission import send, submit
from tests.storage.world import World as Rows


def test_a_cancelled_jobs_round_is_abandoned_after_a_restart(
    world: World, rows: Rows, plan: CompiledPlan
) -> None:
    """The coordinator stopped between the cancellation and the end of the round."""
    send(world, plan)
    job = submit(world, plan)
    rows.state(job.reference, JobState.RUNNING)
    step = rows.open_round(job)
    rows.state(job.reference, JobState.CANCELLED, "cancelled by the operator")

    async def start() -> None:
        engine = Engine(world)
        await engine.start()
        async with asyncio.timeout(30):
            while engine.runs:
                await asyncio.sleep(0.001)
        await engine.stop()

    asyncio.run(start())
    ended = rows.read(lambda s: rounds.get(s, round_id=step.id))
    assert (ended.state, ended.reason) == (RoundState.ABANDONED, "cancelled by the operator")
    assert {one.state for one in ended.assignments} == {"expired"}
