"""Rounds of a job with server momentum: its state is the version's, whatever happens between."""

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import text

from coordinator.aggregation.momentum import Momentum
from coordinator.aggregation.server_optimizer import first_state
from coordinator.compiler.compiled_plan import CompiledPlan
from coordinator.engine import closing, version_files
from coordinator.engine.job_loop import RETRY_SECONDS
from coordinator.replay.committed_round import WhatIf, committed_round
from coordinator.replay.refold import replayed
from headwater.errors import DiskFullError, NotFoundError, StorageError
from headwater.layout import Weights
from headwater.safetensors import read_weights
from headwater.v1 import fleet_pb2 as pb
from storage.backup import back_up
from storage.blob_directory import BlobDirectory
from storage.collect import collect
from storage.database import Database, open_database
from storage.records import RoundState
from storage.verify import verify
from tests.coordinator.rig import LEASE, Device, Rig, rigged
from tests.plans import batch_norm_plan, opened
from tests.system.device import Update, make_update

MOMENTUM = '{ name = "momentum", learning_rate = 0.5, momentum = 0.9, nesterov = true }'
CHANGES = (0.25, -0.125, 0.5, 0.0625)


@pytest.fixture(scope="module")
def plan() -> CompiledPlan:
    return batch_norm_plan()


async def submitted(rig: Rig, **changes: str) -> str:
    table = f"{{ on = [] }}\n[aggregation]\nserver_optimizer = {MOMENTUM}"
    return await rig.submit(**{"cohort": "1", "count": "4", "evaluate": table, **changes})


def change(rig: Rig, size: float) -> Update:
    return make_update(rig.plan.manifest.layout, size)


async def trained(
    device: Device, job: str, *sizes: float, first: int = 1, given: pb.Assignment | None = None
) -> None:
    """So many rounds, each of one update that changes every value by so much.

    `given`: what the device was already given of the first round.
    """
    for number, size in enumerate(sizes, first):
        await device.deliver(given or await device.assigned(), change(device.rig, size))
        assert (await device.rig.ended(job, number)).state is RoundState.COMMITTED
        given = None


async def undisturbed(folder: Path, plan: CompiledPlan) -> list[tuple[str, str | None]]:
    """What `files` tells of such a job whose rounds went one after the other."""
    own = folder / "undisturbed"
    own.mkdir()
    with open_database(f"sqlite:///{own / 'headwater.db'}", create=True) as database:
        async with rigged(own, database, plan) as rig:
            (device,) = await rig.attend("a")
            job = await submitted(rig)
            await trained(device, job, *CHANGES)
        return files(database, job)


def files(database: Database, job: str) -> list[tuple[str, str | None]]:
    """The digests of each version: of its weights and of its state."""
    query = (
        "SELECT weights_digest, optimizer_state_digest FROM model_versions JOIN jobs "
        "ON jobs.id = job_id WHERE reference = :job ORDER BY number"
    )
    return database.read_now(
        lambda s: [(row[0], row[1]) for row in s.execute(text(query), {"job": job})]
    )


def findings(rig: Rig) -> list[str]:
    return [str(one) for one in verify(rig.world.database, rig.world.blobs).findings]


async def test_the_momentum_goes_on_from_version_to_version(rig: Rig, database: Database) -> None:
    (device,) = await rig.attend("a")
    job = await submitted(rig)
    await trained(device, job, *CHANGES)
    layout = rig.plan.manifest.layout
    made = [
        read_weights(rig.world.blobs.path(digest), layout) for digest, _ in files(database, job)
    ]
    model, momentum = made[0].floats.astype(np.float64), 0.0
    for size, found in zip(CHANGES, made[1:], strict=True):
        momentum = 0.9 * momentum + size
        model[: layout.trainable_count] += 0.5 * (0.9 * momentum + size)
        model[layout.trainable_count :] += size
        np.testing.assert_allclose(found.floats, model, rtol=0, atol=1e-6)
    (first, *states) = [state for _, state in files(database, job)]
    assert first is None
    assert len(set(states)) == len(CHANGES)
    assert findings(rig) == []


async def test_restarts_between_any_two_rounds_give_the_same_digests(
    tmp_path: Path, database: Database, plan: CompiledPlan
) -> None:
    """Each time with the next round open, and its client at work."""
    job, given = "", None
    for number, size in enumerate(CHANGES, 1):
        async with rigged(tmp_path, database, plan) as rig:
            (device,) = await rig.attend("a")
            job = job or await submitted(rig)
            await trained(device, job, size, first=number, given=given)
            given = await device.assigned() if number < len(CHANGES) else None
    assert files(database, job) == await undisturbed(tmp_path, plan)


