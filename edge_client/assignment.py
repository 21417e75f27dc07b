"""An assignment from its blobs to a durable update, in the work thread."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

from edge_client.checkpoints import Checkpoints
from edge_client.journal import HeldUpdate, Journal
from edge_client.optimizer_states import OptimizerStates
from edge_client.residuals import Proposal, Residuals
from edge_client.seeds import seed_of_rounding
from edge_client.training import Activity, evaluate, train
from edge_client.workbench import Bench, Workbench
from headwater.encodings.names import encoding_named
from headwater.errors import UsageError
from headwater.layout import Weights
from headwater.safetensors import map_weights
from headwater.update_encoder import UpdateEncoder
from headwater.v1 import fleet_pb2
from headwater.v1.fleet_pb2 import Assignment, OfferRequest, UpdateSummary


def check_assignment(assignment: Assignment) -> None:
    """Refuse what this program cannot do.

    Raises:
        UsageError: an unknown purpose, no batch size, or neither epochs nor steps.
        UpdateError: an unknown encoding.
    """
    if assignment.purpose == fleet_pb2.PURPOSE_TRAIN:
        encoding_named(assignment.encoding)
        if (assignment.local_epochs > 0) == (assignment.local_steps > 0):
            raise UsageError("the assignment must name either local epochs or local steps")
    elif assignment.purpose != fleet_pb2.PURPOSE_EVALUATE:
        raise UsageError(
            f"this client does not know the purpose {assignment.purpose}: upgrade headwater"
        )
    if assignment.batch_size < 1:
        raise UsageError(f"the assignment has the batch size {assignment.batch_size}")


class AssignmentRunner:
    """Carries assignments out and journals their updates."""

    def __init__(
        self,
        workbench: Workbench,
        journal: Journal,
        states: OptimizerStates,
        residuals: Residuals,
        checkpoints: Checkpoints,
        *,
        client_id: str,
        coordinator: str,
        weights_path: Callable[[str], Path],
    ) -> None:
        self._weights_path = weights_path
        self._workbench = workbench
        self._journal = journal
        self._states = states
        self._residuals = residuals
        self._checkpoints = checkpoints
        self._client_id = client_id
        self._coordinator = coordinator

    def prepare(self, assignment: Assignment) -> tuple[Bench, Weights]:
        """Open what the assignment needs.

        Raises:
            HeadwaterError: the device cannot do it: decline.
        """
        bench = self._workbench.open(assignment.plan_digest, assignment.dataset)
        base = map_weights(self._weights_path(assignment.weights_digest), bench.plan.layout)
        bench.trainer.set_weights(base)
        return bench, base

    def carry_out(
        self,
        assignment: Assignment,
        bench: Bench,
        base: Weights,
        activity: Activity,
        fetch_seconds: float,
    ) -> HeldUpdate:
        """Evaluate and train as assigned; the update is durable when this returns.

        Raises:
            Cancelled: the assignment was dropped.
            HeadwaterError: it failed.
        """
        started = time.perf_counter()
        summary = self._compute(assignment, bench, activity)
        summary.fetch_seconds = fetch_seconds
        summary.train_seconds = time.perf_counter() - started
        return self._store(assignment, bench, base, summary)

    def _compute(self, assignment: Assignment, bench: Bench, activity: Activity) -> UpdateSummary:
        only_evaluate = assignment.purpose == fleet_pb2.PURPOSE_EVALUATE
        before = {}
        if only_evaluate or assignment.evaluate_before:
            before = evaluate(bench.trainer, bench.source, assignment.batch_size, activity)
        if only_evaluate:
            summary = UpdateSummary(examples=bench.source.example_count())
        else:
            self._restore_optimizer(assignment, bench)
            summary = train(bench.trainer, bench.source, assignment, activity, self._checkpoints)
            if assignment.keep_optimizer_state:
                state = bench.trainer.optimizer_state()
                self._states.save(assignment.job, assignment.plan_digest, state)
        summary.metrics_before.update(before)
        return summary

    def _restore_optimizer(self, assignment: Assignment, bench: Bench) -> None:
        bench.trainer.reset_optimizer()
        if assignment.keep_optimizer_state:
            state = self._states.load(assignment.job, assignment.plan_digest)
            if state is not None:
                bench.trainer.set_optimizer_state(state)

    def _encoded(
        self, assignment: Assignment, bench: Bench, base: Weights, summary: UpdateSummary
    ) -> Iterator[bytes]:
        """The update's frames. After the last, what they left out is durable and `summary` has it.

        So it is there before the update is held, and can be offered.
        """
        layout, trained = bench.plan.layout, bench.trainer.weights()
        with ExitStack() as stack:
            feedback = None
            if assignment.error_feedback:
                feedback = stack.enter_context(self._proposal(assignment, layout.trainable_count))
                if feedback.old is not None:
                    summary.residual_norm = feedback.old.norm
                    age = assignment.round_number - feedback.old.round_number
                    summary.residual_age_rounds = age
            encoder = UpdateEncoder(
                base,
                trained,
                layout,
                encoding_named(assignment.encoding),
                seed_of_rounding(assignment.seed),
                feedback,
            )
            yield from encoder.frames()
            summary.encoding_error = encoder.relative_error

    def _proposal(self, assignment: Assignment, count: int) -> AbstractContextManager[Proposal]:
        return self._residuals.proposal(
            assignment.job,
            assignment.plan_digest,
            assignment_id=assignment.assignment_id,
            round_number=assignment.round_number,
            count=count,
        )

    def _store(
        self, assignment: Assignment, bench: Bench, base: Weights, summary: UpdateSummary
    ) -> HeldUpdate:
        offer = OfferRequest(
            assignment_id=assignment.assignment_id,
            client_id=self._client_id,
            encoding=assignment.encoding,
            summary=summary,
            base_weights_digest=assignment.weights_digest,
        )
        frames = None
        if assignment.purpose == fleet_pb2.PURPOSE_TRAIN:
            frames = self._encoded(assignment, bench, base, offer.summary)
        return self._journal.store(
            frames,
            coordinator=self._coordinator,
            job=assignment.job,
            round_number=assignment.round_number,
            offer=offer,
        )
