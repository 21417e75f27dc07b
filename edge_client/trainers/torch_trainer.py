"""Trains with torch: the plan's traced step with torch's native kernels, on the CPU or a GPU.

No autograd runs here, since the backward pass and the optimizer are in the graph. State stays on
the device between steps; only batches and a few scalars travel.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch

from edge_client.trainers.micro_batches import add_shares, micro_batches
from edge_client.trainers.signatures import check_batch, check_correction, check_optimizer_state
from edge_client.trainers.torch_aten import load_graph
from edge_client.trainers.torch_device import torch_device
from headwater.aten_json import read_graph
from headwater.batch import Array, Batch
from headwater.errors import DataError, PlanError
from headwater.layout import Weights
from headwater.plan import Plan
from headwater.values import (
    applied_outputs,
    batch_values,
    check_outputs,
    evaluation_outputs,
    frozen_values,
    gradient_outputs,
    is_state,
    training_outputs,
    updated,
)

TRAIN = "train.aten.json"
GRADIENTS = "gradients.aten.json"
APPLY = "apply.aten.json"
EVALUATE = "evaluate.aten.json"
_METRIC = "m."


class TorchTrainer:
    """One plan's training and evaluation steps in torch.

    `threads` caps torch's threads in this whole process, since torch has one pool. `device` is
    "auto" (the first GPU if there is one, else the CPU) or a torch device such as "cuda:1".

    Raises:
        PlanError: the torch form of the plan is damaged, not allowed, or too new for this torch.
        UsageError: the device does not exist.
    """

    def __init__(self, plan: Plan, *, threads: int, device: str = "auto") -> None:
        torch.set_num_threads(threads)
        self.device = torch_device(device)
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
        self._steps = {name: _Step(plan.read(name), self.device) for name in outputs}
        for name, step in self._steps.items():
            check_outputs(step.outputs, outputs[name], name)
        self._frozen = self._moved(frozen_values(plan))
        self._state: dict[str, torch.Tensor] = {}
        self._slots: dict[str, torch.Tensor] = {}
        self._anchor: dict[str, torch.Tensor] = {}
        self._correction: dict[str, torch.Tensor] = {}
        self.reset_optimizer()
        self.set_correction(None)

    def set_weights(self, weights: Weights) -> None:
        """Copy weights to the device; the optimizer keeps its state.

        Raises:
            PlanError: the weights are of another layout.
        """
        arrays = self._layout.unflatten(weights)
        self._state = self._moved({f"p.{name}": array for name, array in arrays.items()})
        if self._manifest.anchored:
            trainable = [spec.name for spec in self._layout.trainable]
            self._anchor = self._moved({f"a.{name}": arrays[name] for name in trainable})

    def weights(self) -> Weights:
        """A copy of the current weights."""
        return self._layout.flatten(
            {name.removeprefix("p."): _array(tensor) for name, tensor in self._state.items()}
        )

    def reset_optimizer(self) -> None:
        """Begin again with an optimizer that has seen no step."""
        self._slots = {
            slot.value_name: torch.full(slot.shape, slot.initial, device=self.device)
            for slot in self._manifest.optimizer.slots
        }

    def optimizer_state(self) -> dict[str, Array]:
        """A copy of the optimizer's slots by their names in the graph, such as `o.step`."""
        return {name: _array(tensor).copy() for name, tensor in self._slots.items()}

    def set_optimizer_state(self, state: Mapping[str, Array]) -> None:
        """Go on with slots that `optimizer_state` returned, of this trainer or another.

        Raises:
            PlanError: the names or shapes are those of another optimizer.
        """
        check_optimizer_state(state, self._manifest)
        self._slots = self._moved({k: np.asarray(v, np.float32) for k, v in state.items()})

    def set_correction(self, correction: Mapping[str, Array] | None) -> None:
        """Add these arrays, by trainable tensor, to the gradients of later steps; None for zero.

        Raises:
            PlanError: the plan takes no corrections, or the names or shapes are of another model.
        """
        check_correction(correction, self._manifest)
        if self._manifest.step.corrections:
            given = correction or {s.name: np.zeros(s.shape) for s in self._layout.trainable}
            self._correction = self._moved(
                {f"c.{name}": np.asarray(array, np.float32) for name, array in given.items()}
            )

    def train_step(
        self, batch: Batch, hyperparameters: Mapping[str, float], seed: int
    ) -> dict[str, float]:
        """One optimizer step on a batch; returns the batch's mean loss and metrics before it.

        Hyperparameters that are left out take the plan's defaults. `seed` decides the dropout.

        Raises:
            DataError: the batch does not have the plan's shapes, dtypes or value ranges.
            PlanError: the step fails in torch, for example for want of memory.
        """
        check_batch(batch, self._manifest.inputs, self._manifest.targets)
        chosen = {**self._manifest.hyperparameters, **hyperparameters}
        scalars = {
            f"h.{name}": torch.tensor(value, dtype=torch.float32, device=self.device)
            for name, value in chosen.items()
        }
        given = {**self._slots, **self._anchor, **self._correction, **scalars}
        if TRAIN in self._steps:
            results = self._steps[TRAIN].run({**given, **self._values(batch, seed)})
            self._state = updated(results, self._state)
        else:
            results = self._accumulated(batch, seed)
            results |= self._steps[APPLY].run({**given, **self._state, **results})
            self._state |= updated(results, self._parameters)
        self._slots = updated(results, self._slots)
        return _figures(results)

    def evaluate_step(self, batch: Batch) -> dict[str, float]:
        """Mean loss and metrics of a batch; the weights stay as they are.

        Raises:
            DataError: the batch does not have the plan's shapes, dtypes or value ranges.
            PlanError: the step fails in torch.
        """
        check_batch(batch, self._manifest.inputs, self._manifest.targets)
        return _figures(self._steps[EVALUATE].run(self._values(batch, 0)))

    def _accumulated(self, batch: Batch, seed: int) -> dict[str, torch.Tensor]:
        """Gradients, loss and metrics of a batch in parts; buffers go from part to part."""
        total: dict[str, torch.Tensor] = {}
        for part in micro_batches(batch, self._manifest.step.micro_batch_size, seed):
            results = self._steps[GRADIENTS].run(self._values(part.batch, part.seed))
            self._state |= updated(results, self._buffers)
            sums = {name: value for name, value in results.items() if not is_state(name)}
            with torch.inference_mode():
                add_shares(total, sums, part.share)
        return total

    def _values(self, batch: Batch, seed: int) -> dict[str, torch.Tensor]:
        moved = {k: _tensor(array).to(self.device) for k, array in batch_values(batch).items()}
        draw = torch.tensor(seed, dtype=torch.int64, device=self.device)
        return {**self._state, **self._frozen, **moved, "seed": draw}

    @property
    def _parameters(self) -> dict[str, torch.Tensor]:
        return {n: self._state[n] for n in (f"p.{s.name}" for s in self._layout.trainable)}

    @property
    def _buffers(self) -> dict[str, torch.Tensor]:
        trainable = {f"p.{spec.name}" for spec in self._layout.trainable}
        return {name: tensor for name, tensor in self._state.items() if name not in trainable}

    def _moved(self, arrays: Mapping[str, Array]) -> dict[str, torch.Tensor]:
        """Copies on the device, which share no memory with the arrays."""
        return {
            name: torch.from_numpy(np.array(array)).to(self.device)
            for name, array in arrays.items()
        }


