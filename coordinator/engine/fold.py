"""From a closing round's durable updates to new weights and their held-out metrics.

Everything here blocks and runs on a worker thread. It reads only what is on disk, so it can be
repeated after a crash and gives the same bytes.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from coordinator.aggregation.order import Contribution
from coordinator.aggregation.rule import Rule, fold
from coordinator.aggregation.soundness import fault_of
from coordinator.aggregation.staleness import discounted
from coordinator.engine.live import JobRun
from coordinator.engine.world import World
from headwater.encodings.names import encoding_named
from headwater.errors import BlobError, UpdateError, UserError
from headwater.evaluation import evaluate
from headwater.layout import Layout, Weights
from headwater.safetensors import map_weights, weights_chunks, weights_size_bytes
from headwater.sources import open_source
from headwater.updates import StoredUpdate
from storage.blob_store import BlobStore
from storage.records import (
    AssignmentRecord,
    MetricScope,
    MetricValue,
    RoundRecord,
)

EVALUATION_BATCH = 256
"""Examples in a batch of held-out data."""

_Attempt = Callable[[Sequence[Contribution]], tuple[Weights | None, str]]


@dataclass(frozen=True)
class Folded:
    """What a round produced: the weights, their file and its digest and size, and who took part.

    `temporary` is the synced file, which becomes a blob once its digest is pinned.
    `shares` maps folded assignments to their weights (sum 1), `unsound` those whose update is left
    out to the reason. `fault` says why there is nothing to commit; only `unsound` has a meaning
    then.
    """

    weights: Weights | None = None
    temporary: Path | None = None
    digest: str = ""
    shares: Mapping[int, float] = field(default_factory=dict)
    size_bytes: int = 0
    unsound: Mapping[int, str] = field(default_factory=dict)
    fault: str = ""


def fold_round(world: World, run: JobRun, record: RoundRecord) -> Folded:
    """Fold the updates that a closing round holds, without those that make the result unsound.

    What is left out depends on the set of held updates and their stored bytes alone: an update
    that is damaged on disk, or that alone makes unsound weights.

    Raises:
        PlanError, StorageError: the base weights are not what they were, or the disk failed.
    """
    with ExitStack() as held:
        return _fold(world, run, record, held)


def _fold(world: World, run: JobRun, record: RoundRecord, held: ExitStack) -> Folded:
    """`held` keeps the files that are read on this machine."""
    base = local_weights(world.blobs, record.base_weights_digest, run.layout)
    rule = run.spec.aggregation.chosen
    attempt = partial(_attempt, rule, base, layout=run.layout, threads=world.threads)
    contributions, unsound = _opened(world, run, record.held, held)
    weights, fault = attempt(list(contributions.values()))
    if fault:
        unsound |= _unsound(attempt, contributions)
        contributions = {at: one for at, one in contributions.items() if at not in unsound}
    sound = sum(one.id in contributions for one in record.assignments)  # without the late ones
    if sound < record.quorum:
        too_few = f"{sound} updates are sound, fewer than the quorum of {record.quorum}"
        return Folded(unsound=unsound, fault="; ".join(filter(None, (fault, too_few))))
    if fault:
        weights, fault = attempt(list(contributions.values()))
    if weights is None or fault:
        return Folded(unsound=unsound, fault=fault)
    temporary, digest = world.blobs.prepare(weights_chunks(run.layout, weights))
    weighed = rule.shares([one.weight for one in contributions.values()])
    shares = dict(zip(contributions, weighed, strict=True))
    return Folded(weights, temporary, digest, shares, weights_size_bytes(run.layout), unsound)


def _opened(
    world: World, run: JobRun, accepted: Sequence[AssignmentRecord], held: ExitStack
) -> tuple[dict[int, Contribution], dict[int, str]]:
    """The stored updates, and those that cannot be read with the reason."""
    contributions: dict[int, Contribution] = {}
    unreadable: dict[int, str] = {}
    for one in accepted:
        try:
            contributions[one.id] = contribution_of(world.blobs, run.layout, one, held)
        except (UpdateError, BlobError) as error:
            unreadable[one.id] = f"its stored update cannot be read: {error}"
    return contributions, unreadable


def contribution_of(
    blobs: BlobStore, layout: Layout, assignment: AssignmentRecord, held: ExitStack
) -> Contribution:
    """The stored update of an assignment that holds one, which can be read until `held` is closed.

    Raises:
        UpdateError: the file's frames are not those of an update of this layout.
        BlobError: it is missing, or damaged.
        StorageError: the store failed.
    """
    digest = assignment.update_digest or ""
    encoding = encoding_named(assignment.update_encoding or "")
    update = StoredUpdate(held.enter_context(blobs.local(digest)), layout, encoding)
    weight = discounted(assignment.examples or 0, assignment.staleness)
    return Contribution(digest, weight, update)


def local_weights(blobs: BlobStore, digest: str, layout: Layout) -> Weights:
    """Stored weights, the floats mapped from a file of this machine.

    Raises:
        BlobError, StorageError: the blob is missing, or the store failed.
        PlanError: it holds weights of another layout.
    """
    with blobs.local(digest) as path:
        return map_weights(path, layout)


def _attempt(
    rule: Rule,
    base: Weights,
    contributions: Sequence[Contribution],
    layout: Layout,
    threads: int,
) -> tuple[Weights | None, str]:
    """The fold of these updates, or why there is none."""
    try:
        weights = fold(rule, base, contributions, layout, threads)
    except UpdateError as error:
        return None, str(error)
    return weights, fault_of(weights, layout)


def _unsound(attempt: _Attempt, contributions: Mapping[int, Contribution]) -> dict[int, str]:
    """The updates that alone make unsound weights, with the reason.

    Updates that are sound one by one are sound together, as every `Rule` promises.
    """
    faults = {at: attempt([one])[1] for at, one in contributions.items()}
    return {at: f"its update is unsound: {fault}" for at, fault in faults.items() if fault}


def held_out_metrics(world: World, run: JobRun, folded: Folded) -> tuple[list[MetricValue], str]:
    """What the new version scores on the coordinator's own data, if the job's policy asks now.

    Training does not depend on it: where it cannot be measured, the second value says why.
    """
    policy = run.spec.rounds.evaluate
    number = run.record.rounds_committed + 1
    due = number >= run.spec.rounds.count or number % policy.every == 0
    if "coordinator" not in policy.on or not due or folded.weights is None:
        return [], ""
    binding = world.held_out.get(run.spec.dataset)
    if binding is None:
        return [], f"no held-out data is bound: headwater serve --data {run.spec.dataset}=PATH"
    try:
        return _measured(world, run, binding, folded.weights), ""
    except UserError as error:
        return [], f"the held-out data cannot be used: {error}"


def _measured(world: World, run: JobRun, binding: str, weights: Weights) -> list[MetricValue]:
    if run.held_out is None:
        manifest = run.plan.manifest
        run.held_out = open_source(binding, manifest.inputs, manifest.targets)
    result = dict(evaluate(run.plan, weights, run.held_out, EVALUATION_BATCH, world.threads))
    examples = int(result.pop("examples"))
    return [
        MetricValue(MetricScope.COORDINATOR, name, value, examples)
        for name, value in result.items()
    ]
