"""Garbage collection over both databases: what goes, what stays, and races with writers."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from hashlib import sha256
from pathlib import Path

import pytest
from sqlalchemy.orm import Session

from headwater.errors import StorageError
from storage import blobs, collect, history, rounds
from storage.blob_directory import BlobDirectory
from storage.records import (
    AssignmentState,
    CollectionReport,
    JobRecord,
    NewVersion,
    RoundRecord,
    UpdateFacts,
)
from tests.storage.stored_history import Author
from tests.storage.world import START, World


@pytest.fixture
def store(tmp_path: Path) -> BlobDirectory:
    return BlobDirectory(tmp_path / "blobs")


def run(world: World, store: BlobDirectory, hours: int = 0, keep: int = 2) -> CollectionReport:
    now = datetime.now(UTC) + timedelta(hours=hours)
    return collect.collect(world.database, store, now=now, keep_update_rounds=keep)


def one_round(world: World, store: BlobDirectory, number: int, state: bytes = b"") -> RoundRecord:
    """A round whose update, weights and server optimizer's state are really in the store."""
    step = world.open_round(world.job() if number == 1 else job(world), number, ["id-a"])
    assignment = step.assignments[0].id
    update, weights = f"update {number}".encode(), f"weights {number}".encode()
    facts = UpdateFacts(store.write(update), len(update), "fp32", 10)
    world.write(
        lambda s: rounds.accept_update(s, assignment_id=assignment, update=facts, now=world.tick())
    )
    world.close(step)
    version = NewVersion(store.write(weights), len(weights))
    if state:
        version = replace(
            version,
            optimizer_state_digest=store.write(state),
            optimizer_state_size_bytes=len(state),
        )
    return world.write(
        lambda s: rounds.commit(
            s,
            round_id=step.id,
            version=version,
            metrics=[],
            weights_in_fold={assignment: 1.0},
            fates={},
            now=world.tick(),
        )
    )


def job(world: World) -> JobRecord:
    return world.read(lambda s: history.job(s, "digits"))


def test_updates_of_old_rounds_go_and_everything_else_stays(
    world: World, store: BlobDirectory
) -> None:
    world.client("a")
    done = [one_round(world, store, number) for number in range(1, 6)]
    report = run(world, store, hours=2)
    assert report == CollectionReport(3, 3, 3 * len("update 1"), 0)
    assert run(world, store, hours=2) == CollectionReport(0, 0, 0, 0)
    for step in done:
        row = world.read(partial(history.round, reference="digits", number=step.number))
        update = row.assignments[0]
        assert update.update_digest and update.update_collected == (step.number <= 3)
        assert store.exists(update.update_digest) == (step.number > 3)
        model = world.read(partial(history.model, name=f"digits@{step.number}"))
        assert store.exists(model.weights_digest)


def test_the_same_bytes_in_a_kept_round_keep_the_blob(world: World, store: BlobDirectory) -> None:
    world.client("a")
    current = world.job()
    content = b"the same"
    for number in range(1, 5):
        step = world.open_round(current, number, ["id-a"])
        assignment = step.assignments[0].id
        facts = UpdateFacts(store.write(content), len(content), "fp32", 10)
        world.write(
            lambda s, a=assignment, f=facts: rounds.accept_update(  # type: ignore[misc]
                s, assignment_id=a, update=f, now=START
            )
        )
        world.close(step)
        world.commit(step, [assignment])
    report = run(world, store)
    assert (report.updates_released, report.blobs_removed) == (2, 0)
    assert store.exists(sha256(content).hexdigest())


def test_a_state_stays_as_long_as_an_update_of_a_round_from_it_and_the_newest_for_good(
    world: World, store: BlobDirectory
) -> None:
    """The state of version N is what round N + 1 began from."""
    world.client("a")
    states = [f"state {number}".encode() for number in range(1, 6)]
    for number, state in enumerate(states, 1):
        one_round(world, store, number, state)

    def kept() -> list[int]:
        digests = (sha256(state).hexdigest() for state in states)
        return [number for number, one in enumerate(digests, 1) if store.exists(one)]

    for keep, left in ((None, [1, 2, 3, 4, 5]), (2, [3, 4, 5]), (1, [4, 5]), (0, [5])):
        collect.collect(world.database, store, now=datetime.now(UTC), keep_update_rounds=keep)
        assert kept() == left
    step = world.open_round(job(world), 6, ["id-a"])
    assert step.base_optimizer_state_digest == sha256(states[-1]).hexdigest()