class _Step:
    """One graph, ready to run on named values."""

    def __init__(self, data: bytes, device: torch.device) -> None:
        graph = read_graph(data)
        self._inputs = graph.inputs
        self.outputs = tuple(name for name, _ in graph.outputs)
        self._forward = load_graph(graph, device).forward

    def run(self, values: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        try:
            arguments = [values[name] for name in self._inputs]
        except KeyError as error:
            raise PlanError(
                f"the plan's torch step asks for {error.args[0]!r:.80}: the manifest does not name "
                "it, or the weights were not set"
            ) from error
        with torch.inference_mode(), _exact_kernels(), _in_our_words():
            results = self._forward(*arguments)
        for name, result in zip(self.outputs, results, strict=True):
            if not isinstance(result, torch.Tensor):
                raise PlanError(f"the plan's torch step gives a {type(result).__name__} as {name}")
        return dict(zip(self.outputs, results, strict=True))


@contextmanager
def _exact_kernels() -> Iterator[None]:
    """Full float32 and repeatable convolutions on GPUs; no effect on a CPU."""
    with torch.backends.cudnn.flags(
        enabled=True, benchmark=False, deterministic=True, allow_tf32=False
    ):
        yield


@contextmanager
def _in_our_words() -> Iterator[None]:
    try:
        yield
    except PlanError:
        raise
    except torch.OutOfMemoryError as error:
        raise PlanError(
            "the step does not fit this device's memory: use a smaller batch or a larger device "
            f"({_first_line(error)})"
        ) from error
    except IndexError as error:
        raise DataError(
            f"a value of the batch is out of range for the model ({_first_line(error)})"
        ) from error
    except Exception as error:
        raise PlanError(
            f"the plan's torch step failed in torch {torch.__version__}: {_first_line(error)}"
        ) from error


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:300]


def _tensor(array: Array) -> torch.Tensor:
    """The array as a tensor, without a copy where torch can share its memory."""
    return torch.from_numpy(np.require(array, requirements=("C", "W")))


def _array(tensor: torch.Tensor) -> Array:
    array: Array = tensor.cpu().numpy()
    return array


def _figures(results: Mapping[str, torch.Tensor]) -> dict[str, float]:
    """Loss and metrics as numbers, in one transfer from the device."""
    names = [name for name in results if name == "loss" or name.startswith(_METRIC)]
    for name in names:
        if results[name].dim():
            shape = tuple(results[name].shape)
            raise PlanError(f"the plan's torch step gives {name!r:.80} of shape {shape}, no number")
    numbers = torch.stack([results[name].double() for name in names]).tolist()
    return {name.removeprefix(_METRIC): value for name, value in zip(names, numbers, strict=True)}
