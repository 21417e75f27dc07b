"""The names that values have in a plan's graphs, as one place turns them to and fro.

p.TENSOR state    f.TENSOR frozen    o.SLOT.TENSOR optimizer    x0.. inputs    y0.. targets
h.NAME hyperparameter    seed    loss    m.METRIC    output    new.NAME state after a step
"""

from collections.abc import Mapping
from typing import Any

from headwater.batch import Array, Batch
from headwater.layout import Weights
from headwater.plan import Plan

_METRIC = "m."


def batch_values(batch: Batch) -> dict[str, Array]:
    """A batch's arrays by graph name."""
    named = {f"x{index}": array for index, array in enumerate(batch.inputs)}
    return named | {f"y{index}": array for index, array in enumerate(batch.targets)}


def state_values(plan: Plan, weights: Weights) -> dict[str, Array]:
    """Weights by graph name: views, not copies.

    Raises:
        PlanError: the weights are of another layout.
    """
    return {f"p.{name}": array for name, array in plan.layout.unflatten(weights).items()}


def frozen_values(plan: Plan) -> dict[str, Array]:
    """The plan's constant tensors by graph name."""
    return {f"f.{name}": array for name, array in plan.frozen_tensors().items()}


def figures(results: Mapping[str, Any]) -> dict[str, float]:
    """`loss` and metrics of a step, under the names that people use."""
    return {
        name.removeprefix(_METRIC): float(value)
        for name, value in results.items()
        if name == "loss" or name.startswith(_METRIC)
    }
