"""The checker over both databases: a sound history passes, and each damage is found."""

from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.orm import Session

from storage import verify as verification
from storage.blob_directory import BlobDirectory
from storage.collect import collect
from storage.verify import Verification, verify
from tests.storage.stored_history import StoredHistory, make_history
from tests.storage.world import World


@pytest.fixture
def store(tmp_path: Path) -> BlobDirectory:
    return BlobDirectory(tmp_path / "blobs")


@pytest.fixture
def made(world: World, store: BlobDirectory) -> StoredHistory:
    return make_history(world, store)


def run(world: World, statement: str, **values: object) -> None:
    changed = world.write(lambda s: s.connection().execute(text(statement), values).rowcount)
    assert changed > 0, f"it damages nothing: {statement}"


def found(world: World, store: BlobDirectory, *, quick: bool = False) -> list[str]:
    return [str(one) for one in verify(world.database, store, quick=quick).findings]


def test_a_sound_history_has_nothing_wrong(
    world: World, store: BlobDirectory, made: StoredHistory
) -> None:
    report = verify(world.database, store)
    # Two members of the plan, 3 + 2 versions, a state; updates: 2, 1 not rejected, 1, 1 and 2.
    sizes = sum(path.stat().st_size for path in store.root.rglob("*") if path.is_file())
    rejected = len("update digits 2 1")
    assert report == Verification(
        jobs=2, versions=5, rounds=6, assignments=12, blobs=15, bytes=sizes - rejected, findings=[]
    )
    assert verify(world.database, store, quick=True) == report


def test_an_empty_database_has_nothing_wrong(world: World, store: BlobDirectory) -> None:
    assert verify(world.database, store) == Verification(0, 0, 0, 0, 0, 0, [])


ROUND_1 = "(SELECT id FROM rounds WHERE job_id = 1 AND number = 1)"
ROUND_4 = "(SELECT id FROM rounds WHERE job_id = 1 AND number = 4)"
OF_ROUND_1 = f"WHERE round_id = {ROUND_1} AND client_index = 0"

