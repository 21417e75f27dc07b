"""What lies in the state directory: identity, lock, cache, journal, optimizer states."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_client.cache import BlobCache
from edge_client.identity import load_identity
from edge_client.journal import Journal
from edge_client.optimizer_states import OptimizerStates
from edge_client.state import StateDirectory, default_state_path, held_state, running_process
from headwater.errors import DiskFullError, HeldError, StorageError, UpdateError, UsageError
from headwater.v1 import fleet_pb2 as pb
from tests.client.fake_fleet import sha256


def test_identity_stays_and_instances_differ(tmp_path: Path) -> None:
    with held_state(tmp_path / "state") as state:
        first, second = load_identity(state), load_identity(state)
    assert first.client_id == second.client_id
    assert len(first.client_id) == 32
    assert first.instance_id != second.instance_id
    assert state.identity.stat().st_mode & 0o077 == 0
    assert state.path.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("text", ["", "{}", '{"client_id": "xy"}', '{"client_id": 5}', "[]"])
def test_a_damaged_identity_is_no_new_identity(tmp_path: Path, text: str) -> None:
    state = StateDirectory(tmp_path)
    state.identity.write_text(text)
    with pytest.raises(StorageError, match=r"is damaged.*delete it to enroll this device as a new"):
        load_identity(state)
    assert state.identity.read_text() == text


def test_a_state_directory_is_held_once(tmp_path: Path) -> None:
    assert running_process(tmp_path) is None
    with held_state(tmp_path):
        assert running_process(tmp_path) is not None
        with (
            pytest.raises(HeldError, match="in use by the headwater-client process"),
            held_state(tmp_path),
        ):
            pass
    assert running_process(tmp_path) is None


def test_a_state_directory_that_cannot_be_made_names_its_path(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="/file: "), held_state(tmp_path / "file" / "state"):
        pass


def test_the_default_state_directory_follows_xdg(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert default_state_path() == tmp_path / "headwater-client"
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("HOME", "/home/someone")
    assert default_state_path() == Path("/home/someone/.local/state/headwater-client")


def cache_of(folder: Path, budget_bytes: int) -> BlobCache:
    ticks = itertools.count(1)
    return BlobCache(folder, budget_bytes, now_ns=lambda: next(ticks) * 10**9)


def put(cache: BlobCache, data: bytes) -> str:
    digest = sha256(data)
    cache.make_room(digest, len(data))
    with cache.download(digest) as download:
        download.write(data)
        download.finish()
    return digest


def blob(number: int, size: int = 100) -> bytes:
    return bytes([number]) * size


def test_the_least_recently_used_blob_goes_first(tmp_path: Path) -> None:
    cache = cache_of(tmp_path, 300)
    first, second, third = (put(cache, blob(number)) for number in range(3))
    assert cache.holds(first)
    put(cache, blob(3))
    assert [cache.holds(digest) for digest in (first, second, third)] == [True, False, True]
    assert cache.used_bytes == 300


def test_the_order_of_use_outlives_the_process(tmp_path: Path) -> None:
    cache = cache_of(tmp_path, 300)
    first, second, _ = (put(cache, blob(number)) for number in range(3))
    assert cache.holds(first)
    again = cache_of(tmp_path, 300)
    put(again, blob(3))
    assert again.holds(first)
    assert not again.holds(second)


def test_a_pinned_blob_stays(tmp_path: Path) -> None:
    cache = cache_of(tmp_path, 200)
    first = put(cache, blob(0))
    with cache.pinned([first]):
        put(cache, blob(1))
        put(cache, blob(2))
        assert cache.holds(first)
        with pytest.raises(DiskFullError, match="150 B does not fit beside 100 B in use in the"):
            cache.make_room("f" * 64, 150)


def test_a_partial_download_counts_resumes_and_can_be_evicted(tmp_path: Path) -> None:
    data = blob(7)
    digest = sha256(data)
    cache = cache_of(tmp_path, 150)
    with cache.download(digest) as download:
        download.write(data[:60])
    assert cache.used_bytes == 60
    with cache_of(tmp_path, 150).download(digest) as download:
        assert download.offset_bytes == 60
        download.write(data[60:])
        download.finish()
    with cache.download(digest) as download:
        download.write(data[:60])
    put(cache, blob(1))
    with cache.download(digest) as download:
        assert download.offset_bytes == 0


def test_wrong_bytes_never_enter_the_cache(tmp_path: Path) -> None:
    cache = cache_of(tmp_path, 1000)
    digest = sha256(b"right")
    with (
        cache.download(digest) as download,
        pytest.raises(UpdateError, match="do not have that digest"),
    ):
        download.write(b"wrong")
        download.finish()
    assert not cache.holds(digest)
    assert cache.used_bytes == 0


def test_a_digest_that_is_a_path_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not a digest"):
        cache_of(tmp_path, 10).holds("../identity.json")


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 12), st.booleans()), max_size=30))
def test_the_budget_holds_whatever_is_put_and_used(
    tmp_path_factory: pytest.TempPathFactory, actions: list[tuple[int, bool]]
) -> None:
    cache = cache_of(tmp_path_factory.mktemp("cache"), 350)
    for number, use in actions:
        data = blob(number, 10 * (number + 1))
        if use:
            cache.holds(sha256(data))
        elif not cache.holds(sha256(data)):
            put(cache, data)
        on_disk = sum(path.stat().st_size for path in cache.folder.iterdir())
        assert cache.used_bytes == on_disk <= 350


def offer(assignment_id: int) -> pb.OfferRequest:
    return pb.OfferRequest(assignment_id=assignment_id, client_id="c", encoding="fp32")


def test_the_journal_returns_what_it_stored(tmp_path: Path) -> None:
    frames = [b"one", b"two"]
    held = Journal(tmp_path).store(
        iter(frames), coordinator="a:1", job="j", round_number=3, offer=offer(5)
    )
    assert held.offer.digest == sha256(b"onetwo")
    assert held.offer.size_bytes == 6
    loaded = Journal(tmp_path).load()
    assert loaded == held
    assert loaded is not None
    assert loaded.path is not None
    assert loaded.path.read_bytes() == b"onetwo"
    Journal(tmp_path).drop(5)
    assert Journal(tmp_path).load() is None
    assert list(tmp_path.iterdir()) == []


def test_the_journal_holds_one_update(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.store([b"x"], coordinator="a:1", job="j", round_number=1, offer=offer(1))
    journal.store(None, coordinator="a:1", job="j", round_number=2, offer=offer(2))
    loaded = journal.load()
    assert loaded is not None
    assert (loaded.assignment_id, loaded.path) == (2, None)
    assert [path.name for path in tmp_path.iterdir()] == ["held.json"]


def test_a_write_that_a_kill_tore_is_cleared_away(tmp_path: Path) -> None:
    torn = tmp_path / ".5.update.tmp"
    torn.write_bytes(b"the first half")
    assert Journal(tmp_path).load() is None
    assert not torn.exists()


def test_an_update_without_its_record_was_never_finished(tmp_path: Path) -> None:
    (tmp_path / "4.update").write_bytes(b"half")
    assert Journal(tmp_path).load() is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damage", ["record", "bytes", "update", "missing"])
def test_a_damaged_journal_says_so_and_is_set_aside(tmp_path: Path, damage: str) -> None:
    journal = Journal(tmp_path)
    held = journal.store([b"x"], coordinator="a:1", job="j", round_number=1, offer=offer(1))
    assert held.path is not None
    if damage == "record":
        (tmp_path / "held.json").write_text('{"offer": ')
    elif damage == "bytes":
        (tmp_path / "held.json").write_bytes(b"\xff\xfe\x00")
    elif damage == "update":
        held.path.write_bytes(b"y")
    else:
        held.path.unlink()
    with pytest.raises(StorageError, match="was damaged: its update is lost"):
        journal.load()
    kept = {"held.damaged", "update.damaged"} - (
        {"update.damaged"} if damage == "missing" else set()
    )
    assert {path.name for path in tmp_path.iterdir()} == kept
    assert journal.load() is None


def test_frames_that_break_off_leave_nothing(tmp_path: Path) -> None:
    def frames() -> "itertools.chain[bytes]":
        raise UpdateError("not finite")

    with pytest.raises(UpdateError):
        Journal(tmp_path).store(
            (frame for frame in frames()), coordinator="", job="", round_number=1, offer=offer(1)
        )
    assert list(tmp_path.iterdir()) == []


def test_optimizer_states_by_job_and_plan(tmp_path: Path) -> None:
    states = OptimizerStates(tmp_path, kept=2)
    for number, job in enumerate(("a", "b")):
        states.save(job, "p", {"o.step": np.array(number, np.float32)})
    fresh = OptimizerStates(tmp_path, kept=2)
    assert fresh.load("a", "q") is None
    for number, job in enumerate(("a", "b")):
        state = fresh.load(job, "p")
        assert state is not None
        assert state["o.step"] == number
    fresh.save("c", "p", {"o.step": np.array(2, np.float32)})
    assert len(list(tmp_path.iterdir())) == 2
    assert fresh.load("c", "p") is not None


def test_a_damaged_optimizer_state_starts_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    OptimizerStates(tmp_path).save("a", "p", {"o.step": np.zeros(3, np.float32)})
    next(tmp_path.iterdir()).write_bytes(b"rot")
    assert OptimizerStates(tmp_path).load("a", "p") is None
    assert "the optimizer starts anew" in caplog.text