def test_a_state_that_two_versions_share_stays_for_the_newer(
    world: World, store: BlobDirectory
) -> None:
    world.client("a")
    for number in (1, 2, 3):
        one_round(world, store, number, b"the same")
    run(world, store, keep=0)
    assert store.exists(sha256(b"the same").hexdigest())


def test_an_unfinished_round_keeps_its_updates(world: World, store: BlobDirectory) -> None:
    world.client("a")
    step = world.open_round(world.job(), 1, ["id-a"])
    digest = store.write(b"update")
    world.write(
        lambda s: rounds.accept_update(
            s,
            assignment_id=step.assignments[0].id,
            update=UpdateFacts(digest, 6, "fp32", 1),
            now=START,
        )
    )
    run(world, store, hours=2, keep=0)
    assert store.exists(digest)


def test_an_update_being_uploaded_is_kept_from_its_offer_on(
    world: World, store: BlobDirectory
) -> None:
    world.client("a")
    step = world.open_round(world.job(), 1, ["id-a"])
    digest = sha256(b"update").hexdigest()
    world.write(
        lambda s: rounds.advance_assignment(
            s,
            assignment_id=step.assignments[0].id,
            state=AssignmentState.UPLOADING,
            now=START,
            update_digest=digest,
            update_size_bytes=6,
        )
    )
    store.write(b"update")
    run(world, store, hours=2)
    assert store.exists(digest)


def test_strays_go_when_they_are_old_and_nobody_pins_them(
    world: World, store: BlobDirectory
) -> None:
    known, pinned, stray = (store.write(text) for text in (b"known", b"pinned", b"stray"))
    world.write(lambda s: blobs.register(s, digest=known, size_bytes=5, kind="k", now=START))
    world.write(lambda s: blobs.pin(s, digest=known, holder="job", now=START))
    (store.root / "temporary" / "torn.part").write_bytes(b"torn")
    world.write(lambda s: blobs.pin(s, digest=pinned, holder="upload 1", now=START))
    assert run(world, store) == CollectionReport(0, 0, 0, 0)
    assert run(world, store, hours=2) == CollectionReport(0, 0, 0, 2)
    assert store.exists(pinned) and not store.exists(stray)
    world.write(lambda s: blobs.unpin(s, digest=pinned, holder="upload 1"))
    assert run(world, store, hours=2).strays_removed == 1


def test_the_blobs_of_another_database_are_no_strays(world: World, store: BlobDirectory) -> None:
    """A wrong --database must not empty the data directory."""
    world.write(lambda s: blobs.register(s, digest="0" * 64, size_bytes=1, kind="k", now=START))
    others = [store.write(text) for text in (b"one", b"two")]
    with pytest.raises(StorageError, match="knows none of the blobs in the data directory"):
        run(world, store, hours=2)
    assert all(map(store.exists, others))