DAMAGES = {
    # The job.
    "UPDATE jobs SET state = 'lost' WHERE id = 1": "job digits: its state is 'lost'",
    "UPDATE jobs SET ended_at = NULL WHERE id = 2": (
        "job letters: it is completed and has no time when it ended"
    ),
    "UPDATE jobs SET ended_at = created_at WHERE id = 1": (
        "job digits: it is running and has a time when it ended"
    ),
    "UPDATE jobs SET state = 'failed', ended_at = created_at WHERE id = 1": (
        "job digits: it is failed and its round 4 has not ended"
    ),
    f"UPDATE rounds SET state = 'closing' WHERE id = {ROUND_1}": (
        "job digits: its rounds 1, 4 have not ended, at once"
    ),
    "UPDATE jobs SET rounds_committed = 7 WHERE id = 1": (
        "job digits: its rounds_committed is 7; its rows say 2"
    ),
    "UPDATE jobs SET latest_version = 1 WHERE id = 1": (
        "job digits: its latest_version is 1; its rows say 2"
    ),
    "UPDATE jobs SET last_round_number = 3 WHERE id = 1": (
        "job digits: its last_round_number is 3; its rows say 4"
    ),
    # The chain of versions.
    "UPDATE model_versions SET number = 5 WHERE job_id = 1 AND number = 1": (
        "job digits: its model versions lack 1, 3, 4"
    ),
    "UPDATE model_versions SET parent_version_id = 1 WHERE job_id = 1 AND number = 2": (
        "job digits: version 2 does not come from version 1"
    ),
    "UPDATE model_versions SET parent_version_id = NULL WHERE job_id = 1 AND number = 1": (
        "job digits: version 1 does not come from version 0"
    ),
    "UPDATE model_versions SET round_id = NULL WHERE job_id = 1 AND number = 1": (
        "job digits: version 1 has no training round that made it"
    ),
    f"UPDATE model_versions SET round_id = {ROUND_4} WHERE job_id = 1 AND number = 0": (
        "job digits: version 0 has a round that made it"
    ),
    f"UPDATE rounds SET state = 'abandoned' WHERE id = {ROUND_1}": (
        "job digits, round 1: it made version 1 and is abandoned"
    ),
    f"UPDATE rounds SET base_version_id = 2 WHERE id = {ROUND_1}": (
        "job digits, round 1: it made version 1 and began from another version"
    ),
    "UPDATE rounds SET state = 'committed' WHERE number = 3 AND purpose = 'train'": (
        "job digits, round 3: it is committed and made no version"
    ),
    "UPDATE rounds SET base_version_id = 1 WHERE job_id = 1 AND number = 2": (
        "job digits: rounds 1, 2 were committed from one version"
    ),
    "UPDATE rounds SET base_version_id = 1 WHERE job_id = 2": (
        "job letters: round 1 began from another job's version"
    ),
    # The server optimizer's states.
    "UPDATE model_versions SET optimizer_state_digest = NULL WHERE number = 1 AND job_id = 2": (
        "job letters: version 1 lacks the server optimizer's state"
    ),
    "UPDATE model_versions SET optimizer_state_digest = weights_digest WHERE id = 2": (
        "job digits: version 1 has a state of no server optimizer"
    ),
    "UPDATE model_versions SET optimizer_state_digest = weights_digest WHERE job_id = 2": (
        "job letters: version 0 has a state of no server optimizer"
    ),
    # The round.
    f"UPDATE rounds SET state = 'gone' WHERE id = {ROUND_1}": (
        "job digits, round 1: its state is 'gone', which no round has"
    ),
    f"UPDATE rounds SET purpose = 'play' WHERE id = {ROUND_1}": (
        "job digits, round 1: its purpose is 'play', which no round has"
    ),
    f"UPDATE rounds SET ended_at = NULL WHERE id = {ROUND_1}": (
        "job digits, round 1: it is committed and has no ended_at"
    ),
    f"UPDATE rounds SET closed_at = NULL WHERE id = {ROUND_1}": (
        "job digits, round 1: it is committed and has no closed_at"
    ),
    f"UPDATE rounds SET closed_at = opened_at WHERE id = {ROUND_4}": (
        "job digits, round 4: it is open and has a closed_at"
    ),
    f"UPDATE rounds SET ended_at = opened_at WHERE id = {ROUND_4}": (
        "job digits, round 4: it is open and has a ended_at"
    ),
    f"UPDATE rounds SET offered = 3 WHERE id = {ROUND_1}": (
        "job digits, round 1: its offered is 3; its ledger says 2"
    ),
    f"UPDATE rounds SET accepted = 1 WHERE id = {ROUND_1}": (
        "job digits, round 1: its accepted is 1; its ledger says 2"
    ),
    f"UPDATE rounds SET examples = 20 WHERE id = {ROUND_1}": (
        "job digits, round 1: its examples is 20; its ledger says 21"
    ),
    f"UPDATE rounds SET bytes_down = 0 WHERE id = {ROUND_1}": (
        "job digits, round 1: its bytes_down is 0; its ledger says 100"
    ),
    f"UPDATE rounds SET bytes_up = 0 WHERE id = {ROUND_1}": (
        "job digits, round 1: its bytes_up is 0; its ledger says 34"
    ),
    f"UPDATE metrics SET value = NULL WHERE round_id = {ROUND_1}": (
        "job digits, round 1: its clients loss is nan"
    ),
    # The ledger.
    f"UPDATE assignments SET weight = 0.500000002 {OF_ROUND_1}": (
        "job digits, round 1: its fold weights add up to 1.000000002"
    ),
    f"UPDATE assignments SET weight = NULL {OF_ROUND_1}": (
        "job digits, round 1, assignment 1: it was accepted and has no weight in the fold"
    ),
    "UPDATE assignments SET weight = 0.5 WHERE state = 'rejected'": (
        "job digits, round 2, assignment 4: it has a weight in a fold and no part in one"
    ),
    "UPDATE assignments SET weight = 1 WHERE id = 5": (
        "job digits, round 3, assignment 5: it has a weight in a fold and no part in one"
    ),
    f"UPDATE assignments SET state = 'asleep' {OF_ROUND_1}": (
        "job digits, round 1, assignment 1: its state is 'asleep', which no assignment has"
    ),
    f"UPDATE assignments SET state = 'training' {OF_ROUND_1}": (
        "job digits, round 1, assignment 1: it is training in a round that has ended"
    ),
    f"UPDATE assignments SET finished_at = NULL {OF_ROUND_1}": (
        "job digits, round 1, assignment 1: it is accepted and has no finished_at"
    ),
    "UPDATE assignments SET finished_at = offered_at WHERE state = 'uploading'": (
        "job digits, round 4, assignment 10: it is uploading and has a finished_at"
    ),
    f"UPDATE assignments SET update_digest = NULL {OF_ROUND_1}": (
        "job digits, round 1, assignment 1: it was accepted without digest"
    ),
    f"UPDATE assignments SET update_size_bytes = NULL {OF_ROUND_1}": (
        "job digits, round 1, assignment 1: it was accepted without size"
    ),
    f"UPDATE assignments SET examples = NULL {OF_ROUND_1}": (
        "job digits, round 1, assignment 1: it was accepted without examples"
    ),
    "UPDATE assignments SET examples = NULL WHERE id = 7": (
        "job digits, evaluation round 3, assignment 7: it was accepted without examples"
    ),
    f"""UPDATE assignments SET metrics_before = '{{"loss": "nan"}}' {OF_ROUND_1}""": (
        "job digits, round 1, assignment 1: its metric loss is nan"
    ),
    f"""UPDATE assignments SET metrics_after = '{{"loss": "inf"}}' {OF_ROUND_1}""": (
        "job digits, round 1, assignment 1: its metric loss is inf"
    ),
}


