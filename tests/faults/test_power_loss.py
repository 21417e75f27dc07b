"""Power loss at every step: what was acknowledged is there, and every sync is needed for that."""

from collections.abc import Callable
from pathlib import Path

import pytest

from coordinator.compiler.compiled_plan import CompiledPlan
from edge_client.checkpoints import Checkpoints
from edge_client.journal import Journal
from headwater import steps
from headwater.errors import StorageError
from headwater.v1 import fleet_pb2 as pb
from storage.blob_directory import BlobDirectory
from storage.database import open_database
from storage.records import JobState
from storage.verify import verify
from tests.coordinator.rig import rigged
from tests.faults.disk import Disk, first_fault, rebuilt
from tests.plans import compile_case
from tests.system.device import make_update
from tests.zoo import ZOO

NEEDED = {
    "sync: storage.blob_directory.BlobDirectory.prepare",
    "sync: coordinator.services.upload.Upload.finish",
    "sync folder: storage.blob_directory.BlobDirectory.adopt",
}
"""The coordinator's syncs in a job; the one of a folder is for new folders and new names alike."""


@pytest.fixture(scope="module")
def plan() -> CompiledPlan:
    optimizer = {"name": "sgd", "learning_rate": 0.1}
    return compile_case(ZOO["mlp"], "job", optimizer=optimizer, metrics=["accuracy"])


async def trained(folder: Path, plan: CompiledPlan, ignored: str = "") -> Disk:
    """Two rounds of a job on a disk that is watched."""
    path = folder / "headwater.db"
    disk = Disk(folder, path, frozenset({ignored}))
    with open_database(f"sqlite:///{path}", create=True) as database:
        with steps.observed(disk.observe):
            async with rigged(folder, database, plan) as rig:
                a, b = await rig.attend("a", "b")
                job = await rig.submit()
                for number in (1, 2):
                    for device, change in ((a, 0.01), (b, 0.02)):
                        update = make_update(plan.manifest.layout, change * number)
                        await device.deliver(await device.assigned(), update)
                    await rig.ended(job, number)
        disk.cut("the end")
    return disk


def unsound(folder: Path, database: bytes) -> str:
    """What `storage verify` finds, or why the coordinator could not start there."""
    if not database:
        return ""
    path = folder / "headwater.db"
    path.write_bytes(database)
    with open_database(f"sqlite:///{path}") as opened:
        found = verify(opened, BlobDirectory(folder / "blobs"))
    return "; ".join(map(str, found.findings))


async def test_a_coordinator_loses_nothing_that_it_acknowledged(
    tmp_path: Path, plan: CompiledPlan
) -> None:
    (tmp_path / "data").mkdir()
    disk = await trained(tmp_path / "data", plan)
    assert disk.labels >= NEEDED
    assert len(disk.cuts) > 50
    assert first_fault(disk, tmp_path / "cuts", unsound) == ""


async def test_a_coordinator_starts_after_every_cut(tmp_path: Path, plan: CompiledPlan) -> None:
    (tmp_path / "data").mkdir()
    disk = await trained(tmp_path / "data", plan)
    started = 0
    for number, (step, tree, database) in enumerate(disk.states()):
        if not database:
            continue
        folder = rebuilt(tmp_path / str(number), tree)
        (folder / "headwater.db").write_bytes(database)
        with open_database(f"sqlite:///{folder / 'headwater.db'}") as opened:
            async with rigged(folder, opened, plan) as rig:
                states = {run.record.state for run in rig.engine.runs.values()}
        assert JobState.PAUSED not in states, step
        started += len(states)
    assert started > 20


@pytest.mark.parametrize("ignored", sorted(NEEDED))
async def test_a_coordinator_needs_every_sync(
    tmp_path: Path, plan: CompiledPlan, ignored: str
) -> None:
    (tmp_path / "data").mkdir()
    disk = await trained(tmp_path / "data", plan, ignored)
    assert first_fault(disk, tmp_path / "cuts", unsound) != ""


@pytest.mark.parametrize("ignored", ["", "sync: coordinator.services.upload.Upload.finish"])
async def test_a_flush_makes_no_sync_needless(
    tmp_path: Path, plan: CompiledPlan, monkeypatch: pytest.MonkeyPatch, ignored: str
) -> None:
    monkeypatch.setattr("coordinator.services.write_behind.FLUSH_BYTES", 1)
    (tmp_path / "data").mkdir()
    passed: set[str] = set()
    with steps.observed(lambda step, _: passed.add(step)):
        disk = await trained(tmp_path / "data", plan, ignored)
    assert "flush" in passed
    assert bool(first_fault(disk, tmp_path / "cuts", unsound)) == bool(ignored)


def delivered(folder: Path) -> None:
    """An update that a client holds."""
    offer = pb.OfferRequest(assignment_id=7, encoding="fp32")
    Journal(folder / "updates").store(
        [b"frame " * 50, b"frame " * 70],
        coordinator="here:1", job="job", round_number=1, offer=offer,
    )  # fmt: skip


def begun(folder: Path) -> None:
    """An assignment that killed a process, and is begun again."""
    for _ in range(2):
        Checkpoints(folder / "checkpoints", 1.0).begin("here:1", pb.Assignment(assignment_id=7))


def of_journal(folder: Path, is_done: bool) -> str:
    try:
        held = Journal(folder / "updates").load()
    except StorageError as error:
        return str(error)
    return "the update is lost" if is_done and held is None else ""


def of_checkpoints(folder: Path, is_done: bool) -> str:
    deaths = Checkpoints(folder / "checkpoints", 1.0).begin(
        "here:1", pb.Assignment(assignment_id=7)
    )
    return f"{deaths} deaths are known" if is_done and deaths != 2 else ""


CLIENT: dict[str, tuple[Callable[[Path], None], Callable[[Path, bool], str]]] = {
    "journal": (delivered, of_journal),
    "checkpoints": (begun, of_checkpoints),
}


def kept(disk: Disk, work: Callable[[Path], None]) -> Disk:
    """The disk after a client's work on it; what is done is marked by the name of the cut."""
    with steps.observed(disk.observe):
        work(disk.root)
    disk.cut("done")
    return disk


def client_fault(disk: Disk, folder: Path, check: Callable[[Path, bool], str]) -> str:
    done = disk.cuts.pop()
    found = first_fault(disk, folder / "before", lambda place, _: check(place, False))
    disk.cuts = [done]
    return found or first_fault(disk, folder / "after", lambda place, _: check(place, True))


@pytest.mark.parametrize("name", CLIENT)
def test_a_client_loses_nothing_that_it_holds(tmp_path: Path, name: str) -> None:
    work, check = CLIENT[name]
    (tmp_path / "state").mkdir()
    disk = kept(Disk(tmp_path / "state"), work)
    assert client_fault(disk, tmp_path / "cuts", check) == ""


@pytest.mark.parametrize("name", CLIENT)
def test_a_client_needs_every_sync(tmp_path: Path, name: str) -> None:
    work, check = CLIENT[name]
    (tmp_path / "once").mkdir()
    labels = kept(Disk(tmp_path / "once"), work).labels
    assert len(labels) >= 3
    for number, label in enumerate(sorted(labels)):
        root = tmp_path / str(number)
        root.mkdir()
        disk = kept(Disk(root, ignored=frozenset({label})), work)
        assert client_fault(disk, tmp_path / f"cuts-{number}", check), label