def test_a_writer_that_comes_between_is_safe(
    world: World, store: BlobDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It pins after the blob was listed as free, and before it is removed."""
    digest = store.write(b"free")
    world.write(lambda s: blobs.register(s, digest=digest, size_bytes=4, kind="k", now=START))
    remove = collect._remove_rows

    def pin_first(session: Session, **arguments: object) -> list[int]:
        blobs.pin(session, digest=digest, holder="upload 1", now=START)
        return remove(session, **arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(collect, "_remove_rows", pin_first)
    assert run(world, store).blobs_removed == 0
    assert store.exists(digest)


def test_a_crash_between_file_and_row_heals(world: World, store: BlobDirectory) -> None:
    """The file is gone and the row is left: a writer writes it anew, or collection ends it."""
    digest = store.write(b"free")
    world.write(lambda s: blobs.register(s, digest=digest, size_bytes=4, kind="k", now=START))
    store.path(digest).unlink()
    assert run(world, store).blobs_removed == 1


def test_a_free_blob_goes_in_batches(world: World, store: BlobDirectory) -> None:
    count = 3 * collect.BATCH + 1
    for number in range(count):
        digest = store.write(str(number).encode())
        world.write(
            lambda s, d=digest: blobs.register(s, digest=d, size_bytes=1, kind="k", now=START)  # type: ignore[misc]
        )
    assert run(world, store) == CollectionReport(0, count, count, 0)
    assert list(store.digests()) == []


def test_old_pins_of_a_holder_expire(world: World, store: BlobDirectory) -> None:
    old, fresh, other = (store.write(text) for text in (b"old", b"fresh", b"other"))
    for digest, holder, minutes in (
        (old, "submission", 0),
        (fresh, "submission", 50),
        (other, "coordinator", 0),
    ):
        since = START + timedelta(minutes=minutes)
        world.write(partial(blobs.pin, digest=digest, holder=holder, now=since))
    before = START + timedelta(minutes=30)
    expire = partial(blobs.expire_pins, holder="submission", before=before)
    assert (world.write(expire), world.write(expire)) == (1, 0)
    kept = [
        one for one in (old, fresh, other) if world.read(partial(blobs.is_referenced, digest=one))
    ]
    assert kept == [fresh, other]


def test_a_pin_taken_again_is_as_young_as_that(world: World) -> None:
    digest = "0" * 64
    for minutes in (0, 50):
        since = START + timedelta(minutes=minutes)
        world.write(partial(blobs.pin, digest=digest, holder="submission", now=since))
    before = START + timedelta(minutes=30)
    assert world.write(partial(blobs.expire_pins, holder="submission", before=before)) == 0


POLICIES = {"all": 4, "last 3 rounds": 3, "last 1 round": 1, "none": 0, None: 2}


def kept_rounds(world: World, store: BlobDirectory, reference: str) -> list[int]:
    """The rounds of which an update is still there."""
    listed = world.read(partial(history.rounds, reference=reference))
    read = partial(history.round, reference=reference)
    whole = [world.read(partial(read, number=one.number)) for one in listed]
    return [
        step.number
        for step in whole
        if any(store.exists(row.update_digest or "0" * 64) for row in step.assignments)
    ]


def test_each_job_keeps_what_its_file_says(world: World, store: BlobDirectory) -> None:
    author = Author(world, store)
    for name in ("a", "b"):
        world.client(name)
    for at, policy in enumerate(POLICIES):
        said = {} if policy is None else {"updates": policy}
        made = author.job(f"job-{at}", {"retention": said})
        for number in range(1, 5):
            author.train(made, number)
    run(world, store, keep=2)
    for at, count in enumerate(POLICIES.values()):
        assert kept_rounds(world, store, f"job-{at}") == list(range(5 - count, 5)), at


def test_without_a_default_only_jobs_that_say_so_lose_updates(
    world: World, store: BlobDirectory
) -> None:
    author = Author(world, store)
    for name in ("a", "b"):
        world.client(name)
    for name, spec in (("silent", {}), ("told", {"retention": {"updates": "none"}})):
        author.train(author.job(name, spec), 1)
    report = collect.collect(world.database, store, now=world.now, keep_update_rounds=None)
    assert report.updates_released == 2
    assert kept_rounds(world, store, "silent") == [1]
    assert kept_rounds(world, store, "told") == []


@pytest.mark.parametrize("ends", ["open", "closing"])
def test_none_keeps_the_updates_of_a_round_that_has_not_ended(
    world: World, store: BlobDirectory, ends: str
) -> None:
    author = Author(world, store)
    for name in ("a", "b"):
        world.client(name)
    made = author.job("told", {"retention": {"updates": "none"}})
    author.train(made, 1)
    step = author.open(made, 2)
    author.accept(step, 0)
    if ends == "closing":
        world.close(step)
    run(world, store, hours=2, keep=0)
    assert kept_rounds(world, store, "told") == [2]
