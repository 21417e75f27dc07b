"""Trains with onnxruntime on the CPU: no torch, no author's code, tens of megabytes."""

from collections.abc import Mapping

import numpy as np

from edge_client.trainers.signatures import check_batch, check_optimizer_state
from headwater.batch import Array, Batch
from headwater.graph_runtime import GraphRuntime
from headwater.layout import Weights
from headwater.plan import Plan
from headwater.values import (
    batch_values,
    check_outputs,
    evaluation_outputs,
    figures,
    frozen_values,
    training_outputs,
    updated,
)

TRAIN = "train.onnx"
EVALUATE = "evaluate.onnx"


class OnnxTrainer:
    """One plan's training and evaluation steps in onnxruntime.

    State is kept as the arrays that the last step returned, so a step copies no weights.

    Raises:
        PlanError: a graph of the plan does not pass the checks or does not load.
    """

    def __init__(self, plan: Plan, *, threads: int) -> None:
        self._manifest = plan.manifest
        self._layout = plan.layout
        self._train = GraphRuntime(plan, TRAIN, threads=threads)
        self._evaluate = GraphRuntime(plan, EVALUATE, threads=threads)
        check_outputs(self._train.outputs, training_outputs(plan.manifest), TRAIN)
        check_outputs(self._evaluate.outputs, evaluation_outputs(plan.manifest), EVALUATE)
        self._frozen = frozen_values(plan)
        self._state: dict[str, Array] = {}
        self._slots: dict[str, Array] = {}
        self.reset_optimizer()

    def set_weights(self, weights: Weights) -> None:
        """Start from a copy of these weights; the optimizer keeps its state.

        Raises:
            PlanError: the weights are of another layout.
        """
        named = self._layout.unflatten(weights)
        self._state = {f"p.{name}": array.copy() for name, array in named.items()}

    def weights(self) -> Weights:
        """A copy of the current weights."""
        return self._layout.flatten(
            {name.removeprefix("p."): array for name, array in self._state.items()}
        )

    def reset_optimizer(self) -> None:
        """Begin again with an optimizer that has seen no step: every slot is zero."""
        self._slots = {
            slot.value_name: np.zeros(slot.shape, np.float32)
            for slot in self._manifest.optimizer.slots
        }

    def optimizer_state(self) -> dict[str, Array]:
        """A copy of the optimizer's slots by their names in the graph, such as `o.step`."""
        return {name: array.copy() for name, array in self._slots.items()}

    def set_optimizer_state(self, state: Mapping[str, Array]) -> None:
        """Go on with slots that `optimizer_state` returned, of this trainer or another.

        Raises:
            PlanError: the names or shapes are those of another optimizer.
        """
        check_optimizer_state(state, self._manifest)
        self._slots = {name: np.array(array, np.float32) for name, array in state.items()}

    def train_step(
        self, batch: Batch, hyperparameters: Mapping[str, float], seed: int
    ) -> dict[str, float]:
        """One optimizer step on a batch; returns the batch's mean loss and metrics before it.

        Hyperparameters that are left out take the plan's defaults. `seed` decides the dropout.

        Raises:
            DataError: the batch does not have the plan's shapes, dtypes or value ranges.
            PlanError: the step fails in onnxruntime, for example for want of memory.
        """
        values = {**self._state, **self._frozen, **self._slots, **self._batch(batch)}
        for name, value in {**self._manifest.hyperparameters, **hyperparameters}.items():
            values[f"h.{name}"] = np.array(value, np.float32)
        values["seed"] = np.array(seed, np.int64)
        results = self._train.run(values)
        self._state, self._slots = updated(results, self._state), updated(results, self._slots)
        return figures(results)

    def evaluate_step(self, batch: Batch) -> dict[str, float]:
        """Mean loss and metrics of a batch; the weights stay as they are.

        Raises:
            DataError: the batch does not have the plan's shapes, dtypes or value ranges.
            PlanError: the step fails in onnxruntime.
        """
        values = {**self._state, **self._frozen, **self._batch(batch)}
        return figures(self._evaluate.run(values))

    def _batch(self, batch: Batch) -> dict[str, Array]:
        check_batch(batch, self._manifest.inputs, self._manifest.targets)
        return batch_values(batch)
