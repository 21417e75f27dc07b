"""From the stored updates of a round to weights, their digest, and what they score."""

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from coordinator.aggregation.rule import fold
from coordinator.aggregation.server_optimizer import ServerStep
from coordinator.aggregation.soundness import fault_of
from coordinator.aggregation.staleness import discounted
from coordinator.engine.fold import contribution_of
from coordinator.engine.held_out import EVALUATION_BATCH
from coordinator.engine.version_files import local_weights, state_before
from coordinator.jobs.aggregation_spec import Aggregation
from coordinator.replay.committed_round import (
    CommittedRound,
    WhatIf,
    aggregation_of,
    kept_updates,
)
from headwater.errors import BlobError, StorageError, UpdateError
from headwater.evaluation import Evaluator
from headwater.layout import Layout, Weights
from headwater.plan import Plan
from headwater.safetensors import weights_chunks
from headwater.sources import DataSource
from storage.blob_store import BlobStore
from storage.records import AssignmentRecord


@dataclass(frozen=True)
class Replayed:
    """What a replay made, beside what was.

    `shares` maps clients to the weights of their updates (sum 1). `metrics` are held-out ones of
    these weights, empty without data; `metrics_before` are those of the committed version as the
    ledger has them or, where the round was not measured, on the same data.
    """

    aggregation: Aggregation
    shares: Mapping[str, float]
    weights: Weights
    digest: str
    metrics: Mapping[str, float]
    metrics_before: Mapping[str, float]


def replayed(
    blobs: BlobStore,
    step: CommittedRound,
    plan: Plan,
    what_if: WhatIf,
    source: DataSource | None,
    threads: int,
) -> Replayed:
    """Fold a round again; `threads` changes the speed and no bit of the weights.

    Raises:
        UserError: what is asked cannot be folded (see `kept_updates`, `aggregation_of`), would be
            unsound, or the data does not fit.
        StorageError: a blob is missing or damaged.
    """
    kept = kept_updates(step, what_if.without)
    aggregation = aggregation_of(step.spec.aggregation, what_if, len(kept))
    weights = refold(blobs, step, kept, aggregation, plan.layout, threads)
    shares = aggregation.chosen.shares(
        [discounted(one.examples or 0, one.staleness) for one in kept]
    )
    digest = digest_of(weights, plan.layout)
    metrics: dict[str, float] = {}
    metrics_before = dict(step.record.coordinator_metrics)
    if source is not None:
        evaluator = Evaluator(plan, threads=threads)
        metrics = _measured(evaluator, weights, source)
        if not metrics_before:
            before = verified_weights(blobs, step.version.weights_digest, plan.layout)
            metrics_before = _measured(evaluator, before, source)
    return Replayed(
        aggregation=aggregation,
        shares=_by_client(kept, shares),
        weights=weights,
        digest=digest,
        metrics=metrics,
        metrics_before=metrics_before,
    )


def _by_client(kept: Sequence[AssignmentRecord], shares: Sequence[float]) -> dict[str, float]:
    """A client whose late update was folded beside its own of the round has the sum of the two."""
    found: dict[str, float] = {}
    for one, share in zip(kept, shares, strict=True):
        found[one.client_name] = found.get(one.client_name, 0.0) + share
    return found


def refold(
    blobs: BlobStore,
    step: CommittedRound,
    kept: Sequence[AssignmentRecord],
    aggregation: Aggregation,
    layout: Layout,
    threads: int,
) -> Weights:
    """The weights that these updates make of the round's base, and of the state at that base.

    Every blob is held against its digest first, so that weights which differ from the ledger's come
    of the fold, and of nothing that was damaged on disk.

    Raises:
        StorageError: a blob is missing or damaged.
        UpdateError: the weights are unsound, and the round would have been abandoned.
    """
    base = verified_weights(blobs, step.record.base_weights_digest, layout)
    server = _verified_step(blobs, step, aggregation, layout)
    for one in kept:
        if not blobs.exists(one.update_digest or ""):
            raise StorageError(
                f"the update of {one.client_name} in {step.name} is not in {blobs.place}: it was "
                "collected a moment ago, or this is not the coordinator's data directory"
            )
        check_blob(blobs, one.update_digest or "")
    try:
        with ExitStack() as held:
            contributions = [contribution_of(blobs, layout, one, held) for one in kept]
            weights = fold(aggregation.chosen, base, contributions, layout, threads, server)
    except FileNotFoundError as error:
        raise StorageError(f"{error.filename} was collected while it was read") from error
    if fault := fault_of(weights, layout):
        raise UpdateError(f"{step.name} would have made no version: {fault}")
    return weights


def _verified_step(
    blobs: BlobStore, step: CommittedRound, aggregation: Aggregation, layout: Layout
) -> ServerStep | None:
    """The server optimizer from where the round began, if it has one."""
    if aggregation.optimizer is None:
        return None
    if step.record.base_optimizer_state_digest is not None:
        check_blob(blobs, step.record.base_optimizer_state_digest)
    return ServerStep(state_before(blobs, step.record, aggregation.optimizer, layout))


def verified_weights(blobs: BlobStore, digest: str, layout: Layout) -> Weights:
    """Stored weights, the floats mapped from disk.

    Raises:
        StorageError: the blob is missing or damaged.
        PlanError: it holds weights of another layout.
    """
    check_blob(blobs, digest)
    return local_weights(blobs, digest, layout)


def check_blob(blobs: BlobStore, digest: str) -> None:
    """Hold a blob's bytes against its digest, in pieces.

    Raises:
        StorageError: it is missing, cannot be read, or has other bytes.
    """
    hasher = hashlib.sha256()
    with blobs.open(digest) as file:
        for chunk in iter(lambda: file.read(2**20), b""):
            hasher.update(chunk)
    if (found := hasher.hexdigest()) != digest:
        raise BlobError(
            f"blob {digest} in {blobs.place} is damaged: its bytes have the digest {found}; "
            "restore it from a backup"
        )


def digest_of(weights: Weights, layout: Layout) -> str:
    """The SHA-256 of the file of these weights, by which a version is known."""
    hasher = hashlib.sha256()
    for chunk in weights_chunks(layout, weights):
        hasher.update(chunk)
    return hasher.hexdigest()


def _measured(evaluator: Evaluator, weights: Weights, source: DataSource) -> dict[str, float]:
    """The loss and the metrics on held-out data, in the batches in which a round measures them."""
    found = evaluator.evaluate(weights, source, EVALUATION_BATCH)
    return {name: value for name, value in found.items() if name != "examples"}
