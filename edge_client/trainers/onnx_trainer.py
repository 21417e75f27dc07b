"""Trains with onnxruntime on the CPU: no torch, no author's code, tens of megabytes."""

from collections.abc import Mapping

import numpy as np

from edge_client.trainers.micro_batches import add_shares, micro_batches
from edge_client.trainers.signatures import check_batch, check_correction, check_optimizer_state
from headwater.batch import Array, Batch
from headwater.graph_runtime import GraphRuntime
from headwater.layout import Weights
from headwater.plan import Plan
from headwater.values import (
    applied_outputs,
    batch_values,
    check_outputs,
    evaluation_outputs,
    figures,
    frozen_values,
    gradient_outputs,
    is_state,
    training_outputs,
    updated,
)

TRAIN = "train.onnx"
GRADIENTS = "gradients.onnx"
APPLY = "apply.onnx"
EVALUATE = "evaluate.onnx"


class OnnxTrainer:
    """One plan's training and evaluation steps in onnxruntime.

    State is kept as the arrays that the last step returned, so a step copies no weights. A plan
    with micro-batches runs the step's two halves, any other the whole step.

    Raises:
        PlanError: a graph of the plan does not pass the checks or does not load.
    """

    def __init__(self, plan: Plan, *, threads: int) -> None:
        self._manifest = plan.manifest
        self._layout = plan.layout
        if plan.manifest.step.micro_batch_size is None:
            outputs = {TRAIN: training_outputs(plan.manifest)}
        else:
            outputs = {
                GRADIENTS: gradient_outputs(plan.manifest),
                APPLY: applied_outputs(plan.manifest),
            }
        outputs[EVALUATE] = evaluation_outputs(plan.manifest)
        self._graphs = {name: GraphRuntime(plan, name, threads=threads) for name in outputs}
        for name, graph in self._graphs.items():
            check_outputs(graph.outputs, outputs[name], name)
        self._frozen = frozen_values(plan)
        self._state: dict[str, Array] = {}
        self._slots: dict[str, Array] = {}
        self._anchor: dict[str, Array] = {}
        self._correction: dict[str, Array] = {}
        self.reset_optimizer()
        self.set_correction(None)

    def set_weights(self, weights: Weights, *, anchor: bool = True) -> None:
        """Start from a copy of these weights, also as the round's anchor unless told otherwise.

        Raises:
            PlanError: the weights are of another layout.
        """
        named = self._layout.unflatten(weights)
        self._state = {f"p.{name}": array.copy() for name, array in named.items()}
        if anchor and self._manifest.anchored:
            trainable = [spec.name for spec in self._layout.trainable]
            self._anchor = {f"a.{name}": named[name].copy() for name in trainable}

    def weights(self) -> Weights:
        """A copy of the current weights."""
        return self._layout.flatten(
            {name.removeprefix("p."): array for name, array in self._state.items()}
        )

    def reset_optimizer(self) -> None:
        """Begin again with an optimizer that has seen no step."""
        self._slots = {
            slot.value_name: np.full(slot.shape, slot.initial, np.float32)
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

    def set_correction(self, correction: Mapping[str, Array] | None) -> None:
        """Add these arrays, by trainable tensor, to the gradients of later steps; None for zero.

        Raises:
            PlanError: the plan takes no corrections, or the names or shapes are of another model.
        """
        check_correction(correction, self._manifest)
        if self._manifest.step.corrections:
            given = correction or {s.name: np.zeros(s.shape) for s in self._layout.trainable}
            self._correction = {f"c.{n}": np.array(a, np.float32) for n, a in given.items()}

    def train_step(
        self, batch: Batch, hyperparameters: Mapping[str, float], seed: int
    ) -> dict[str, float]:
        """One optimizer step on a batch; returns the batch's mean loss and metrics before it.

        Hyperparameters that are left out take the plan's defaults. `seed` decides the dropout.

        Raises:
            DataError: the batch does not have the plan's shapes, dtypes or value ranges.
            PlanError: the step fails in onnxruntime, for example for want of memory.
        """
        check_batch(batch, self._manifest.inputs, self._manifest.targets)
        chosen = {**self._manifest.hyperparameters, **hyperparameters}
        scalars = {f"h.{name}": np.array(value, np.float32) for name, value in chosen.items()}
        given = {**self._slots, **self._anchor, **self._correction, **scalars}
        if TRAIN in self._graphs:
            results = self._graphs[TRAIN].run({**given, **self._values(batch, seed)})
            self._state = updated(results, self._state)
        else:
            results = self._accumulated(batch, seed)
            results |= self._graphs[APPLY].run({**given, **self._state, **results})
            self._state |= updated(results, self._parameters)
        self._slots = updated(results, self._slots)
        return figures(results)

    def evaluate_step(self, batch: Batch) -> dict[str, float]:
        """Mean loss and metrics of a batch; the weights stay as they are.

        Raises:
            DataError: the batch does not have the plan's shapes, dtypes or value ranges.
            PlanError: the step fails in onnxruntime.
        """
        check_batch(batch, self._manifest.inputs, self._manifest.targets)
        return figures(self._graphs[EVALUATE].run(self._values(batch, 0)))

    def _accumulated(self, batch: Batch, seed: int) -> dict[str, Array]:
        """Gradients, loss and metrics of a batch in parts; buffers go from part to part."""
        total: dict[str, Array] = {}
        for part in micro_batches(batch, self._manifest.step.micro_batch_size, seed):
            results = self._graphs[GRADIENTS].run(self._values(part.batch, part.seed))
            self._state |= updated(results, self._buffers)
            add_shares(total, {n: a for n, a in results.items() if not is_state(n)}, part.share)
        return total

    def _values(self, batch: Batch, seed: int) -> dict[str, Array]:
        values = {**self._state, **self._frozen, **batch_values(batch)}
        return {**values, "seed": np.array(seed, np.int64)}

    @property
    def _parameters(self) -> dict[str, Array]:
        return {n: self._state[n] for n in (f"p.{s.name}" for s in self._layout.trainable)}

    @property
    def _buffers(self) -> dict[str, Array]:
        trainable = {f"p.{spec.name}" for spec in self._layout.trainable}
        return {name: array for name, array in self._state.items() if name not in trainable}
