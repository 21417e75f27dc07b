"""One assignment's computation: evaluate, train, and what was measured. Runs in the work thread."""

import math
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count, islice

from edge_client.checkpoints import Checkpoints, TrainingPoint
from edge_client.metric_mean import MetricMean
from edge_client.seeds import seed_of_epoch, seed_of_step
from edge_client.trainers import Trainer
from headwater.batch import Batch
from headwater.errors import DataError, UpdateError
from headwater.sources import DataSource
from headwater.v1 import fleet_pb2
from headwater.v1.fleet_pb2 import Assignment, UpdateSummary


class Cancelled(Exception):  # noqa: N818 - no error: the coordinator asked for it
    """The assignment was dropped between two steps."""


@dataclass
class Activity:
    """What the work thread does, read by the event loop; `stopping` asks it to stop."""

    phase: "fleet_pb2.Phase.ValueType" = fleet_pb2.PHASE_FETCHING
    fraction: float = 0.0
    stopping: threading.Event = field(default_factory=threading.Event)

    def enter(self, phase: "fleet_pb2.Phase.ValueType") -> None:
        """Begin a phase."""
        self.phase, self.fraction = phase, 0.0

    def step(self, done: int, total: int) -> None:
        """Record progress.

        Raises:
            Cancelled: the assignment was dropped.
        """
        self.fraction = min(1.0, done / total) if total else 1.0
        if self.stopping.is_set():
            raise Cancelled


def evaluate(
    trainer: Trainer, source: DataSource, batch_size: int, activity: Activity
) -> dict[str, float]:
    """Loss and metrics of the trainer's weights over the whole data set.

    Raises:
        Cancelled: the assignment was dropped.
        DataError: the data set is empty, or bad data was met.
    """
    activity.enter(fleet_pb2.PHASE_EVALUATING)
    mean, total = MetricMean(), source.example_count()
    for batch in source.batches(batch_size, None):
        mean.add(trainer.evaluate_step(batch), batch)
        activity.step(mean.examples, total)
    if mean.examples == 0:
        raise DataError("the data set has no examples")
    return mean.result()


def train(
    trainer: Trainer,
    source: DataSource,
    assignment: Assignment,
    activity: Activity,
    checkpoints: Checkpoints | None = None,
) -> UpdateSummary:
    """Train from the trainer's weights; the summary has `examples`, `steps`, `metrics_after`.

    `metrics_after` is the mean over the last epoch, or over all steps where the assignment counts
    steps. `examples` counts each example of the data set once, or those that the steps saw where
    they are fewer. With a checkpoint of an earlier process training goes on from there, to the
    same weights and summary.

    Raises:
        Cancelled: the assignment was dropped.
        UpdateError: a loss is not finite.
        DataError: the data set is empty, or bad data was met.
    """
    activity.enter(fleet_pb2.PHASE_TRAINING)
    available = source.example_count()
    total = _step_count(assignment, available)
    hyperparameters = dict(assignment.hyperparameters)
    point = checkpoints.restore(trainer) if checkpoints else None
    point = point or TrainingPoint(0, 0, 0, MetricMean())
    for epoch, batch in islice(_schedule(source, assignment), point.steps, None):
        seed = seed_of_step(assignment.seed, point.steps)
        metrics = trainer.train_step(batch, hyperparameters, seed)
        point.steps += 1
        check_finite(metrics["loss"], point.steps, total, hyperparameters)
        if epoch != point.epoch and not assignment.local_steps:
            point.mean, point.epoch = MetricMean(), epoch
        point.mean.add(metrics, batch)
        point.seen += batch.size
        activity.step(point.steps, total)
        if checkpoints:
            checkpoints.save_when_due(trainer, point)
    return UpdateSummary(
        examples=min(available, point.seen), steps=point.steps, metrics_after=point.mean.result()
    )


def _step_count(assignment: Assignment, examples: int) -> int:
    if assignment.local_steps:
        return assignment.local_steps
    return math.ceil(examples / assignment.batch_size) * assignment.local_epochs


def _schedule(source: DataSource, assignment: Assignment) -> Iterator[tuple[int, Batch]]:
    if assignment.local_steps:
        return islice(_epochs(source, assignment, count()), assignment.local_steps)
    return _epochs(source, assignment, range(assignment.local_epochs))


def _epochs(
    source: DataSource, assignment: Assignment, epochs: "range | count[int]"
) -> Iterator[tuple[int, Batch]]:
    for epoch in epochs:
        batch = None
        for batch in source.batches(assignment.batch_size, seed_of_epoch(assignment.seed, epoch)):
            yield epoch, batch
        if batch is None:
            raise DataError("the data set has no examples")


def check_finite(loss: float, step: int, total: int, hyperparameters: Mapping[str, float]) -> None:
    """Refuse a loss that is NaN or infinite.

    Raises:
        UpdateError: with the step and the hyperparameters.
    """
    if not math.isfinite(loss):
        settings = ", ".join(f"{name} {value:g}" for name, value in hyperparameters.items())
        raise UpdateError(
            f"the loss became {loss} at step {step} of {total} ({settings}): lower the learning "
            "rate, or look for bad values in this device's data"
        )
