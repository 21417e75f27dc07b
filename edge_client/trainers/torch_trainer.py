"""Trains with torch: the plan's forward pass with torch's native kernels, on the CPU or a GPU.

Autograd differentiates the forward pass; then the optimizer's step runs over whole vectors. State
stays on the device between steps: only batches and a few numbers travel. On a GPU each half of a
step becomes a CUDA graph after a few steps.
"""

from collections.abc import Mapping
from functools import partial

import numpy as np
import torch

from edge_client.trainers import Precision
from edge_client.trainers.micro_batches import add_shares, micro_batches
from edge_client.trainers.signatures import check_batch, check_correction, check_optimizer_state
from edge_client.trainers.torch_device import load_compiler, torch_device
from edge_client.trainers.torch_replay import Replays
from edge_client.trainers.torch_state import TorchState
from edge_client.trainers.torch_step import (
    Figures,
    TorchStep,
    figures_of,
    in_our_words,
    kernels,
)
from headwater.batch import Array, Batch
from headwater.layout import Weights
from headwater.plan import Plan
from headwater.values import (
    batch_values,
    check_outputs,
    check_unchanged_form,
    evaluation_outputs,
    forward_outputs,
    frozen_values,
)

FORWARD = "forward.aten.json"
APPLY = "apply.aten.json"
EVALUATE = "evaluate.aten.json"

_PART_ELEMENTS = 2**17
"""On a CPU the optimizer takes so many elements at a time, for each thread: they stay in cache."""


