"""Clients that are killed, cloned, or bound to bad data: the round goes on with the others."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from headwater.errors import DisplacedError
from headwater.v1 import fleet_pb2 as pb
from tests.system.fleet import Fleet
from tests.system.processes import eventually
from tests.system.training import write_examples

LEASE_REASON = "no sign of life for 4 s"


@pytest.mark.parametrize("phase", ["train", "upload"])
def test_a_client_that_is_killed(fleet: Fleet, tmp_path: Path, phase: str) -> None:
    """A client killed in training or in upload: the round commits with the other once its lease is
    over, the ledger says why, and the client takes part again when it is started again."""
    gate = tmp_path / "gate"
    gate.touch()
    fleet.client("able")
    fleet.gated_client("dying", gate, phase)
    job = fleet.submit(count=400, quorum=1)
    fleet.wait_row(job, "dying", "training" if phase == "train" else "uploading")
    fleet.wait_row(job, "able", "accepted")
    fleet.clients["dying"].kill()
    row = fleet.wait_row(job, "dying", "expired")
    assert row.reason == LEASE_REASON
    eventually(lambda: fleet.rounds(job)[0].state == "committed", "the round's commit")
    assert fleet.ledger(job)["able"].fold_weight == 1.0
    gate.unlink()
    fleet.client("dying")

    def took_part() -> bool:
        latest = fleet.rounds(job)[-1].number
        rows = (fleet.ledger(job, number).get("dying") for number in range(2, latest + 1))
        return any(row is not None and row.state == "accepted" for row in rows)

    eventually(took_part, "a part of the client that was started again")
    assert len(fleet.control.list_clients().clients) == 2
    fleet.control.change(job, "cancel")


def test_a_client_killed_with_a_finished_update_delivers_it(fleet: Fleet, tmp_path: Path) -> None:
    """A client killed in upload and started again before its lease is over sends the update that
    it had finished: nothing is trained twice."""
    gate = tmp_path / "gate"
    gate.touch()
    fleet.client("able")
    fleet.gated_client("dying", gate, "upload")
    job = fleet.submit(count=1)
    digest = fleet.wait_row(job, "dying", "uploading").update_digest
    fleet.clients["dying"].kill()
    gate.unlink()
    fleet.client("dying")
    fleet.finish(job)
    row = fleet.ledger(job)["dying"]
    assert (row.state, row.update_digest) == ("accepted", digest)


def test_two_clients_with_one_identity(fleet: Fleet) -> None:
    """A copied state directory: the newest wins, the displaced one that comes back is refused and
    reported, `clients list` shows it, and the others are not disturbed."""
    fleet.client("bystander")
    original = fleet.client("original")
    shutil.copytree(
        fleet.state("original"), fleet.state("copy"), ignore=shutil.ignore_patterns("*lock*")
    )
    fleet.client("copy")
    original.wait_line("two devices share one identity")
    fleet.attending("bystander", "copy")
    job = fleet.submit(count=2)
    fleet.finish(job)
    assert set(fleet.ledger(job, 2)) == {"bystander", "copy"}
    # The displaced process stays away for a minute: a device plays its return.
    status = json.loads((fleet.state("original") / "status.json").read_text())
    returning = fleet.device(
        "original", client_id=status["client_id"], instance_id=status["instance_id"]
    )
    error = returning.open(pb.AttendRequest(hello=returning.hello)).end()
    assert isinstance(error, DisplacedError)
    shown = {one["name"]: one["displaced_count"] for one in fleet.json("clients", "list")}
    assert shown == {"bystander": 0, "copy": 1}
    assert "another device was seen under its identity 1 times" in fleet.cli("clients", "list").out
    fleet.finish(fleet.submit(count=1))
    assert original.alive


def bad_files(folder: Path) -> dict[str, tuple[str, list[str]]]:
    """Bindings that are wrong, with what the ledger must say."""
    folder.mkdir()
    good = dict(np.load(write_examples(folder / "good.npz", seed=3)))
    points, labels = good["x"], good["y"]

    def write(name: str, **arrays: np.ndarray) -> str:
        np.savez(folder / f"{name}.npz", **arrays)
        return str(folder / f"{name}.npz")

    wild = labels.copy()
    wild[17] = 9
    dirty = points.copy()
    dirty[5, 2] = np.nan
    (folder / "torn.npz").write_bytes((folder / "good.npz").read_bytes()[:200])
    return {
        "missing": (str(folder / "absent.npz"), ["absent.npz", "no such file"]),
        "torn": (str(folder / "torn.npz"), ["torn.npz", "cannot be read as .npz"]),
        "columns": (write("columns", a=points, b=labels), ["columns.npz", "'a', 'b'"]),
        "shape": (write("shape", x=points[:, :4], y=labels), ["shape.npz", "x", "4", "6"]),
        "type": (write("type", x=points, y=labels + 0.5), ["type.npz", "y"]),
        "label": (write("label", x=points, y=wild), ["label.npz", "y", "row 17", "9"]),
        "nan": (write("nan", x=dirty, y=labels), ["nan.npz", "x", "row 5", "nan"]),
        "empty": (write("empty", x=points[:0], y=labels[:0]), ["empty.npz", "no examples"]),
    }


@pytest.mark.slow
def test_bad_data_on_one_client(fleet: Fleet, tmp_path: Path) -> None:
    """A data file that is missing, torn, or has wrong columns, shapes, types, labels or values, and
    an empty shard: the client declines with file, column and row; the others go on."""
    fleet.client("able")
    cases = bad_files(tmp_path / "bad")
    for name, (binding, _) in cases.items():
        fleet.client(name, data=binding)
    job = fleet.submit(count=2, cohort=1 + len(cases), quorum=1)
    rounds = fleet.finish(job)
    assert [one.state for one in rounds] == ["committed", "committed"]
    rows = fleet.ledger(job)
    assert rows["able"].fold_weight == 1.0
    for name, (_, words) in cases.items():
        assert rows[name].state in ("declined", "failed"), rows[name]
        reason = rows[name].reason.lower()
        assert all(word.lower() in reason for word in words), (name, rows[name].reason)
        assert fleet.clients[name].alive
    # The second round does not ask them again.
    assert [one.offered for one in rounds] == [1 + len(cases), 1]
    assert all("its last assignment" in reason for reason in rounds[1].not_selected)


def test_a_loss_that_is_not_finite_in_the_first_step(fleet: Fleet) -> None:
    """Readings so large that the first loss overflows: the assignment stops with the reason, and
    without another client the round changes nothing; one that can train is not disturbed."""
    wild = write_examples(fleet.folder / "wild.npz", seed=3)
    arrays = dict(np.load(wild))
    np.savez(wild, x=np.sign(arrays["x"]) * np.float32(3e38), y=arrays["y"])
    fleet.client("wild", data=wild)
    alone = fleet.submit(count=1, cohort=1, quorum=1, deadline_seconds=5)
    row = fleet.wait_row(alone, "wild", "failed")
    assert "the loss became nan at step 1 of 12" in row.reason, row.reason
    eventually(lambda: fleet.rounds(alone)[0].state == "abandoned", "the end of the lone round")
    assert len(set(fleet.digests(alone))) == 1
    fleet.control.change(alone, "cancel")
    fleet.client("able")
    job = fleet.submit(count=1, quorum=1)
    assert [one.state for one in fleet.finish(job)] == ["committed"]
    assert fleet.ledger(job)["able"].fold_weight == 1.0
