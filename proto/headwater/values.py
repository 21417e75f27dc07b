"""The names that values have in a plan's graphs, as one place turns them to and fro.

p.TENSOR state    f.TENSOR frozen    o.SLOT.TENSOR optimizer    x0.. inputs    y0.. targets
w examples' weights    h.NAME hyperparameter    seed    a.TENSOR the round's first weights
c.TENSOR correction of a gradient    g.TENSOR gradient    loss    m.METRIC
output, output.PART    new.NAME state after a step
"""

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from headwater.batch import Array, Batch
from headwater.errors import PlanError
from headwater.layout import Weights
from headwater.manifest import Manifest
from headwater.plan import Plan

_METRIC = "m."
_NEW = "new."

Value = TypeVar("Value", bound=Any)
"""An array of NumPy or of torch: something with a shape and a dtype."""


def batch_values(batch: Batch) -> dict[str, Array]:
    """A batch's arrays by graph name."""
    named = {f"x{index}": array for index, array in enumerate(batch.inputs)}
    named |= {f"y{index}": array for index, array in enumerate(batch.targets)}
    return named if batch.weights is None else {**named, "w": batch.weights}


def state_values(plan: Plan, weights: Weights) -> dict[str, Array]:
    """Weights by graph name: views, not copies.

    Raises:
        PlanError: the weights are of another layout.
    """
    return {f"p.{name}": array for name, array in plan.layout.unflatten(weights).items()}


def frozen_values(plan: Plan) -> dict[str, Array]:
    """The plan's constant tensors by graph name."""
    return {f"f.{name}": array for name, array in plan.frozen_tensors().items()}


def evaluation_outputs(manifest: Manifest) -> set[str]:
    """What the evaluation step of a plan gives."""
    return {"loss", *(_METRIC + name for name in manifest.metrics)}


def training_outputs(manifest: Manifest) -> set[str]:
    """What the training step of a plan gives: all state anew, the loss and the metrics."""
    return _new_buffers(manifest) | applied_outputs(manifest) | evaluation_outputs(manifest)


def gradient_outputs(manifest: Manifest) -> set[str]:
    """What the first half of a training step gives: gradients, buffers, loss and metrics."""
    gradients = {f"g.{spec.name}" for spec in manifest.layout.trainable}
    return gradients | _new_buffers(manifest) | evaluation_outputs(manifest)


def applied_outputs(manifest: Manifest) -> set[str]:
    """What the second half of a training step gives: trainable tensors and optimizer state anew."""
    parameters = {f"{_NEW}p.{spec.name}" for spec in manifest.layout.trainable}
    return parameters | {_NEW + slot.value_name for slot in manifest.optimizer.slots}


def _new_buffers(manifest: Manifest) -> set[str]:
    layout = manifest.layout
    return {f"{_NEW}p.{spec.name}" for spec in layout.float_buffers + layout.integer_buffers}


def is_state(name: str) -> bool:
    """Whether a result is a tensor of the state after the step."""
    return name.startswith(_NEW)


def forward_outputs(manifest: Manifest) -> set[str]:
    """What the forward pass of the torch form gives: the buffers anew, the loss and the metrics."""
    return _new_buffers(manifest) | evaluation_outputs(manifest)


def check_outputs(found: Iterable[str], expected: set[str], member: str) -> None:
    """Refuse a step that gives less or more than its manifest promises.

    Raises:
        PlanError: with an output that is missing or unknown.
    """
    odd = sorted(set(found) ^ expected)
    if odd:
        raise PlanError(
            f"plan member {member} lacks the output {odd[0]!r:.80} or should not have it: the plan "
            "is damaged; compile it again"
        )


def updated(results: Mapping[str, Value], state: Mapping[str, Value]) -> dict[str, Value]:
    """The state after a step, every value of the shape and dtype that it had before.

    Raises:
        PlanError: a value has another shape or dtype.
    """
    new = {name: results[_NEW + name] for name in state}
    for name, before in state.items():
        check_unchanged_form(name, before, new[name])
    return new


def check_unchanged_form(name: str, before: Any, after: Any) -> None:
    """Refuse a new value of another shape or dtype than the value before.

    Raises:
        PlanError: with the value's name.
    """
    if tuple(after.shape) != tuple(before.shape) or after.dtype != before.dtype:
        raise PlanError(
            f"the plan's step turns {name!r:.80} of shape {tuple(before.shape)} and "
            f"{before.dtype} into shape {tuple(after.shape)} and {after.dtype}: compile the "
            "plan again, or don't trust where it came from"
        )


def figures(results: Mapping[str, Any]) -> dict[str, float]:
    """`loss` and metrics of a step, under the names that people use.

    Raises:
        PlanError: one of them is not a single number.
    """
    found = {n: v for n, v in results.items() if n == "loss" or n.startswith(_METRIC)}
    for name, value in found.items():
        if tuple(value.shape) or value.dtype.kind not in "fiub":
            raise PlanError(
                f"the plan's step gives {name!r:.80} of shape {tuple(value.shape)} and "
                f"{value.dtype}, not one number: compile the plan again"
            )
    return {name.removeprefix(_METRIC): float(value) for name, value in found.items()}
