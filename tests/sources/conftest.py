import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from headwater.batch import Batch, TensorSignature
from headwater.sources import DataSource


@pytest.fixture
def image_input() -> list[TensorSignature]:
    return [TensorSignature("x0", (3, 4, 5), "float32")]


@pytest.fixture
def vector_input() -> list[TensorSignature]:
    return [TensorSignature("x0", (2,), "float32")]


@pytest.fixture
def label() -> list[TensorSignature]:
    return [TensorSignature("y0", (), "int64", 10)]


@pytest.fixture
def write_parquet(tmp_path: Path) -> Callable[..., str]:
    def write(name: str = "data.parquet", row_group_size: int | None = None, **columns: object):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(columns), path, row_group_size=row_group_size)
        return str(path)

    return write


@pytest.fixture
def picture() -> Callable[..., bytes]:
    """A PNG whose pixels are known: lossless, so that they come back exactly."""

    def encode(seed: int = 0, height: int = 4, width: int = 5, mode: str = "RGB") -> bytes:
        channels = {"L": (), "RGB": (3,), "RGBA": (4,)}[mode]
        shape = (height, width, *channels)
        pixels = np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        return file.getvalue()

    return encode


@pytest.fixture
def gather() -> Callable[..., Batch]:
    """All batches of a pass in one."""

    def run(source: DataSource, batch_size: int = 7, seed: int | None = None) -> Batch:
        batches = list(source.batches(batch_size, seed))
        assert all(batch.size == batch_size for batch in batches[:-1])
        assert 0 < batches[-1].size <= batch_size
        inputs = [batch.inputs for batch in batches]
        targets = [batch.targets for batch in batches]
        return Batch(
            tuple(np.concatenate(parts) for parts in zip(*inputs, strict=True)),
            tuple(np.concatenate(parts) for parts in zip(*targets, strict=True)),
        )

    return run
