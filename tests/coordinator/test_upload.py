"""An update arrives frame by frame; what is verified on disk is what counts."""

import hashlib
import os
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from coordinator.services.upload import Upload
from headwater import steps
from headwater.encodings.names import EXACT
from headwater.errors import DiskFullError, UpdateError
from headwater.layout import BLOCK_ELEMENTS, Layout, Role, TensorSpec
from headwater.updates import FRAME_HEADER, frame

LAYOUT = Layout((TensorSpec("w", (2 * BLOCK_ELEMENTS + 5,), "float32", Role.TRAINABLE),))
COUNTS = (BLOCK_ELEMENTS, BLOCK_ELEMENTS, 5)


@pytest.fixture
def payloads() -> list[bytes]:
    generator = np.random.default_rng(0)
    return [generator.standard_normal(n).astype("<f4").tobytes() for n in COUNTS]


@pytest.fixture
def begin() -> Iterator[Callable[[Path, str], Upload]]:
    """Opens uploads, and closes them after the test."""
    with ExitStack() as stack:

        def opened(path: Path, digest: str) -> Upload:
            upload = Upload(path, LAYOUT, EXACT, digest)
            stack.callback(upload.discard)
            return upload

        yield opened


def digest_of(payloads: list[bytes]) -> str:
    return hashlib.sha256(b"".join(map(frame, payloads))).hexdigest()


def receive(upload: Upload, payloads: list[bytes]) -> None:
    for payload in payloads:
        upload.append(zlib.crc32(payload), payload)


def test_a_whole_update_is_kept_as_it_came(begin, tmp_path, payloads):
    upload = begin(tmp_path / "u", digest_of(payloads))
    receive(upload, payloads)
    assert upload.complete
    upload.finish()
    assert (tmp_path / "u").read_bytes() == b"".join(map(frame, payloads))
    values = np.frombuffer(b"".join(payloads), "<f4").astype(np.float64)
    assert upload.norm == pytest.approx(np.sqrt((values**2).sum()), rel=1e-12)


@pytest.mark.parametrize("torn_bytes", [0, 1, 7, 100])
def test_a_torn_file_resumes_after_its_last_whole_block(begin, tmp_path, payloads, torn_bytes):
    path = tmp_path / "u"
    upload = begin(path, digest_of(payloads))
    receive(upload, payloads[:2])
    upload.pause()
    path.write_bytes(path.read_bytes() + frame(payloads[2])[:torn_bytes][:-1])
    resumed = begin(path, digest_of(payloads))
    assert resumed.offset_bytes == 2 * (FRAME_HEADER.size + 4 * BLOCK_ELEMENTS)
    receive(resumed, payloads[2:])
    resumed.finish()
    assert hashlib.sha256(path.read_bytes()).hexdigest() == digest_of(payloads)


def test_a_block_damaged_on_disk_is_asked_for_again(begin, tmp_path, payloads):
    path = tmp_path / "u"
    upload = begin(path, digest_of(payloads))
    receive(upload, payloads[:2])
    upload.pause()
    damaged = bytearray(path.read_bytes())
    damaged[FRAME_HEADER.size + 4 * BLOCK_ELEMENTS + 50] ^= 1
    path.write_bytes(damaged)
    resumed = begin(path, digest_of(payloads))
    assert resumed.offset_bytes == FRAME_HEADER.size + 4 * BLOCK_ELEMENTS
    receive(resumed, payloads[1:])
    resumed.finish()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: [p[0], p[1], p[2] + b"1234"], "block 2 has 24 bytes, which is too many"),
        (lambda p: [p[0], p[1], p[2][:-4]], "has 16 bytes; its values need 20"),
        (lambda p: [*p, p[2]], "more than its 3 blocks"),
        (lambda p: [p[0], p[1], np.full(5, np.nan, "<f4").tobytes()], "not finite"),
        (lambda p: [p[0], np.full(BLOCK_ELEMENTS, np.inf, "<f4").tobytes()], "not finite"),
    ],
)
def test_a_wrong_block_is_refused(begin, tmp_path, payloads, change, message):
    upload = begin(tmp_path / "u", digest_of(payloads))
    with pytest.raises(UpdateError, match=message):
        receive(upload, change(payloads))


def test_a_block_that_changed_on_the_way_is_refused(begin, tmp_path, payloads):
    upload = begin(tmp_path / "u", digest_of(payloads))
    with pytest.raises(UpdateError, match="block 0 does not match its checksum"):
        upload.append(zlib.crc32(payloads[0]) ^ 1, payloads[0])


def test_an_update_that_ends_early_or_is_another_is_refused(begin, tmp_path, payloads):
    upload = begin(tmp_path / "u", digest_of(payloads))
    receive(upload, payloads[:2])
    with pytest.raises(UpdateError, match="ended after 2 of 3 blocks"):
        upload.finish()
    other = begin(tmp_path / "v", "0" * 64)
    receive(other, payloads)
    with pytest.raises(UpdateError, match="was announced"):
        other.finish()
    other.discard()
    assert not (tmp_path / "v").exists()


def test_a_full_disk_is_named_and_leaves_what_was_there(begin, tmp_path, payloads):
    path = tmp_path / "u"
    upload = begin(path, digest_of(payloads))
    receive(upload, payloads[:1])
    upload.pause()

    def full(step, at):
        if step == "write":
            raise OSError(28, os.strerror(28))

    resumed = begin(path, digest_of(payloads))
    with steps.observed(full), pytest.raises(DiskFullError, match="no space is left"):
        receive(resumed, payloads[1:])
    resumed.pause()
    again = begin(path, digest_of(payloads))
    assert again.offset_bytes == FRAME_HEADER.size + 4 * BLOCK_ELEMENTS
