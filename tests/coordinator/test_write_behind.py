"""A file is flushed while it grows: its end waits for that, and a failure is never forgotten."""

import errno
import hashlib
import os
import threading
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from coordinator.services.upload import Upload
from coordinator.services.write_behind import WriteBehind
from headwater import steps
from headwater.encodings.names import EXACT
from headwater.errors import DiskFullError, StorageError
from headwater.layout import BLOCK_ELEMENTS, Layout, Role, TensorSpec
from headwater.updates import FRAME_HEADER, frame

LAYOUT = Layout((TensorSpec("w", (2 * BLOCK_ELEMENTS,), "float32", Role.TRAINABLE),))
PAYLOADS = [bytes(4 * BLOCK_ELEMENTS), b"\1" * 4 * BLOCK_ELEMENTS]
DIGEST = hashlib.sha256(b"".join(map(frame, PAYLOADS))).hexdigest()
ENDS: dict[str, Callable[[Upload], None]] = {
    "finish": Upload.finish,
    "pause": Upload.pause,
    "discard": Upload.discard,
}


@pytest.fixture(autouse=True)
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every byte is worth a flush."""
    monkeypatch.setattr("coordinator.services.write_behind.FLUSH_BYTES", 1)


def begun(path: Path, blocks: list[bytes]) -> Upload:
    upload = Upload(path, LAYOUT, EXACT, DIGEST)
    receive(upload, blocks)
    return upload


def receive(upload: Upload, blocks: list[bytes]) -> None:
    for payload in blocks:
        upload.append(zlib.crc32(payload), payload)


def failing(at: str, number: int) -> steps.Observer:
    """A disk that fails whenever it is asked for that step."""

    def observe(step: str, _: object) -> None:
        if step == at:
            raise OSError(number, os.strerror(number))

    return observe


@pytest.mark.parametrize("end", ENDS)
def test_an_upload_ends_after_its_flush_of_which_there_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    ending, closed = threading.Event(), []

    def held(step: str, _: object) -> None:
        if step == "flush":
            assert ending.wait(20)
            closed.append(upload._file.closed)

    class Watched(WriteBehind):
        def end(self) -> None:
            ending.set()
            super().end()

    monkeypatch.setattr("coordinator.services.upload.WriteBehind", Watched)
    upload = begun(tmp_path / "u", [])
    with steps.observed(held):
        receive(upload, PAYLOADS)
        ENDS[end](upload)
    assert closed == [False]
    assert upload._file.closed


@pytest.mark.parametrize("end", ["finish", "pause"])
@pytest.mark.parametrize(
    ("number", "expected"), [(errno.EIO, StorageError), (errno.ENOSPC, DiskFullError)]
)
def test_a_flush_that_failed_fails_the_upload_and_its_file_is_not_trusted(
    tmp_path: Path, end: str, number: int, expected: type[StorageError]
) -> None:
    upload = begun(tmp_path / "u", [])
    with steps.observed(failing("flush", number)), pytest.raises(expected):
        receive(upload, PAYLOADS)  # tells it already when the flush is that fast
        ENDS[end](upload)
    with pytest.raises(expected):  # the disk works again: what it lost is lost
        upload.pause()
    assert not upload.path.exists()
    again = begun(upload.path, [])
    assert again.offset_bytes == 0
    receive(again, PAYLOADS)
    again.finish()


def test_a_discarded_upload_needs_no_flush(tmp_path: Path) -> None:
    upload = begun(tmp_path / "u", [])
    with steps.observed(failing("flush", errno.EIO)):
        receive(upload, PAYLOADS[:1])
        upload.discard()
    assert not upload.path.exists()


def test_a_file_whose_sync_failed_is_not_trusted(tmp_path: Path) -> None:
    upload = begun(tmp_path / "u", PAYLOADS)
    with steps.observed(failing("sync", errno.EIO)), pytest.raises(StorageError):
        upload.finish()
    upload.pause()
    assert not upload.path.exists()


def test_the_writer_hears_of_a_flush_that_failed(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with path.open("wb") as file, steps.observed(failing("flush", errno.EIO)):
        behind = WriteBehind(file, path)
        with pytest.raises(StorageError, match=str(path)):
            while True:
                behind.wrote(1)
        with pytest.raises(StorageError):
            behind.end()


def test_what_was_flushed_before_a_break_is_verified_like_the_rest(tmp_path: Path) -> None:
    upload = begun(tmp_path / "u", PAYLOADS)
    upload.pause()
    damaged = bytearray(upload.path.read_bytes())
    damaged[-1] ^= 1
    upload.path.write_bytes(damaged)
    again = begun(upload.path, [])
    assert again.offset_bytes == FRAME_HEADER.size + len(PAYLOADS[0])
    receive(again, PAYLOADS[1:])
    again.finish()
    assert hashlib.sha256(upload.path.read_bytes()).hexdigest() == DIGEST


def test_a_small_update_is_left_to_its_sync(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    passed: list[str] = []
    with steps.observed(lambda step, _: passed.append(step)):
        begun(tmp_path / "u", PAYLOADS).finish()
    assert passed == ["write", "write", "sync"]
