"""What outlives a process that dies in the middle of an assignment.

`begun.json` counts how often the assignment was begun and did not end: an assignment that kills its
process, for want of memory perhaps, must not do so for ever. `training.safetensors` is where its
training was: weights, optimizer and counters after some step, from which a later process goes on to
the same bits. Both are durable, and both go when the assignment ends.
"""

import hashlib
import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edge_client.metric_mean import MetricMean
from edge_client.trainers import Trainer
from headwater import durable_files
from headwater.batch import Array
from headwater.errors import HeadwaterError, PlanError, StorageError
from headwater.layout import Weights
from headwater.safetensors import read_tensors, write_tensors
from headwater.v1.fleet_pb2 import Assignment

DEATHS = 2
"""After so many processes that died in an assignment it is given up."""

_log = logging.getLogger("headwater.client")


@dataclass
class TrainingPoint:
    """Where training is after a step: `mean` is over the steps of `epoch` so far, `seen` counts the
    examples of all steps."""

    steps: int
    epoch: int
    seen: int
    mean: MetricMean


class Checkpoints:
    """The one assignment under way, in one folder; `now` is a clock in seconds."""

    def __init__(
        self, folder: Path, interval_seconds: float, now: Callable[[], float] = time.monotonic
    ) -> None:
        durable_files.make_folder(folder, 0o700)
        durable_files.clear_unfinished(folder)
        self._begun = folder / "begun.json"
        self._training = folder / "training.safetensors"
        self._interval_seconds = interval_seconds
        self._now = now
        self._saved_at = now()
        self._key = ""

    def begin(self, coordinator: str, assignment: Assignment) -> int:
        """Count that the assignment begins; returns how many processes died in it before.

        Raises:
            StorageError: the disk is full or failed.
        """
        self._key = _key_of(coordinator, assignment)
        key, deaths = self._record()
        if key != self._key:
            deaths = 0
            durable_files.remove(self._training)
        self._write(deaths + 1)
        self._saved_at = self._now()
        return deaths

    def pause(self) -> None:
        """This process stops in an orderly way: the next one goes on, and nothing died.

        A disk that refuses makes it count as a death, and holds up no stop.
        """
        try:
            _, deaths = self._record()
            self._write(deaths - 1)
        except StorageError as error:
            _log.warning("this stop counts as a death: %s", error)

    def end(self) -> None:
        """The assignment ended, however it did; what a disk keeps of it the next one removes."""
        try:
            durable_files.remove(self._begun)
            durable_files.remove(self._training)
        except StorageError as error:
            _log.warning("what outlives an assignment is left: %s", error)

    def save_when_due(self, trainer: Trainer, point: TrainingPoint) -> None:
        """Keep where training is, once the interval is over.

        A disk that refuses costs the work since the last time, and no more.
        """
        if self._now() - self._saved_at < self._interval_seconds:
            return
        try:
            with durable_files.new_file(self._training) as file:
                write_tensors(file, _tensors_of(trainer, point))
        except HeadwaterError as error:
            _log.warning("training goes on without a checkpoint: %s", error)
        self._saved_at = self._now()

    def restore(self, trainer: Trainer) -> TrainingPoint | None:
        """Take the trainer to the last checkpoint of the assignment, or return None."""
        if not self._training.exists():
            return None
        try:
            tensors = {name: array.copy() for name, array in read_tensors(self._training).items()}
            point = _point_of(tensors)
            _check_form(tensors, trainer)
        except (PlanError, KeyError, ValueError) as error:
            _log.warning("training begins anew, because its checkpoint is damaged: %s", error)
            durable_files.remove(self._training)
            return None
        weights = Weights(tensors["floats"], tensors["integers"])  # type: ignore[arg-type]
        trainer.set_weights(weights, anchor=False)
        trainer.set_optimizer_state(
            {n.removeprefix("slot."): a for n, a in tensors.items() if n[:5] == "slot."}
        )
        _log.info("training goes on after step %d of an earlier process", point.steps)
        return point

    def _record(self) -> tuple[str, int]:
        """The assignment under way, and the times that it was begun."""
        with durable_files.disk_errors(self._begun):
            if not self._begun.exists():
                return "", 0
            text = self._begun.read_bytes()
        try:
            record = json.loads(text)
            return str(record["assignment"]), int(record["begun"])
        except (ValueError, KeyError, TypeError) as error:
            _log.warning("%s was damaged and is set aside: %s", self._begun, error)
            durable_files.move(self._begun, self._begun.with_suffix(".damaged"))
            return "", 0

    def _write(self, begun: int) -> None:
        record = {"assignment": self._key, "begun": begun}
        durable_files.write(self._begun, [json.dumps(record).encode()])


def _key_of(coordinator: str, assignment: Assignment) -> str:
    """What tells an assignment from those of another coordinator with the same number."""
    parts = (
        coordinator, assignment.assignment_id, assignment.job, assignment.seed,
        assignment.plan_digest, assignment.weights_digest,
    )  # fmt: skip
    return hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()


def _tensors_of(trainer: Trainer, point: TrainingPoint) -> dict[str, Array]:
    weights = trainer.weights()
    return {
        "floats": weights.floats,
        "integers": weights.integers,
        "point": np.array([point.steps, point.epoch, point.seen, point.mean.examples], np.int64),
        "mean": np.array([point.mean.mass], np.float64),
        **{f"slot.{name}": array for name, array in trainer.optimizer_state().items()},
        **{f"sum.{name}": np.array(total) for name, total in point.mean.sums.items()},
    }


def _check_form(tensors: dict[str, Array], trainer: Trainer) -> None:
    """Hold a checkpoint against the trainer before it touches it.

    Raises:
        PlanError: it has other weights or slots, so it is another model's or damaged.
    """
    own = trainer.weights()
    expected: dict[str, Array] = {"floats": own.floats, "integers": own.integers}
    expected |= {f"slot.{name}": array for name, array in trainer.optimizer_state().items()}
    found = {n: a for n, a in tensors.items() if n in expected or n[:5] == "slot."}
    forms = [{n: (a.shape, a.dtype) for n, a in one.items()} for one in (found, expected)]
    if forms[0] != forms[1]:
        raise PlanError("its weights or its optimizer are not those of this plan")


def _point_of(tensors: dict[str, Array]) -> TrainingPoint:
    steps, epoch, seen, examples = (int(one) for one in tensors["point"])
    sums = {n.removeprefix("sum."): float(a) for n, a in tensors.items() if n[:4] == "sum."}
    return TrainingPoint(steps, epoch, seen, MetricMean(examples, float(tensors["mean"][0]), sums))
