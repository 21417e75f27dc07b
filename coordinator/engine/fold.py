"""From a closing round's durable updates to new weights, and to the server optimizer's state.

Everything here blocks and runs on a worker thread. It reads only what is on disk, so it can be
repeated after a crash and gives the same bytes.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial

from coordinator.aggregation.order import Contribution
from coordinator.aggregation.rule import Rule, fold
from coordinator.aggregation.server_optimizer import ServerState, ServerStep
from coordinator.aggregation.soundness import fault_of
from coordinator.aggregation.staleness import discounted
from coordinator.engine.live import JobRun
from coordinator.engine.version_files import PreparedBlob, local_weights, prepared, state_before
from coordinator.engine.world import World
from headwater.encodings.names import encoding_named
from headwater.errors import BlobError, UpdateError
from headwater.layout import Layout, Weights
from headwater.updates import StoredUpdate
from storage.blob_store import BlobStore
from storage.records import AssignmentRecord, RoundRecord


@dataclass(frozen=True)
class Folded:
    """What a round produced: the weights, the files to commit, and who took part.

    `model` is the file of the weights, `optimizer_state` that of the server optimizer's state where
    the job has one.
    `shares` maps folded assignments to their weights (sum 1), `unsound` those whose update is left
    out to the reason. `fault` says why there is nothing to commit; only `unsound` has a meaning
    then.
    """

    weights: Weights | None = None
    model: PreparedBlob | None = None
    optimizer_state: PreparedBlob | None = None
    shares: Mapping[int, float] = field(default_factory=dict)
    unsound: Mapping[int, str] = field(default_factory=dict)
    fault: str = ""

    @property
    def blobs(self) -> tuple[PreparedBlob, ...]:
        """The files that the commit refers to."""
        return tuple(one for one in (self.model, self.optimizer_state) if one is not None)


@dataclass(frozen=True)
class _Attempted:
    """What some updates make, and `fault`: why it must not become a version, or why it is None."""

    weights: Weights | None = None
    state: ServerState | None = None
    fault: str = ""


_Attempt = Callable[[Sequence[Contribution]], _Attempted]


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
    rule, before = run.spec.aggregation.chosen, None
    if (optimizer := run.spec.aggregation.optimizer) is not None:
        before = state_before(world.blobs, record, optimizer, run.layout)
    attempt = partial(_attempt, rule, base, before, layout=run.layout, threads=world.threads)
    contributions, unsound = _opened(world, run, record.held, held)
    made = attempt(list(contributions.values()))
    if made.fault:
        unsound |= _unsound(attempt, contributions)
        contributions = {at: one for at, one in contributions.items() if at not in unsound}
    sound = sum(one.id in contributions for one in record.assignments)  # without the late ones
    if sound < record.quorum:
        too_few = f"{sound} updates are sound, fewer than the quorum of {record.quorum}"
        return Folded(unsound=unsound, fault="; ".join(filter(None, (made.fault, too_few))))
    if made.fault:
        made = attempt(list(contributions.values()))
    if made.weights is None or made.fault:
        return Folded(unsound=unsound, fault=made.fault)
    model, state = prepared(world.blobs, made.weights, run.layout, made.state)
    weighed = rule.shares([one.weight for one in contributions.values()])
    shares = dict(zip(contributions, weighed, strict=True))
    return Folded(made.weights, model, state, shares, unsound)


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


def _attempt(
    rule: Rule,
    base: Weights,
    before: ServerState | None,
    contributions: Sequence[Contribution],
    layout: Layout,
    threads: int,
) -> _Attempted:
    """The fold of these updates, or why there is none: weights and state must both be sound."""
    server = None if before is None else ServerStep(before)
    try:
        weights = fold(rule, base, contributions, layout, threads, server)
    except UpdateError as error:
        return _Attempted(fault=str(error))
    fault, state = fault_of(weights, layout), None
    if server is not None:
        state = server.after
        fault = fault or fault_of(state.weights, state.layout)
    return _Attempted(weights, state, fault)


def _unsound(attempt: _Attempt, contributions: Mapping[int, Contribution]) -> dict[int, str]:
    """The updates that alone make an unsound version, with the reason.

    Updates that are sound one by one are sound together, as every `Rule` promises. They are judged
    by what the server optimizer makes of them too, for every `ServerOptimizer` keeps that promise:
    without it, an update that only its learning rate makes infinite would stop every round.
    """
    faults = {at: attempt([one]).fault for at, one in contributions.items()}
    return {at: f"its update is unsound: {fault}" for at, fault in faults.items() if fault}
