"""What takes how much of the disk, over both databases."""

from pathlib import Path

import pytest
from sqlalchemy.orm import Session

from storage import blob_checks, blobs
from storage.blob_checks import missing_blobs
from storage.blob_directory import BlobDirectory
from storage.collect import collect
from storage.usage import Amount, KeptUpdates, usage
from tests.storage.stored_history import Author, make_history
from tests.storage.world import START, World


@pytest.fixture
def store(tmp_path: Path) -> BlobDirectory:
    return BlobDirectory(tmp_path / "blobs")


def test_every_file_is_counted_under_what_it_is_for(
    world: World, store: BlobDirectory, tmp_path: Path
) -> None:
    make_history(world, store)
    free, stray = store.write(b"free"), store.write(b"stray")
    world.write(lambda s: blobs.register(s, digest=free, size_bytes=4, kind="update", now=START))
    (store.root / "temporary" / "torn.part").write_bytes(b"torn!!")
    copies = BlobDirectory(tmp_path / "blob-cache")
    copies.write(b"copy")
    (copies.root / "temporary" / "torn.part").write_bytes(b"torn")
    (tmp_path / "spool").mkdir()
    (tmp_path / "spool" / "7-x.part").write_bytes(b"half")
    (tmp_path / "quarantine").mkdir()
    (tmp_path / "quarantine" / "7.update").write_bytes(b"refused")
    (tmp_path / "quarantine" / "7.json").write_bytes(b"{}")
    found = usage(world.database, store, tmp_path)
    updates = [f"update digits {n}" for n in ("1 0", "1 1", "2 0", "2 1", "3 0", "4 0")]
    updates += [f"update letters 1 {at}" for at in (0, 1)]
    assert found.blobs == {
        "optimizer state": Amount(1, len("state letters 1")),
        "plan": Amount(2, len("train graph") + len('{"name": "tiny"}')),
        "update": Amount(8, sum(map(len, updates))),
        "weights": Amount(5, 3 * len("weights digits 0") + 2 * len("weights letters 0")),
    }
    assert found.unreferenced == Amount(2, len("free") + len("stray"))
    assert found.temporary == Amount(2, 6 + 4)
    assert found.copies == Amount(1, 4)
    assert found.spool == Amount(1, 4)
    assert found.quarantine == Amount(1, 7)
    assert found.database_bytes > 10_000
    assert found.free_bytes > 0
    assert store.exists(stray)


def test_what_retention_keeps_of_each_job(
    world: World, store: BlobDirectory, tmp_path: Path
) -> None:
    for name in ("a", "b"):
        world.client(name)
    author = Author(world, store)
    for name, said in (("silent", {}), ("told", {"updates": "all"}), ("young", {})):
        made = author.job(name, {"retention": said})
        for number in (1, 2) if name != "young" else ():
            author.train(made, number)
    assert usage(world.database, store, tmp_path).kept == [
        KeptUpdates("silent", None, 2, Amount(4, 4 * len("update silent 1 0"))),
        KeptUpdates("told", "all", 2, Amount(4, 4 * len("update told 1 0"))),
    ]


def test_missing_blobs_are_listed_once(world: World, store: BlobDirectory) -> None:
    made = make_history(world, store)
    assert missing_blobs(world.database, store) == []
    store.delete(made.weights)
    store.delete(made.plan_member)  # both jobs' plan
    missing = [one.digest for one in missing_blobs(world.database, store)]
    assert missing == [made.plan_member, made.weights]


def test_updates_that_are_collected_meanwhile_are_not_missing(
    world: World, store: BlobDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the rows were read, and before the files are looked at."""
    made = make_history(world, store)
    read = blob_checks.needed_blobs

    def then_collect(session: Session) -> object:
        needed = read(session)
        collect(world.database, store, now=START, keep_update_rounds=0)
        return needed

    monkeypatch.setattr(blob_checks, "needed_blobs", then_collect)
    assert blob_checks.missing_blobs(world.database, store) == []
    assert not store.exists(made.update)