class TorchTrainer:
    """One plan's training and evaluation steps in torch.

    `threads` caps torch's threads in this whole process, since torch has one pool. `device` is
    "auto" (the first GPU if there is one, else the CPU) or a torch device such as "cuda:1".
    `compile` runs the optimizer and batches of the first one's size through torch.compile; batches
    of other sizes run as they are. `precision` "tf32" lets a GPU round the factors of products and
    convolutions to TF32, as torch itself does in convolutions; "float32" forbids it, and "bfloat16"
    computes layers that allow it in bfloat16 (torch.autocast). Parameters, gradients and the
    optimizer are float32 in all three, and so is everything on a CPU in the first two.

    Raises:
        PlanError: the torch form of the plan is damaged, not allowed, or too new for this torch.
        UsageError: the device does not exist, or there is no C++ compiler to compile with.
    """

    def __init__(
        self,
        plan: Plan,
        *,
        threads: int,
        device: str = "auto",
        compile: bool = False,  # noqa: A002 - torch's name
        precision: Precision = "tf32",
    ) -> None:
        if compile:
            load_compiler()
        torch.set_num_threads(threads)
        self.device = torch_device(device)
        self._precision = precision
        self._manifest = plan.manifest
        self._layout = plan.layout
        self.state = TorchState(plan.manifest, self.device)
        self._replays = Replays(self.device)
        self._forward, self._apply = (
            TorchStep(plan.read(member), self.device, lent=self.state.lent, compiled=compile)
            for member in (FORWARD, APPLY)
        )
        self._evaluate = TorchStep(plan.read(EVALUATE), self.device)
        check_outputs(self._forward.outputs, forward_outputs(plan.manifest), FORWARD)
        check_outputs(self._apply.outputs, self.state.applied_outputs, APPLY)
        check_outputs(self._evaluate.outputs, evaluation_outputs(plan.manifest), EVALUATE)
        self._frozen = {
            name: torch.tensor(array, device=self.device)
            for name, array in frozen_values(plan).items()
        }

    def set_weights(self, weights: Weights, *, anchor: bool = True) -> None:
        """Copy weights to the device, also as the round's anchor unless told otherwise.

        Raises:
            PlanError: the weights are of another layout.
        """
        self.state.load(self._layout.unflatten(weights), anchor=anchor)

    def weights(self) -> Weights:
        """A copy of the current weights."""
        return self._layout.flatten(self.state.arrays())

    def reset_optimizer(self) -> None:
        """Begin again with an optimizer that has seen no step."""
        self.state.reset_slots()

    def optimizer_state(self) -> dict[str, Array]:
        """A copy of the optimizer's slots by their names in the graph, such as `o.step`."""
        return self.state.slot_arrays()

    def set_optimizer_state(self, state: Mapping[str, Array]) -> None:
        """Go on with slots that `optimizer_state` returned, of this trainer or another.

        Raises:
            PlanError: the names or shapes are those of another optimizer.
        """
        check_optimizer_state(state, self._manifest)
        self.state.load_slots({k: np.asarray(v, np.float32) for k, v in state.items()})

    def set_correction(self, correction: Mapping[str, Array] | None) -> None:
        """Add these arrays, by trainable tensor, to the gradients of later steps; None for zero.

        Raises:
            PlanError: the plan takes no corrections, or the names or shapes are of another model.
        """
        check_correction(correction, self._manifest)
        if self._manifest.step.corrections:
            self.state.load_correction(correction)

    def train_step(
        self, batch: Batch, hyperparameters: Mapping[str, float], seed: int
    ) -> dict[str, float]:
        """One optimizer step on a batch; returns the batch's mean loss and metrics before it.

        Hyperparameters that are left out take the plan's defaults. `seed` decides the dropout.

        Raises:
            DataError: the batch does not have the plan's shapes, dtypes or value ranges.
            PlanError: the step fails in torch, for example for want of memory.
        """
        figures = Figures(self.gradients(batch, seed))
        self.apply(hyperparameters)
        return figures.read()

    def gradients(self, batch: Batch, seed: int) -> dict[str, torch.Tensor]:
        """The first half of a step: forward, backward, and the buffers' new values.

        Returns the loss and the metrics, on the device. `state.gradients` holds the gradients
        afterwards, of the mean loss over the batch.

        Raises:
            DataError, PlanError: as `train_step`.
        """
        check_batch(batch, self._manifest.inputs, self._manifest.targets)
        figures: dict[str, torch.Tensor] = {}
        with in_our_words(), kernels(self._precision, self.device):
            parts = micro_batches(batch, self._manifest.step.micro_batch_size, seed)
            for part in parts:
                step = partial(
                    self._differentiate, size=part.batch.size, share=part.share, add=bool(figures)
                )
                values = _tensors(part.batch)
                key = (FORWARD, part.batch.size, *values) if len(parts) == 1 else None
                found = self._replays.run(key, step, {**values, "seed": part.seed})
                add_shares(figures, found, part.share)
        return figures

    def _differentiate(
        self, values: dict[str, torch.Tensor], *, size: int, share: float, add: bool
    ) -> dict[str, torch.Tensor]:
        """Forward and backward over a part of a batch, whose gradients are begun or added to."""
        lent = self.state.lend_buffers()
        with torch.enable_grad():
            with self._autocast():
                results = self._forward(
                    {**self.state.leaves, **lent, **self._frozen, **values}, size
                )
            figures = figures_of(results)
            found = torch.autograd.grad(
                results["loss"], list(self.state.leaves.values()), allow_unused=True,
                materialize_grads=True,
            )  # fmt: skip
        self.state.take_buffers(results)
        self.state.take_gradients(found, share, add=add)
        return figures

    def apply(self, hyperparameters: Mapping[str, float]) -> None:
        """The second half of a step: the optimizer, with the gradients in `state.gradients`.

        Raises:
            PlanError: the optimizer's step fails in torch.
        """
        chosen = {**self._manifest.hyperparameters, **hyperparameters}
        values = {f"h.{name}": float(value) for name, value in chosen.items()}
        with in_our_words(), torch.no_grad():
            self._replays.run(APPLY, self._optimize, values)

    def _optimize(self, shared: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        scalars = self.state.scalars
        for part in self.state.parts(self._part_elements()):
            results = self._apply({**part, **shared, **scalars})
            for name, vector in part.items():
                if f"new.{name}" in results:
                    check_unchanged_form(name, vector, results[f"new.{name}"])
                    vector.copy_(results[f"new.{name}"])
        for name, scalar in scalars.items():
            check_unchanged_form(name, scalar, results[f"new.{name}"])
            scalar.copy_(results[f"new.{name}"])
        return {}

    def evaluate_step(self, batch: Batch) -> dict[str, float]:
        """Mean loss and metrics of a batch; the weights stay as they are.

        Raises:
            DataError: the batch does not have the plan's shapes, dtypes or value ranges.
            PlanError: the step fails in torch.
        """
        check_batch(batch, self._manifest.inputs, self._manifest.targets)
        values = _tensors(batch)
        with (
            in_our_words(),
            kernels(self._precision, self.device),
            torch.no_grad(),
            self._autocast(),
        ):
            key = (EVALUATE, batch.size, *values)
            return Figures(self._replays.run(key, self._measure, values)).read()

    def _measure(self, values: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        given = {**self.state.leaves, **self.state.buffers, **self._frozen, **values}
        return figures_of(self._evaluate(given))

    def _autocast(self) -> torch.autocast:
        return torch.autocast(
            self.device.type, torch.bfloat16, enabled=self._precision == "bfloat16"
        )

    def _part_elements(self) -> int | None:
        if self.device.type == "cpu" and self._apply.is_pointwise and not self._apply.is_compiled:
            return _PART_ELEMENTS * torch.get_num_threads()
        return None


def _tensors(batch: Batch) -> dict[str, torch.Tensor]:
    """A batch by graph names, in tensors that share its memory where torch can."""
    return {
        name: torch.from_numpy(np.require(array, requirements=("C", "W")))
        for name, array in batch_values(batch).items()
    }
