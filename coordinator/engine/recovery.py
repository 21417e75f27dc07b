"""Taking a job up from the database: after its submission and after a restart, the same way."""

from functools import partial

from coordinator.engine.live import JobRun
from coordinator.engine.rounds import live_round
from coordinator.engine.world import World
from coordinator.jobs.job_spec import JobSpec
from headwater.plan import Plan
from storage import plans as plan_repository
from storage import rounds as round_repository
from storage.records import JobRecord


async def recover_run(world: World, record: JobRecord) -> JobRun:
    """The job in memory, with its open round if it has one.

    Raises:
        PlanError: its plan's blobs are damaged or missing.
    """
    plan_record = await world.database.read(partial(plan_repository.get, digest=record.plan_digest))
    manifest = plan_record.manifest.encode()
    plan = await world.work(Plan.from_blobs, manifest, world.blobs.read)
    run = JobRun(record, JobSpec.from_dict(record.spec), plan)
    run.abandoned_in_a_row = await world.database.read(
        partial(round_repository.abandoned_in_a_row, job_id=record.id)
    )
    round_record = await world.database.read(partial(round_repository.unfinished, job_id=record.id))
    if round_record is not None:
        extensions = await world.database.read(
            partial(round_repository.extensions, round_id=round_record.id)
        )
        run.round = live_round(world, round_record, extensions)
    return run


def described(run: JobRun) -> str:
    """Where a job goes on."""
    if run.round is None:
        return f"job {run.record.reference} is {run.record.state}, between two rounds"
    record = run.round.record
    return (
        f"job {run.record.reference} continues in round {record.number} ({record.state}): "
        f"{run.round.accepted} updates held, {len(run.round.pending)} awaited"
    )
