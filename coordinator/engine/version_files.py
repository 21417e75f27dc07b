"""The files of a model version: its weights and, where it has one, the server optimizer's state.

All of this blocks on the disk.
"""

from dataclasses import dataclass, replace
from pathlib import Path

from coordinator.aggregation.server_optimizer import ServerOptimizer, ServerState, first_state
from headwater import durable_files
from headwater.errors import StorageError
from headwater.layout import Layout, Weights
from headwater.safetensors import map_weights, weights_chunks, weights_size_bytes
from storage.blob_store import BlobStore
from storage.records import RoundRecord


@dataclass(frozen=True)
class PreparedBlob:
    """A synced temporary file, which becomes a blob once its digest is pinned."""

    temporary: Path
    digest: str
    size_bytes: int


def local_weights(blobs: BlobStore, digest: str, layout: Layout) -> Weights:
    """Stored weights, the floats mapped from a file of this machine.

    Raises:
        BlobError, StorageError: the blob is missing, or the store failed.
        PlanError: it holds weights of another layout.
    """
    with blobs.local(digest) as path:
        return map_weights(path, layout)


def state_before(
    blobs: BlobStore, record: RoundRecord, optimizer: ServerOptimizer, layout: Layout
) -> ServerState:
    """The server optimizer's state that a round begins from: that of its base version.

    Version 0 has none and begins from zeros, whatever its weights began from.

    Raises:
        BlobError, StorageError: the blob is missing, or a version after 0 has no state, or the
            store failed.
        PlanError: it holds the state of another layout.
    """
    first = first_state(optimizer, layout)
    if record.base_version == 0:
        return first
    if record.base_optimizer_state_digest is None:
        raise StorageError(
            f"version {record.base_version} of job {record.job_reference} has lost the server "
            "optimizer's state, which the round after it begins from: restore a backup"
        )
    stored = local_weights(blobs, record.base_optimizer_state_digest, first.layout)
    return replace(first, values=stored.floats.reshape(first.values.shape))


def prepared(
    blobs: BlobStore, weights: Weights, layout: Layout, state: ServerState | None
) -> tuple[PreparedBlob, PreparedBlob | None]:
    """Write the files of a new version, weights and state: both, or none is left behind.

    Raises:
        DiskFullError, StorageError: the disk failed.
    """
    model = _prepared(blobs, weights, layout)
    if state is None:
        return model, None
    try:
        return model, _prepared(blobs, state.weights, state.layout)
    except BaseException:
        durable_files.remove(model.temporary)
        raise


def _prepared(blobs: BlobStore, weights: Weights, layout: Layout) -> PreparedBlob:
    temporary, digest = blobs.prepare(weights_chunks(layout, weights))
    return PreparedBlob(temporary, digest, weights_size_bytes(layout))