@pytest.mark.parametrize(
    ("call", "time"), [("prepare", 1), ("prepare", 2), ("adopt", 2), ("adopt", 3), ("commit", 1)]
)
async def test_a_failure_at_any_step_of_a_commit_changes_no_bit(
    tmp_path: Path, rig: Rig, database: Database, plan: CompiledPlan, monkeypatch, call, time
) -> None:
    """The round is folded again: weights and state are committed together, or not at all.

    The weights are prepared first, then the state; the first to be adopted is the update.
    """
    (device,) = await rig.attend("a")
    job = await submitted(rig)
    await trained(device, job, CHANGES[0])
    place, name = (closing, "_write_commit") if call == "commit" else (rig.world.blobs, call)
    whole, calls = getattr(place, name), []

    def fail(*arguments: Any, **options: Any) -> Any:
        calls.append(arguments)
        if len(calls) == time:
            raise DiskFullError("no space is left")
        return whole(*arguments, **options)

    monkeypatch.setattr(place, name, fail)
    await device.deliver(await device.assigned(), change(rig, CHANGES[1]))
    await rig.news(job, "waits for the coordinator's storage")
    assert len(files(database, job)) == 2
    assert not list((rig.folder / "blobs" / "temporary").iterdir())
    await rig.clock.jump(RETRY_SECONDS)
    assert (await rig.ended(job, 2)).state is RoundState.COMMITTED
    assert len(calls) > time
    await trained(device, job, *CHANGES[2:], first=3)
    assert files(database, job) == await undisturbed(tmp_path, plan)
    assert findings(rig) == []


async def test_an_abandoned_round_leaves_the_state_as_it_is(
    tmp_path: Path, rig: Rig, database: Database, plan: CompiledPlan
) -> None:
    (device,) = await rig.attend("a")
    job = await submitted(rig)
    await trained(device, job, CHANGES[0])
    before = files(database, job)
    await device.assigned()
    await rig.clock.jump(LEASE)
    assert (await rig.ended(job, 2)).state is RoundState.ABANDONED
    assert files(database, job) == before
    (again,) = await rig.attend("a")
    await trained(again, job, *CHANGES[1:], first=3)
    assert files(database, job) == await undisturbed(tmp_path, plan)


async def test_an_update_that_only_the_optimizer_makes_infinite_is_left_out(rig: Rig) -> None:
    """It would be finite by itself, and stop every round if it were not refused."""
    a, b = await rig.attend("a", "b")
    fast = MOMENTUM.replace("learning_rate = 0.5", "learning_rate = 2.0")
    table = f"{{ on = [] }}\n[aggregation]\nserver_optimizer = {fast}"
    job = await submitted(rig, cohort="2", count="1", evaluate=table)
    layout = rig.plan.manifest.layout
    huge = make_update(layout, 0.25, values={0: float(np.finfo(np.float32).max)})
    await a.deliver(await a.assigned(), huge)
    await b.deliver(await b.assigned(), change(rig, 0.25))
    ended = await rig.ended(job, 1)
    assert ended.state is RoundState.COMMITTED
    rows = {one.client_name: one for one in ended.assignments}
    assert rows["a"].reason.startswith("its update is unsound: the new weights are not finite")
    assert rows["b"].weight == 1.0


async def test_a_job_that_starts_from_a_version_has_no_momentum_yet(
    rig: Rig, database: Database
) -> None:
    (device,) = await rig.attend("a")
    job = await submitted(rig)
    await trained(device, job, *CHANGES)
    start = f'["accuracy"]\nstart = "{job}@4"'
    other = await submitted(rig, metrics=start, count="1")
    await trained(device, other, CHANGES[0])
    (weights, state), made = files(database, other)
    assert (weights, state) == (files(database, job)[4][0], None)
    assert made[1] == files(database, job)[1][1], "the state after the same first change"


@pytest.mark.parametrize("number", [1, 2, 3, 4])
async def test_a_round_is_replayed_from_the_state_of_its_base(rig: Rig, number: int) -> None:
    (device,) = await rig.attend("a")
    job = await submitted(rig)
    await trained(device, job, *CHANGES)
    step = await rig.world.database.read(lambda s: committed_round(s, job, number))
    again = partial(replayed, rig.world.blobs, step, opened(rig.plan), source=None)
    for threads in (1, 3):
        assert again(WhatIf(), threads=threads).digest == step.version.weights_digest
    same = again(WhatIf(rule="weighted_mean"), threads=1)
    assert same.digest == step.version.weights_digest
    robust = again(WhatIf(rule="median"), threads=1)
    assert robust.aggregation.server_optimizer is None
    base = read_weights(
        rig.world.blobs.path(step.record.base_weights_digest), rig.plan.manifest.layout
    )
    np.testing.assert_allclose(robust.weights.floats - base.floats, CHANGES[number - 1], atol=1e-6)


