"""What a full disk does to bytes on their way in: it is told as that, and nothing hides it."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import pytest

from coordinator.engine.engine import Engine
from coordinator.engine.world import World
from coordinator.services.control import ControlService
from coordinator.services.spool import store_path
from coordinator.services.upload import Upload
from headwater.encodings.names import encoding_named
from headwater.errors import DiskFullError
from headwater.layout import Layout, Role, TensorSpec
from headwater.v1 import control_pb2

FULL = Path("/dev/full")
"""Takes what fits into a buffer, and refuses it when it is flushed."""


async def once(data: bytes) -> AsyncIterator[control_pb2.StoreRequest]:
    yield control_pb2.StoreRequest(digest=hashlib.sha256(data).hexdigest(), data=data)


def test_a_blob_that_does_not_fit_is_told_as_a_full_disk(world: World) -> None:
    data, context = b"small enough to be buffered", object()
    path = store_path(world.spool, hashlib.sha256(data).hexdigest(), id(context))
    path.symlink_to(FULL)
    service = ControlService(Engine(world))
    with pytest.raises(DiskFullError):
        asyncio.run(service.Store(once(data), cast(Any, context)))
    assert list(world.spool.iterdir()) == []


def test_a_damaged_upload_is_discarded_on_a_full_disk_too(tmp_path: Path) -> None:
    layout = Layout((TensorSpec("w", (4,), "float32", Role.TRAINABLE),))
    upload = Upload(tmp_path / "1.part", layout, encoding_named("fp32"), "0" * 64)
    upload._file.close()
    upload._file = FULL.open("wb")
    upload._file.write(b"buffered")
    upload.discard()
    assert list(tmp_path.iterdir()) == []
