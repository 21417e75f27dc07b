"""Does a plan fit this device, and an assignment its deadline? Checks, then times a few steps."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import cycle, islice

import numpy as np

from edge_client.memory_limit import peak_memory_bytes
from edge_client.trainers import Trainer
from edge_client.training import check_finite
from headwater.batch import Array, Batch, TensorSignature, batch_of
from headwater.errors import UsageError
from headwater.manifest import Manifest
from headwater.plan import Plan
from headwater.plan_checks import check_memory
from headwater.sources import DataSource

_TIMED_STEPS = 3


@dataclass(frozen=True)
class Work:
    """The training of one assignment: `epochs` over the data, or so many `steps`."""

    epochs: int | None = None
    steps: int | None = None

    def total_steps(self, examples: int | None, batch_size: int) -> int | None:
        """Steps of the assignment, or None where nothing was asked for.

        Raises:
            UsageError: epochs without data to count.
        """
        if self.epochs is None:
            return self.steps
        if examples is None:
            raise UsageError("--epochs needs --data, which says how long an epoch is: or --steps")
        return self.epochs * math.ceil(examples / batch_size)


@dataclass(frozen=True)
class Fit:
    """What a plan costs on this device.

    `epoch_seconds` is None without data, `assignment_seconds` without an assignment's work,
    `in_time` without a deadline. `peak_memory_bytes` is the most that this process has had, Python,
    runtime and data included.
    """

    plan: str
    parameters: int
    batch_size: int
    memory_needed_bytes: int
    memory_bytes: int
    step_seconds: float
    examples_per_second: float
    loss: float
    examples: int | None
    epoch_seconds: float | None
    peak_memory_bytes: int | None
    assignment_seconds: float | None
    deadline_seconds: float | None
    in_time: bool | None


def measure_fit(
    plan: Plan,
    trainer: Trainer,
    source: DataSource | None,
    *,
    batch_size: int,
    memory_bytes: int,
    work: Work | None = None,
    deadline_seconds: float | None = None,
    timer: Callable[[], float] = time.perf_counter,
) -> Fit:
    """Train a step to warm up and three for the time, on the source or on generated data.

    Raises:
        UsageError: the work cannot be counted.
        PlanError: the plan needs more memory than there is.
        DataError: the data does not fit the plan.
        UpdateError: the loss is not finite.
    """
    check_memory(plan.manifest, batch_size, memory_bytes)
    examples = source.example_count() if source is not None else None
    steps = (work or Work()).total_steps(examples, batch_size)
    trainer.set_weights(plan.initial_weights())
    batches = _batches(plan.manifest, source, batch_size)
    hyperparameters = plan.manifest.hyperparameters
    loss = trainer.train_step(batches[0], hyperparameters, 0)["loss"]
    started, trained = timer(), 0
    for step, batch in enumerate(islice(cycle(batches), _TIMED_STEPS), start=1):
        loss = trainer.train_step(batch, hyperparameters, step)["loss"]
        trained += batch.size
    seconds = max(timer() - started, 1e-9)
    check_finite(loss, _TIMED_STEPS + 1, _TIMED_STEPS + 1, hyperparameters)
    rate = trained / seconds
    step_seconds = seconds / _TIMED_STEPS
    assignment_seconds = None if steps is None else steps * step_seconds
    return Fit(
        plan=plan.manifest.name,
        parameters=plan.layout.trainable_count,
        batch_size=batch_size,
        memory_needed_bytes=plan.manifest.step_memory_bytes(batch_size),
        memory_bytes=memory_bytes,
        step_seconds=step_seconds,
        examples_per_second=rate,
        loss=loss,
        examples=examples,
        epoch_seconds=examples / rate if examples is not None else None,
        peak_memory_bytes=peak_memory_bytes(),
        assignment_seconds=assignment_seconds,
        deadline_seconds=deadline_seconds,
        in_time=None
        if assignment_seconds is None or deadline_seconds is None
        else assignment_seconds <= deadline_seconds,
    )


def _batches(manifest: Manifest, source: DataSource | None, batch_size: int) -> list[Batch]:
    if source is not None:
        return list(islice(source.batches(batch_size, 0), _TIMED_STEPS))
    return [generated_batch(manifest, batch_size)]


def generated_batch(manifest: Manifest, batch_size: int) -> Batch:
    """Random values of the plan's shapes and dtypes, within their ranges."""
    generator = np.random.default_rng(0)

    def draw(signature: TensorSignature) -> Array:
        shape = (batch_size, *signature.shape)
        dtype = np.dtype(signature.dtype)
        if dtype.kind == "f":
            values = generator.standard_normal(shape).astype(dtype)
            return np.abs(values) if signature.is_weight else values
        return generator.integers(0, signature.generated_below, shape).astype(dtype)

    return batch_of(map(draw, manifest.inputs), map(draw, manifest.targets), manifest.targets)