async def test_states_are_kept_as_long_as_their_rounds_are_replayed(
    rig: Rig, database: Database
) -> None:
    (device,) = await rig.attend("a")
    job = await submitted(rig)
    await trained(device, job, *CHANGES)
    made = files(database, job)
    for keep, kept in ((2, {2, 3, 4}), (1, {3, 4}), (0, {4})):
        collect(database, rig.world.blobs, now=rig.clock.now(), keep_update_rounds=keep)
        now = files(database, job)
        assert {at for at, (_, state) in enumerate(now) if state} == kept
        for at, (weights, state) in enumerate(made):
            assert rig.world.blobs.exists(weights)
            assert state is None or rig.world.blobs.exists(state) == (at in kept)
        assert findings(rig) == []
    step = await rig.world.database.read(lambda s: committed_round(s, job, 4))
    with pytest.raises(NotFoundError, match="the updates of round 4 of job job were collected"):
        replayed(rig.world.blobs, step, opened(rig.plan), WhatIf(), None, 1)


async def test_a_job_goes_on_after_a_collection_between_its_rounds(
    tmp_path: Path, rig: Rig, database: Database, plan: CompiledPlan
) -> None:
    (device,) = await rig.attend("a")
    job = await submitted(rig)
    for number, size in enumerate(CHANGES, 1):
        await trained(device, job, size, first=number)
        collect(database, rig.world.blobs, now=rig.clock.now(), keep_update_rounds=0)
    expected = await undisturbed(tmp_path, plan)
    assert [one for one, _ in files(database, job)] == [one for one, _ in expected]


async def test_a_lost_state_is_found_and_never_taken_for_none(
    rig: Rig, database: Database, plan: CompiledPlan
) -> None:
    (device,) = await rig.attend("a")
    job = await submitted(rig)
    await trained(device, job, *CHANGES[:2])
    state = files(database, job)[2][1]
    assert state is not None
    content = rig.world.blobs.read(state)
    rig.world.blobs.delete(state)
    (line,) = findings(rig)
    assert line.startswith(
        f"job job, blob {state}: the server optimizer's state of version 2 cannot be read"
    )
    rig.world.blobs.write(content)
    statement = "UPDATE model_versions SET optimizer_state_digest = NULL WHERE number = 2"
    database.write_now(lambda s: s.execute(text(statement)) and None)
    assert findings(rig) == ["job job: version 2 lacks the server optimizer's state"]
    record = await rig.round(job, 3)
    optimizer = rig.engine.runs[job].spec.aggregation.optimizer
    assert optimizer is not None
    with pytest.raises(StorageError, match="version 2 of job job has lost the server optimizer's"):
        version_files.state_before(rig.world.blobs, record, optimizer, plan.manifest.layout)


async def test_a_backup_has_the_states_and_the_job_goes_on_from_it(
    rig: Rig, tmp_path: Path, database: Database, plan: CompiledPlan
) -> None:
    (device,) = await rig.attend("a")
    job = await submitted(rig)
    await trained(device, job, *CHANGES[:2])
    given = await device.assigned()
    report = back_up(database, rig.world.blobs, tmp_path / "backup")
    assert report.findings == []
    await trained(device, job, *CHANGES[2:], first=3, given=given)
    with open_database(f"sqlite:///{tmp_path / 'backup' / 'headwater.db'}") as copy:
        assert BlobDirectory(tmp_path / "backup" / "blobs").exists(files(copy, job)[2][1] or "")
        async with rigged(tmp_path / "backup", copy, plan) as restored:
            (again,) = await restored.attend("a")
            await trained(again, job, *CHANGES[2:], first=3, given=given)
        assert files(copy, job) == files(database, job)


def test_a_state_that_does_not_fit_on_the_disk_leaves_no_weights_behind(
    tmp_path: Path, plan: CompiledPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    blobs, layout = BlobDirectory(tmp_path / "blobs"), plan.manifest.layout
    made = Weights(
        np.zeros(layout.float_count, np.float32), np.zeros(layout.integer_count, np.int64)
    )
    state = first_state(Momentum(1.0, 0.9, False), layout)
    prepare, sizes = blobs.prepare, []

    def once(content: Iterable[bytes]) -> tuple[Path, str]:
        if sizes:
            raise DiskFullError("no space is left")
        sizes.append(1)
        return prepare(content)

    monkeypatch.setattr(blobs, "prepare", once)
    with pytest.raises(DiskFullError):
        version_files.prepared(blobs, made, layout, state)
    assert [path for path in blobs.root.rglob("*") if path.is_file()] == []
