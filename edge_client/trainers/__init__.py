"""Trainers: each runs a plan's steps on one batch at a time, in one runtime.

All keep the state of training (weights, optimizer) between steps and hold no data.
"""

import importlib.util
from collections.abc import Mapping
from typing import Literal, Protocol

from headwater.batch import Array, Batch
from headwater.errors import UsageError, require
from headwater.layout import Weights
from headwater.plan import Plan

Backend = Literal["auto", "onnxruntime", "torch"]
Precision = Literal["float32", "tf32", "bfloat16"]


class Trainer(Protocol):
    """What the session needs of a runtime; one contract test runs over every implementation."""

    def set_weights(self, weights: Weights, *, anchor: bool = True) -> None:
        """Start from these weights, which are copied; the optimizer keeps its state.

        With `anchor` they are also what a plan's proximal term holds the later weights to;
        without, that stays what it was: training goes on in the middle of a round.

        Raises:
            PlanError: the weights are of another layout.
        """

    def weights(self) -> Weights:
        """A copy of the current weights."""

    def reset_optimizer(self) -> None:
        """Begin again with an optimizer that has seen no step."""

    def optimizer_state(self) -> dict[str, Array]:
        """A copy of the optimizer's state by graph name (`o.momentum.first.weight`, `o.step`)."""

    def set_optimizer_state(self, state: Mapping[str, Array]) -> None:
        """Go on with a state that `optimizer_state` of any trainer of this plan returned.

        Raises:
            PlanError: the state is of another plan.
        """

    def set_correction(self, correction: Mapping[str, Array] | None) -> None:
        """Add these arrays, by trainable tensor, to the gradients of later steps; None for zero.

        They stay until they are set again (control variates: `StepOptions.corrections`).

        Raises:
            PlanError: the plan takes no corrections, or the names or shapes are of another model.
        """

    def train_step(
        self, batch: Batch, hyperparameters: Mapping[str, float], seed: int
    ) -> dict[str, float]:
        """One optimizer step; returns `loss` and metrics, means over the batch before the step.

        Hyperparameters that are left out take the plan's defaults. `seed` decides the dropout.

        Raises:
            DataError: the batch does not have the plan's shapes, dtypes or value ranges.
        """

    def evaluate_step(self, batch: Batch) -> dict[str, float]:
        """`loss` and metrics of a batch, with the weights left as they are.

        Raises:
            DataError: the batch does not have the plan's shapes, dtypes or value ranges.
        """


def open_trainer(
    plan: Plan,
    backend: Backend = "auto",
    *,
    threads: int,
    device: str = "auto",
    compile: bool = False,  # noqa: A002 - torch's name
    precision: Precision = "tf32",
) -> Trainer:
    """A trainer of this plan with its initial optimizer; `set_weights` comes next.

    "auto" takes torch where it is installed, and onnxruntime elsewhere. `device`, `compile` and
    `precision` concern torch, which `TorchTrainer` explains.

    Raises:
        PlanError: the plan does not pass the checks or does not load in the runtime.
        MissingExtraError: torch was asked for and is not installed.
        UsageError: no such backend, or the device does not exist.
    """
    if backend not in ("auto", "onnxruntime", "torch"):
        raise UsageError(f"backend {backend!r} is not known: use auto, onnxruntime or torch")
    if threads < 1:
        raise UsageError(f"threads is {threads}: a trainer needs at least 1")
    if backend == "auto":
        backend = "torch" if importlib.util.find_spec("torch") else "onnxruntime"
    if backend == "torch":
        require("torch", extra="torch", purpose="train with torch")
        from edge_client.trainers.torch_trainer import TorchTrainer

        return TorchTrainer(
            plan, threads=threads, device=device, compile=compile, precision=precision
        )
    if compile or precision == "bfloat16":
        raise UsageError("--compile and --precision bfloat16 need --trainer torch")
    from edge_client.trainers.onnx_trainer import OnnxTrainer

    return OnnxTrainer(plan, threads=threads)