@pytest.mark.parametrize(("statement", "wrong"), DAMAGES.items(), ids=DAMAGES)
def test_one_thing_wrong_in_the_rows(
    world: World, store: BlobDirectory, made: StoredHistory, statement: str, wrong: str
) -> None:
    run(world, statement)
    lines = found(world, store)
    assert any(line.startswith(wrong) for line in lines), lines


def test_a_cancelled_job_may_have_a_round_that_is_still_to_be_abandoned(
    world: World, store: BlobDirectory, made: StoredHistory
) -> None:
    run(world, "UPDATE jobs SET state = 'cancelled', ended_at = created_at WHERE id = 1")
    assert found(world, store) == []


BLOBS = {
    "update": "job digits, round 1, assignment 1, blob {}: the update",
    "weights": "job digits, blob {}: the weights of version 1",
    "optimizer_state": "job letters, blob {}: the server optimizer's state of version 1",
    "plan_member": "blob {}: train.onnx of plan tiny",
}


@pytest.mark.parametrize("kind", BLOBS)
def test_a_file_that_is_missing(
    world: World, store: BlobDirectory, made: StoredHistory, kind: str
) -> None:
    digest = getattr(made, kind)
    store.delete(digest)
    (line,) = found(world, store, quick=True)
    assert line.startswith(f"{BLOBS[kind].format(digest)} cannot be read: blob {digest} is missing")


@pytest.mark.parametrize("kind", BLOBS)
def test_a_file_of_another_size(
    world: World, store: BlobDirectory, made: StoredHistory, kind: str
) -> None:
    digest = getattr(made, kind)
    path = store.path(digest)
    size_bytes = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-1])
    (line,) = found(world, store, quick=True)
    where = BLOBS[kind].format(digest)
    assert line == f"{where} has {size_bytes - 1} bytes in its file, not {size_bytes}"


@pytest.mark.parametrize("kind", BLOBS)
def test_a_file_of_other_bytes(
    world: World, store: BlobDirectory, made: StoredHistory, kind: str
) -> None:
    digest = getattr(made, kind)
    path = store.path(digest)
    path.write_bytes(b"x" * path.stat().st_size)
    assert found(world, store, quick=True) == []
    (line,) = found(world, store)
    assert line.startswith(f"{BLOBS[kind].format(digest)} is damaged")


@pytest.mark.parametrize("kind", BLOBS)
def test_a_blob_whose_row_tells_another_size(
    world: World, store: BlobDirectory, made: StoredHistory, kind: str
) -> None:
    digest = getattr(made, kind)
    run(world, "UPDATE blobs SET size_bytes = 3 WHERE digest = :digest", digest=digest)
    where = BLOBS[kind].format(digest)
    lines = found(world, store, quick=True)
    assert f"{where} has {store.size(digest)} bytes in its file, not 3" in lines
    # A plan says nothing of its members' sizes, nor a version of its state's.
    row_says = f"{where} has {store.size(digest)} bytes, and 3 in blobs"
    assert (row_says in lines) == (kind in ("update", "weights"))


def test_an_update_without_a_row_of_its_blob(
    world: World, store: BlobDirectory, made: StoredHistory
) -> None:
    run(world, "DELETE FROM blobs WHERE digest = :digest", digest=made.update)
    assert found(world, store) == [f"{BLOBS['update'].format(made.update)} has no row in blobs"]


def test_a_collected_update_is_not_missed(
    world: World, store: BlobDirectory, made: StoredHistory
) -> None:
    collect(world.database, store, now=world.now, keep_update_rounds=0)
    assert not store.exists(made.update)
    assert found(world, store) == []


def test_an_update_that_is_collected_meanwhile_is_not_missed(
    world: World, store: BlobDirectory, made: StoredHistory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the rows were read, and before the files are looked at."""
    read = verification._rows

    def then_collect(session: Session) -> object:
        rows = read(session)
        collect(world.database, store, now=world.now, keep_update_rounds=0)
        return rows

    monkeypatch.setattr(verification, "_rows", then_collect)
    assert found(world, store) == []
    assert not store.exists(made.update)
