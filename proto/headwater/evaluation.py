"""Held-out evaluation with onnxruntime, where no training happens and torch is not needed."""

from collections.abc import Iterator
from typing import Protocol

from headwater.batch import Batch
from headwater.errors import DataError
from headwater.graph_runtime import GraphRuntime
from headwater.layout import Weights
from headwater.plan import Plan
from headwater.values import (
    batch_values,
    check_outputs,
    evaluation_outputs,
    figures,
    frozen_values,
    state_values,
)


class BatchSource(Protocol):
    """The part of a data source that evaluation needs."""

    def batches(self, batch_size: int, seed: int | None) -> Iterator[Batch]:
        """All examples once, in batches; without a seed in stored order."""


class Evaluator:
    """A plan's evaluation graph, opened once and used for many weights.

    Raises:
        PlanError: the graph does not pass the checks or does not load.
    """

    def __init__(self, plan: Plan, *, threads: int) -> None:
        self._plan = plan
        self._graph = GraphRuntime(plan, "evaluate.onnx", threads=threads)
        check_outputs(self._graph.outputs, evaluation_outputs(plan.manifest), "evaluate.onnx")
        self._frozen = frozen_values(plan)

    def evaluate(self, weights: Weights, source: BatchSource, batch_size: int) -> dict[str, float]:
        """`loss` and metrics as means over all examples, and `examples`, their number.

        Batches are weighted by their examples, or by these examples' weights where the plan has
        such; sums are in float64 and stored order.

        Raises:
            PlanError: the weights are of another layout, or the graph fails.
            DataError: the source is empty, or the weights of a batch are all zero.
        """
        state = {**state_values(self._plan, weights), **self._frozen}
        totals: dict[str, float] = {}
        examples, mass = 0, 0.0
        for batch in source.batches(batch_size, None):
            if not batch.mass > 0:
                raise DataError(
                    "the weights of a batch are all zero or negative: leave examples of no weight "
                    "out of the data"
                )
            results = figures(self._graph.run({**state, **batch_values(batch)}))
            for name, value in results.items():
                totals[name] = totals.get(name, 0.0) + value * batch.mass
            examples += batch.size
            mass += batch.mass
        if not examples:
            raise DataError("there is no example to evaluate on: the data set is empty")
        return {name: total / mass for name, total in totals.items()} | {"examples": examples}


def evaluate(
    plan: Plan, weights: Weights, source: BatchSource, batch_size: int, threads: int
) -> dict[str, float]:
    """Open an `Evaluator` and use it once; see `Evaluator.evaluate`."""
    return Evaluator(plan, threads=threads).evaluate(weights, source, batch_size)
